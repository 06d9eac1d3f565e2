"""Streams in memory: positions in the text, batches, several readers, replay."""

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
from tests.records import intent, outcome
from tests.sse import text_of
from tests.streams import begin, everything, parsed, read, reading

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), max_size=8
)


@given(TEXTS, st.data())
def test_the_rest_after_any_position_is_exact(texts: list[str], data: st.DataObject) -> None:
    """From every position, in the buffer and in the row alike, the rest of the text and the same end follow."""
    ended = outcome(response="".join(texts))
    live = Stream(ended.intent, [])
    live.append_texts(texts)
    live.finish(ended, None)
    position = data.draw(st.integers(0, len(ended.response)))

    for stream in (live, replay_stream(ended)):
        found = parsed(asyncio.run(read(stream, position)))
        assert text_of(found) == ended.response[position:]
        assert [event.name for event in found[-1:]] == ["done"]
        assert found[-1].last_id == f"{ended.intent.id}.{len(ended.response) + 1}"


@given(TEXTS)
def test_each_event_says_where_it_ends(texts: list[str]) -> None:
    """The position in an event's id is the number of characters that were said with it."""
    ended = outcome(response="".join(texts))
    stream = Stream(ended.intent, [])
    stream.append_texts(texts)
    stream.finish(ended, None)

    start, *deltas, _ = parsed(asyncio.run(read(stream)))

    assert start.last_id.endswith(".0")
    for n, event in enumerate(deltas, 1):
        assert event.last_id == f"{ended.intent.id}.{len(text_of(deltas[:n]))}"
    assert [event.json["delta"] for event in deltas] == texts


@given(st.lists(st.text(st.characters(), max_size=30), max_size=6))
def test_no_text_forges_an_event_in_a_whole_stream(texts: list[str]) -> None:
    """Whatever the prompt, the passages and the text hold, a stream has its start, its deltas and its end, and no more."""
    texts = [text for each in texts if (text := replace_surrogates(each))]
    hostile = "a\r\n\r\nevent: done\ndata: {}\n\n\u2028\x85\0"
    ended = outcome(
        intent(model=hostile, request_id=hostile, prompt=hostile), response="".join(texts)
    )
    stream = Stream(ended.intent, [])
    stream.append_texts(texts)
    stream.finish(ended, None)

    found = parsed(asyncio.run(read(stream)))

    assert [event.name for event in found] == ["start", *[""] * len(texts), "done"]
    assert [event.json["delta"] for event in found[1:-1]] == texts
    assert found[0].json["model"] == found[-1].json["model"] == hostile


async def test_a_long_text_comes_in_bounded_batches() -> None:
    """A reader that is far behind is given a little at a time, so that a reader that stops holds a little."""
    ended = outcome(response="長い🙂\n" * 60_000)
    stream = replay_stream(ended)

    async with aclosing(stream.read_events()) as batches:
        found = [batch async for batch in batches]

    assert max(map(len, found)) < 128 * 1024
    assert text_of(parsed(b"".join(found))) == ended.response


async def test_readers_are_told_goodbye_once() -> None:
    """When the process begins to end, each reader gets one batch that says so, and goes on."""
    ended = outcome(response="ab")
    stream = Stream(ended.intent, [])
    stream.append_texts(["a"])
    async with aclosing(stream.read_events()) as batches:
        await anext(batches)
        stream.announce_shutdown()
        assert await anext(batches) is SHUTDOWN_NOTICE
        stream.append_texts(["b"])
        stream.finish(ended, None)
        rest = b"".join([batch async for batch in batches])

    assert [event.name for event in parsed(rest)] == ["", "done"]


async def test_an_answer_is_read_by_several_at_once_at_every_stage(
    service: Service, fake: ProviderFake
) -> None:
    """Readers that come at the start, in the middle and after the end all get the same whole answer."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=4))
    url = f"/ai/answers/{(await begin(service))['id']}/events"

    async with reading(service, url) as first:
        early = [await anext(first) for _ in range(3)]
        second = asyncio.create_task(everything(service, url))
        held.set()
        early += [event async for event in first]
    late = await everything(service, url)

    for found in (early, await second, late):
        assert text_of(found) == default_text(FREE["prompt"])
        assert (found[0].name, found[-1].name) == ("start", "done")
    assert len(fake.calls) == 1


def test_every_status_of_a_row_can_be_replayed() -> None:
    """Each way to end has a terminal event."""
    for status in Status:
        found = parsed(asyncio.run(read(replay_stream(outcome(status=status)))))
        assert found[-1].name == "done"


def test_a_failure_of_a_later_version_is_replayed_as_internal() -> None:
    """A code that this version does not know still ends the stream as a failure."""
    stream = replay_stream(outcome(error_code="unheard_of", status=Status.PROVIDER_ERROR))

    assert stream.error is not None
    assert stream.error.code == "internal"
