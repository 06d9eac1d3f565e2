"""Idempotency keys: one request, one answer, however often and however it is sent."""

import asyncio
import signal
import sqlite3
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.core.accounting import log as request_log
from service.core.answering.answers import AnswerRequest
from service.core.answering.idempotency import (
    IdempotencyKey,
    IdempotencyRegistry,
    StartedAnswer,
    hash_request,
)
from service.core.answering.streams import Stream, replay_stream
from service.core.errors import IdempotencyConflict, KotaeError, Overloaded
from service.core.records import Intent, Status, UsageSource
from tests.conftest import Serve, Service, shared_loop
from tests.fakes.provider import Behaviour, Ending, ProviderFake, default_text
from tests.process import ServiceProcess, serving
from tests.records import intent, outcome
from tests.sse import Event, collect, events, text_of

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}
ASKED: dict[str, Any] = FREE | {"model": None, "max_tokens": None, "temperature": None}
KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
REPLAYED = "idempotent-replayed"


async def ask(
    service: Service | ServiceProcess, headers: dict[str, str] = KEY, **body: Any
) -> httpx2.Response:
    """POST /ai/test with a key."""
    return await service.client.post("/ai/test", json=FREE | body, headers=headers)


async def streamed(
    service: Service | ServiceProcess, headers: dict[str, str] = KEY, **body: Any
) -> tuple[list[Event], bool]:
    """The events of POST /ai/stream with a key, and whether they are a replay."""
    async with service.client.stream(
        "POST", "/ai/stream", json=FREE | body, headers=headers
    ) as response:
        assert response.status_code == 200
        return await collect(response), response.headers.get(REPLAYED) == "true"


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something inside the service."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


async def wait_forgotten(service: Service) -> None:
    """Until every key is in the database and nowhere else."""
    await service.wait_idle()
    await wait_until(lambda: service.services.answers.statistics().keyed == 0)


async def put(service: Service, begun: Intent, **fields: Any) -> None:
    """Write a row as the writer does."""
    async with service.services.database.transaction() as session:
        await request_log.apply_outcomes(session, [outcome(begun, **fields)])


def keyed_intent(*, stream: bool = False) -> Intent:
    """The intent of the request that `ask` or `streamed` sends."""
    return intent(
        idempotency_key=KEY["Idempotency-Key"],
        body_hash=hash_request(stream=stream, **ASKED),
        prompt=FREE["prompt"],
    )


# the same answer


async def test_the_same_request_gets_the_same_answer(service: Service, fake: ProviderFake) -> None:
    """Sent again, a request with a key gets the same bytes, marked as a replay; one call, one row."""
    first = await ask(service)
    again = await ask(service)

    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert (REPLAYED in first.headers, again.headers[REPLAYED]) == (False, "true")
    assert len(fake.calls) == 1
    assert await service.row() == first.json()


async def test_the_row_answers_when_memory_has_forgotten(
    service: Service, fake: ProviderFake
) -> None:
    """Once its row is committed the answer is made from it, byte for byte the same."""
    first = await ask(service)
    await wait_forgotten(service)
    again = await ask(service)

    assert again.content == first.content
    assert again.headers[REPLAYED] == "true"
    assert len(fake.calls) == 1
    assert service.services.answers.statistics().keyed == 0


async def test_memory_answers_while_the_database_is_behind(
    service: Service, fake: ProviderFake
) -> None:
    """An answer whose row waits behind a locked database is replayed all the same, and written once."""
    with sqlite3.connect(
        service.services.settings.data_dir / "kotae.db", isolation_level=None
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        first = await ask(service)
        again = await ask(service)
        assert service.services.queue.statistics().waiting == 1
        other.execute("ROLLBACK")
    other.close()

    assert again.content == first.content
    assert len(fake.calls) == 1
    assert await service.row() == first.json()


async def test_without_a_key_every_request_is_a_new_one(
    service: Service, fake: ProviderFake
) -> None:
    """Two requests without a key are two answers, and neither is a replay."""
    first, second = await ask(service, {}), await ask(service, {})

    assert first.json()["id"] != second.json()["id"]
    assert len(fake.calls) == 2
    assert REPLAYED not in second.headers


async def test_what_is_written_out_is_the_same_request(
    service: Service, fake: ProviderFake
) -> None:
    """A default that is spelled out, or another spelling of the JSON, is no other request."""
    first = await ask(service, temperature=1)
    again = await service.client.post(
        "/ai/test",
        content=b'{"temperature": 1.0, "grounded":false,"model":null, "prompt":"Say\\u0020something."}',
        headers=KEY | {"Content-Type": "application/json"},
    )

    assert again.content == first.content
    assert len(fake.calls) == 1


async def test_a_stream_is_replayed_from_its_row(service: Service, fake: ProviderFake) -> None:
    """The start, the text and the end of a stream come again; its text in one piece."""
    first, was_replay = await streamed(service)
    await wait_forgotten(service)
    again, is_replay = await streamed(service)

    assert (was_replay, is_replay) == (False, True)
    assert [event.name for event in again] == ["start", "", "done"]
    assert (again[0].json, text_of(again), again[-1].json) == (
        first[0].json,
        text_of(first),
        first[-1].json,
    )
    assert [event.last_id for event in again] == [
        f"{first[0].json['id']}.{seq}" for seq in (0, len(text_of(first)), len(text_of(first)) + 1)
    ]
    assert len(fake.calls) == 1


async def test_a_grounded_answer_is_replayed_with_its_sources(serve: Serve) -> None:
    """The sources of an answer are the same again, and are the context of a replayed stream."""
    service = await serve(seeded=True)
    body: dict[str, Any] = {"prompt": "返品は何日以内にできますか？", "grounded": True}
    plain = await ask(service, {"Idempotency-Key": "plain"}, **body)
    first, _ = await streamed(service, **body)
    await wait_forgotten(service)
    plain_again = await ask(service, {"Idempotency-Key": "plain"}, **body)
    again, _ = await streamed(service, **body)

    assert plain.json()["sources"]
    assert plain_again.content == plain.content
    assert again[-1].json == first[-1].json
    assert again[0].json["context"] == first[-1].json["sources"]


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_refusal_for_want_of_context_is_replayed(
    service: Service, fake: ProviderFake, forgotten: bool
) -> None:
    """What was refused because nothing relevant was known is refused again, although documents may have come."""
    first = await ask(service, grounded=True)
    if forgotten:
        await wait_forgotten(service)
    await service.client.post(
        "/ai/upload", json={"title": "Something", "text": "Say something: something was said."}
    )
    again = await ask(service, grounded=True)

    assert first.json()["status"] == "no_context"
    assert again.content == first.content
    assert fake.calls == []


# many at once


async def test_a_storm_of_one_key_is_one_answer(service: Service, fake: ProviderFake) -> None:
    """Fifty requests at once: one call, one row, fifty equal answers of which one is no replay."""
    found = await asyncio.gather(*(ask(service) for _ in range(50)))

    assert {response.status_code for response in found} == {200}
    assert len({response.content for response in found}) == 1
    assert sum(REPLAYED not in response.headers for response in found) == 1
    assert len(fake.calls) == 1
    assert await service.row() == found[0].json()


async def test_a_storm_of_streams_is_one_answer(service: Service, fake: ProviderFake) -> None:
    """Fifty streams at once: one call, one row, and every reader gets every event."""
    found = await asyncio.gather(*(streamed(service) for _ in range(50)))

    assert all(each == found[0][0] for each, _ in found)
    assert text_of(found[0][0]) == default_text(FREE["prompt"])
    assert sum(not was_replay for _, was_replay in found) == 1
    assert len(fake.calls) == 1
    assert (await service.row())["status"] == "completed"


async def test_a_storm_of_two_requests_with_one_key_answers_one_of_them(
    service: Service, fake: ProviderFake
) -> None:
    """When two different requests race for a key, one of them gets it and every other copy of the second a conflict."""
    found = await asyncio.gather(*(ask(service, max_tokens=1 + n % 2) for n in range(20)))

    assert sorted(response.status_code for response in found) == [200] * 10 + [409] * 10
    assert len({response.status_code for response in found[::2]}) == 1
    assert len(fake.calls) == 1


async def test_a_running_answer_is_attached_to(service: Service, fake: ProviderFake) -> None:
    """A second request while the first runs waits for the same answer."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after="request"))
    first = asyncio.create_task(ask(service))
    await fake.wait_calls(1)
    second = asyncio.create_task(ask(service))
    held.set()

    assert (await first).content == (await second).content
    assert len(fake.calls) == 1


# who leaves


@asynccontextmanager
async def reading(
    service: Service, count: int
) -> AsyncGenerator[tuple[AsyncGenerator[Event, None], list[Event]]]:
    """A keyed stream of which `count` events were read."""
    async with (
        service.client.stream("POST", "/ai/stream", json=FREE, headers=KEY) as response,
        aclosing(events(response)) as stream,
    ):
        yield stream, [await anext(stream) for _ in range(count)]


async def test_a_client_that_leaves_does_not_stop_the_other(
    service: Service, fake: ProviderFake
) -> None:
    """When the first of two readers leaves, the second reads to the end."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=3))
    async with reading(service, 2) as (rest, seen):
        async with reading(service, 2):
            await wait_until(lambda: len(fake.calls) == 1)
        held.set()
        seen += [event async for event in rest]

    assert text_of(seen) == fake.calls[0].text == default_text(FREE["prompt"])
    assert seen[-1].json["status"] == "completed"


async def test_a_client_that_was_cut_comes_back_with_its_key(
    service: Service, fake: ProviderFake
) -> None:
    """A stream with a key goes on without its reader, who comes back and gets everything, paid once."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=3))
    async with reading(service, 2):
        pass
    held.set()
    found, was_replay = await streamed(service)

    assert was_replay
    assert text_of(found) == default_text(FREE["prompt"])
    assert len(fake.calls) == 1
    assert (await service.row())["status"] == "completed"


async def test_a_stream_that_nobody_comes_back_to_is_stopped(
    serve: Serve, fake: ProviderFake
) -> None:
    """A key is no reason to go on for ever: the provider is stopped, and the row's end is what the key gets."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_seconds=0)
    fake.next(Behaviour(hang_after=3))
    request = AnswerRequest(
        prompt=FREE["prompt"],
        grounded=False,
        endpoint="/ai/stream",
        user_id="local",
        sees=None,
        request_id="r",
        stream=True,
        attach_seconds=0.2,
    )
    begun = await service.services.answers.answer_once(request, KEY["Idempotency-Key"])
    async with aclosing(begun.stream.read_events(-1)) as batches:
        while b"delta" not in await anext(batches):
            pass

    assert await fake.wait_ended(fake.calls[0], 5) is Ending.ABORTED
    await wait_forgotten(service)
    found, _ = await streamed(service)
    assert found[-1].json["status"] == "client_gone"
    assert text_of(found) == (await service.row())["response"]


async def test_a_plain_answer_is_there_for_who_left(service: Service, fake: ProviderFake) -> None:
    """The client of POST /ai/test that gave up gets the answer when it asks again."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after="request"))
    task = asyncio.create_task(ask(service))
    await fake.wait_calls(1)
    task.cancel()
    await asyncio.wait([task])
    held.set()
    again = await ask(service)

    assert again.json()["response"] == default_text(FREE["prompt"])
    assert again.headers[REPLAYED] == "true"
    assert len(fake.calls) == 1


# another request, another user


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "Other."},
        {"grounded": True},
        {"model": "other"},
        {"max_tokens": 9},
        {"temperature": 0},
    ],
    ids=str,
)
async def test_another_request_with_the_key_is_a_conflict(
    service: Service, fake: ProviderFake, changed: dict[str, Any], forgotten: bool
) -> None:
    """Whatever of the request differs, the key is refused with 409, and the first answer stays."""
    first = await ask(service)
    if forgotten:
        await wait_forgotten(service)
    other = await ask(service, **changed)

    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert other.headers["content-type"] == "application/problem+json"
    assert (await ask(service)).content == first.content
    assert len(fake.calls) == 1


async def test_the_other_route_with_the_key_is_a_conflict(
    service: Service, fake: ProviderFake
) -> None:
    """A key of POST /ai/test is not one of POST /ai/stream, and the other way round."""
    await ask(service)
    stream = await service.client.post("/ai/stream", json=FREE, headers=KEY)
    await streamed(service, {"Idempotency-Key": "s"})
    plain = await ask(service, {"Idempotency-Key": "s"})

    assert stream.json()["code"] == plain.json()["code"] == "idempotency_conflict"
    assert len(fake.calls) == 2


async def test_users_have_keys_of_their_own(service: Service, fake: ProviderFake) -> None:
    """The same key of two users is two keys."""
    one, other = await ask(service, user_id="one"), await ask(service, user_id="other")
    again = await ask(service, user_id="one")

    assert one.json()["id"] != other.json()["id"]
    assert again.content == one.content
    assert (len(fake.calls), len(await service.rows())) == (2, 2)


@shared_loop
@pytest.mark.parametrize("key", [b"", b"a b", b"\xc3\xa9", b"x" * 256, b"a\tb"])
@pytest.mark.parametrize("route", ["/ai/test", "/ai/stream"])
async def test_a_key_that_is_none_is_refused(
    shared_service: Service, shared_fake: ProviderFake, route: str, key: bytes
) -> None:
    """A key is 1 to 255 visible ASCII characters; anything else is refused before anything begins."""
    response = await shared_service.client.post(route, json=FREE, headers={b"Idempotency-Key": key})

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert "255" in response.json()["detail"]
    assert shared_fake.calls == []


@shared_loop
async def test_two_keys_are_refused(shared_service: Service, shared_fake: ProviderFake) -> None:
    """A request with two keys has none that could be meant."""
    response = await shared_service.client.post(
        "/ai/test", json=FREE, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    )

    assert response.status_code == 422
    assert shared_fake.calls == []


async def test_the_longest_key_is_taken(service: Service) -> None:
    """255 characters, every visible one among them, are a key."""
    key = "".join(map(chr, range(0x21, 0x7F))).ljust(255, "~")
    first = await ask(service, {"Idempotency-Key": key})
    await wait_forgotten(service)

    assert (await ask(service, {"Idempotency-Key": key})).content == first.content


# failures


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        (Behaviour(status=500), 502, "provider_error"),
        (Behaviour(status=400), 400, "provider_rejected"),
        (Behaviour(status=429, retry_after=60), 503, "provider_busy"),
        (Behaviour(status=504), 504, "provider_timeout"),
    ],
    ids=["500", "400", "429", "504"],
)
async def test_a_failure_is_replayed(
    service: Service,
    fake: ProviderFake,
    behaviour: Behaviour,
    status: int,
    code: str,
    forgotten: bool,
) -> None:
    """A failed answer fails again with the same code and id, and is not tried again: it may have been billed."""
    fake.next(behaviour)
    first = await ask(service)
    if forgotten:
        await wait_forgotten(service)
    again = await ask(service)

    assert (
        (first.status_code, first.json()["code"])
        == (again.status_code, again.json()["code"])
        == (status, code)
    )
    assert again.json()["answer_id"] == first.json()["answer_id"] == (await service.row())["id"]
    assert (REPLAYED in first.headers, again.headers[REPLAYED]) == (False, "true")
    assert again.json()["request_id"] == again.headers["x-request-id"]
    assert ("retry-after" in again.headers) == (status == 503)
    assert len(fake.calls) == 1


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_failed_stream_is_replayed(
    service: Service, fake: ProviderFake, forgotten: bool
) -> None:
    """A stream that broke off says the same text and the same failure again."""
    fake.next(Behaviour(cut_after=3))
    first, _ = await streamed(service)
    if forgotten:
        await wait_forgotten(service)
    again, was_replay = await streamed(service)

    assert was_replay
    assert text_of(again) == text_of(first) != ""
    for name in ("code", "status", "answer_id", "request_id"):
        assert again[-1].json[name] == first[-1].json[name]
    assert again[-1].name == "failure"
    assert len(fake.calls) == 1


async def test_an_answer_that_a_crash_interrupted_is_replayed_as_its_row_says(
    service: Service, fake: ProviderFake
) -> None:
    """The row of an answer whose process died answers for it; the provider is not called again."""
    unknown: dict[str, Any] = {
        "status": Status.INTERRUPTED,
        "usage_source": UsageSource.UNKNOWN,
        "usage": None,
        "response": "",
    }
    begun = keyed_intent()
    await put(
        service,
        begun,
        error_code="shutting_down",
        cost_nano_usd=None,
        finish_reason=None,
        **unknown,
    )
    again = await ask(service)

    assert (again.status_code, again.json()["code"], again.json()["answer_id"]) == (
        503,
        "shutting_down",
        begun.id,
    )
    assert "another key" in again.json()["detail"]
    assert fake.calls == []


# refusals: nothing was begun, the key is free


async def test_a_refused_request_leaves_its_key_free(serve: Serve, fake: ProviderFake) -> None:
    """A request that came at a busy moment is answered when it comes back with the same key."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", answers_max=1)
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after="request"))
    other = asyncio.create_task(ask(service, {}))
    await fake.wait_calls(1)
    refused = await asyncio.gather(*(ask(service) for _ in range(10)))
    held.set()
    await other
    answered = await ask(service)

    assert {response.json()["code"] for response in refused} == {"overloaded"}
    assert answered.status_code == 200
    assert REPLAYED not in answered.headers
    assert len(fake.calls) == 2


async def test_a_refused_request_leaves_its_key_free_for_another(
    service: Service, fake: ProviderFake
) -> None:
    """Nothing was begun, so another request may have the key."""
    refused = await ask(service, model="extractive", prompt="x" * 20_001)
    answered = await ask(service)

    assert refused.status_code == 413
    assert answered.status_code == 200


async def test_without_the_database_a_new_key_is_refused(
    service: Service, fake: ProviderFake
) -> None:
    """Nobody knows whether the key is new, so nothing is begun; when the database is back the key is free."""
    with sqlite3.connect(service.services.settings.data_dir / "kotae.db") as other:
        other.execute("ALTER TABLE request_logs RENAME TO away")
        other.commit()
        refused = await ask(service)
        other.execute("ALTER TABLE away RENAME TO request_logs")
        other.commit()
    other.close()

    assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
    assert fake.calls == []
    assert (await ask(service)).status_code == 200


# after a restart


@asynccontextmanager
async def process(data_dir: Path, fake: ProviderFake) -> AsyncGenerator[ServiceProcess]:
    """A service as a process of its own."""
    async with serving(
        data_dir, OPENAI_BASE_URL=fake.base_url, KOTAE_MODEL="fake-model"
    ) as running:
        yield running


@pytest.mark.slow
async def test_a_restart_remembers(tmp_path: Path, fake: ProviderFake) -> None:
    """After the end of the process the next one gives the same answers for the same keys, and refuses the same conflicts."""
    stream_key = {"Idempotency-Key": "stream"}
    failed_key = {"Idempotency-Key": "failed"}
    async with process(tmp_path, fake) as running:
        first = await ask(running)
        events_first, _ = await streamed(running, stream_key)
        fake.next(Behaviour(status=500))
        failed = await ask(running, failed_key)
        running.signal(signal.SIGTERM)
        assert await running.wait() == 0
    async with process(tmp_path, fake) as running:
        again = await ask(running)
        events_again, _ = await streamed(running, stream_key)
        failed_again = await ask(running, failed_key)
        conflict = await ask(running, prompt="Other.")

    assert again.content == first.content
    assert (text_of(events_again), events_again[-1].json) == (
        text_of(events_first),
        events_first[-1].json,
    )
    assert failed_again.json()["code"] == failed.json()["code"] == "provider_error"
    assert failed_again.json()["answer_id"] == failed.json()["answer_id"]
    assert conflict.status_code == 409
    assert len(fake.calls) == 3


@pytest.mark.slow
async def test_a_killed_process_is_remembered(tmp_path: Path, fake: ProviderFake) -> None:
    """What was in the database before a kill is replayed after it."""
    async with process(tmp_path, fake) as running:
        first = await ask(running)
        async with asyncio.timeout(20):
            while not (await running.client.get("/ai/logs")).json()["items"]:
                await asyncio.sleep(0.01)
        running.signal(signal.SIGKILL)
        await running.wait()
    async with process(tmp_path, fake) as running:
        again = await ask(running)

    assert again.content == first.content
    assert len(fake.calls) == 1


@pytest.mark.slow
async def test_a_process_killed_in_the_middle_is_remembered(
    tmp_path: Path, fake: ProviderFake
) -> None:
    """The answer that a kill cut off is replayed as interrupted; the provider, which may have billed, is not called again."""
    fake.next(Behaviour(hang_after="request"))
    async with process(tmp_path, fake) as running:
        task = asyncio.create_task(ask(running))
        await fake.wait_calls(1)
        running.signal(signal.SIGKILL)
        await running.wait()
        await asyncio.wait([task])
        assert isinstance(task.exception(), httpx2.TransportError)
    async with process(tmp_path, fake) as running:
        again = await ask(running)
        (row,) = (await running.client.get("/ai/logs")).json()["items"]

    assert (again.status_code, again.json().get("code")) == (503, "shutting_down")
    assert (row["id"], row["status"]) == (again.json()["answer_id"], "interrupted")
    assert len(fake.calls) == 1


# the room alone


def test_the_hash_of_a_request_never_changes() -> None:
    """Hashes are in the log: another encoding would turn repetitions into conflicts."""
    found = hash_request(
        stream=False, prompt="Why? 🙂", grounded=True, model=None, max_tokens=7, temperature=0.5
    )

    assert found == "7bf58ce6e6a506fcd3e3c6604d1533cb69a698ab64ac739ed1c99ef24fdca593"


def test_a_lone_surrogate_can_be_hashed() -> None:
    """A prompt that is no Unicode is hashed as it is stored."""
    assert hash_request(**ASKED | {"prompt": "\ud800"}, stream=True) == hash_request(
        **ASKED | {"prompt": "�"}, stream=True
    )


def beginning(
    result: StartedAnswer | KotaeError, go: asyncio.Event
) -> Callable[[], Coroutine[Any, Any, StartedAnswer]]:
    """A beginning that comes to this result when it may."""

    async def begin() -> StartedAnswer:
        await go.wait()
        if isinstance(result, KotaeError):
            raise result
        return result

    return begin


async def test_who_leaves_during_the_beginning_takes_nothing_with_it(service: Service) -> None:
    """A first client that is cancelled while its answer begins does not cancel it for the second."""
    keys, key, go = (
        IdempotencyRegistry(service.services.queue),
        IdempotencyKey("u", "k"),
        asyncio.Event(),
    )
    found = StartedAnswer(replay_stream(outcome()), replayed=True)
    first = asyncio.create_task(keys.start_once(key, "h", beginning(found, go)))
    second = asyncio.create_task(keys.start_once(key, "h", beginning(Overloaded(), go)))
    await wait_until(lambda: len(keys) == 1)
    first.cancel()
    await asyncio.wait([first])
    go.set()

    assert (await second).stream is found.stream
    assert len(keys) == 0


async def test_a_conflict_with_what_is_then_refused_is_none(service: Service) -> None:
    """A request that found its key taken by another one gets it when the other was refused."""
    keys, key, go = (
        IdempotencyRegistry(service.services.queue),
        IdempotencyKey("u", "k"),
        asyncio.Event(),
    )
    found = StartedAnswer(replay_stream(outcome()), replayed=True)
    first = asyncio.create_task(keys.start_once(key, "one", beginning(Overloaded(), go)))
    await wait_until(lambda: len(keys) == 1)
    second = asyncio.create_task(keys.start_once(key, "two", beginning(found, go)))
    go.set()

    assert (await second).stream is found.stream
    with pytest.raises(Overloaded):
        await first


async def test_a_conflict_with_what_has_begun_is_one(service: Service) -> None:
    """A request that found its key taken waits until the other has begun, and is refused."""
    keys, key, go = (
        IdempotencyRegistry(service.services.queue),
        IdempotencyKey("u", "k"),
        asyncio.Event(),
    )
    running = Stream(intent(), [])
    first = asyncio.create_task(
        keys.start_once(key, "one", beginning(StartedAnswer(running, replayed=False), go))
    )
    await wait_until(lambda: len(keys) == 1)
    other = asyncio.create_task(keys.start_once(key, "two", beginning(Overloaded(), go)))
    go.set()

    with pytest.raises(IdempotencyConflict):
        await other
    assert (await first).stream is running
    running.finish(outcome(running.intent), None)
    await wait_until(lambda: len(keys) == 0)


async def test_the_end_of_the_process_refuses_what_has_not_begun(service: Service) -> None:
    """Whoever waits for a beginning at the end of the process is told to come back to the next."""
    keys, never = IdempotencyRegistry(service.services.queue), asyncio.Event()
    waiting = asyncio.create_task(
        keys.start_once(IdempotencyKey("u", "k"), "h", beginning(Overloaded(), never))
    )
    await wait_until(lambda: len(keys) == 1)
    await keys.stop()

    with pytest.raises(KotaeError) as refused:
        await waiting
    assert refused.value.code == "shutting_down"
