"""Errors in OpenAI's form, in addition to the problem: `error: {message, type, param, code}`.

`x-should-retry` tells the SDKs, which otherwise retry every 408, 409, 429 and 5xx by themselves,
whether a retry is safe: `true` where nothing was billed, `false` where something may have been, or
where a retry is useless.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.types import Scope

from service.core.errors import (
    Forbidden,
    IdempotencyConflict,
    InvalidRequest,
    KotaeError,
    OutOfCredit,
    ProviderBusy,
    ProviderError,
    ProviderRefused,
    ProviderRejected,
    QuotaExceeded,
    Unauthorized,
    UnknownModel,
)
from service.core.ports import QuotaWindow

PREFIX = "/v1/"
RETRY_STATUSES = (408, 409, 429)  # that the SDKs retry, and 500 and above
SOON_SECONDS = 60  # a limit that is free again within this time is a rate limit
_CODES: dict[type[KotaeError], str] = {
    Unauthorized: "invalid_api_key",
    UnknownModel: "model_not_found",
    OutOfCredit: "insufficient_quota",
}
_STATUSES: dict[type[KotaeError], int] = {
    UnknownModel: 404,
    InvalidRequest: 400,
    OutOfCredit: 429,
}
_PARAMS: dict[type[KotaeError], str] = {UnknownModel: "model"}


class ErrorResponse(NamedTuple):
    """Status, body and headers of an error."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


def is_openai_path(scope: Scope) -> bool:
    """Whether a request is for the OpenAI protocol."""
    path: str = scope["path"] + "/"
    return path.startswith(PREFIX, len(scope.get("root_path", "")))


def create_error_response(
    problem: dict[str, Any], error: KotaeError | None, *, may_be_billed: bool = False
) -> ErrorResponse:
    """Translate a problem.

    `error` None: it is one of the framework, such as an unknown route. `may_be_billed`: the error
    ended an answer that may have reached the provider.
    """
    status = _choose_status(problem["status"], error)
    body = problem | {"status": status, "error": _build_error_object(problem, error, status)}
    headers = {}
    if (should_retry := _choose_retry(error, status, may_be_billed)) is not None:
        headers["x-should-retry"] = should_retry
    if error is not None and error.retry_after_seconds is not None:
        headers["retry-after-ms"] = str(error.retry_after_seconds * 1000)
    return ErrorResponse(status, body, headers)


def build_error_event(problem: dict[str, Any], error: KotaeError) -> dict[str, Any]:
    """The payload of an error within a stream."""
    return create_error_response(problem, error).body


def create_rate_headers(windows: Sequence[QuotaWindow]) -> dict[str, str]:
    """`x-ratelimit-…` for requests and tokens: of the limit of a minute with the least left."""
    headers: dict[str, str] = {}
    for unit in ("requests", "tokens"):
        minutes = [
            window
            for window in windows
            if window.unit == unit and window.seconds is not None and window.seconds <= SOON_SECONDS
        ]
        if minutes:
            window = min(minutes, key=_count_left)
            headers |= {
                f"x-ratelimit-limit-{unit}": str(window.limit),
                f"x-ratelimit-remaining-{unit}": str(_count_left(window)),
                f"x-ratelimit-reset-{unit}": f"{window.reset_seconds or 0}s",
            }
    return headers


def _count_left(window: QuotaWindow) -> int:
    return max(0, window.limit - window.used - window.held)


def _choose_status(status: int, error: KotaeError | None) -> int:
    reported = error.reported if isinstance(error, ProviderError) else None
    if reported is not None and reported.status is not None:
        if isinstance(error, ProviderRejected) or reported.status == 429:
            return reported.status
        return 500 if reported.status == 500 else status
    if error is None:
        return 400 if status == 422 else status
    return _STATUSES.get(type(error), status)


def _build_error_object(
    problem: dict[str, Any], error: KotaeError | None, status: int
) -> dict[str, str | None]:
    message = f"{problem['title']}: {problem['detail']}"
    if problem["detail"].startswith(problem["title"]):
        message = problem["detail"]
    code = _CODES.get(type(error), problem["code"]) if error else problem["code"]
    kind = "invalid_request_error" if status < 500 else "server_error"
    param = problem.get("param")
    if param is None and error is not None:
        param = _PARAMS.get(type(error))
    if isinstance(error, QuotaExceeded):
        kind = code = "insufficient_quota" if _is_exhausted(error) else "rate_limit_exceeded"
    elif isinstance(error, OutOfCredit):
        kind = code
    elif isinstance(error, Forbidden):
        kind = "permission_error"
    elif isinstance(error, ProviderBusy):
        kind = code = "rate_limit_exceeded" if status == 429 else "server_error"
    reported = error.reported if isinstance(error, ProviderError) else None
    if reported is not None and not isinstance(error, ProviderRefused):
        message = reported.message or message
        kind, param = reported.type or kind, reported.param
        code = reported.code or code
    return {"message": message, "type": kind, "param": param, "code": code}


def _is_exhausted(error: QuotaExceeded) -> bool:
    """Whether a quota is used up, as opposed to a rate limit that is free again soon."""
    return (error.retry_after_seconds or 0) > SOON_SECONDS


def _choose_retry(error: KotaeError | None, status: int, may_be_billed: bool) -> str | None:
    """The value of `x-should-retry`; None: the SDKs do not retry this status."""
    if status < 500 and status not in RETRY_STATUSES:
        return None
    if error is None or isinstance(error, IdempotencyConflict | OutOfCredit):
        return "false"
    if isinstance(error, QuotaExceeded):
        return "false" if _is_exhausted(error) else "true"
    if isinstance(error, ProviderError):
        reported = error.reported
        if reported is not None and reported.code == "insufficient_quota":
            return "false"
        return "true" if error.certainly_unbilled else "false"
    return "true" if error.retry_after_seconds is not None and not may_be_billed else "false"
