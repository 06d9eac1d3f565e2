"""The browser's own EventSource, through a network that is cut, against the service."""

import asyncio
import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.async_api import Browser, Page

from tests.browser.relay import CuttingRelay
from tests.conftest import Serve
from tests.fakes.provider import Behaviour, ProviderFake, default_text
from tests.process import serving

pytestmark = pytest.mark.slow

CUTS = 200
CHUNKS = 24
# Opens all URLs at once and returns for each the text, the event names, and the number of openings.
READ = """urls => Promise.all(urls.map(url => new Promise(resolve => {
  const got = { text: "", names: [], opened: 0 };
  const source = new EventSource(url);
  const take = (act) => (event) => { got.names.push(event.type); act(JSON.parse(event.data)); };
  source.onopen = () => (got.opened += 1);
  source.onerror = () =>
    source.readyState === EventSource.CLOSED && resolve({ ...got, given_up: true });
  source.addEventListener("start", take(() => {}));
  source.addEventListener("message", take(({ delta }) => (got.text += delta)));
  source.addEventListener("failure", take(() => { source.close(); resolve(got); }));
  source.addEventListener("done", take(() => { source.close(); resolve(got); }));
})))"""


def question(n: int) -> str:
    """Return a prompt with a unique answer."""
    return f"Question {n}"


def stream_url(n: int, cut: int) -> str:
    """Return the URL of a stream that is cut at this byte."""
    return "/ai/stream?" + urlencode(
        {"prompt": question(n), "grounded": "false", "key": f"key-{n}-cut-{cut}"}
    )


async def measure(url: str) -> tuple[int, int]:
    """Measure head and body of a response; only the digits of its times vary."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(
        f"GET {stream_url(0, 0)} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    )
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return len(head) + 4, len(body)


async def open_home(chromium: Browser, url: str) -> Page:
    """Open a page of the service's origin, whose policy allows it to connect."""
    context = await chromium.new_context()
    page = await context.new_page()
    await page.goto(f"{url}/")
    return page


def check(readings: list[dict[str, Any]], numbers: range) -> None:
    """Check that each text is the uncut one, with one start, one end, and every delta once."""
    for n, reading in zip(numbers, readings, strict=True):
        assert reading["text"] == default_text(question(n), CHUNKS), n
        assert (reading["names"][-1], reading["names"].count("start"), reading.get("given_up")) == (
            "done",
            1,
            None,
        ), n


async def test_streams_cut_at_any_byte_are_complete_and_charged_once(
    serve: Serve, fake: ProviderFake, chromium: Browser
) -> None:
    """200 streams, each cut at another byte of its body, return the uncut text.

    Cuts in the head are not tested: over plain HTTP, Chromium reads a partial head as a response of
    another type.
    """
    service = await serve(openai_base_url=fake.base_url, model="fake-model")
    fake.default = Behaviour(chunks=CHUNKS, gap=0.002)
    head, body = await measure(service.url)
    span = (
        body - CHUNKS * 10
    )  # events sent together have fewer chunk headers; this is the minimum length
    places = {n: head + (n - 1) * span // (CUTS - 1) for n in range(1, CUTS + 1)}
    async with CuttingRelay(service.url) as relay:
        page = await open_home(chromium, relay.url)
        urls = [stream_url(n, at) for n, at in places.items()]
        async with asyncio.timeout(60):
            readings = await page.evaluate(READ, urls)

    check(readings, range(1, CUTS + 1))
    assert relay.cut_off == len(set(relay.cuts.values())) == CUTS
    assert all(reading["opened"] == 2 for reading in readings)
    assert len(fake.calls) == CUTS + 1
    assert {row["status"] for row in await service.rows(limit=CUTS)} == {"completed"}


async def test_finished_answers_are_resumed_after_a_restart(
    tmp_path: Path, fake: ProviderFake, chromium: Browser
) -> None:
    """After a restart, each browser gets the rest of its finished answer from the log."""
    fake.default = Behaviour(chunks=CHUNKS)
    numbers = range(1, 21)
    settings = {"OPENAI_BASE_URL": fake.base_url, "KOTAE_MODEL": "fake-model"}
    async with serving(tmp_path, **settings) as service, CuttingRelay(service.url) as relay:
        head, body = await measure(service.url)
        page = await open_home(chromium, relay.url)
        urls = [
            stream_url(n, head + n * (body - CHUNKS * 10) // (len(numbers) + 1)) for n in numbers
        ]
        reading = asyncio.create_task(page.evaluate(READ, urls))
        async with asyncio.timeout(30):
            while relay.cut_off < len(numbers):
                await asyncio.sleep(0.01)
            relay.away = True
            await fake.wait_idle()
        service.signal(signal.SIGTERM)
        assert await service.wait() == 0
        calls = len(fake.calls)
        async with serving(tmp_path, **settings) as successor:
            relay.lead_to(successor.url)
            relay.away = False
            async with asyncio.timeout(60):
                readings = await reading

    check(readings, numbers)
    assert max(entry["opened"] for entry in readings) > 1
    assert len(fake.calls) == calls == len(numbers) + 1
