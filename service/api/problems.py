"""Errors as the wire shows them: `application/problem+json` (RFC 9457), whatever raised them."""

from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.api.responses import json_response
from service.core.answering.streams import problem
from service.core.errors import KotaeError, QuotaExceeded, TooLarge, Unauthorized
from service.core.ports import QuotaWindow

MEDIA_TYPE = "application/problem+json"
FILE_METHODS = ("GET", "HEAD")  # of paths that no route has: files
ERRORS_MAX = 50  # of a request, in `errors`
ERROR_CHARACTERS_MAX = 200  # of the place of an error, which can contain the name of an unknown field
_INTEGER_MAX = 999_999_999_999_999
CHALLENGE = 'Bearer realm="Kotae"'  # Basic is taken, not asked for: a browser would ask in a window of its own


def install(app: FastAPI) -> None:
    """Answer every refused request with a problem. Faults of ours are answered by the middleware, outermost."""
    app.add_exception_handler(KotaeError, _kotae_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def problem_response(error: KotaeError, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """The response of an error of the tree."""
    headers = dict(headers or {})
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = CHALLENGE
    if isinstance(error, QuotaExceeded):
        headers |= quota_headers(error.windows)
    return json_response(problem(error, request_id), error.status, headers, MEDIA_TYPE)


def quota_headers(windows: Sequence[QuotaWindow]) -> dict[str, str]:
    """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11), an item for each limit; none without limits.

    Money is in whole nano-dollars, as far as an integer of a structured field (RFC 9651) reaches.
    """
    policies, states = [], []
    for window in windows:
        name, policy = _policy(window.of, window.name, window.limit, window.seconds, window.unit)
        policies.append(policy)
        left = max(0, window.limit - window.used - window.held)
        reset = f";t={window.reset_seconds}" if window.reset_seconds else ""
        states.append(f"{name};r={min(left, _INTEGER_MAX)}{reset}")
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)} if policies else {}


@lru_cache(maxsize=4096)
def _policy(of: str, limit_name: str, limit: int, seconds: int | None, unit: str) -> tuple[str, str]:
    """(the name of a limit, its item in `RateLimit-Policy`)."""
    name = f'"{of}-{limit_name.replace("_", "-")}"'
    over = f";w={seconds}" if seconds else ""
    counted = "" if unit == "requests" else f';qu="{unit}"'
    return name, f"{name};q={min(limit, _INTEGER_MAX)}{over}{counted}"


def _request_id(request: Request) -> str:
    return str(request.scope.get("request_id", ""))


async def _kotae_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KotaeError)  # noqa: S101 - what the registration above says
    return problem_response(error, _request_id(request))


async def _validation_error(request: Request, error: Exception) -> Response:
    """Say what is wrong where, and do not repeat what was sent: it may be a secret in the wrong field."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    items = error.errors()
    errors = [
        {"where": ".".join(str(part) for part in item["loc"])[:ERROR_CHARACTERS_MAX], "what": item["msg"]} for item in items[:ERRORS_MAX]
    ]
    detail = "; ".join(f"{error['where']}: {error['what']}" for error in errors[:5])
    omitted = {"errors_omitted": len(items) - ERRORS_MAX} if len(items) > ERRORS_MAX else {}
    return _plain(request, 422, "invalid_request", "The request is not valid", detail=detail, errors=errors, **omitted)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: no such route, wrong method, a body that is too large or is not JSON."""
    assert isinstance(error, HTTPException)  # noqa: S101
    if error.status_code == TooLarge.status:
        return problem_response(TooLarge(error.detail), _request_id(request))
    title = HTTPStatus(error.status_code).phrase
    response = _plain(request, error.status_code, title.lower().replace(" ", "_"), title, detail=error.detail or title)
    response.headers.update(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = ", ".join(_find_methods(request))
    return response


def _find_methods(request: Request) -> list[str]:
    """The methods of all routes that have the path of this request; the framework names those of the first one."""
    routes = [route for route in request.app.router.routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = {method for route in routes for method in getattr(route, "methods", None) or ()}
    return sorted(methods or FILE_METHODS)


def _plain(request: Request, status: int, code: str, title: str, *, detail: str, **extra: Any) -> Response:
    body = {"type": f"urn:kotae:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    return json_response(body | {"request_id": _request_id(request)} | extra, status, media_type=MEDIA_TYPE)
