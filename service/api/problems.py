"""Errors as `application/problem+json` (RFC 9457)."""

from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from service.api.openai.errors import create_error_response, create_rate_headers, is_openai_path
from service.api.responses import json_response
from service.core.answering.answers import create_problem
from service.core.errors import KotaeError, QuotaExceeded, TooLarge, Unauthorized
from service.core.ports import QuotaWindow
from service.core.redaction import redact_secrets

MEDIA_TYPE = "application/problem+json"
FILE_METHODS = ("GET", "HEAD")  # of static files, which have no route
ERRORS_MAX = 50  # in `errors`
ERROR_CHARACTERS_MAX = 200  # of the location of an error, which may contain an unknown field
_MESSAGES = {"bool_parsing": "must be true or false"}  # of pydantic, which lists no values
_INTEGER_MAX = 999_999_999_999_999
# Basic is accepted but not offered: a browser would open its own login dialog.
CHALLENGE = 'Bearer realm="Kotae"'


def install_error_handlers(app: FastAPI) -> None:
    """Return a problem for every error; the middleware handles unexpected exceptions."""
    app.add_exception_handler(KotaeError, _handle_kotae_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_error)


def create_problem_response(
    error: KotaeError,
    scope: Scope,
    headers: dict[str, str] | None = None,
    *,
    may_be_billed: bool = False,
) -> Response:
    """The response for an error, on `/v1` also in OpenAI's form.

    `may_be_billed`: the answer may have reached the provider.
    """
    headers = dict(headers or {})
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = CHALLENGE
    if isinstance(error, QuotaExceeded):
        headers |= create_quota_headers(error.windows) | (
            create_rate_headers(error.windows) if is_openai_path(scope) else {}
        )
    problem = create_problem(error, str(scope.get("request_id", "")))
    return _create_response(problem, error, scope, headers, may_be_billed=may_be_billed)


def _create_response(
    problem: dict[str, Any],
    error: KotaeError | None,
    scope: Scope,
    headers: dict[str, str],
    *,
    may_be_billed: bool = False,
) -> Response:
    status = problem["status"]
    if is_openai_path(scope):
        status, problem, added = create_error_response(problem, error, may_be_billed=may_be_billed)
        headers = headers | added
    return json_response(problem, status, headers, MEDIA_TYPE)


def create_quota_headers(windows: Sequence[QuotaWindow]) -> dict[str, str]:
    """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11).

    One item per limit. Money is in nano-dollars, capped at the largest structured-field integer
    (RFC 9651).
    """
    policies, states = [], []
    for window in windows:
        name, policy = _format_policy(
            window.of, window.name, window.limit, window.seconds, window.unit
        )
        policies.append(policy)
        left = max(0, window.limit - window.used - window.held)
        reset = f";t={window.reset_seconds}" if window.reset_seconds else ""
        states.append(f"{name};r={min(left, _INTEGER_MAX)}{reset}")
    return (
        {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)}
        if policies
        else {}
    )


@lru_cache(maxsize=4096)
def _format_policy(
    of: str, limit_name: str, limit: int, seconds: int | None, unit: str
) -> tuple[str, str]:
    """Returns (name of the limit, its item in `RateLimit-Policy`)."""
    name = f'"{of}-{limit_name.replace("_", "-")}"'
    window = f";w={seconds}" if seconds else ""
    unit_parameter = "" if unit == "requests" else f';qu="{unit}"'
    return name, f"{name};q={min(limit, _INTEGER_MAX)}{window}{unit_parameter}"


async def _handle_kotae_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KotaeError)  # noqa: S101 - registered for this class
    return create_problem_response(error, request.scope)


async def _handle_validation_error(request: Request, error: Exception) -> Response:
    """List the errors without the input, which may be a secret in the wrong field."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    items = error.errors()
    errors = [
        {
            "where": ".".join(str(part) for part in item["loc"])[:ERROR_CHARACTERS_MAX],
            "what": _MESSAGES.get(item.get("type", ""), item["msg"].removeprefix("Value error, ")),
        }
        for item in items[:ERRORS_MAX]
    ]
    detail = "; ".join(f"{error['where']}: {error['what']}" for error in errors[:5])
    omitted = {"errors_omitted": len(items) - ERRORS_MAX} if len(items) > ERRORS_MAX else {}
    return _create_plain_problem(
        request,
        422,
        "invalid_request",
        "The request is not valid",
        detail=detail,
        errors=errors,
        **omitted,
    )


async def _handle_http_error(request: Request, error: Exception) -> Response:
    """Errors of the framework: unknown route, wrong method, body too large or not JSON."""
    assert isinstance(error, HTTPException)  # noqa: S101
    if error.status_code == TooLarge.status:
        return create_problem_response(TooLarge(error.detail), request.scope)
    title = HTTPStatus(error.status_code).phrase
    detail, methods = error.detail or title, ""
    if detail == title and error.status_code == HTTPStatus.NOT_FOUND:
        path = request.url.path[:ERROR_CHARACTERS_MAX]
        # A credential may be pasted into the path.
        detail = f"no route has the path {redact_secrets(path)}; GET /openapi.json lists the routes"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        methods = ", ".join(_find_methods(request))
        detail = f"this path has the methods {methods}"
    response = _create_plain_problem(
        request,
        error.status_code,
        title.lower().replace(" ", "_"),
        title,
        detail=detail,
    )
    response.headers.update(error.headers or {})
    if methods:
        response.headers["Allow"] = methods
    return response


def _find_methods(request: Request) -> list[str]:
    """The methods of all routes of a path; the framework names only those of the first route."""
    routes = [
        route
        for route in request.app.router.routes
        if route.matches(request.scope)[0] is not Match.NONE
    ]
    methods = {method for route in routes for method in getattr(route, "methods", None) or ()}
    return sorted(methods or FILE_METHODS)


def _create_plain_problem(
    request: Request, status: int, code: str, title: str, *, detail: str, **extra: Any
) -> Response:
    body = {
        "type": f"urn:kotae:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
    }
    body |= {"request_id": str(request.scope.get("request_id", ""))} | extra
    return _create_response(body, None, request.scope, {})
