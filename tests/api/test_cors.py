"""CORS: only pages of `KOTAE_ALLOWED_ORIGINS` may read responses."""

import httpx2
import pytest

from service.core.auth.origin import check_csrf
from service.core.errors import ForeignOrigin, SettingsInvalid
from service.core.settings import load_settings
from tests.access import bearer, client, make_key
from tests.api.test_middleware import ASK
from tests.conftest import Serve, Service, shared_fixture, shared_loop
from tests.fakes.provider import ProviderFake
from tests.problems import is_problem
from tests.sse import collect, text_of

APP = "https://app.example"
PREFLIGHT = {
    "Origin": APP,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}
REFUSED = [
    "https://evil.example",
    "null",
    "http://app.example",
    "https://app.example:8443",
    "https://app.example.evil.test",
    "*",
]


def list_members(response: httpx2.Response, name: str) -> set[str]:
    """The members of a list header."""
    return {
        word.strip().lower() for word in response.headers.get(name, "").split(",") if word.strip()
    }


def cors_headers(response: httpx2.Response) -> set[str]:
    """The names of the CORS headers of a response."""
    return {name for name in response.headers if name.startswith("access-control-")}


async def test_preflight_of_an_allowed_origin_lists_methods_and_headers(serve: Serve) -> None:
    """A preflight needs no credential and allows that origin and the used methods and headers."""
    service = await serve(auth="keys", allowed_origins=[APP])
    response = await service.client.options("/ai/stream", headers=PREFLIGHT)

    assert (
        response.status_code,
        response.text,
        response.headers["access-control-allow-origin"],
    ) == (200, "OK", APP)
    assert list_members(response, "access-control-allow-methods") == {
        "get",
        "post",
        "put",
        "delete",
    }
    assert {
        "authorization",
        "content-type",
        "last-event-id",
        "idempotency-key",
        "x-api-key",
        "x-stainless-retry-count",
        "openai-project",
        "mcp-protocol-version",
    } <= list_members(response, "access-control-allow-headers")
    assert "origin" in list_members(response, "vary")
    assert "access-control-allow-credentials" not in response.headers
    assert response.headers["x-request-id"]


async def test_allowed_origin_reads_answers_streams_and_problems(
    serve: Serve, fake: ProviderFake
) -> None:
    """Every response, refusals included, may be read by an allowed page."""
    shared = await serve(
        openai_base_url=fake.base_url, model="m", allowed_origins=["https://other.example", APP]
    )
    page = {"Origin": APP, "Sec-Fetch-Site": "cross-site"}
    answer = await shared.client.post("/ai/test", json=ASK, headers=page)
    async with shared.client.stream("POST", "/ai/stream", json=ASK, headers=page) as stream:
        assert text_of(await collect(stream)) == answer.json()["response"] != ""
    wrong = await shared.client.post("/ai/test", json={}, headers=page)
    large = await shared.client.post("/ai/test", content=b"x" * 500_000, headers=page)
    logs = await shared.client.get("/ai/logs", headers=page)

    is_problem(wrong, 422, "invalid_request")
    is_problem(large, 413, "too_large")
    for response in (answer, stream, wrong, large, logs):
        assert response.headers["access-control-allow-origin"] == APP
        assert "origin" in list_members(response, "vary")
        assert {
            "x-request-id",
            "retry-after",
            "etag",
            "ratelimit",
            "x-ratelimit-remaining-tokens",
        } <= list_members(response, "access-control-expose-headers")
        assert "access-control-allow-credentials" not in response.headers
    assert "accept" in list_members(logs, "vary")


@shared_fixture
async def shared_with_origin(serve_shared: Serve) -> Service:
    """A service that allows one other origin."""
    return await serve_shared(allowed_origins=[APP])


@shared_loop
@pytest.mark.parametrize("origin", REFUSED)
async def test_other_origins_are_refused_without_cors_headers(
    shared_with_origin: Service, origin: str
) -> None:
    """Neither preflight nor request of another origin is served, and no header allows reading."""
    preflight = await shared_with_origin.client.options(
        "/ai/test", headers=PREFLIGHT | {"Origin": origin}
    )
    request = await shared_with_origin.client.post("/ai/test", json=ASK, headers={"Origin": origin})
    for response in (preflight, request):
        is_problem(response, 403, "foreign_origin")
        assert cors_headers(response) == set()
        assert "origin" in list_members(response, "vary")
    assert await shared_with_origin.rows() == []  # nothing was answered


async def test_without_allowed_origins_there_are_no_cors_headers(service: Service) -> None:
    """A service without allowed origins sends no CORS headers and has no OPTIONS route."""
    same_origin = await service.client.get("/ai/logs", headers={"Origin": service.url})
    options = await service.client.options(
        "/ai/test", headers={"Access-Control-Request-Method": "POST"}
    )
    assert (same_origin.status_code, options.status_code) == (200, 405)
    for response in (same_origin, options):
        assert cors_headers(response) == set()
        assert "origin" not in list_members(response, "vary")


async def test_allowed_page_cannot_use_the_session_cookie(serve: Serve) -> None:
    """Session cookies are for our own pages, not for an allowed page on the same site."""
    service = await serve(auth="keys", allowed_origins=[APP])
    key = await make_key(service, "alice")
    page = {"Origin": APP, "Sec-Fetch-Site": "same-site"}
    async with client(service) as browser:
        assert (await browser.post("/auth/session", headers=bearer(key))).status_code == 200
        assert (await browser.get("/ai/logs")).status_code == 200
        is_problem(await browser.get("/ai/logs", headers=page), 403, "foreign_origin")
    async with client(service, key) as caller:
        assert (await caller.get("/ai/logs", headers=page)).status_code == 200


@pytest.mark.parametrize("fetch_site", ["cross-site", "same-site"])
def test_session_is_not_for_pages_of_other_origins(fetch_site: str) -> None:
    """A session is refused for pages of other sites, whatever the method."""
    for method in ("GET", "POST", "DELETE"):
        with pytest.raises(ForeignOrigin):
            check_csrf(method=method, origin=APP, fetch_site=fetch_site, accept="*/*")


@pytest.mark.parametrize(
    "wrong",
    [
        "*",
        "https://*.example",
        "https://app.example/",
        "app.example",
        "null",
        "https://app.example, https://b",
    ],
)
def test_invalid_origin_is_refused_at_startup(wrong: str) -> None:
    """Wildcards and paths would never match, so they are refused at startup."""
    with pytest.raises(SettingsInvalid, match="KOTAE_ALLOWED_ORIGINS"):
        load_settings(allowed_origins=[wrong])
