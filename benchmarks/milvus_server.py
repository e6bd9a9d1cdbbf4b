"""A real Milvus server for tests and benchmarks, from the package `milvus`, that no other machine can reach.

That server listens on every interface, whatever its configuration says. So it runs in a network namespace of its own,
which has nothing but a loopback interface. A Unix socket leads out of the namespace, and a port on 127.0.0.1 to it.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

PORT = 19530  # in the namespace, where every port is free
COMPONENTS = ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode")
ISOLATED = ("unshare", "--net", *(() if hasattr(os, "getuid") and os.getuid() == 0 else ("--map-root-user",)))
BRING_LOOPBACK_UP = struct.pack("16sh", b"lo", 1)  # of linux/if.h: ifr_name, ifr_flags = IFF_UP
SIOCSIFFLAGS = 0x8914


def missing() -> str | None:
    """Why no server can be started here; None if one can."""
    for package in ("pymilvus", "milvus"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
    if not shutil.which("unshare"):
        return "the command unshare is missing"
    probe = [*ISOLATED, sys.executable, __file__]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        return "this user may not create network namespaces"
    return None


class MilvusProcess:
    """A running server with its data in `folder`, on a port of 127.0.0.1 (0: any free one). settings: of milvus.yaml,
    such as {"common.session.ttl": 5}.

    Attributes: address, such as "127.0.0.1:40123", which stays the same when the server is started again; pid.
    """

    def __init__(self, folder: Path, *, port: int = 0, **settings: object) -> None:
        self.folder, self.settings = folder, settings
        self._listener = socket.create_server(("127.0.0.1", port))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=_relay, args=(self._listener, self._connect), daemon=True).start()
        self.start()

    def start(self) -> None:
        """Starts the server, again too, and waits until it answers."""
        command = [*ISOLATED, sys.executable, __file__, str(self.folder)]
        command += [f"{name}={value}" for name, value in self.settings.items()]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # which Ctrl-C does not reach: the server ends with its standard input
        )
        assert self._process.stdout, "a pipe"
        line = self._process.stdout.readline()
        if not line.startswith("ready "):
            self._process.wait()
            raise RuntimeError(f"the Milvus server did not start; its logs are in {self.folder / 'logs'}")
        self.pid = int(line.split()[1])

    def kill(self) -> None:
        """Ends the server at once, with kill -9."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.communicate()

    def close(self) -> None:
        """Ends the server and closes its port."""
        self._process.communicate()  # its standard input ends, and so does it
        self._listener.close()

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.folder / "socket"))
        return connection


def _relay(listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
    """Joins each connection that the listener accepts with a new one."""
    while True:
        try:
            accepted, _ = listener.accept()
        except OSError:  # closed
            return
        try:
            ends = accepted, connect()
        except OSError:  # no server
            accepted.close()
            continue
        for source, target in (ends, ends[::-1]):
            threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def bring_loopback_up() -> None:
    """Within a new network namespace: makes 127.0.0.1 work."""
    import fcntl  # which Windows lacks

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, BRING_LOOPBACK_UP)


def start_server(folder: Path, settings: dict[str, str] | None = None) -> Any:
    """Within such a namespace: a running milvus.MilvusServer on PORT, with its data in `folder`."""
    from milvus import MilvusServer, MilvusServerConfig

    server = MilvusServer(MilvusServerConfig())
    server.set_base_dir(str(folder))
    for name, value in ({f"{name}.ip": "127.0.0.1" for name in COMPONENTS} | (settings or {})).items():
        server.config.set(name, value)
    server.start()
    return server


def main() -> None:
    """Within the namespace: serves until standard input ends or the server dies. Without a folder: only tries."""
    bring_loopback_up()
    if len(sys.argv) == 1:
        return
    folder = Path(sys.argv[1])
    (folder / "socket").unlink(missing_ok=True)
    server = start_server(folder, dict(text.split("=", 1) for text in sys.argv[2:]))
    try:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "socket"))
        listener.listen()
        connect = partial(socket.create_connection, ("127.0.0.1", PORT))
        threading.Thread(target=_relay, args=(listener, connect), daemon=True).start()
        threading.Thread(target=_end_with_parent, args=(server.server_proc,), daemon=True).start()
        print("ready", server.server_proc.pid, flush=True)
        server.server_proc.wait()
    finally:
        server.stop()


def _end_with_parent(process: subprocess.Popen) -> None:
    sys.stdin.read()
    process.kill()


if __name__ == "__main__":
    main()
