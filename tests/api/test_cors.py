"""Pages of other origins: those in `KOTAE_ALLOWED_ORIGINS` may read what the service answers, and no others."""

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


def words(response: httpx2.Response, name: str) -> set[str]:
    """The members of a header that is a list."""
    return {
        word.strip().lower() for word in response.headers.get(name, "").split(",") if word.strip()
    }


def told(response: httpx2.Response) -> set[str]:
    """What a response says of CORS."""
    return {name for name in response.headers if name.startswith("access-control-")}


async def test_a_preflight_of_an_allowed_origin_names_what_is_used(serve: Serve) -> None:
    """It needs no credential, and allows exactly that origin, the methods of the routes and the headers that they read."""
    service = await serve(auth="keys", allowed_origins=[APP])
    response = await service.client.options("/ai/stream", headers=PREFLIGHT)

    assert (
        response.status_code,
        response.text,
        response.headers["access-control-allow-origin"],
    ) == (200, "OK", APP)
    assert words(response, "access-control-allow-methods") == {"get", "post", "put", "delete"}
    assert {
        "authorization",
        "content-type",
        "last-event-id",
        "idempotency-key",
        "x-api-key",
    } <= words(response, "access-control-allow-headers")
    assert "origin" in words(response, "vary")
    assert "access-control-allow-credentials" not in response.headers
    assert response.headers["x-request-id"]


async def test_an_allowed_origin_reads_answers_streams_and_problems(
    serve: Serve, fake: ProviderFake
) -> None:
    """Every response says that it may be read, a refusal too, and which of its headers."""
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
        assert "origin" in words(response, "vary")
        assert {"x-request-id", "retry-after", "etag", "ratelimit"} <= words(
            response, "access-control-expose-headers"
        )
        assert "access-control-allow-credentials" not in response.headers
    assert "accept" in words(logs, "vary")


@shared_fixture
async def shared_with_origin(serve_shared: Serve) -> Service:
    """A service that allows one other origin."""
    return await serve_shared(allowed_origins=[APP])


@shared_loop
@pytest.mark.parametrize("origin", REFUSED)
async def test_another_origin_is_refused_and_told_nothing(
    shared_with_origin: Service, origin: str
) -> None:
    """Neither its preflight nor its request is served, and no header lets its page read the refusal."""
    preflight = await shared_with_origin.client.options(
        "/ai/test", headers=PREFLIGHT | {"Origin": origin}
    )
    request = await shared_with_origin.client.post("/ai/test", json=ASK, headers={"Origin": origin})
    for response in (preflight, request):
        is_problem(response, 403, "foreign_origin")
        assert told(response) == set()
        assert "origin" in words(response, "vary")
    assert await shared_with_origin.rows() == []  # nothing was answered


async def test_without_the_setting_nothing_is_said(service: Service) -> None:
    """A service that allows no origin says nothing of origins, and has no route for OPTIONS."""
    own = await service.client.get("/ai/logs", headers={"Origin": service.url})
    options = await service.client.options(
        "/ai/test", headers={"Access-Control-Request-Method": "POST"}
    )
    assert (own.status_code, options.status_code) == (200, 405)
    for response in (own, options):
        assert told(response) == set()
        assert "origin" not in words(response, "vary")


async def test_an_allowed_page_uses_a_key_and_never_the_cookie(serve: Serve) -> None:
    """A session is for our own pages: of a neighbour on the same site that is allowed, the browser sends the cookie in vain."""
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
def test_a_session_is_not_for_pages_of_other_origins(fetch_site: str) -> None:
    """Whatever the method."""
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
def test_what_is_no_origin_is_refused_at_the_start(wrong: str) -> None:
    """A wildcard or a path would never match, and whoever wrote it should know."""
    with pytest.raises(SettingsInvalid, match="KOTAE_ALLOWED_ORIGINS"):
        load_settings(allowed_origins=[wrong])
