"""What every request passes: limits of bytes and time, whose page may ask, headers, and counting."""

import asyncio
import ipaddress
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.service.config import ServiceConfig
from utils.service.metrics import Metrics

FORM_BYTES = 1 << 16  # that a form has beside its image
HELD_IMAGES = 16  # of the largest size, that may be arriving at a time
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """An ASGI application around another one. It holds at most HELD_IMAGES * max_bytes of requests that are arriving.

    local: the service listens on this machine alone. Then the names by which a browser may call it are those of this
    machine, so that no page of another server reaches it under a name of its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, *, config: ServiceConfig, metrics: Metrics, local: bool) -> None:
        self._app, self._metrics, self._local = app, metrics, local
        self._seconds, self._most = config.upload_seconds, config.max_bytes + FORM_BYTES
        self._room = HELD_IMAGES * self._most  # bytes that may still arrive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "websocket" and self._refusal(Headers(scope=scope), scope["type"], 0):
            await receive()  # that it wants to connect
            await send({"type": "websocket.close"})  # which the client sees as 403
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        upload = _Upload(receive, self._most, time.monotonic() + self._seconds)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        length = self._announced(headers)
        refusal = self._refusal(headers, scope["method"], length)
        held = 0 if refusal else length
        self._room -= held
        try:
            await (refusal or self._app)(scope, upload.receive, send_with_headers)
        finally:
            self._room += held
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.note(route, status, time.perf_counter() - start)

    def _announced(self, headers: Headers) -> int:
        """The bytes that a request announces; the most that it may have if it announces none."""
        if "transfer-encoding" in headers:
            return self._most
        text = headers.get("content-length", "0")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else self._most

    def _refusal(self, headers: Headers, method: str, length: int) -> JSONResponse | None:
        """The answer to a request that must not reach the application."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._local and not is_local(urlsplit(f"//{host}").hostname or ""):
            return refuse(403, "This service answers under the names of this machine only, such as localhost.")
        if origin is not None and method not in ("GET", "HEAD") and urlsplit(origin).netloc != host:
            return refuse(403, "A page of another server has sent this request. Send it from here.")
        if length > self._most:
            return refuse(413, too_large(self._most))
        if length > self._room:
            return refuse(503, "Too many images arrive at a time. Try again in 1 s.", retry_after=1)
        return None


class _Upload:
    """A request's `receive` that ends what is too large or too slow, with HTTPException."""

    def __init__(self, receive: Receive, most: int, deadline: float) -> None:
        self._receive, self._most, self._deadline = receive, most, deadline
        self._bytes, self._is_complete = 0, False

    async def receive(self) -> Message:
        if self._is_complete:
            return await self._receive()  # tells when the client goes away
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise HTTPException(408, "The request took too long to arrive. Send a smaller image.") from None
        self._bytes += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self._bytes > self._most:
            raise HTTPException(413, too_large(self._most))
        return message


def refuse(status: int, sentence: str, *, retry_after: int | None = None) -> JSONResponse:
    """The answer to a request that is refused, with the seconds after which it may be sent again."""
    headers = None if retry_after is None else {"Retry-After": str(retry_after)}
    return JSONResponse({"error": sentence}, status, headers)


def too_large(most: int) -> str:
    """What to answer to a request of more bytes."""
    return f"The request is too large. At most {most:,} bytes are read. Send a smaller image."


def is_local(host: str) -> bool:
    """Whether a host name or address is of this machine alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
