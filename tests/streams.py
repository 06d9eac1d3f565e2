"""Streams of answers in tests: begin one, read it to its end or event by event."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from service.core.answering.streams import Stream
from tests.conftest import Service
from tests.sse import Event, Parser, collect, events

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}


async def streamed(service: Service, **body: Any) -> list[Event]:
    """The events of POST /ai/stream."""
    async with service.client.stream("POST", "/ai/stream", json=FREE | body) as response:
        assert response.status_code == 200
        return await collect(response)


def parsed(data: bytes) -> list[Event]:
    """The events of some bytes."""
    return Parser().feed(data)


async def read(stream: Stream, after: int = -1) -> bytes:
    """Everything after a position."""
    async with aclosing(stream.read_events(after)) as batches:
        return b"".join([batch async for batch in batches])


async def begin(service: Service, **body: Any) -> dict[str, Any]:
    """POST /ai/answers."""
    response = await service.client.post("/ai/answers", json=FREE | body)
    assert response.status_code == 202, response.text
    started: dict[str, Any] = response.json()
    return started


@asynccontextmanager
async def reading(
    service: Service, url: str, last_id: str | None = None
) -> AsyncGenerator[AsyncGenerator[Event, None], None]:
    """The events at a URL as they come."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with (
        service.client.stream("GET", url, headers=headers) as response,
        aclosing(events(response)) as stream,
    ):
        assert response.status_code == 200, response.status_code
        yield stream


async def everything(service: Service, url: str, last_id: str | None = None) -> list[Event]:
    """All events at a URL, to the end."""
    async with service.client.stream(
        "GET", url, headers={"Last-Event-ID": last_id} if last_id else {}
    ) as response:
        assert response.status_code == 200, response.status_code
        return await collect(response)


async def forget(service: Service) -> None:
    """Until the streams that ended are no longer in memory."""
    async with asyncio.timeout(10):
        while service.services.answers.statistics().kept:
            await asyncio.sleep(0.002)
