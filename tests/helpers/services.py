"""serve.py as a process on a free port, and requests to it."""

import http.client
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from helpers.processes import ROOT, Running, start_script

ASSETS = ROOT / "assets" / "try"
DATABASE, QUERIES = (sorted((ASSETS / "images" / "test" / name).iterdir()) for name in ("database", "queries"))


class Reply(NamedTuple):
    """What a service answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)


class Server(NamedTuple):
    """A service that runs."""

    running: Running
    port: int

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 60
    ) -> Reply:
        """Sends a request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())
        finally:
            connection.close()

    def search(self, image: Path, parameters: str = "") -> Reply:
        return self.ask("POST", f"/search{parameters}", image.read_bytes(), {"Content-Type": "image/jpeg"})

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        text = self.ask("GET", "/metrics").body.decode()
        return float(re.search(rf"^selavpr_{name} (\S+)$", text, re.MULTILINE)[1])

    def send(self, number: int) -> None:
        os.kill(self.running.process.pid, number)

    def wait_for(self, condition, seconds: float = 30) -> None:
        """Waits until a condition holds. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds} s; the service printed {self.running.stderr.read_text()}")
            time.sleep(0.05)


def start_server(index: Path, *flags: object, cwd: Path, prelude: str = "") -> Server:
    """Starts serve.py in a folder of its own, and waits until it listens. prelude: as of start_script."""
    folder = cwd / "server"
    folder.mkdir()
    running = start_script(
        "serve.py", f"--index={index}", "--port=0", "--device=cpu", *flags, cwd=folder, prelude=prelude
    )
    return until_open(running)


def until_open(running: Running) -> Server:
    """The service that a script starts, when it listens."""
    end = time.monotonic() + 60
    while running.process.exitcode is None and time.monotonic() < end:
        printed = running.stdout.read_text() if running.stdout.exists() else ""
        found = re.search(r"Open https?://127\.0\.0\.1:(\d+)/", printed)
        if found:
            return Server(running, int(found[1]))
        time.sleep(0.05)
    raise AssertionError(f"serve.py did not start: {running.result(1)}")


@contextmanager
def served(index: Path, *flags: object, cwd: Path, prelude: str = "") -> Iterator[Server]:
    """A service, which a stop signal ends after the block."""
    server = start_server(index, *flags, cwd=cwd, prelude=prelude)
    try:
        yield server
    finally:
        if server.running.process.exitcode is None:
            server.send(signal.SIGTERM)
        server.running.process.join(60)
        server.running.process.kill()
