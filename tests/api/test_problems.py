"""Errors as `application/problem+json`, and the headers of limits."""

from typing import Any

import pytest

from service.api.problems import create_quota_headers
from tests.conftest import Service, shared_loop
from tests.core.quota.test_local import create_quota, user
from tests.fakes.provider import ProviderFake
from tests.problems import is_problem

ASK = {"prompt": "Why?", "grounded": False}


@shared_loop
@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code"),
    [
        ("GET", "/nope", {}, 404, "not_found"),
        ("PUT", "/ai/test", {}, 405, "method_not_allowed"),
        ("POST", "/ai/test", {"content": b"{"}, 422, "invalid_request"),
        ("POST", "/ai/test", {"json": {}}, 422, "invalid_request"),
        ("POST", "/ai/test", {"json": {"prompt": "  \n"}}, 422, "invalid_request"),
        ("POST", "/ai/test", {"json": ASK | {"api_base": "x"}}, 422, "invalid_request"),
        ("POST", "/ai/test", {"json": ASK | {"temperature": 3}}, 422, "invalid_request"),
        ("POST", "/ai/test", {"json": ASK | {"prompt": "x" * 20_001}}, 413, "too_large"),
        ("POST", "/ai/test", {"json": ASK | {"max_tokens": 10_000}}, 413, "too_large"),
        ("POST", "/ai/test", {"content": b"x" * 500_000}, 413, "too_large"),
        ("POST", "/ai/stream", {"json": {}}, 422, "invalid_request"),
        ("GET", "/ai/stream", {}, 422, "invalid_request"),
        ("GET", "/ai/documents/x", {}, 404, "not_found"),
        ("DELETE", "/ai/documents/x", {}, 404, "not_found"),
        ("GET", "/ai/logs?since=yesterday", {}, 422, "invalid_request"),
        ("POST", "/ai/upload", {"content": b"x"}, 422, "invalid_request"),
        ("POST", "/ai/upload", {"json": {"text": " "}}, 422, "invalid_request"),
    ],
)  # fmt: skip
async def test_every_refusal_is_a_problem(
    shared_service: Service,
    shared_fake: ProviderFake,
    method: str,
    path: str,
    sent: dict[str, Any],
    status: int,
    code: str,
) -> None:
    """Every refusal is application/problem+json with its code, and no provider is called."""
    if "content" in sent and path != "/ai/upload":
        sent = sent | {"headers": {"Content-Type": "application/json"}}

    is_problem(await shared_service.client.request(method, path, **sent), status, code)
    assert shared_fake.calls == []


@shared_loop
async def test_validation_problem_does_not_repeat_the_input(shared_service: Service) -> None:
    """A validation problem names place and reason without repeating the input."""
    response = await shared_service.client.post("/ai/test", json=ASK | {"max_tokens": "hunter2"})

    assert is_problem(response, 422, "invalid_request")["errors"][0]["where"] == "body.max_tokens"
    assert "hunter2" not in response.text


async def test_internal_error_does_not_reveal_its_cause(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is a 500 problem that reveals only the request id."""

    async def broken(*_: Any) -> None:
        raise RuntimeError("the secret is hunter2")

    monkeypatch.setattr(type(service.services.answers), "answer", broken)
    response = await service.client.post("/ai/test", json=ASK)

    is_problem(response, 500, "internal")
    assert "hunter2" not in response.text


def test_headers_are_structured_fields() -> None:
    """`RateLimit-Policy` and `RateLimit` have one item per limit."""
    book = create_quota()
    headers = create_quota_headers(
        book.windows(
            user(
                requests_per_minute=60,
                tokens_per_day=1000,
                cost_nano_usd_per_month=10**18,
                concurrent=2,
            )
        )
    )

    assert headers["RateLimit-Policy"] == (
        '"user-requests-per-minute";q=60;w=60, "user-tokens-per-day";q=1000;w=86400;qu="tokens", '
        '"user-cost-usd-per-month";q=999999999999999;w=2678400;qu="nano-usd", '
        '"user-concurrent";q=2;qu="concurrent-requests"'
    )
    assert headers["RateLimit"] == (
        '"user-requests-per-minute";r=60;t=55, "user-tokens-per-day";r=1000;t=43195, '
        '"user-cost-usd-per-month";r=999999999999999;t=43195, "user-concurrent";r=2'
    )
    assert create_quota_headers(book.windows(user())) == {}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/ai/documents/x", "DELETE, GET, PATCH"),
        ("PUT", "/ai/documents/x", "DELETE, GET, PATCH"),
        ("PUT", "/ai/stream", "GET, POST"),
        ("PATCH", "/ai/users/x/quota", "GET, PUT"),
        ("DELETE", "/ai/test", "POST"),
        ("POST", "/web/app.js", "GET, HEAD"),
    ],
)
async def test_allow_lists_all_methods_of_the_path(
    service: Service, method: str, path: str, allowed: str
) -> None:
    """A method that a path does not have is refused with those that it has, of all its routes."""
    response = await service.client.request(method, path)

    assert (response.status_code, response.headers["allow"]) == (405, allowed)
