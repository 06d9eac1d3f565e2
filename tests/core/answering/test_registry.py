"""The stream registry: memory for running and ended streams is bounded."""

import asyncio

from service.core.answering.registry import StreamRegistry
from service.core.answering.streams import BufferBudget, Stream
from tests.conftest import Serve
from tests.fakes.provider import Behaviour, ProviderFake
from tests.records import build_intent, build_outcome
from tests.streams import open_events, start_answer


async def test_full_buffers_degrade_new_streams(serve: Serve, fake: ProviderFake) -> None:
    """With full buffers a new stream reports that it is not resumable and ends with its reader."""
    service = await serve(
        openai_base_url=fake.base_url, model="fake-model", resume_bytes_max=1_048_576
    )
    fake.next(
        Behaviour(deltas=["x" * 600_000], hang_after=1),
        Behaviour(deltas=["x" * 600_000], hang_after=1),
        Behaviour(hang_after=2),
    )
    async with asyncio.timeout(10):
        running = [await start_answer(service) for _ in range(2)]
        while not service.services.answers._registry.buffers.is_full:
            await asyncio.sleep(0.005)

    third = await start_answer(service)
    async with open_events(service, third["events_url"]) as stream:
        start = await anext(stream)
        await fake.wait_calls(3)
    for answer in running:
        await service.client.delete(f"/ai/answers/{answer['id']}")
    rows = await service.rows()

    assert [answer["resumable"] for answer in [*running, third]] == [True, True, False]
    assert start.json["resumable"] is False
    assert [row["status"] for row in rows] == ["client_gone", "stopped", "stopped"]
    assert "kotae_streams_degraded_total 1.0" in (await service.client.get("/metrics")).text
    assert (await start_answer(service))["resumable"] is True


async def test_ended_streams_are_evicted() -> None:
    """The oldest ended streams are evicted first, by number and bytes, and their bytes freed."""
    registry = StreamRegistry(BufferBudget(1000), ended_max=3, keep_seconds=60)
    streams = []
    for n in range(6):
        ended = build_outcome(response="x" * (100 if n < 5 else 2000))
        stream = Stream(ended.intent, [], resumable=True, buffers=registry.buffers)
        registry.add_stream(stream)
        stream.append_texts([ended.response])
        stream.finish(ended, None)
        streams.append(stream)
        assert registry.ended_count <= 3

    assert [registry.find_stream(stream.intent.id) is not None for stream in streams] == [
        False
    ] * 5 + [True]
    assert registry.has_capacity("alice")
    assert registry.buffers.held_bytes == 0


async def test_a_user_over_their_share_evicts_only_their_own_streams() -> None:
    """Streams of one user that fill the share of one user evict older ones of the same user."""
    registry = StreamRegistry(BufferBudget(2000, user_share=0.5), ended_max=10, keep_seconds=60)
    streams = []
    for user_id, characters in (("b", 600), ("a", 600), ("a", 600), ("a", 600), ("b", 100)):
        ended = build_outcome(build_intent(user_id=user_id), response="x" * characters)
        stream = Stream(ended.intent, [], resumable=True, buffers=registry.buffers)
        registry.add_stream(stream)
        stream.append_texts([ended.response])
        stream.finish(ended, None)
        streams.append(stream)

    kept = [registry.find_stream(stream.intent.id) is not None for stream in streams]
    assert kept == [True, False, False, True, True]
    assert registry.has_capacity("a")
    assert registry.has_capacity("b")
