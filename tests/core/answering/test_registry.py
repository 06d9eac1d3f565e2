"""The stream registry: memory for running and ended streams is bounded."""

import asyncio

from service.core.answering.registry import StreamRegistry
from service.core.answering.streams import BufferBudget, Stream
from tests.conftest import Serve
from tests.fakes.provider import Behaviour, ProviderFake
from tests.records import outcome
from tests.streams import begin, reading


async def test_full_buffers_degrade_new_streams_visibly(serve: Serve, fake: ProviderFake) -> None:
    """When running answers fill the memory for streams, a new one says that it cannot be resumed, and ends with its reader."""
    service = await serve(
        openai_base_url=fake.base_url, model="fake-model", resume_bytes_max=1_048_576
    )
    fake.next(
        Behaviour(deltas=["x" * 600_000], hang_after=1),
        Behaviour(deltas=["x" * 600_000], hang_after=1),
        Behaviour(hang_after=2),
    )
    async with asyncio.timeout(10):
        running = [await begin(service) for _ in range(2)]
        while not service.services.answers._shelf.buffers.is_full:
            await asyncio.sleep(0.005)

    third = await begin(service)
    async with reading(service, third["events_url"]) as stream:
        start = await anext(stream)
        await fake.wait_calls(3)
    for each in running:
        await service.client.delete(f"/ai/answers/{each['id']}")
    rows = await service.rows()

    assert [each["resumable"] for each in [*running, third]] == [True, True, False]
    assert start.json["resumable"] is False
    assert [row["status"] for row in rows] == ["client_gone", "stopped", "stopped"]
    assert "kotae_streams_degraded_total 1.0" in (await service.client.get("/metrics")).text
    assert (await begin(service))["resumable"] is True


async def test_ended_streams_give_way_to_new_ones() -> None:
    """Of what is kept after its end the oldest goes first, in number and in bytes, and what it held is given back."""
    shelf = StreamRegistry(BufferBudget(1000), kept_max=3, keep_seconds=60)
    streams = []
    for n in range(6):
        ended = outcome(response="x" * (100 if n < 5 else 2000))
        stream = Stream(ended.intent, [], kept=True, buffers=shelf.buffers)
        shelf.add_stream(stream)
        stream.append_texts([ended.response])
        stream.finish(ended, None)
        streams.append(stream)
        assert shelf.stream_count <= 3

    assert [shelf.find_stream(stream.intent.id) is not None for stream in streams] == [
        False
    ] * 5 + [True]
    assert shelf.has_capacity()
    assert shelf.buffers.held == 0
