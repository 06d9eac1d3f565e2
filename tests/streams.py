"""Streams of answers in tests: start one, read all of it or event by event."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from service.core.answering.streams import Stream
from tests.conftest import Service
from tests.sse import Event, Parser, collect, events

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}


async def post_stream(service: Service, **body: Any) -> list[Event]:
    """Return the events of POST /ai/stream."""
    async with service.client.stream("POST", "/ai/stream", json=FREE | body) as response:
        assert response.status_code == 200
        return await collect(response)


def parse_events(data: bytes) -> list[Event]:
    """Parse bytes into events."""
    return Parser().feed(data)


async def read_stream(stream: Stream, after: int = -1) -> bytes:
    """Read everything after a position."""
    async with aclosing(stream.read_events(after)) as batches:
        return b"".join([batch async for batch in batches])


async def start_answer(service: Service, **body: Any) -> dict[str, Any]:
    """POST /ai/answers."""
    response = await service.client.post("/ai/answers", json=FREE | body)
    assert response.status_code == 202, response.text
    started: dict[str, Any] = response.json()
    return started


@asynccontextmanager
async def open_events(
    service: Service, url: str, last_id: str | None = None
) -> AsyncGenerator[AsyncGenerator[Event, None], None]:
    """Open the events at a URL."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with (
        service.client.stream("GET", url, headers=headers) as response,
        aclosing(events(response)) as stream,
    ):
        assert response.status_code == 200, response.status_code
        yield stream


async def read_all_events(service: Service, url: str, last_id: str | None = None) -> list[Event]:
    """Read all events at a URL."""
    async with service.client.stream(
        "GET", url, headers={"Last-Event-ID": last_id} if last_id else {}
    ) as response:
        assert response.status_code == 200, response.status_code
        return await collect(response)


async def wait_evicted(service: Service) -> None:
    """Wait until no ended stream is in memory."""
    async with asyncio.timeout(10):
        while service.services.answers.statistics().kept:
            await asyncio.sleep(0.002)
