"""A page of another origin: `KOTAE_ALLOWED_ORIGINS` lists the origins that may read responses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser

from tests.access import make_key
from tests.conftest import Serve
from tests.fakes.provider import ProviderFake

pytestmark = pytest.mark.slow

PAGE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\nConnection: close\r\n\r\n"
    b"<html>"
)
# Requests an answer and a stream with a key, and reads an EventSource with a ticket: three answers,
# one text.
ASK = """async ({ url, key }) => {
  const headers = {
    authorization: `Bearer ${key}`, "content-type": "application/json", "idempotency-key": "once",
  };
  const body = JSON.stringify({ prompt: "Why?", grounded: false });
  const answer = await fetch(`${url}/ai/test`, { method: "POST", headers, body });
  headers["idempotency-key"] = "twice";
  const begun = await (await fetch(`${url}/ai/answers`, { method: "POST", headers, body })).json();
  const streamed = await new Promise((resolve) => {
    let text = "";
    const source = new EventSource(new URL(begun.events_url, url));
    source.onmessage = (event) => (text += JSON.parse(event.data).delta);
    source.addEventListener("done", () => (source.close(), resolve(text)));
    source.onerror = () => source.readyState === EventSource.CLOSED && resolve("closed");
  });
  return { id: answer.headers.get("x-request-id"), text: (await answer.json()).response, streamed };
}"""


@asynccontextmanager
async def site() -> AsyncIterator[str]:
    """Serve an empty page on a separate port."""

    async def show(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(PAGE)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(show, "127.0.0.1") as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def evaluate_page(chromium: Browser, origin: str, url: str, key: str) -> Any:
    """Return the result of a page of this origin, or the error of the browser."""
    page = await (await chromium.new_context()).new_page()
    await page.goto(origin)
    return await page.evaluate(
        f"given => ({ASK})(given).catch(error => String(error))", {"url": url, "key": key}
    )


async def test_only_allowed_origins_read_responses(
    serve: Serve, fake: ProviderFake, chromium: Browser
) -> None:
    """With a key, a preflight and a ticket an allowed page reads everything; another, nothing."""
    async with site() as allowed, site() as other:
        service = await serve(
            auth="keys", openai_base_url=fake.base_url, model="m", allowed_origins=[allowed]
        )
        created = await make_key(service, "alice")
        result = await evaluate_page(chromium, allowed, service.url, str(created.key))
        error = await evaluate_page(chromium, other, service.url, str(created.key))

    assert result["text"] == result["streamed"] != ""
    assert result["id"]
    assert "Failed to fetch" in error
    assert len(fake.calls) == 2
