"""The path prefix of a reverse proxy: which values are accepted, and what they change."""

import pytest

from tests.access import SECRET, bearer, client, make_key
from tests.conftest import Serve, Service, shared_fixture, shared_loop

ASK = {"prompt": "Why?", "grounded": False, "model": "extractive"}
INVALID = [
    "//evil.test",
    "https://evil.test",
    "https:",
    "evil.test",
    "/\\evil.test",
    "/a//evil.test",
    "/../evil",
    "/.",
    "/a/..",
    "/%2e%2e",
    "/a b",
    "/a?b",
    "/a#b",
    "/a;b",
    "/a,/b",
    '/a"b',
    "/a'b",
    "/a<b>",
    "/a\tb",
    "/é",
    "/ai",
    "/web/x",
    "/" + "a" * 200,
]


@shared_fixture
async def shared_plain(serve_shared: Serve) -> Service:
    """A service without a prefix of its own."""
    return await serve_shared()


@shared_loop
@pytest.mark.parametrize("prefix", INVALID)
async def test_invalid_prefix_is_ignored(shared_plain: Service, prefix: str) -> None:
    """A prefix that could lead elsewhere appears in no response."""
    headers = {b"X-Forwarded-Prefix": prefix.encode()}
    started = await shared_plain.client.post("/ai/answers", json=ASK, headers=headers)
    answer = f"/ai/answers/{started.json()['id']}"
    assert started.headers["location"] == answer
    assert started.json()["events_url"].startswith(f"{answer}/events?")
    document = await shared_plain.client.get("/openapi.json", headers=headers)
    assert document.json()["servers"] == [{"url": "/"}]


@shared_loop
@pytest.mark.parametrize("sent", ["/kotae", "/kotae/", "/tools/kotae-1.x_~"])
@pytest.mark.parametrize("stripped", [True, False])
async def test_prefix_of_a_trusted_proxy_is_used(
    shared_plain: Service, sent: str, stripped: bool
) -> None:
    """URLs begin with the prefix, whether or not the proxy has removed it from the request."""
    prefix, headers = sent.rstrip("/"), {"X-Forwarded-Prefix": sent}
    base = "" if stripped else prefix
    started = await shared_plain.client.post(f"{base}/ai/answers", json=ASK, headers=headers)
    assert started.status_code == 202, started.text
    assert started.json()["events_url"].startswith(f"{prefix}/ai/answers/")
    assert started.headers["location"].startswith(f"{prefix}/ai/answers/")
    document = await shared_plain.client.get(f"{base}/openapi.json", headers=headers)
    assert document.json()["servers"] == [{"url": prefix}]
    assert (await shared_plain.client.get(f"{base}/web/app.js", headers=headers)).status_code == 200
    slash = await shared_plain.client.get(f"{base}/ai/documents/", headers=headers)
    assert slash.headers["location"] == f"{shared_plain.url}{prefix}/ai/documents"


@shared_loop
async def test_repeated_prefix_header_is_ignored(shared_plain: Service) -> None:
    """Two headers are ambiguous."""
    headers = [("X-Forwarded-Prefix", "/a"), ("X-Forwarded-Prefix", "/b")]
    document = await shared_plain.client.get("/openapi.json", headers=headers)
    assert document.json()["servers"] == [{"url": "/"}]


async def test_headers_of_other_clients_are_ignored(serve: Serve) -> None:
    """Prefix and scheme are accepted from FORWARDED_ALLOW_IPS only."""
    service = await serve(auth="keys", secret=SECRET, forwarded_allow_ips=["10.0.0.0/8"])
    headers = {"X-Forwarded-Prefix": "/kotae", "X-Forwarded-Proto": "https"}
    document = await service.client.get("/openapi.json", headers=headers)
    assert document.json()["servers"] == [{"url": "/"}]
    session = await service.client.post("/auth/session", headers=headers)
    assert "Secure" not in session.headers["set-cookie"]


async def test_configured_prefix_needs_no_header(serve: Serve) -> None:
    """KOTAE_ROOT_PATH applies to every request, and a header does not replace it."""
    service = await serve(root_path="/kotae/")
    for path in ("/ai/answers", "/kotae/ai/answers"):
        started = await service.client.post(
            path, json=ASK, headers={"X-Forwarded-Prefix": "/other"}
        )
        assert started.headers["location"].startswith("/kotae/ai/answers/")
    away = await service.client.get("/kotae")
    assert (away.status_code, away.headers["location"]) == (308, "/kotae/")
    assert "<title>" in (await service.client.get("/kotae/")).text


async def test_body_limits_apply_under_a_prefix(serve: Serve) -> None:
    """The limit of an upload, not that of other bodies, applies to /kotae/ai/upload."""
    service = await serve(root_path="/kotae")
    body = {"title": "Tea", "text": "Tea is served at noon. " * 5000}
    assert (await service.client.post("/kotae/ai/upload", json=body)).status_code == 201


async def test_cookies_of_two_services_on_one_host_are_separate(serve: Serve) -> None:
    """The cookie's path is the prefix; of two cookies the first, with the longer path, counts."""
    service = await serve(auth="keys", root_path="/kotae")
    key = await make_key(service, "alice")
    async with client(service) as browser:
        signed_in = await browser.post("/kotae/auth/session", headers=bearer(key))
        cookie = signed_in.headers["set-cookie"]
        assert cookie.startswith("kotae=ks_")
        assert "Path=/kotae;" in cookie
        value = cookie.partition(";")[0]
        browser.cookies.clear()
        both = {"Cookie": f"{value}; kotae=of-the-service-at-the-root"}
        assert (await browser.get("/kotae/auth/session", headers=both)).status_code == 200
        signed_out = await browser.delete(
            "/kotae/auth/session", headers=both | {"Origin": service.url}
        )
        assert all("Path=/kotae;" in item for item in signed_out.headers.get_list("set-cookie"))
        assert (await browser.get("/kotae/auth/session", headers=both)).status_code == 401
