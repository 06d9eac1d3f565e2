"""Streams that survive their socket: positions, resuming from memory and from the log, stopping, lifetimes, bounds."""

import asyncio
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.answering.answers import Ask
from service.core.answering.registry import Shelf
from service.core.answering.streams import GOODBYE, Buffers, Stream, replay
from service.core.encoding import clean, new_id, now
from service.core.errors import NotFound
from service.core.records import Status
from tests.access import client, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, Ending, ProviderFake, default_text
from tests.records import intent, outcome
from tests.sse import Event, Parser, collect, events, text_of

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), max_size=8)


def parsed(data: bytes) -> list[Event]:
    """The events of some bytes."""
    return Parser().feed(data)


async def read(stream: Stream, after: int = -1) -> bytes:
    """Everything after a position."""
    async with aclosing(stream.read(after)) as batches:
        return b"".join([batch async for batch in batches])


async def begin(service: Service, **body: Any) -> dict[str, Any]:
    """POST /ai/answers."""
    response = await service.client.post("/ai/answers", json=FREE | body)
    assert response.status_code == 202, response.text
    started: dict[str, Any] = response.json()
    return started


@asynccontextmanager
async def reading(service: Service, url: str, last_id: str | None = None) -> AsyncGenerator[AsyncGenerator[Event, None], None]:
    """The events at a URL as they come."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with service.client.stream("GET", url, headers=headers) as response, aclosing(events(response)) as stream:
        assert response.status_code == 200, response.status_code
        yield stream


async def everything(service: Service, url: str, last_id: str | None = None) -> list[Event]:
    """All events at a URL, to the end."""
    async with service.client.stream("GET", url, headers={"Last-Event-ID": last_id} if last_id else {}) as response:
        assert response.status_code == 200, response.status_code
        return await collect(response)


async def forget(service: Service) -> None:
    """Until the streams that ended are no longer in memory."""
    async with asyncio.timeout(10):
        while service.rooms.answers.statistics().kept:
            await asyncio.sleep(0.002)


# positions


@given(TEXTS, st.data())
def test_the_rest_after_any_position_is_exact(texts: list[str], data: st.DataObject) -> None:
    """From every position, in the buffer and in the row alike, the rest of the text and the same end follow."""
    ended = outcome(response="".join(texts))
    live = Stream(ended.intent, [])
    live.say(texts)
    live.finish(ended, None)
    position = data.draw(st.integers(0, len(ended.response)))

    for stream in (live, replay(ended)):
        found = parsed(asyncio.run(read(stream, position)))
        assert text_of(found) == ended.response[position:]
        assert [event.name for event in found[-1:]] == ["done"]
        assert found[-1].last_id == f"{ended.intent.id}.{len(ended.response) + 1}"


@given(TEXTS)
def test_each_event_says_where_it_ends(texts: list[str]) -> None:
    """The position in an event's id is the number of characters that were said with it."""
    ended = outcome(response="".join(texts))
    stream = Stream(ended.intent, [])
    stream.say(texts)
    stream.finish(ended, None)

    start, *deltas, _ = parsed(asyncio.run(read(stream)))

    assert start.last_id.endswith(".0")
    for n, event in enumerate(deltas, 1):
        assert event.last_id == f"{ended.intent.id}.{len(text_of(deltas[:n]))}"
    assert [event.json["delta"] for event in deltas] == texts


@given(st.lists(st.text(st.characters(), max_size=30), max_size=6))
def test_no_text_forges_an_event_in_a_whole_stream(texts: list[str]) -> None:
    """Whatever the prompt, the passages and the text hold, a stream has its start, its deltas and its end, and no more."""
    texts = [text for each in texts if (text := clean(each))]
    hostile = "a\r\n\r\nevent: done\ndata: {}\n\n\u2028\x85\0"
    ended = outcome(intent(model=hostile, request_id=hostile, prompt=hostile), response="".join(texts))
    stream = Stream(ended.intent, [])
    stream.say(texts)
    stream.finish(ended, None)

    found = parsed(asyncio.run(read(stream)))

    assert [event.name for event in found] == ["start", *[""] * len(texts), "done"]
    assert [event.json["delta"] for event in found[1:-1]] == texts
    assert found[0].json["model"] == found[-1].json["model"] == hostile


async def test_a_long_text_comes_in_bounded_batches() -> None:
    """A reader that is far behind is given a little at a time, so that a reader that stops holds a little."""
    ended = outcome(response="長い🙂\n" * 60_000)
    stream = replay(ended)

    async with aclosing(stream.read()) as batches:
        found = [batch async for batch in batches]

    assert max(map(len, found)) < 128 * 1024
    assert text_of(parsed(b"".join(found))) == ended.response


async def test_readers_are_told_goodbye_once() -> None:
    """When the process begins to end, each reader gets one batch that says so, and goes on."""
    ended = outcome(response="ab")
    stream = Stream(ended.intent, [])
    stream.say(["a"])
    async with aclosing(stream.read()) as batches:
        await anext(batches)
        stream.say_goodbye()
        assert await anext(batches) is GOODBYE
        stream.say(["b"])
        stream.finish(ended, None)
        rest = b"".join([batch async for batch in batches])

    assert [event.name for event in parsed(rest)] == ["", "done"]


# resuming


async def test_an_answer_is_read_by_several_at_once_at_every_stage(service: Service, fake: ProviderFake) -> None:
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


@pytest.mark.parametrize("kept", [True, False])
async def test_an_ended_answer_goes_on_after_every_character(serve: Serve, fake: ProviderFake, kept: bool) -> None:
    """After each position of an ended answer the exact rest follows, from the buffer or from the log row."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_seconds=15 if kept else 0)
    url = f"/ai/answers/{(await begin(service))['id']}/events"
    whole = await everything(service, url)
    text, answer_id = text_of(whole), whole[0].json["id"]
    if not kept:
        await forget(service)

    for seq in range(len(text) + 1):
        rest = await everything(service, url, f"{answer_id}.{seq}")
        assert text[:seq] + text_of(rest) == text
        assert rest[-1] == whole[-1]
    for seq in (len(text) + 1, len(text) + 2):
        beyond = await service.client.get(url, headers={"Last-Event-ID": f"{answer_id}.{seq}"})
        assert (beyond.status_code, beyond.content) == (204, b"")
    assert len(fake.calls) == 1


async def test_a_failed_answer_ends_the_same_from_the_log(serve: Serve, fake: ProviderFake) -> None:
    """A reader that was cut before a failure gets the rest of the text and the same code from the row."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_seconds=0)
    fake.next(Behaviour(cut_after=3))
    url = f"/ai/answers/{(await begin(service))['id']}/events"
    whole = await everything(service, url)
    await forget(service)

    rest = await everything(service, url, whole[1].last_id)

    assert text_of(whole[:2] + rest) == text_of(whole)
    assert (rest[-1].name, rest[-1].json["code"]) == ("failure", "provider_cut")
    assert rest[-1].last_id == whole[-1].last_id


async def test_an_event_that_was_not_said_yet_is_404(service: Service, fake: ProviderFake) -> None:
    """A position beyond what a running answer has said, or of another answer, is unknown."""
    fake.next(Behaviour(hang_after=2))
    answer_id = (await begin(service))["id"]
    await fake.wait_chunks((await fake.wait_calls(1))[0], 2)

    for seen in (f"{answer_id}.5000", f"{new_id(now())}.0", "x"):
        response = await service.client.get(f"/ai/answers/{answer_id}/events", headers={"Last-Event-ID": seen})
        assert response.status_code == 404


async def test_a_cut_before_the_first_event_does_not_ask_twice(service: Service, fake: ProviderFake) -> None:
    """With a key, a reconnect that has no event id finds the answer that it began, running and ended."""
    params = {"prompt": "Once?", "grounded": "false", "key": "cut-early"}
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after="request"))
    async with service.client.stream("GET", "/ai/stream", params=params):
        await fake.wait_calls(1)  # cut: nothing was read

    async with service.client.stream("GET", "/ai/stream", params=params) as response:
        held.set()
        running = await collect(response)
    async with service.client.stream("GET", "/ai/stream", params=params) as response:
        ended = await collect(response)

    assert text_of(running) == text_of(ended) == default_text("Once?")
    assert running[0].json["id"] == ended[0].json["id"]
    assert len(fake.calls) == 1
    assert (await service.row())["status"] == "completed"


async def test_the_log_is_waited_for(serve: Serve, fake: ProviderFake) -> None:
    """An answer that has just ended, and is in neither memory nor database yet, is found all the same."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_seconds=0)
    plain = (await service.client.post("/ai/test", json=FREE)).json()

    found = await service.client.get(f"/ai/answers/{plain['id']}")

    assert (found.status_code, found.json()) == (200, plain)


# by id


async def test_an_answer_in_progress_says_what_it_has(service: Service, fake: ProviderFake) -> None:
    """GET of a running answer is 202 with its text so far; afterwards it is the answer object, the log row."""
    held = asyncio.Event()
    fake.next(Behaviour(deltas=["One ", "two."], hold=held, hold_after=1))
    started = await begin(service)
    path = f"/ai/answers/{started['id']}"
    await fake.wait_chunks((await fake.wait_calls(1))[0], 1)
    async with asyncio.timeout(10):
        while (running := await service.client.get(path)).json()["response"] == "":
            await asyncio.sleep(0.005)
    held.set()
    await service.wait_idle()
    ended = await service.client.get(path)

    assert (running.status_code, running.json()["status"], running.json()["response"]) == (202, "in_progress", "One ")
    assert running.headers["retry-after"] == "1"
    assert (ended.status_code, ended.json()) == (200, await service.row())
    assert ended.json()["response"] == "One two."


@pytest.mark.parametrize("route", ["/ai/answers", "/ai/stream", "/ai/test"])
async def test_stopping_leaves_the_provider_and_keeps_the_text(service: Service, fake: ProviderFake, route: str) -> None:
    """DELETE closes the upstream connection within a second; the row says stopped with the text so far; twice is once."""
    fake.next(Behaviour(hang_after=3))
    asked = asyncio.create_task(service.client.post(route, json=FREE))
    call = (await fake.wait_calls(1))[0]
    (stream,) = service.rooms.answers._shelf
    async with asyncio.timeout(10):
        while route != "/ai/test" and (not call.text or stream.text != call.text):
            await asyncio.sleep(0.002)

    responses = [await service.client.delete(f"/ai/answers/{stream.intent.id}") for _ in range(2)]
    async with asyncio.timeout(1):
        await fake.wait_idle()
    await asked
    row = await service.row()
    again = await service.client.delete(f"/ai/answers/{row['id']}")

    assert [response.status_code for response in [*responses, again]] == [204, 204, 204]
    assert call.ended is Ending.ABORTED
    assert row["status"] == "stopped"
    assert row["response"] == ("" if route == "/ai/test" else call.text)
    assert (await service.row()) == row


async def test_readers_of_a_stopped_answer_get_its_account(service: Service, fake: ProviderFake) -> None:
    """Whoever reads while the answer is stopped gets `done` with the status stopped."""
    fake.next(Behaviour(hang_after=2))
    started = await begin(service)
    async with reading(service, started["events_url"]) as stream:
        seen = [await anext(stream) for _ in range(3)]
        await service.client.delete(f"/ai/answers/{started['id']}")
        seen += [event async for event in stream]

    assert (seen[-1].name, seen[-1].json["status"]) == ("done", "stopped")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_unknown_answer_is_404(service: Service, method: str) -> None:
    """An id that nobody has been given finds nothing."""
    for answer_id in (new_id(now()), "x"):
        assert (await service.client.request(method, f"/ai/answers/{answer_id}")).status_code == 404
    assert (await service.client.get(f"/ai/answers/{new_id(now())}/events")).status_code == 404


# two principals


async def test_nobody_reaches_the_answer_of_another(serve: Serve, fake: ProviderFake) -> None:
    """B finds A's answer neither running nor ended nor in the log, and cannot stop it; A and the admin can."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_seconds=0)
    answers, held = service.rooms.answers, asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=2))
    ask = Ask(prompt="Mine?", grounded=False, endpoint="/ai/answers", user_id="a", sees="a", request_id="r", stream=True, attach_seconds=60)
    stream = await answers.answer(ask)

    async def is_hidden() -> None:
        for attempt in (answers.find, answers.stop_answer):
            with pytest.raises(NotFound):
                await attempt(stream.intent.id, "b")

    await is_hidden()
    assert await answers.find(stream.intent.id, "a") is await answers.find(stream.intent.id, None) is stream
    held.set()
    await stream.wait_finished()
    await is_hidden()
    await forget(service)
    await service.wait_idle()
    await is_hidden()
    assert (await answers.find(stream.intent.id, "a")).text == default_text("Mine?")
    assert fake.calls[0].ended is Ending.FINISHED


# tickets over HTTP


async def test_a_ticket_is_all_that_a_browser_needs_and_opens_once(serve: Serve, fake: ProviderFake) -> None:
    """The events URL works without a key, once; a second client with the same URL is refused, a reconnect is not."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="fake-model")
    async with client(service, await make_key(service, "alice")) as alice, httpx2.AsyncClient(base_url=service.url) as stranger:
        started = (await alice.post("/ai/answers", json=FREE)).json()
        url = started["events_url"]
        async with stranger.stream("GET", url) as response:
            found = await collect(response)
        second = await stranger.get(url)
        reconnect = await stranger.get(url, headers={"Last-Event-ID": found[1].last_id})
        by_query = await stranger.get(url, params={"last_event_id": found[-1].last_id, "ticket": url.partition("ticket=")[2]})
        elsewhere = await stranger.get(url.replace(started["id"], new_id(now())))
        without = await stranger.get(url.partition("?")[0])

    assert text_of(found) == default_text(FREE["prompt"])
    assert (second.status_code, second.json()["code"]) == (403, "ticket_invalid")
    assert text_of(parsed(reconnect.content)) == text_of(found[2:])
    assert by_query.status_code == 204
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (403, "ticket_invalid")
    assert without.status_code == 401


@pytest.mark.parametrize("stage", ["running", "ended", "in the log"])
async def test_b_never_attaches_to_the_stream_of_a(serve: Serve, fake: ProviderFake, stage: str) -> None:
    """By no route does another user read, resume, fetch or stop an answer, at any stage; a ticket of theirs does not help."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="fake-model", resume_seconds=0 if stage == "in the log" else 9)
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=3))
    async with client(service, await make_key(service, "a")) as a, client(service, await make_key(service, "b")) as b:
        answer_id = (await a.post("/ai/answers", json=FREE)).json()["id"]
        await fake.wait_chunks((await fake.wait_calls(1))[0], 3)
        theirs = (await b.post("/ai/answers", json=FREE | {"prompt": "Mine"})).json()["events_url"].partition("?")[2]
        if stage != "running":
            held.set()
            await service.wait_idle()
        if stage == "in the log":
            await forget(service)

        events_url, last = f"/ai/answers/{answer_id}/events", {"Last-Event-ID": f"{answer_id}.1"}
        attempts = [
            await b.get(events_url),
            await b.get(events_url, headers=last),
            await b.get("/ai/stream", params={"prompt": "x"}, headers=last),
            await b.get(f"/ai/answers/{answer_id}"),
            await b.delete(f"/ai/answers/{answer_id}"),
        ]
        with_ticket = await b.get(f"{events_url}?{theirs}", headers=last)
        held.set()
        mine = await a.get(events_url)

    assert [attempt.status_code for attempt in attempts] == [404] * 5
    assert with_ticket.status_code == 403
    assert text_of(parsed(mine.content)) == default_text(FREE["prompt"])


async def test_a_begun_answer_is_found_again_by_its_key(service: Service, fake: ProviderFake) -> None:
    """POST /ai/answers sent twice with one key is one answer, with a ticket each."""
    key = {"Idempotency-Key": "twice"}
    first, second = [await service.client.post("/ai/answers", json=FREE, headers=key) for _ in range(2)]

    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["idempotent-replayed"] == "true"
    assert text_of(await everything(service, second.json()["events_url"])) == default_text(FREE["prompt"])
    assert len(fake.calls) == 1


# lifetimes and bounds


async def test_an_answer_outlives_its_last_reader_for_a_while(serve: Serve, fake: ProviderFake) -> None:
    """The pump goes on for resume_seconds without a reader, then stops as client_gone."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_seconds=0.2)
    fake.next(Behaviour(hang_after=2))
    started = await begin(service)
    async with reading(service, started["events_url"]) as stream:
        await anext(stream)
    (pump,) = service.rooms.answers._pumps.values()
    async with asyncio.timeout(10):
        while pump.stream.readers:
            await asyncio.sleep(0.001)
    assert pump._ending is None

    await fake.wait_idle()

    assert (await service.row())["status"] == "client_gone"


async def test_an_answer_that_nobody_fetches_is_given_up(serve: Serve, fake: ProviderFake) -> None:
    """Without a reader an answer ends when its ticket does; who asks for it keeps it going."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_seconds=0, ticket_seconds=0.2)
    fake.default = Behaviour(hang_after=2)
    await begin(service)

    await fake.wait_idle()

    assert (await service.row())["status"] == "client_gone"


async def test_a_reader_that_takes_nothing_is_dropped_and_may_resume(serve: Serve, fake: ProviderFake) -> None:
    """After send_seconds_max its connection is gone, the answer has ended as ever, and a new reader gets all of it."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", send_seconds_max=0.3, send_buffer_bytes=4096)
    fake.next(Behaviour(chunks=20_000, chunks_per_write=0))
    started = await begin(service)
    where = urlsplit(service.url)
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect((where.hostname, where.port))
        connections = service.server.server_state.connections
        known = set(connections)
        stalled.sendall(f"GET {started['events_url']} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            while not connections - known:
                await asyncio.sleep(0)
            (connection,) = connections - known
            waiting = []
            while connection in connections:
                waiting.append(connection.transport.get_write_buffer_size())
                await asyncio.sleep(0.01)

        whole = await everything(service, f"/ai/answers/{started['id']}/events")

    assert 0 < max(waiting) <= 16_384 * 2 + 8192
    assert text_of(whole) == fake.calls[0].text
    assert (await service.row())["status"] == "completed"


async def test_the_system_does_not_hide_a_slow_reader(serve: Serve) -> None:
    """The send buffer of the listener, and so of every connection, is the configured one."""
    service = await serve(send_buffer_bytes=32_768)

    assert service.server.servers[0].sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in {32_768, 65_536}


async def test_silence_is_filled_with_comments(serve: Serve, fake: ProviderFake) -> None:
    """While the provider says nothing, comments keep the connection awake; retry is said once."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", ping_seconds=0.05)
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=1))
    parser, found = Parser(), []
    async with service.client.stream("GET", "/ai/stream", params={"prompt": "x", "grounded": "false"}) as response:
        data = b""
        async for piece in response.aiter_raw():
            data += piece
            found += parser.feed(piece)
            if len(parser.comments) > 2:
                held.set()

    assert set(parser.comments) == {"ping"}
    assert data.startswith(b"retry: 2000\nevent: start\n")
    assert data.count(b"retry:") == 1
    assert found[-1].name == "done"


async def test_the_end_of_the_process_says_goodbye(serve: Serve, fake: ProviderFake) -> None:
    """At the first signal a stream in progress is told when to come back, should it be cut, and still ends in time."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", shutdown_grace_seconds=10)
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=2))
    parser, found, retries = Parser(), [], []
    async with service.client.stream("GET", "/ai/stream", params={"prompt": "x", "grounded": "false"}) as response:
        async for piece in response.aiter_raw():
            found += parser.feed(piece)
            if b"retry:" in piece:
                retries.append(parser.retry)
            if len(found) == 3 and not service.server.should_exit:
                service.server.handle_exit(signal.SIGTERM, None)
            if len(retries) == 2:
                held.set()

    first, second = retries
    assert first == 2000
    assert second
    assert 1000 <= second <= 4000
    assert found[-1].name == "done"


async def test_full_buffers_degrade_new_streams_visibly(serve: Serve, fake: ProviderFake) -> None:
    """When running answers fill the memory for streams, a new one says that it cannot be resumed, and ends with its reader."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_bytes_max=1_048_576)
    fake.next(Behaviour(deltas=["x" * 600_000], hang_after=1), Behaviour(deltas=["x" * 600_000], hang_after=1), Behaviour(hang_after=2))
    async with asyncio.timeout(10):
        running = [await begin(service) for _ in range(2)]
        while not service.rooms.answers._shelf.buffers.full:
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
    shelf = Shelf(Buffers(1000), kept_max=3, keep_seconds=60)
    streams = []
    for n in range(6):
        ended = outcome(response="x" * (100 if n < 5 else 2000))
        stream = Stream(ended.intent, [], kept=True, buffers=shelf.buffers)
        shelf.put(stream)
        stream.say([ended.response])
        stream.finish(ended, None)
        streams.append(stream)
        assert shelf.kept <= 3

    assert [shelf.find(stream.intent.id) is not None for stream in streams] == [False] * 5 + [True]
    assert shelf.has_room()
    assert shelf.buffers.held == 0


def test_every_status_of_a_row_can_be_replayed() -> None:
    """Each way to end has a terminal event."""
    for status in Status:
        found = parsed(asyncio.run(read(replay(outcome(status=status)))))
        assert found[-1].name == "done"
