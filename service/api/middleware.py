"""The outermost layer: request ids, origin checks, body limits, response headers, metrics.

Pure ASGI. `BaseHTTPMiddleware` would hide disconnects from streams and is not used anywhere.

Requests from foreign origins are refused first (`core/auth/origin.py`). For the origins in
`KOTAE_ALLOWED_ORIGINS` starlette's `CORSMiddleware` answers preflights and adds the CORS headers.
It wraps everything that returns problems, so that an allowed page can read errors too. Credentials
are not allowed: such a page sends a key or a ticket, and cookies are for our own pages.
"""

import re
import time
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.pages import PAGES
from service.api.problems import create_problem_response
from service.core.auth.origin import check_origin
from service.core.encoding import create_id, utc_now
from service.core.errors import InvalidRequest, KotaeError, TooLarge
from service.core.limits import ServiceLimits
from service.core.settings import Settings
from service.core.telemetry import Metrics, log, set_request_id

# A character has up to 4 bytes, or 12 with JSON escapes; ASCII should be one byte.
BODY_BYTES = 65_536  # of any body, in addition to the following
JSON_BYTES_PER_CHARACTER = 16  # of a prompt
JSON_BYTES_PER_TEXT_BYTE = 3  # of an uploaded text
_PROMPT_PATHS = {"/ai/test", "/ai/stream", "/ai/answers", "/mcp"}
_OPENAI_PATHS = {"/v1/chat/completions", "/v1/responses", "/v1/embeddings"}
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Pages and static files, without data of users: everybody may read them.
_PUBLIC_PATHS = {"/", "/docs", "/openapi.json", "/signin", *PAGES}
_PUBLIC_FOLDER = "/web/"
_READING_METHODS = {"GET", "HEAD"}
_PEER_HEADER = b"kotae-peer"  # of requests between replicas, which have a listener of their own
_QUIET = {"/health/live", "/health/ready", "/metrics"}
# Headers of every response that does not set them.
_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
# Sent by the OpenAI SDKs.
_SDK_HEADERS = (
    "arch",
    "async",
    "helper-method",
    "lang",
    "os",
    "package-version",
    "raw-response",
    "read-timeout",
    "retry-count",
    "runtime",
    "runtime-version",
    "timeout",
)
_CORS_METHODS = ["GET", "POST", "PUT", "DELETE"]
_CORS_REQUEST_HEADERS = [
    "authorization",
    "idempotency-key",
    *(f"x-stainless-{name}" for name in _SDK_HEADERS),
    "if-none-match",
    "last-event-id",
    "mcp-method",
    "mcp-name",
    "mcp-protocol-version",
    "openai-beta",
    "openai-organization",
    "openai-project",
    "user-agent",  # of the AI SDK, in browsers that let pages set it
    "x-api-key",
    "x-request-id",
]
_CORS_RESPONSE_HEADERS = [
    "content-disposition",
    "etag",
    "idempotent-replayed",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "retry-after-ms",
    "www-authenticate",
    "x-kotae-cost",
    "x-kotae-max-tokens",
    *(
        f"x-ratelimit-{what}-{unit}"
        for what in ("limit", "remaining", "reset")
        for unit in ("requests", "tokens")
    ),
    "x-request-id",
    "x-should-retry",
]


class RequestMiddleware:
    """Wraps the application; see the module docstring."""

    def __init__(
        self, app: ASGIApp, settings: Settings, limits: ServiceLimits, metrics: Metrics
    ) -> None:
        self._app = app
        self._settings = settings
        self._limits = limits
        self._metrics = metrics
        self._admitted: ASGIApp = self._respond
        self._refusal_headers: dict[str, str] = {}
        if settings.allowed_origins:
            self._admitted = CORSMiddleware(
                self._respond,
                allow_origins=settings.allowed_origins,
                allow_methods=_CORS_METHODS,
                allow_headers=_CORS_REQUEST_HEADERS,
                expose_headers=_CORS_RESPONSE_HEADERS,
            )
            self._refusal_headers = {"Vary": "Origin"}  # like CORSMiddleware's other responses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # The first header of a name counts.
        headers = {name: value.decode("latin-1") for name, value in reversed(scope["headers"])}
        scope["kotae.headers"] = headers
        request_id_header = headers.get(b"x-request-id", "")
        request_id = scope["request_id"] = (
            request_id_header if _SAFE_ID.fullmatch(request_id_header) else create_id(utc_now())
        )
        set_request_id(request_id)
        # The server has validated the length.
        scope["kotae.content_length"] = int(headers.get(b"content-length", "0"))
        scope["kotae.content_type"] = headers.get(b"content-type", "")
        scope["kotae.status"] = 0
        root_path, path = scope["root_path"], scope["path"]
        scope["kotae.path"] = path[len(root_path) :] if root_path else path  # without the prefix
        await self._admit(scope, headers, receive, _ResponseWriter(send, scope).send)

    async def _admit(
        self, scope: Scope, headers: Mapping[bytes, str], receive: Receive, send: Send
    ) -> None:
        """Refuse foreign origins, serve other requests, and record both."""
        started, path = time.perf_counter(), scope["kotae.path"]
        try:
            if "kotae.refusal" in scope:
                raise scope.pop("kotae.refusal")  # its traceback will refer to the scope
            check_origin(
                self._settings,
                host=headers.get(b"host", ""),
                origin=headers.get(b"origin"),
                fetch_site=headers.get(b"sec-fetch-site"),
                public=scope["method"] in _READING_METHODS
                and (path in _PUBLIC_PATHS or path.startswith(_PUBLIC_FOLDER)),
            )
            if _PEER_HEADER in headers:
                raise InvalidRequest("requests between replicas are not accepted here")
            if "\0" in scope["path"]:
                raise InvalidRequest("the path contains a NUL character")
            await self._admitted(scope, receive, send)
        except KotaeError as error:  # from the server or the origin check
            await create_problem_response(error, scope, self._refusal_headers)(scope, receive, send)
        finally:
            self._record_request(scope, scope["kotae.status"], time.perf_counter() - started)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Limit the body, call the application, and turn exceptions into problems."""
        limit = self._get_body_limit(scope["kotae.path"], scope["kotae.content_type"])
        if scope["kotae.content_length"] > limit:
            await create_problem_response(
                TooLarge(f"the body is larger than {limit} bytes"), scope
            )(scope, receive, send)
            return
        try:
            await self._app(scope, _limit_body(receive, limit), send)
        except Exception:
            log.exception("request.broken", path=scope["path"])
            if scope["kotae.status"]:
                raise  # the server closes the connection, so that a cut body does not look complete
            problem = KotaeError("the log has the cause under this request id")
            await create_problem_response(problem, scope)(scope, receive, send)

    def _get_body_limit(self, path: str, content_type: str) -> int:
        settings = self._settings
        if path == "/ai/upload":
            factor = (
                self._limits.upload_files_max
                if content_type.startswith("multipart/")
                else JSON_BYTES_PER_TEXT_BYTE
            )
            return settings.upload_file_bytes_max * factor + BODY_BYTES
        if path in _PROMPT_PATHS:
            return settings.prompt_characters_max * JSON_BYTES_PER_CHARACTER + BODY_BYTES
        if path in _OPENAI_PATHS:
            return self._limits.chat_bytes_max
        return BODY_BYTES

    def _record_request(self, scope: Scope, status: int, seconds: float) -> None:
        route = str(getattr(scope.get("route"), "path", "unmatched"))
        self._metrics.requests.labels(
            scope["method"] if status != 405 else "other", route, status
        ).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if route not in _QUIET:
            log.info(
                "request.served",
                method=scope["method"],
                route=route,
                status=status,
                ms=round(seconds * 1000, 1),
            )


class _ResponseWriter:
    """Adds the default headers and stores the status in the scope.

    The scope does not refer to it, so no reference cycle keeps a request until garbage collection.
    """

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send = send
        self._scope = scope

    async def send(self, message: Message) -> None:
        """Forward one message."""
        if message["type"] == "http.response.start":
            self._scope["kotae.status"] = message["status"]
            headers = message["headers"]
            present = {name for name, _ in headers}
            if b"x-request-id" in present:
                headers = [header for header in headers if header[0] != b"x-request-id"]
            message["headers"] = [
                *headers,
                *[header for header in _HEADERS if header[0] not in present],
                (b"x-request-id", self._scope["request_id"].encode("latin-1")),
            ]
        await self._send(message)


def _limit_body(receive: Receive, limit: int) -> Receive:
    """Limit a body without Content-Length. FastAPI propagates an `HTTPException` from `receive`."""
    size = 0

    async def receive_limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise HTTPException(TooLarge.status, f"the body is larger than {limit} bytes")
        return message

    return receive_limited
