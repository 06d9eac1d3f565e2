"""Streams: positions in the text, batches, several readers, replay."""

import asyncio
from contextlib import aclosing
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.core.answering.streams import SHUTDOWN_NOTICE, Stream, replay_stream
from service.core.encoding import replace_surrogates
from service.core.records import Status
from tests.conftest import Service
from tests.fakes.provider import Behaviour, ProviderFake, default_text
from tests.records import build_intent, build_outcome
from tests.sse import text_of
from tests.streams import open_events, parse_events, read_all_events, read_stream, start_answer

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), max_size=8
)


@given(TEXTS, st.data())
def test_the_rest_after_any_position_is_exact(texts: list[str], data: st.DataObject) -> None:
    """After every position, the buffer and the row give the same rest and end."""
    ended = build_outcome(response="".join(texts))
    live = Stream(ended.intent, [])
    live.append_texts(texts)
    live.finish(ended, None)
    position = data.draw(st.integers(0, len(ended.response)))

    for stream in (live, replay_stream(ended)):
        events = parse_events(asyncio.run(read_stream(stream, position)))
        assert text_of(events) == ended.response[position:]
        assert [event.name for event in events[-1:]] == ["done"]
        assert events[-1].last_id == f"{ended.intent.id}.{len(ended.response) + 1}"


@given(TEXTS)
def test_the_seq_of_an_event_is_its_end(texts: list[str]) -> None:
    """The seq of an event is the number of characters up to its end."""
    ended = build_outcome(response="".join(texts))
    stream = Stream(ended.intent, [])
    stream.append_texts(texts)
    stream.finish(ended, None)

    start, *deltas, _ = parse_events(asyncio.run(read_stream(stream)))

    assert start.last_id.endswith(".0")
    for n, event in enumerate(deltas, 1):
        assert event.last_id == f"{ended.intent.id}.{len(text_of(deltas[:n]))}"
    assert [event.json["delta"] for event in deltas] == texts


@given(st.lists(st.text(st.characters(), max_size=30), max_size=6))
def test_no_text_forges_an_event_in_a_whole_stream(texts: list[str]) -> None:
    """No prompt, passage or text can add an event to a stream."""
    texts = [text for raw_text in texts if (text := replace_surrogates(raw_text))]
    hostile = "a\r\n\r\nevent: done\ndata: {}\n\n\u2028\x85\0"
    ended = build_outcome(
        build_intent(model=hostile, request_id=hostile, prompt=hostile), response="".join(texts)
    )
    stream = Stream(ended.intent, [])
    stream.append_texts(texts)
    stream.finish(ended, None)

    events = parse_events(asyncio.run(read_stream(stream)))

    assert [event.name for event in events] == ["start", *[""] * len(texts), "done"]
    assert [event.json["delta"] for event in events[1:-1]] == texts
    assert events[0].json["model"] == events[-1].json["model"] == hostile


async def test_batches_are_bounded() -> None:
    """A reader that is behind gets small batches, so a stalled one holds little memory."""
    ended = build_outcome(response="長い🙂\n" * 60_000)
    stream = replay_stream(ended)

    async with aclosing(stream.read_events()) as batches:
        received = [batch async for batch in batches]

    assert max(map(len, received)) < 128 * 1024
    assert text_of(parse_events(b"".join(received))) == ended.response


async def test_readers_get_one_shutdown_notice() -> None:
    """At shutdown each reader gets one notice, and continues."""
    ended = build_outcome(response="ab")
    stream = Stream(ended.intent, [])
    stream.append_texts(["a"])
    async with aclosing(stream.read_events()) as batches:
        await anext(batches)
        stream.announce_shutdown()
        assert await anext(batches) is SHUTDOWN_NOTICE
        stream.append_texts(["b"])
        stream.finish(ended, None)
        rest = b"".join([batch async for batch in batches])

    assert [event.name for event in parse_events(rest)] == ["", "done"]


async def test_several_readers_get_the_same_answer(service: Service, fake: ProviderFake) -> None:
    """Readers that attach at the start, in the middle or after the end get the same answer."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=4))
    url = f"/ai/answers/{(await start_answer(service))['id']}/events"

    async with open_events(service, url) as first:
        early = [await anext(first) for _ in range(3)]
        second = asyncio.create_task(read_all_events(service, url))
        held.set()
        early += [event async for event in first]
    late = await read_all_events(service, url)

    for events in (early, await second, late):
        assert text_of(events) == default_text(FREE["prompt"])
        assert (events[0].name, events[-1].name) == ("start", "done")
    assert len(fake.calls) == 1


def test_every_status_of_a_row_can_be_replayed() -> None:
    """Every status has a terminal event."""
    for status in Status:
        events = parse_events(asyncio.run(read_stream(replay_stream(build_outcome(status=status)))))
        assert events[-1].name == "done"


def test_a_failure_of_a_later_version_is_replayed_as_internal() -> None:
    """An unknown error code is replayed as `internal`."""
    stream = replay_stream(build_outcome(error_code="unheard_of", status=Status.PROVIDER_ERROR))

    assert stream.error is not None
    assert stream.error.code == "internal"
