"""The HTTP client of the commands."""

import httpx2
import pytest

from service.cli.client import open_client, raise_for_problem, service_url, summarize
from service.core.errors import KotaeError
from service.core.settings import Settings


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
    ],
)
def test_a_service_that_listens_everywhere_is_reached_on_loopback(host: str, url: str) -> None:
    """The address of a configured service; IPv6 addresses are in brackets."""
    assert service_url(Settings.model_construct(host=host), 8000) == url


def test_the_api_key_precedes_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests carry KOTAE_API_KEY, without one KOTAE_SECRET."""
    for name, value in {"KOTAE_AUTH": "keys", "KOTAE_SECRET": "s" * 40}.items():
        monkeypatch.setenv(name, value)
    with open_client("http://127.0.0.1:9") as client:
        assert client.headers["authorization"] == f"Bearer {'s' * 40}"
    monkeypatch.setenv("KOTAE_API_KEY", "kt_key")
    with open_client("http://127.0.0.1:9") as client:
        assert client.headers["authorization"] == "Bearer kt_key"


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (
            httpx2.Response(404, json={"title": "Not found", "detail": "no such key"}),
            "Not found: no such key",
        ),
        (httpx2.Response(502, text="<html>"), "Bad Gateway: 502"),
    ],
    ids=["problem", "HTML of a proxy"],
)
def test_an_error_status_is_one_line(response: httpx2.Response, message: str) -> None:
    """Title and detail of a problem; of any other body the status."""
    with pytest.raises(KotaeError) as caught:
        raise_for_problem(response)

    assert caught.value.detail == message


def test_an_unknown_cost_is_not_zero() -> None:
    """The summary of an answer distinguishes unknown tokens and cost from none."""
    answer = {
        "model": "m",
        "status": "timeout",
        "total_tokens": None,
        "estimated_cost": None,
        "usage_source": "unknown",
        "response_time_ms": 9,
    }

    assert summarize(answer) == "m  timeout  ? tokens  unknown cost  9 ms"
