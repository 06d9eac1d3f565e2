"""The outermost layer of a request: its id, its source, the size of its body, its headers, its account.

Pure ASGI. `BaseHTTPMiddleware` would hide the client's disconnect from the streams behind it: it is not used anywhere.

Cross-origin requests (the CORS protocol of the Fetch standard): a page of an origin in `KOTAE_ALLOWED_ORIGINS` may read every
response, errors too, and is told so by its own name, never by `*`; its preflights are answered here. `Allow-Credentials` is
never said: such a page brings a key or a ticket, and cookies are for our own pages.
"""

import re
import time
from collections.abc import Mapping, Sequence

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import problem_response
from service.core.auth.origin import check_source
from service.core.encoding import new_id, now
from service.core.errors import KotaeError, TooLarge
from service.core.settings import Settings
from service.core.telemetry import Metrics, log, set_request_id

JSON_BYTES_MAX = 16  # bytes of body per character of prompt or text: JSON may write one as twelve
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PAGES = {"/", "/docs", "/signin"}
_QUIET = {"/health/live", "/health/ready", "/metrics"}
# What every response has, unless it says otherwise itself.
_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
    "Access-Control-Allow-Headers": "accept, authorization, content-type, idempotency-key, if-none-match, last-event-id, x-api-key, "
    "x-request-id",
    "Access-Control-Max-Age": "600",
}
_EXPOSED = (
    b"access-control-expose-headers",
    b"content-disposition, etag, idempotent-replayed, ratelimit, ratelimit-policy, retry-after, www-authenticate, x-request-id",
)


class Edge:
    """Wraps the application; see the module."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        # What a response says may depend on who asks: caches must know, also of those that were asked by nobody's page.
        self._headers = [*_HEADERS, *([(b"vary", b"Origin")] if settings.allowed_origins else [])]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in reversed(scope["headers"])}  # the first of a name counts
        given = headers.get(b"x-request-id", "")
        request_id = scope["request_id"] = given if _SAFE_ID.fullmatch(given) else new_id(now())
        set_request_id(request_id)
        await self._serve(scope, headers, receive, _Reply(send, request_id, self._headers))

    async def _serve(self, scope: Scope, headers: Mapping[bytes, str], receive: Receive, reply: "_Reply") -> None:
        request_id, started = scope["request_id"], time.perf_counter()
        try:
            origin = headers.get(b"origin")
            check_source(
                self._settings,
                host=headers.get(b"host", ""),
                origin=origin,
                fetch_site=headers.get(b"sec-fetch-site"),
                page=scope["path"] in _PAGES and headers.get(b"sec-fetch-mode") == "navigate",
            )
            if origin in self._settings.allowed_origins:
                reply.share_with(origin)
                if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                    await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, reply.send)
                    return
            limit = self._body_limit(scope["path"])
            _check_length(headers.get(b"content-length", "0"), limit)
            await self._app(scope, _limited(receive, limit), reply.send)
        except KotaeError as error:
            await problem_response(error, request_id)(scope, receive, reply.send)
        except Exception:
            log.exception("request.broken", path=scope["path"])
            if reply.status:
                raise  # the server closes the connection: a cut body must not look like a whole one
            await problem_response(KotaeError("the request id finds the cause in the log"), request_id)(scope, receive, reply.send)
        finally:
            self._account(scope, reply.status, time.perf_counter() - started)

    def _body_limit(self, path: str) -> int:
        settings = self._settings
        if path == "/ai/upload":
            return settings.upload_file_bytes_max * settings.upload_files_max + 65_536
        return settings.prompt_characters_max * JSON_BYTES_MAX + 65_536

    def _account(self, scope: Scope, status: int, seconds: float) -> None:
        route = str(getattr(scope.get("route"), "path", "unmatched"))
        self._metrics.requests.labels(scope["method"] if status != 405 else "other", route, status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if route not in _QUIET:
            log.info("request.served", method=scope["method"], route=route, status=status, ms=round(seconds * 1000, 1))


class _Reply:
    """Sends on, adds the headers that every response has, and remembers the status."""

    def __init__(self, send: Send, request_id: str, always: Sequence[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._request_id = request_id
        self._always = always
        self.status = 0

    def share_with(self, origin: str) -> None:
        """Let a page of this origin read the response."""
        self._always = [*self._always, (b"access-control-allow-origin", origin.encode("latin-1")), _EXPOSED]

    async def send(self, message: Message) -> None:
        """Send one message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [header for header in message["headers"] if header[0].lower() != b"x-request-id"]
            there = {name.lower() for name, _ in headers}
            headers += [header for header in self._always if header[0] not in there or header[0] == b"vary"]
            message["headers"] = [*headers, (b"x-request-id", self._request_id.encode("latin-1"))]
        await self._send(message)


def _check_length(length: str, limit: int) -> None:
    """Refuse a body that says it is too large before it is read. The server has checked that it is a number."""
    if int(length) > limit:
        raise TooLarge(f"the body is larger than {limit} bytes")


def _limited(receive: Receive, limit: int) -> Receive:
    """Counts a body that does not say its length; FastAPI lets an `HTTPException` through where it reads one."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise HTTPException(TooLarge.status, f"the body is larger than {limit} bytes")
        return message

    return counted
