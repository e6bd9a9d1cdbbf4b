"""What every request passes: who may ask, limits of bytes and time, headers, and counting."""

import asyncio
import base64
import binascii
import hmac
import time
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.service.config import AccessConfig, ServiceConfig, is_local
from utils.service.metrics import Metrics

FORM_BYTES = 1 << 16  # that a form has beside its image
HELD_IMAGES = 16  # of the largest size, that may be arriving at a time
MAX_CAMERAS = 16  # WebSockets at a time: each may hold a few frames of the largest size, for as long as it likes
OPEN_PATH = "/healthz"  # for which a watchdog needs no token
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """An ASGI application around another one. It holds at most HELD_IMAGES * max_bytes of requests that are arriving,
    and beside them the frames of at most MAX_CAMERAS WebSockets, whose size the server limits, and whose time nothing.

    Where it listens on this machine alone, and where its public names are stated, a browser may call it by the names of
    this machine and by those only, so that no page of another server reaches it under a name of its own (DNS
    rebinding).
    """

    def __init__(self, app: ASGIApp, *, config: ServiceConfig, access: AccessConfig, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._names, self._token = access.public_names, access.token
        self._any_name = not is_local(access.host) and not access.public_names
        self._seconds, self._most = config.upload_seconds, config.max_bytes + FORM_BYTES
        self._room = HELD_IMAGES * self._most  # bytes that may still arrive
        self._cameras = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "websocket":
            await self._connect_camera(scope, receive, send)
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
        refusal = self._refusal(scope, headers, length)
        held = 0 if refusal else length
        self._room -= held
        try:
            await (refusal or self._app)(scope, upload.receive, send_with_headers)
        finally:
            self._room += held
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.note(route, status, time.perf_counter() - start)

    async def _connect_camera(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope, Headers(scope=scope), 0)
        if refusal is None and self._cameras == MAX_CAMERAS:
            refusal = refuse(503, f"{MAX_CAMERAS} cameras are connected, and no more may be.")
        if refusal:
            self._metrics.note("/frames", refusal.status_code, 0.0)
            await receive()  # that it wants to connect
            await send({"type": "websocket.close"})  # which the client sees as 403, whatever the refusal
            return
        self._cameras += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._cameras -= 1

    def _announced(self, headers: Headers) -> int:
        """The bytes that a request announces; the most that it may have if it announces none."""
        if "transfer-encoding" in headers:
            return self._most
        text = headers.get("content-length", "0")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else self._most

    def _refusal(self, scope: Scope, headers: Headers, length: int) -> JSONResponse | None:
        """The answer to a request that must not reach the application."""
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _split(f"//{host}").hostname or ""
        if not (self._any_name or is_local(name) or name in self._names):
            return refuse(
                403,
                "This service answers under the names of this machine only, such as localhost, and under those of "
                "--public_name.",
            )
        is_read = scope.get("method") in ("GET", "HEAD")  # a WebSocket has none
        if origin is not None and not is_read and _split(origin).netloc != host:
            return refuse(403, "A page of another server has sent this request. Send it from here.")
        if self._token is not None and scope["path"] != OPEN_PATH:
            given = _credentials(headers.get("authorization", ""))
            if not hmac.compare_digest(given, self._token.encode()):
                return refuse(
                    401,
                    "This service needs its token: send it as the header 'Authorization: Bearer TOKEN'. A browser asks "
                    "for it: it is the password, and the name may be anything.",
                    headers={"WWW-Authenticate": 'Basic realm="SelaVPR++"'},
                )
        if length > self._most:
            return refuse(413, too_large(self._most))
        if length > self._room:
            return refuse(503, "Too many images arrive at a time. Try again in 1 s.", headers=retry_after(1))
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


def refuse(status: int, sentence: str, *, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer to a request that is refused."""
    return JSONResponse({"error": sentence}, status, headers)


def retry_after(seconds: int) -> dict[str, str]:
    """The header that says after how long a request may be sent again."""
    return {"Retry-After": str(seconds)}


def too_large(most: int) -> str:
    """What to answer to a request of more bytes."""
    return f"The request is too large. At most {most:,} bytes are read. Send a smaller image."


def _credentials(header: str) -> bytes:
    """The token of an Authorization header: that of Bearer, or the password of Basic; b"" for anything else."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    try:
        name_and_password = base64.b64decode(value, validate=True) if scheme.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        return b""
    return name_and_password.partition(b":")[2]


def _split(address: str) -> SplitResult:
    """The parts of an address; none of one that is malformed."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
