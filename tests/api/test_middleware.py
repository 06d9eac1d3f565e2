"""The middleware: request ids, hosts, body limits, headers."""

import re
from typing import Any

from service.api.pages import PAGES
from tests.conftest import Service
from tests.fakes.provider import ProviderFake
from tests.problems import is_problem

ASK = {"prompt": "Why?", "grounded": False}


async def test_body_without_length_is_counted(service: Service) -> None:
    """A chunked body is refused as soon as it exceeds the limit."""

    async def endless() -> Any:
        for _ in range(10_000):
            yield b" " * 1000

    response = await service.client.post(
        "/ai/test", content=endless(), headers={"Content-Type": "application/json"}
    )

    is_problem(response, 413, "too_large")


async def test_valid_request_id_is_used(service: Service) -> None:
    """A caller's request id is used, unless it could forge a log line."""
    mine = (
        await service.client.post("/ai/test", json=ASK, headers={"X-Request-ID": "trace-1.2_3"})
    ).json()["request_id"]
    other = (
        await service.client.post("/ai/test", json=ASK, headers={"X-Request-ID": "a b\tc"})
    ).json()["request_id"]

    assert mine == "trace-1.2_3"
    assert re.fullmatch(r"[0-9a-f-]{36}", other)


async def test_foreign_host_is_refused_on_every_route(service: Service, fake: ProviderFake) -> None:
    """A rebound DNS name is a 400 problem on every route."""
    for path in ("/", "/ai/logs", "/health/live", "/docs", "/web/app.js"):
        is_problem(
            await service.client.get(path, headers={"Host": "evil.test"}), 400, "foreign_host"
        )
    is_problem(
        await service.client.post("/ai/test", json=ASK, headers={"Origin": "http://evil.test"}),
        403,
        "foreign_origin",
    )
    assert fake.calls == []


async def test_foreign_origin_may_only_read_pages(service: Service, fake: ProviderFake) -> None:
    """Pages and static files are served to every origin, API routes and other methods are not."""
    foreign = {"Origin": "http://evil.test", "Sec-Fetch-Site": "cross-site"}
    for path in (
        "/",
        "/signin",
        *PAGES,
        "/docs",
        "/openapi.json",
        "/web/app.js",
        "/web/swagger/swagger-ui.css",
    ):
        response = await service.client.get(path, headers=foreign)
        assert response.status_code == 200
        assert "access-control-allow-origin" not in response.headers
    for method, path in (
        ("GET", "/ai/documents"),
        ("GET", "/web"),
        ("GET", "/website"),
        ("GET", "/health/ready"),
        ("GET", "/metrics"),
        ("POST", "/"),
        ("POST", "/web/app.js"),
        ("POST", "/ai/test"),
        ("DELETE", "/auth/session"),
    ):
        is_problem(
            await service.client.request(method, path, headers=foreign), 403, "foreign_origin"
        )
    assert fake.calls == []


async def test_every_response_has_its_headers(service: Service) -> None:
    """No response is cached, sniffed or framed."""
    for path in ("/", "/ai/logs", "/health/live", "/nope", "/docs"):
        headers = (await service.client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe-inline' ;" not in headers["content-security-policy"]
        assert ("no-store" in headers["cache-control"]) or ("no-cache" in headers["cache-control"])
