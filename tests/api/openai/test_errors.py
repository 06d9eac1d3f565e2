"""Errors of the OpenAI protocol."""

from typing import Any

import pytest

from service.api.openai.errors import create_error_response, create_rate_headers, is_openai_path
from service.core.answering.answers import create_problem
from service.core.errors import (
    IdempotencyConflict,
    KotaeError,
    OutOfCredit,
    Overloaded,
    ProviderBusy,
    ProviderCut,
    ProviderError,
    ProviderTimeout,
    ProviderUnreachable,
    QuotaExceeded,
    ReportedError,
    ShuttingDown,
)
from service.core.ports import QuotaWindow
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake
from tests.openai_clients import QUESTION

ASK: dict[str, Any] = {"model": "fake-model", "messages": QUESTION}


def get_retry(error: KotaeError, *, may_be_billed: bool = False) -> str | None:
    """The value of x-should-retry."""
    problem = create_problem(error, "r1")
    return create_error_response(problem, error, may_be_billed=may_be_billed).headers.get(
        "x-should-retry"
    )


def report(error: ProviderError, status: int, **members: str) -> ProviderError:
    """The error as reported by the provider."""
    fields = dict.fromkeys(("message", "type", "param", "code"))
    error.reported = ReportedError(status=status, **(fields | members))
    return error


@pytest.mark.parametrize(
    ("error", "value"),
    [
        (Overloaded("x"), "true"),
        (ShuttingDown("x"), "true"),
        (ProviderUnreachable("x"), "true"),
        (ProviderBusy("x"), "true"),
        (report(ProviderError("x"), 500, message="sorry"), "true"),
        (QuotaExceeded("x", retry_after_seconds=5), "true"),
        (QuotaExceeded("x", retry_after_seconds=50_000), "false"),
        (report(ProviderBusy("x"), 429, code="insufficient_quota"), "false"),
        (report(ProviderError("x"), 500), "false"),
        (report(ProviderError("x"), 502, message="bad gateway"), "false"),
        (ProviderCut("x"), "false"),
        (ProviderTimeout("x"), "false"),
        (IdempotencyConflict("x"), "false"),
        (OutOfCredit("x"), "false"),
        (KotaeError("x"), "false"),
    ],
)
def test_only_what_was_not_billed_should_be_retried(error: KotaeError, value: str) -> None:
    """x-should-retry is true where nothing was billed, and false where something may have been."""
    assert get_retry(error) == value


def test_a_lack_of_credit_is_an_exhausted_quota() -> None:
    """Clients know the code of OpenAI, and its status; the problem has ours."""
    error = OutOfCredit("top up")
    response = create_error_response(create_problem(error, "r1"), error)
    assert (response.status, response.body["code"]) == (429, "out_of_credit")
    expected = {"type": "insufficient_quota", "code": "insufficient_quota", "param": None}
    assert response.body["error"] == {"message": "Out of credit: top up"} | expected


def test_an_interrupted_answer_is_not_retried() -> None:
    """It was sent to the provider before the process stopped."""
    assert get_retry(ShuttingDown("x"), may_be_billed=True) == "false"


@pytest.mark.parametrize(
    ("status", "code", "kotae_code"),
    [
        (400, "context_length_exceeded", "provider_rejected"),
        (429, "insufficient_quota", "provider_busy"),
        (404, "model_not_found", "provider_rejected"),
        (500, "server_error", "provider_error"),
    ],
)
async def test_reported_errors_keep_status_and_code(
    service: Service, fake: ProviderFake, status: int, code: str, kotae_code: str
) -> None:
    """The body has the problem of Kotae and the error of the provider."""
    reported = {"message": "Sorry.", "type": "some_type", "param": None, "code": code}
    fake.default = Behaviour(status=status, error=reported)

    response = await service.client.post("/v1/chat/completions", json=ASK)

    body = response.json()
    assert response.status_code == body["status"] == status
    assert body["error"] == reported
    assert body["code"] == kotae_code
    assert body["request_id"] == response.headers["x-request-id"]
    assert (await service.row())["id"] == body["answer_id"]


async def test_an_unknown_model_is_not_found(serve: Serve) -> None:
    """404 with OpenAI's code, where Kotae's own routes answer 400."""
    service = await serve()
    response = await service.client.post("/v1/chat/completions", json=ASK)

    assert response.status_code == 404
    assert response.json()["error"] | {"message": ""} == {
        "message": "",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405),
     ("POST", "/v1/models", 405), ("POST", "/v1/", 404), ("GET", "/v1", 404)],
)  # fmt: skip
async def test_unknown_routes_have_the_error(
    service: Service, method: str, path: str, status: int
) -> None:
    """Errors of the framework are in OpenAI's form too, with the path or the methods it has."""
    response = await service.client.request(method, path)

    error = response.json()["error"]
    assert response.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert (path if status == 404 else response.headers["allow"]) in error["message"]


async def test_other_routes_have_problems_only(service: Service) -> None:
    """`error` is a member on /v1 only."""
    response = await service.client.get("/ai/nothing")

    assert "error" not in response.json()


@pytest.mark.parametrize(
    ("path", "root_path", "expected"),
    [("/v1/models", "", True), ("/kotae/v1/models", "/kotae", True), ("/ai/v1/x", "", False)],
)
def test_the_prefix_of_a_proxy_is_skipped(path: str, root_path: str, *, expected: bool) -> None:
    """The protocol is recognized under a path, too."""
    assert is_openai_path({"path": path, "root_path": root_path}) is expected


def test_rate_headers_show_the_tightest_minute() -> None:
    """Of the limits of user and key, the one with the least left."""
    windows = [
        QuotaWindow(
            name="requests_per_minute", of=of, unit="requests", limit=limit, used=1, held=1,
            seconds=60, reset_seconds=9,
        )
        for of, limit in (("user", 10), ("key", 5))
    ]  # fmt: skip

    assert create_rate_headers(windows) == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": "9s",
    }
