"""The process that serves: one server, which finishes what it has accepted when a stop signal arrives."""

import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from model import InputError
from utils.runtime.signals import stop_signals

MAX_CONNECTIONS = 512  # beyond which they are answered with 503
STOP_SECONDS = 30  # for the requests that are in progress when a stop signal arrives


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError if the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise InputError(
            f"Cannot listen on {host}, port {port}: {error.strerror or error}. Choose another --port or --host."
        ) from error
    # Connections inherit it. Otherwise an answer's second packet waits 40 ms for the client to acknowledge the first.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def run(app: ASGIApp, listening: socket.socket, *, max_bytes: int) -> None:
    """Serves until a stop signal arrives, and then answers the requests that have arrived by then. max_bytes: of a
    message on a WebSocket.
    """
    config = uvicorn.Config(
        app,
        ws_max_size=max_bytes,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of each connection that it refuses
    stop_signals.defer()
    _Server(config).run(sockets=[listening])
    with stop_signals.interruptible():
        pass  # ends the script as any other that was stopped


class _Server(uvicorn.Server):
    """A server that ends when the project's handler has received a stop signal, in place of handlers of its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> Any:
        self.should_exit = self.should_exit or stop_signals.received is not None
        return await super().on_tick(counter)
