"""A real Milvus server for tests, from the package `milvus`, that no other machine can reach.

That server listens on every interface, whatever its configuration says. So it runs in a network namespace of its own,
which has nothing but a loopback interface. A Unix socket leads out of the namespace, and a port on 127.0.0.1 to it.
"""

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

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
    """A running server with its data in `folder`. settings: of milvus.yaml, such as {"common.session.ttl": 5}.

    Attributes: address, such as "127.0.0.1:40123", which stays the same when the server is started again; pid.
    """

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder, self.settings = folder, settings
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=_relay, args=(self._listener, self._connect), daemon=True).start()
        self.start()

    def start(self) -> None:
        """Starts the server, again too, and waits until it answers."""
        command = [*ISOLATED, sys.executable, __file__, str(self.folder)]
        command += [f"{name}={value}" for name, value in self.settings.items()]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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


def _relay(listener: socket.socket, connect) -> None:
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


def main() -> None:
    """Within the namespace: serves until standard input ends or the server dies. Without a folder: only tries."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, BRING_LOOPBACK_UP)
    if len(sys.argv) == 1:
        return
    from milvus import MilvusServer, MilvusServerConfig

    folder = Path(sys.argv[1])
    (folder / "socket").unlink(missing_ok=True)
    server = MilvusServer(MilvusServerConfig())
    server.set_base_dir(str(folder))
    settings = {f"{name}.ip": "127.0.0.1" for name in COMPONENTS} | dict(text.split("=", 1) for text in sys.argv[2:])
    for name, value in settings.items():
        server.config.set(name, value)
    server.start()
    try:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "socket"))
        listener.listen()
        connect = lambda: socket.create_connection(("127.0.0.1", PORT))  # noqa: E731
        threading.Thread(target=_relay, args=(listener, connect), daemon=True).start()
        threading.Thread(target=lambda: (sys.stdin.read(), server.server_proc.kill()), daemon=True).start()
        print("ready", server.server_proc.pid, flush=True)
        server.server_proc.wait()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
