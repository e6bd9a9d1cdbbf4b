"""The process that serves: one server, which finishes what it has accepted when a stop signal arrives."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from model import InputError
from utils.runtime.signals import stop_signals
from utils.service.config import AccessConfig, ServiceConfig

MAX_CONNECTIONS = 512  # beyond which they are answered with 503
STOP_SECONDS = 30  # for the requests that are in progress when a stop signal arrives


def listen(access: AccessConfig) -> socket.socket:
    """A socket that listens. Raises InputError if the address cannot be had, or the certificate cannot be used."""
    if access.tls_cert:
        _require_certificate(access)
    host, port = access.host, access.port
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


def run(app: ASGIApp, listening: socket.socket, service: ServiceConfig, access: AccessConfig) -> None:
    """Serves until a stop signal arrives, and then answers the requests that have arrived by then."""
    connection: Any = partial(_Connection, header_seconds=service.upload_seconds)
    config = uvicorn.Config(
        app,
        http=connection,
        ws_max_size=service.max_bytes,
        ws_max_queue=1,  # frames of a camera that wait for the service to take them, which it does at once
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=STOP_SECONDS,
        ssl_certfile=access.tls_cert,
        ssl_keyfile=access.tls_key,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of each connection that it refuses
    stop_signals.defer("Stopping after the requests that have arrived. Press Ctrl-C again to stop at once.")
    _Server(config).run(sockets=[listening])
    with stop_signals.interruptible():
        pass  # ends the script as any other that was stopped


def _require_certificate(access: AccessConfig) -> None:
    assert access.tls_cert and access.tls_key, "AccessConfig has both or none"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(access.tls_cert, access.tls_key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InputError(
            f"The certificate {access.tls_cert} with the key {access.tls_key} cannot be used: {error}. Expected PEM "
            "files that belong together, and a key without a password."
        ) from error


class _Server(uvicorn.Server):
    """A server that ends when the project's handler has received a stop signal, in place of handlers of its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> Any:
        self.should_exit = self.should_exit or stop_signals.received is not None
        return await super().on_tick(counter)


class _Connection(H11Protocol):
    """A connection that is closed if the headers of a request do not arrive within header_seconds: otherwise clients
    that send a byte now and then could hold all that there are.
    """

    def __init__(self, *args: Any, header_seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._header_seconds = header_seconds
        self._closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for headers."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Waits for the rest of the headers, if some have arrived."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._closing is None:
            self._closing = self.loop.call_later(self._header_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
