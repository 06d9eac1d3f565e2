"""nginx and Caddy with the configurations in deploy/, at the root and under a path."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx2
import pytest

from tests.access import bearer, make_key
from tests.conftest import Serve, Service, http_client
from tests.fakes.provider import Behaviour, Ending, ProviderFake, default_text
from tests.problems import is_problem
from tests.proxies import PREFIX, caddy, caddy_prefix, nginx, nginx_prefix
from tests.sse import collect, events, text_of

pytestmark = pytest.mark.slow

PROXIES = {
    "nginx": nginx,
    "nginx-prefix": nginx_prefix,
    "caddy": caddy,
    "caddy-prefix": caddy_prefix,
}
ASK = {"prompt": "Why?", "grounded": False}


@dataclass(frozen=True)
class ProxiedService:
    """A service with KOTAE_AUTH=keys, and a client with a key behind the proxy."""

    service: Service
    url: str
    client: httpx2.AsyncClient
    folder: Path

    @property
    def prefix(self) -> str:
        """The path under which the proxy serves the service."""
        return PREFIX if self.url.endswith(PREFIX) else ""

    def resolve(self, path: str) -> str:
        """The URL of a link in a response."""
        return urljoin(self.url, path)


@pytest.fixture(params=PROXIES)
async def proxied(
    request: pytest.FixtureRequest, serve: Serve, fake: ProviderFake, tmp_path: Path
) -> AsyncIterator[ProxiedService]:
    """A service behind each of the configurations."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="fake-model")
    key = await make_key(service, "alice")
    folder = tmp_path / "proxy"
    folder.mkdir()
    async with (
        PROXIES[request.param](service.url, folder) as url,
        http_client(f"{url}/", headers=bearer(key)) as client,
    ):
        yield ProxiedService(service, url, client, folder)


async def test_proxy_forwards_answers_and_streams_without_buffering(
    proxied: ProxiedService, fake: ProviderFake
) -> None:
    """An answer arrives, and each event of a stream before the provider sends the next."""
    answer = await proxied.client.post("ai/test", json=ASK)
    assert answer.json()["response"] == default_text("Why?", 8)

    release = asyncio.Event()
    fake.next(Behaviour(chunks=3, hold=release, hold_after=1))
    texts = []
    async with proxied.client.stream("POST", "ai/stream", json=ASK) as response:
        async for event in events(response):
            if not event.name:
                texts.append(event.json["delta"])
                release.set()  # the provider waits until the first delta is here
    assert "".join(texts) == default_text("Why?", 3)


async def test_proxied_stream_resumes_at_the_last_event(
    proxied: ProxiedService, fake: ProviderFake
) -> None:
    """`events_url` leads through the proxy, and a reconnect continues the answer; one call."""
    release = asyncio.Event()
    fake.next(Behaviour(chunks=6, hold=release, hold_after=2))
    started = (await proxied.client.post("ai/answers", json=ASK)).json()
    url = proxied.resolve(started["events_url"])
    assert url.startswith(f"{proxied.url}/ai/answers/")

    received = []
    async with http_client(proxied.url) as reader:
        async with reader.stream("GET", url) as response:
            async for event in events(response):
                received.append(event)
                if text_of(received):
                    break
        release.set()
        headers = {"Last-Event-ID": received[-1].last_id}
        async with reader.stream("GET", url, headers=headers) as response:
            received += await collect(response)

    assert text_of(received) == default_text("Why?", 6)
    assert len(fake.calls) == 1
    for log in proxied.folder.glob("kotae.log"):
        assert "/events" in log.read_text()
        assert "ticket" not in log.read_text()


async def test_client_that_leaves_the_proxy_cancels_the_provider(
    proxied: ProxiedService, fake: ProviderFake
) -> None:
    """The proxy closes its connection when the client of a POST disconnects."""
    fake.next(Behaviour(endless=True, gap=0.01))
    async with proxied.client.stream("POST", "ai/stream", json=ASK) as response:
        async for event in events(response):
            if not event.name:
                break
    (call,) = await fake.wait_calls(1)
    assert await fake.wait_ended(call) is Ending.ABORTED
    await proxied.service.wait_idle()
    (row,) = (await proxied.client.get("ai/logs")).json()["items"]
    assert row["status"] == "client_gone"


async def test_proxy_forwards_large_uploads(proxied: ProxiedService) -> None:
    """More than a megabyte, which nginx refuses by default."""
    text = b"Tea is served at noon.\n" * 25_000
    files = [("files", (f"{n}.txt", text + str(n).encode(), "text/plain")) for n in range(2)]
    response = await proxied.client.post("ai/upload", files=files, timeout=60)
    assert response.status_code == 201, response.text
    assert len((await proxied.client.get("ai/documents")).json()["items"]) == 2


async def test_pages_redirects_and_cookies_lead_through_the_proxy(proxied: ProxiedService) -> None:
    """All links of the pages, the redirect to the sign-in, the cookie and the API's server."""
    async with http_client(f"{proxied.url}/") as browser:
        away = await browser.get("")
        assert urljoin(f"{proxied.url}/", away.headers["location"]) == f"{proxied.url}/signin"
        for page in ("signin", "docs"):
            html = (await browser.get(page)).text
            for link in re.findall(r'(?:src|href)="([^"]+)"', html):
                status = (await browser.get(urljoin(f"{proxied.url}/", link))).status_code
                needs_session = link in {"./", "account", "admin"}
                assert status == (303 if needs_session else 200), link
        assert (await browser.get("openapi.json")).json()["servers"] == [
            {"url": proxied.prefix or "/"}
        ]
        key = proxied.client.headers["authorization"]
        signed_in = await browser.post("auth/session", headers={"Authorization": key})
        name = "__Secure-kotae" if proxied.prefix else "__Host-kotae"
        assert signed_in.headers["set-cookie"].startswith(f"{name}=")
        assert f"Path={proxied.prefix or '/'};" in signed_in.headers["set-cookie"] + ";"
        assert (await browser.get("")).status_code == 200
        origin = {"Origin": proxied.url.removesuffix(PREFIX)}
        assert (await browser.post("ai/test", json=ASK, headers=origin)).status_code == 200
        foreign: Any = {"Origin": "https://evil.test"}
        is_problem(await browser.post("ai/test", json=ASK, headers=foreign), 403, "foreign_origin")


async def test_proxy_replaces_the_forwarded_headers_of_clients(proxied: ProxiedService) -> None:
    """A prefix or scheme that the client sends has no effect."""
    forged = {"X-Forwarded-Prefix": "/forged", "X-Forwarded-Proto": "http"}
    started = await proxied.client.post("ai/answers", json=ASK, headers=forged)
    assert started.headers["location"].startswith(f"{proxied.prefix}/ai/answers/")
    session = await proxied.client.post("auth/session", headers=forged)
    assert "Secure" in session.headers["set-cookie"]


async def test_prefix_without_a_slash_leads_to_the_page(proxied: ProxiedService) -> None:
    """`/kotae` redirects to `/kotae/`, where the links of the page are right."""
    if not proxied.prefix:
        return
    away = await proxied.client.get(proxied.url)
    assert away.status_code in {301, 308}
    assert urljoin(proxied.url, away.headers["location"]) == f"{proxied.url}/"
