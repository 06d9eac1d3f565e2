"""Idempotency keys: one answer per request, however often it is sent."""

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
from tests.records import build_intent, build_outcome
from tests.sse import Event, collect, events, text_of
from tests.waiting import wait_until

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}
DEFAULTS: dict[str, Any] = FREE | {"model": None, "max_tokens": None, "temperature": None}
KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
REPLAYED = "idempotent-replayed"


async def post_answer(
    service: Service | ServiceProcess, headers: dict[str, str] = KEY, **body: Any
) -> httpx2.Response:
    """POST /ai/test with a key."""
    return await service.client.post("/ai/test", json=FREE | body, headers=headers)


async def post_stream(
    service: Service | ServiceProcess, headers: dict[str, str] = KEY, **body: Any
) -> tuple[list[Event], bool]:
    """The events of POST /ai/stream with a key, and whether they are a replay."""
    async with service.client.stream(
        "POST", "/ai/stream", json=FREE | body, headers=headers
    ) as response:
        assert response.status_code == 200
        return await collect(response), response.headers.get(REPLAYED) == "true"


async def wait_committed(service: Service) -> None:
    """Wait until no key is held in memory."""
    await service.wait_idle()
    await wait_until(lambda: service.services.answers.statistics().keyed == 0)


async def insert_row(service: Service, intent: Intent, **fields: Any) -> None:
    """Insert a row as the writer does."""
    async with service.services.database.transaction() as session:
        await request_log.apply_outcomes(session, [build_outcome(intent, **fields)])


def build_keyed_intent(*, stream: bool = False) -> Intent:
    """Build the intent of the request that `post_answer` or `post_stream` sends."""
    return build_intent(
        idempotency_key=KEY["Idempotency-Key"],
        body_hash=hash_request(stream=stream, **DEFAULTS),
        prompt=FREE["prompt"],
    )


# equal requests


async def test_the_same_request_gets_the_same_answer(service: Service, fake: ProviderFake) -> None:
    """A repeated request gets the same bytes, marked as a replay, from one call and one row."""
    first = await post_answer(service)
    again = await post_answer(service)

    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert (REPLAYED in first.headers, again.headers[REPLAYED]) == (False, "true")
    assert len(fake.calls) == 1
    assert await service.row() == first.json()


async def test_committed_answers_are_replayed_from_rows(
    service: Service, fake: ProviderFake
) -> None:
    """Once its row is committed, the answer is replayed from it, byte for byte."""
    first = await post_answer(service)
    await wait_committed(service)
    again = await post_answer(service)

    assert again.content == first.content
    assert again.headers[REPLAYED] == "true"
    assert len(fake.calls) == 1
    assert service.services.answers.statistics().keyed == 0


async def test_uncommitted_answers_are_replayed_from_memory(
    service: Service, fake: ProviderFake
) -> None:
    """An answer whose row waits for a locked database is replayed, and written once."""
    with sqlite3.connect(
        service.services.settings.data_dir / "kotae.db", isolation_level=None
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        first = await post_answer(service)
        again = await post_answer(service)
        assert service.services.queue.statistics().waiting == 1
        other.execute("ROLLBACK")
    other.close()

    assert again.content == first.content
    assert len(fake.calls) == 1
    assert await service.row() == first.json()


async def test_requests_without_keys_are_separate_answers(
    service: Service, fake: ProviderFake
) -> None:
    """Two requests without a key are two answers, and neither is a replay."""
    first, second = await post_answer(service, {}), await post_answer(service, {})

    assert first.json()["id"] != second.json()["id"]
    assert len(fake.calls) == 2
    assert REPLAYED not in second.headers


async def test_explicit_defaults_are_the_same_request(service: Service, fake: ProviderFake) -> None:
    """Explicit defaults or other JSON spelling do not make a different request."""
    first = await post_answer(service, temperature=1)
    again = await service.client.post(
        "/ai/test",
        content=b'{"temperature": 1.0, "grounded":false,"model":null,'
        b' "prompt":"Say\\u0020something."}',
        headers=KEY | {"Content-Type": "application/json"},
    )

    assert again.content == first.content
    assert len(fake.calls) == 1


async def test_a_stream_is_replayed_from_its_row(service: Service, fake: ProviderFake) -> None:
    """The start, text and end of a stream are replayed; its text in one delta."""
    first, was_replay = await post_stream(service)
    await wait_committed(service)
    again, is_replay = await post_stream(service)

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
    """A replay has the same sources, which are the context of a replayed stream."""
    service = await serve(seeded=True)
    body: dict[str, Any] = {"prompt": "返品は何日以内にできますか？", "grounded": True}
    plain = await post_answer(service, {"Idempotency-Key": "plain"}, **body)
    first, _ = await post_stream(service, **body)
    await wait_committed(service)
    plain_again = await post_answer(service, {"Idempotency-Key": "plain"}, **body)
    again, _ = await post_stream(service, **body)

    assert plain.json()["sources"]
    assert plain_again.content == plain.content
    assert again[-1].json == first[-1].json
    assert again[0].json["context"] == first[-1].json["sources"]


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_refusal_without_context_is_replayed(
    service: Service, fake: ProviderFake, forgotten: bool
) -> None:
    """A refusal is replayed even if documents were uploaded in between."""
    first = await post_answer(service, grounded=True)
    if forgotten:
        await wait_committed(service)
    await service.client.post(
        "/ai/upload", json={"title": "Something", "text": "Say something: something was said."}
    )
    again = await post_answer(service, grounded=True)

    assert first.json()["status"] == "no_context"
    assert again.content == first.content
    assert fake.calls == []


# parallel requests


async def test_parallel_requests_with_one_key_get_one_answer(
    service: Service, fake: ProviderFake
) -> None:
    """Fifty parallel requests get one call, one row and equal answers, all but one replays."""
    responses = await asyncio.gather(*(post_answer(service) for _ in range(50)))

    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses}) == 1
    assert sum(REPLAYED not in response.headers for response in responses) == 1
    assert len(fake.calls) == 1
    assert await service.row() == responses[0].json()


async def test_parallel_streams_with_one_key_get_one_answer(
    service: Service, fake: ProviderFake
) -> None:
    """Fifty parallel streams get one call, one row, and every event for every reader."""
    streams = await asyncio.gather(*(post_stream(service) for _ in range(50)))

    assert all(stream_events == streams[0][0] for stream_events, _ in streams)
    assert text_of(streams[0][0]) == default_text(FREE["prompt"])
    assert sum(not was_replay for _, was_replay in streams) == 1
    assert len(fake.calls) == 1
    assert (await service.row())["status"] == "completed"


async def test_one_of_two_racing_requests_gets_the_key(
    service: Service, fake: ProviderFake
) -> None:
    """If two requests race for a key, one gets it and all copies of the other a conflict."""
    responses = await asyncio.gather(
        *(post_answer(service, max_tokens=1 + n % 2) for n in range(20))
    )

    assert sorted(response.status_code for response in responses) == [200] * 10 + [409] * 10
    assert len({response.status_code for response in responses[::2]}) == 1
    assert len(fake.calls) == 1


async def test_a_running_answer_is_attached_to(service: Service, fake: ProviderFake) -> None:
    """A second request waits for the running answer of the first."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after="request"))
    first = asyncio.create_task(post_answer(service))
    await fake.wait_calls(1)
    second = asyncio.create_task(post_answer(service))
    held.set()

    assert (await first).content == (await second).content
    assert len(fake.calls) == 1


# disconnects


@asynccontextmanager
async def open_stream(
    service: Service, count: int
) -> AsyncGenerator[tuple[AsyncGenerator[Event, None], list[Event]]]:
    """Open a keyed stream of which `count` events were read."""
    async with (
        service.client.stream("POST", "/ai/stream", json=FREE, headers=KEY) as response,
        aclosing(events(response)) as stream,
    ):
        yield stream, [await anext(stream) for _ in range(count)]


async def test_a_disconnected_reader_does_not_stop_others(
    service: Service, fake: ProviderFake
) -> None:
    """When the first of two readers leaves, the second reads to the end."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=3))
    async with open_stream(service, 2) as (rest, received):
        async with open_stream(service, 2):
            await wait_until(lambda: len(fake.calls) == 1)
        held.set()
        received += [event async for event in rest]

    assert text_of(received) == fake.calls[0].text == default_text(FREE["prompt"])
    assert received[-1].json["status"] == "completed"


async def test_a_disconnected_client_resumes_with_its_key(
    service: Service, fake: ProviderFake
) -> None:
    """A keyed stream continues without its reader, who returns and gets all of it."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=3))
    async with open_stream(service, 2):
        pass
    held.set()
    received, was_replay = await post_stream(service)

    assert was_replay
    assert text_of(received) == default_text(FREE["prompt"])
    assert len(fake.calls) == 1
    assert (await service.row())["status"] == "completed"


async def test_an_abandoned_keyed_stream_is_stopped(serve: Serve, fake: ProviderFake) -> None:
    """A keyed stream without readers is stopped, and the key replays its end."""
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
    started = await service.services.answers.answer_once(request, KEY["Idempotency-Key"])
    async with aclosing(started.stream.read_events(-1)) as batches:
        while b"delta" not in await anext(batches):
            pass

    assert await fake.wait_ended(fake.calls[0], 5) is Ending.ABORTED
    await wait_committed(service)
    received, _ = await post_stream(service)
    assert received[-1].json["status"] == "client_gone"
    assert text_of(received) == (await service.row())["response"]


async def test_a_plain_answer_is_replayed_after_a_disconnect(
    service: Service, fake: ProviderFake
) -> None:
    """A client that disconnects from a keyed POST /ai/test gets the answer on its retry."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after="request"))
    task = asyncio.create_task(post_answer(service))
    await fake.wait_calls(1)
    task.cancel()
    await asyncio.wait([task])
    held.set()
    again = await post_answer(service)

    assert again.json()["response"] == default_text(FREE["prompt"])
    assert again.headers[REPLAYED] == "true"
    assert len(fake.calls) == 1


# other requests, other users


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
    """A key with any other parameter is rejected with 409, and the first answer stays."""
    first = await post_answer(service)
    if forgotten:
        await wait_committed(service)
    other = await post_answer(service, **changed)

    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert other.headers["content-type"] == "application/problem+json"
    assert (await post_answer(service)).content == first.content
    assert len(fake.calls) == 1


async def test_the_other_route_with_the_key_is_a_conflict(
    service: Service, fake: ProviderFake
) -> None:
    """Keys of POST /ai/test and of POST /ai/stream conflict with each other."""
    await post_answer(service)
    stream = await service.client.post("/ai/stream", json=FREE, headers=KEY)
    await post_stream(service, {"Idempotency-Key": "s"})
    plain = await post_answer(service, {"Idempotency-Key": "s"})

    assert stream.json()["code"] == plain.json()["code"] == "idempotency_conflict"
    assert len(fake.calls) == 2


async def test_keys_belong_to_users(service: Service, fake: ProviderFake) -> None:
    """The same key of two users is two keys."""
    first, second = (
        await post_answer(service, user_id="one"),
        await post_answer(service, user_id="other"),
    )
    again = await post_answer(service, user_id="one")

    assert first.json()["id"] != second.json()["id"]
    assert again.content == first.content
    assert (len(fake.calls), len(await service.rows())) == (2, 2)


@shared_loop
@pytest.mark.parametrize("key", [b"", b"a b", b"\xc3\xa9", b"x" * 256, b"a\tb"])
@pytest.mark.parametrize("route", ["/ai/test", "/ai/stream"])
async def test_invalid_keys_are_rejected(
    shared_service: Service, shared_fake: ProviderFake, route: str, key: bytes
) -> None:
    """A key is 1 to 255 visible ASCII characters; others are rejected before an answer starts."""
    response = await shared_service.client.post(route, json=FREE, headers={b"Idempotency-Key": key})

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert "255" in response.json()["detail"]
    assert shared_fake.calls == []


@shared_loop
async def test_two_keys_are_rejected(shared_service: Service, shared_fake: ProviderFake) -> None:
    """A request with two keys is ambiguous."""
    response = await shared_service.client.post(
        "/ai/test", json=FREE, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    )

    assert response.status_code == 422
    assert shared_fake.calls == []


async def test_the_longest_key_is_accepted(service: Service) -> None:
    """A key may have 255 characters and any visible ASCII character."""
    key = "".join(map(chr, range(0x21, 0x7F))).ljust(255, "~")
    first = await post_answer(service, {"Idempotency-Key": key})
    await wait_committed(service)

    assert (await post_answer(service, {"Idempotency-Key": key})).content == first.content


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
    """A failed answer is replayed with the same code and id, and not retried."""
    fake.next(behaviour)
    first = await post_answer(service)
    if forgotten:
        await wait_committed(service)
    again = await post_answer(service)

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
    """A failed stream is replayed with the same text and failure."""
    fake.next(Behaviour(cut_after=3))
    first, _ = await post_stream(service)
    if forgotten:
        await wait_committed(service)
    again, was_replay = await post_stream(service)

    assert was_replay
    assert text_of(again) == text_of(first) != ""
    for name in ("code", "status", "answer_id", "request_id"):
        assert again[-1].json[name] == first[-1].json[name]
    assert again[-1].name == "failure"
    assert len(fake.calls) == 1


async def test_an_interrupted_answer_is_replayed(service: Service, fake: ProviderFake) -> None:
    """The row of an interrupted answer is replayed; the provider is not called again."""
    unknown: dict[str, Any] = {
        "status": Status.INTERRUPTED,
        "usage_source": UsageSource.UNKNOWN,
        "usage": None,
        "response": "",
    }
    intent = build_keyed_intent()
    await insert_row(
        service,
        intent,
        error_code="shutting_down",
        cost_nano_usd=None,
        finish_reason=None,
        **unknown,
    )
    again = await post_answer(service)

    assert (again.status_code, again.json()["code"], again.json()["answer_id"]) == (
        503,
        "shutting_down",
        intent.id,
    )
    assert "another key" in again.json()["detail"]
    assert fake.calls == []


# rejections: no answer was started, the key is free


async def test_a_rejected_request_frees_its_key(serve: Serve, fake: ProviderFake) -> None:
    """A request rejected under load is answered when it is retried with the same key."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", answers_max=1)
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after="request"))
    other = asyncio.create_task(post_answer(service, {}))
    await fake.wait_calls(1)
    refused = await asyncio.gather(*(post_answer(service) for _ in range(10)))
    held.set()
    await other
    answered = await post_answer(service)

    assert {response.json()["code"] for response in refused} == {"overloaded"}
    assert answered.status_code == 200
    assert REPLAYED not in answered.headers
    assert len(fake.calls) == 2


async def test_a_rejected_request_frees_its_key_for_others(
    service: Service, fake: ProviderFake
) -> None:
    """The key of a rejected request can be used for another request."""
    refused = await post_answer(service, model="extractive", prompt="x" * 20_001)
    answered = await post_answer(service)

    assert refused.status_code == 413
    assert answered.status_code == 200


async def test_a_key_is_rejected_without_the_database(service: Service, fake: ProviderFake) -> None:
    """Without the database a key is rejected; once it is back, the key is free."""
    with sqlite3.connect(service.services.settings.data_dir / "kotae.db") as other:
        other.execute("ALTER TABLE request_logs RENAME TO away")
        other.commit()
        refused = await post_answer(service)
        other.execute("ALTER TABLE away RENAME TO request_logs")
        other.commit()
    other.close()

    assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
    assert fake.calls == []
    assert (await post_answer(service)).status_code == 200


# restarts


@asynccontextmanager
async def run_service(data_dir: Path, fake: ProviderFake) -> AsyncGenerator[ServiceProcess]:
    """Run a service in its own process."""
    async with serving(
        data_dir, OPENAI_BASE_URL=fake.base_url, KOTAE_MODEL="fake-model"
    ) as running:
        yield running


@pytest.mark.slow
async def test_keys_survive_a_restart(tmp_path: Path, fake: ProviderFake) -> None:
    """After a restart keys replay the same answers and reject the same conflicts."""
    stream_key = {"Idempotency-Key": "stream"}
    failed_key = {"Idempotency-Key": "failed"}
    async with run_service(tmp_path, fake) as running:
        first = await post_answer(running)
        events_first, _ = await post_stream(running, stream_key)
        fake.next(Behaviour(status=500))
        failed = await post_answer(running, failed_key)
        running.signal(signal.SIGTERM)
        assert await running.wait() == 0
    async with run_service(tmp_path, fake) as running:
        again = await post_answer(running)
        events_again, _ = await post_stream(running, stream_key)
        failed_again = await post_answer(running, failed_key)
        conflict = await post_answer(running, prompt="Other.")

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
async def test_keys_survive_a_kill(tmp_path: Path, fake: ProviderFake) -> None:
    """Rows committed before a kill are replayed after it."""
    async with run_service(tmp_path, fake) as running:
        first = await post_answer(running)
        async with asyncio.timeout(20):
            while not (await running.client.get("/ai/logs")).json()["items"]:
                await asyncio.sleep(0.01)
        running.signal(signal.SIGKILL)
        await running.wait()
    async with run_service(tmp_path, fake) as running:
        again = await post_answer(running)

    assert again.content == first.content
    assert len(fake.calls) == 1


@pytest.mark.slow
async def test_keys_of_running_answers_survive_a_kill(tmp_path: Path, fake: ProviderFake) -> None:
    """An answer cut off by a kill is replayed as interrupted, without another call."""
    fake.next(Behaviour(hang_after="request"))
    async with run_service(tmp_path, fake) as running:
        task = asyncio.create_task(post_answer(running))
        await fake.wait_calls(1)
        running.signal(signal.SIGKILL)
        await running.wait()
        await asyncio.wait([task])
        assert isinstance(task.exception(), httpx2.TransportError)
    async with run_service(tmp_path, fake) as running:
        again = await post_answer(running)
        (row,) = (await running.client.get("/ai/logs")).json()["items"]

    assert (again.status_code, again.json().get("code")) == (503, "shutting_down")
    assert (row["id"], row["status"]) == (again.json()["answer_id"], "interrupted")
    assert len(fake.calls) == 1


# the registry


def test_the_hash_of_a_request_never_changes() -> None:
    """Hashes are in the log: another encoding would turn retries into conflicts."""
    digest = hash_request(
        stream=False, prompt="Why? 🙂", grounded=True, model=None, max_tokens=7, temperature=0.5
    )

    assert digest == "7bf58ce6e6a506fcd3e3c6604d1533cb69a698ab64ac739ed1c99ef24fdca593"


def test_a_lone_surrogate_can_be_hashed() -> None:
    """A prompt with a lone surrogate is hashed as it is stored."""
    assert hash_request(**DEFAULTS | {"prompt": "\ud800"}, stream=True) == hash_request(
        **DEFAULTS | {"prompt": "�"}, stream=True
    )


def create_start(
    result: StartedAnswer | KotaeError, proceed: asyncio.Event
) -> Callable[[], Coroutine[Any, Any, StartedAnswer]]:
    """Create a `start` callback with this result, which waits for `proceed`."""

    async def start() -> StartedAnswer:
        await proceed.wait()
        if isinstance(result, KotaeError):
            raise result
        return result

    return start


async def test_a_cancelled_first_client_does_not_cancel_the_start(service: Service) -> None:
    """A first client that is cancelled while its answer starts does not cancel it for others."""
    keys, key, proceed = (
        IdempotencyRegistry(service.services.queue),
        IdempotencyKey("u", "k"),
        asyncio.Event(),
    )
    started = StartedAnswer(replay_stream(build_outcome()), replayed=True)
    first = asyncio.create_task(keys.start_once(key, "h", create_start(started, proceed)))
    second = asyncio.create_task(keys.start_once(key, "h", create_start(Overloaded(), proceed)))
    await wait_until(lambda: len(keys) == 1)
    first.cancel()
    await asyncio.wait([first])
    proceed.set()

    assert (await second).stream is started.stream
    assert len(keys) == 0


async def test_a_rejected_request_is_not_a_conflict(service: Service) -> None:
    """A request gets a key in use by another request once that one was rejected."""
    keys, key, proceed = (
        IdempotencyRegistry(service.services.queue),
        IdempotencyKey("u", "k"),
        asyncio.Event(),
    )
    started = StartedAnswer(replay_stream(build_outcome()), replayed=True)
    first = asyncio.create_task(keys.start_once(key, "one", create_start(Overloaded(), proceed)))
    await wait_until(lambda: len(keys) == 1)
    second = asyncio.create_task(keys.start_once(key, "two", create_start(started, proceed)))
    proceed.set()

    assert (await second).stream is started.stream
    with pytest.raises(Overloaded):
        await first


async def test_a_started_answer_is_a_conflict(service: Service) -> None:
    """A request for a key in use waits until the other answer has started, then conflicts."""
    keys, key, proceed = (
        IdempotencyRegistry(service.services.queue),
        IdempotencyKey("u", "k"),
        asyncio.Event(),
    )
    running = Stream(build_intent(), [])
    first = asyncio.create_task(
        keys.start_once(key, "one", create_start(StartedAnswer(running, replayed=False), proceed))
    )
    await wait_until(lambda: len(keys) == 1)
    other = asyncio.create_task(keys.start_once(key, "two", create_start(Overloaded(), proceed)))
    proceed.set()

    with pytest.raises(IdempotencyConflict):
        await other
    assert (await first).stream is running
    running.finish(build_outcome(running.intent), None)
    await wait_until(lambda: len(keys) == 0)


async def test_shutdown_rejects_waiting_requests(service: Service) -> None:
    """At shutdown, requests that wait for an answer to start are rejected."""
    keys, never = IdempotencyRegistry(service.services.queue), asyncio.Event()
    waiting = asyncio.create_task(
        keys.start_once(IdempotencyKey("u", "k"), "h", create_start(Overloaded(), never))
    )
    await wait_until(lambda: len(keys) == 1)
    await keys.stop()

    with pytest.raises(KotaeError) as refused:
        await waiting
    assert refused.value.code == "shutting_down"
