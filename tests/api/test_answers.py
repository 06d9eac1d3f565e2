"""POST /ai/test and the streams: a real server, the real AsyncOpenAI and a provider fake."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from service.core.encoding import create_id, utc_now
from service.core.pricing import Usage, format_usd
from tests.access import client, make_key
from tests.conftest import Serve, Service, http_client
from tests.fakes.provider import Behaviour, Call, Ending, Point, ProviderFake, default_text
from tests.problems import is_problem
from tests.sse import collect, events, text_of
from tests.streams import (
    open_events,
    parse_events,
    post_stream,
    read_all_events,
    start_answer,
    wait_evicted,
)

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}
FACTS = ("prompt_tokens", "completion_tokens", "usage_source", "status", "estimated_cost")


async def test_answer_equals_its_log_row(service: Service, fake: ProviderFake) -> None:
    """The answer object of POST /ai/test equals the log row."""
    response = await service.client.post("/ai/test", json=FREE)

    assert response.status_code == 200
    assert response.json() == await service.row()
    assert response.json()["response"] == fake.calls[0].text == default_text(FREE["prompt"])
    assert response.json()["request_id"] == response.headers["x-request-id"]


async def test_tokens_are_recorded_as_reported(service: Service, fake: ProviderFake) -> None:
    """Usage is recorded as reported, with cached and reasoning tokens as parts."""
    answer = (await service.client.post("/ai/test", json=FREE)).json()
    usage = fake.calls[0].usage

    assert answer["usage_source"] == "provider"
    assert (answer["prompt_tokens"], answer["completion_tokens"]) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )
    assert answer["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert answer["reasoning_tokens"] == usage["completion_tokens_details"]["reasoning_tokens"]
    assert answer["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("POST", "/ai/test", b'"a\\u0000b\\ud800c"'),
        ("POST", "/ai/stream", b'"a\\u0000b\\ud800c"'),
        ("GET", "/ai/stream?prompt=a%00b%ED%A0%80c&grounded=false", None),
    ],
)
async def test_nul_in_a_prompt_is_replaced(
    service: Service, method: str, path: str, sent: bytes | None
) -> None:
    """A prompt with NUL and a lone surrogate is answered and stored with U+FFFD instead."""
    body = b'{"grounded": false, "prompt": %b}' % sent if sent else None
    response = await service.client.request(
        method, path, content=body, headers={"Content-Type": "application/json"}
    )

    assert response.status_code == 200
    assert (await service.row())["prompt"].replace("\ufffd" * 3, "\ufffd") == "a\ufffdb\ufffdc"


async def test_stream_sends_start_deltas_done(service: Service, fake: ProviderFake) -> None:
    """Events arrive in order, their ids count characters, and their text is the provider's."""
    received = await post_stream(service)

    start, *deltas, done = received
    assert (start.name, done.name) == ("start", "done")
    assert {event.name for event in deltas} == {""}
    assert text_of(received) == fake.calls[0].text
    assert [event.last_id for event in deltas] == [
        f"{start.json['id']}.{len(text_of(deltas[: n + 1]))}" for n in range(len(deltas))
    ]
    assert (start.last_id, done.last_id) == (
        f"{start.json['id']}.0",
        f"{start.json['id']}.{len(text_of(received)) + 1}",
    )


async def test_stream_is_metered_like_a_plain_answer(service: Service) -> None:
    """A prompt costs the same tokens streamed or not; `done` is the row without its texts."""
    done = (await post_stream(service))[-1].json
    plain = (await service.client.post("/ai/test", json=FREE)).json()

    assert {name: done[name] for name in FACTS} == {name: plain[name] for name in FACTS}
    row = (await service.rows())[1]
    assert done == {
        name: value for name, value in row.items() if name not in ("prompt", "response")
    }


async def test_get_streams_the_same_answer(service: Service, fake: ProviderFake) -> None:
    """GET /ai/stream is the stream for a native EventSource."""
    async with service.client.stream(
        "GET", "/ai/stream", params={"prompt": "Hello?", "grounded": "false"}
    ) as response:
        received = await collect(response)

    assert text_of(received) == fake.calls[0].text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"


async def test_start_does_not_wait_for_the_provider(service: Service, fake: ProviderFake) -> None:
    """The first event is sent before the provider responds."""
    release = asyncio.Event()
    fake.next(Behaviour(hold=release, hold_after="request"))

    async with (
        service.client.stream("POST", "/ai/stream", json=FREE) as response,
        aclosing(events(response)) as stream,
    ):
        first = await anext(stream)
        release.set()
        rest = [event async for event in stream]

    assert first.name == "start"
    assert rest[-1].name == "done"


async def test_event_source_resumes_after_a_cut_and_is_charged_once(
    service: Service, fake: ProviderFake
) -> None:
    """A reconnect with Last-Event-ID continues byte-exactly, and the provider is called once."""
    params = {"prompt": "Tell me.", "grounded": "false"}
    release = asyncio.Event()
    fake.next(Behaviour(hold=release, hold_after=4))
    async with (
        service.client.stream("GET", "/ai/stream", params=params) as response,
        aclosing(events(response)) as stream,
    ):
        received = [await anext(stream) for _ in range(3)]
    release.set()

    async with service.client.stream(
        "GET", "/ai/stream", params=params, headers={"Last-Event-ID": received[-1].last_id}
    ) as response:
        rest = await collect(response)
    again = await service.client.get(
        "/ai/stream", params=params | {"last_event_id": rest[-1].last_id}
    )

    assert text_of(received + rest) == default_text("Tell me.")
    assert rest[-1].name == "done"
    assert again.status_code == 204
    assert len(fake.calls) == 1
    assert (await service.row())["status"] == "completed"


@pytest.mark.parametrize(
    "event_id",
    ["x", "01a2095b-6360-75d3-bf35-48878f818b4d.3", "01a2095b-6360-75d3-bf35-48878f818b4d.-1"],
)
async def test_unknown_event_id_is_404(service: Service, fake: ProviderFake, event_id: str) -> None:
    """A reconnect to an unknown event does not start an answer."""
    response = await service.client.get(
        "/ai/stream", params={"prompt": "x"}, headers={"Last-Event-ID": event_id}
    )

    assert response.status_code == 404
    assert fake.calls == []


async def test_disconnect_from_a_post_stream_cancels_the_provider_call(
    service: Service, fake: ProviderFake
) -> None:
    """The upstream connection is closed immediately; the row has status client_gone, estimated."""
    fake.next(Behaviour(hang_after=3))
    async with (
        service.client.stream("POST", "/ai/stream", json=FREE) as response,
        aclosing(events(response)) as stream,
    ):
        while (await anext(stream)).name == "start":
            pass
    ending = await fake.wait_ended(fake.calls[0], 2)

    assert ending is Ending.ABORTED
    row = await service.row()
    assert (row["status"], row["usage_source"]) == ("client_gone", "estimated")
    assert row["prompt_tokens"] > 0
    assert row["completion_tokens"] > 0
    assert fake.calls[0].text.startswith(row["response"])


@asynccontextmanager
async def unfinished_answer(
    service: Service, fake: ProviderFake, **headers: str
) -> AsyncIterator[Call]:
    """The provider call of a POST /ai/test, whose client disconnects at the end of the block."""
    number = len(fake.calls) + 1
    task = asyncio.create_task(service.client.post("/ai/test", json=FREE, headers=headers))
    call = (await fake.wait_calls(number))[-1]
    yield call
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("point", ["request", "headers", 0])
async def test_a_plain_answer_is_cancelled_without_its_client(
    service: Service, fake: ProviderFake, point: Point
) -> None:
    """The provider call ends at once; nothing was received, so the usage is unknown."""
    fake.next(Behaviour(hang_after=point))
    async with unfinished_answer(service, fake) as call:
        pass

    assert await fake.wait_ended(call, 1) is Ending.ABORTED
    row = await service.row()
    assert (row["status"], row["usage_source"], row["estimated_cost"]) == (
        "client_gone",
        "unknown",
        None,
    )


async def test_a_waiting_plain_answer_is_cancelled_without_its_client(
    serve: Serve, fake: ProviderFake
) -> None:
    """An answer that waits for a call slot ends without a call."""
    service = await serve(openai_base_url=fake.base_url, model="m", provider_calls_max=1)
    fake.default = Behaviour(hang_after="request")
    async with unfinished_answer(service, fake):
        waiting = asyncio.create_task(service.client.post("/ai/test", json=FREE))
        async with asyncio.timeout(10):
            while service.services.answers.statistics().in_progress < 2:
                await asyncio.sleep(0.001)
        waiting.cancel()
        async with asyncio.timeout(1):
            while service.services.answers.statistics().in_progress == 2:
                await asyncio.sleep(0.001)
    rows = await service.rows()

    assert [row["status"] for row in rows] == ["client_gone"] * 2
    assert sorted(row["usage_source"] for row in rows) == ["none", "unknown"]
    assert len(fake.calls) == 1


@pytest.mark.parametrize("path", ["/ai/test", "/ai/stream", "/v1/chat/completions"])
async def test_a_question_without_its_client_is_not_answered(
    serve: Serve, fake: ProviderFake, path: str
) -> None:
    """A client that leaves during the search causes no call, no row and no hold."""
    service = await serve(
        openai_base_url=fake.base_url, model="m", drain_seconds=20, seeded=True, answers_max=1
    )
    retrieval, question = service.services.retrieval, "How long may I return a product?"
    body = {"model": "kotae/m", "messages": [{"role": "user", "content": question}]}
    sent = body if path.startswith("/v1") else {"prompt": question}
    async with retrieval._turn(None), asyncio.timeout(10):
        task = asyncio.create_task(service.client.post(path, json=sent))
        while not retrieval.waiting_searches:
            await asyncio.sleep(0.001)
        task.cancel()
        while retrieval.waiting_searches:
            await asyncio.sleep(0.001)
    answered = await service.client.post("/ai/test", json={"prompt": question})

    assert (answered.status_code, len(fake.calls)) == (200, 1)
    assert [row["id"] for row in await service.rows()] == [answered.json()["id"]]
    assert service.services.quota.statistics().holds == 0


@pytest.mark.parametrize("path", ["/ai/test", "/ai/stream"])
async def test_an_answer_without_its_client_is_not_retried(
    service: Service, fake: ProviderFake, path: str
) -> None:
    """A client that leaves while the answer waits for its next attempt ends it at once."""
    fake.next(Behaviour(status=429, retry_after=3))
    task = asyncio.create_task(service.client.post(path, json=FREE))
    await fake.wait_calls(1)
    while not service.services.answers.statistics().in_progress:
        await asyncio.sleep(0.001)
    task.cancel()
    async with asyncio.timeout(2.5):
        row = await service.row()

    assert (row["status"], row["attempts"]) == ("client_gone", 1)
    assert len(fake.calls) == 1


async def test_a_plain_answer_is_drained_if_configured(serve: Serve, fake: ProviderFake) -> None:
    """With drain_seconds the provider finishes, and the row has the exact usage."""
    service = await serve(openai_base_url=fake.base_url, model="m", drain_seconds=20)
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after="request"))
    async with unfinished_answer(service, fake):
        pass
    held.set()
    row = await service.row()

    assert (row["status"], row["usage_source"]) == ("completed", "provider")


async def test_a_plain_answer_continues_for_the_other_client(
    service: Service, fake: ProviderFake
) -> None:
    """A keyed answer with two clients continues when one of them disconnects."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after="request"))
    key = {"Idempotency-Key": "k"}
    async with unfinished_answer(service, fake, **key):
        other = asyncio.create_task(service.client.post("/ai/test", json=FREE, headers=key))
        async with asyncio.timeout(10):
            while not other.done() and service.server.connections.busy < 2:
                await asyncio.sleep(0.001)
    held.set()

    assert (await other).json()["response"] == default_text(FREE["prompt"])
    assert len(fake.calls) == 1


async def test_listed_model_has_its_listed_cost(serve: Serve, fake: ProviderFake) -> None:
    """The cost is the listed price of the reported usage, in nano-dollars."""
    service = await serve(openai_base_url=fake.base_url, model="gpt-4o-mini")
    answer = (await service.client.post("/ai/test", json=FREE)).json()

    usage = Usage(
        **{name: answer[name] for name in ("prompt_tokens", "completion_tokens", "cached_tokens")}
    )
    fresh, cached = usage.prompt_tokens - usage.cached_tokens, usage.cached_tokens
    assert answer["estimated_cost"] == format_usd(
        fresh * 150 + cached * 75 + usage.completion_tokens * 600
    )


async def test_configured_price_is_used(serve: Serve, fake: ProviderFake) -> None:
    """A price in the settings applies to a model without a listed price."""
    service = await serve(
        openai_base_url=fake.base_url,
        model="fake-model",
        prices={"fake-model": {"input": "1", "output": "2"}},
    )
    answer = (await service.client.post("/ai/test", json=FREE)).json()

    assert answer["estimated_cost"] == format_usd(
        answer["prompt_tokens"] * 1000 + answer["completion_tokens"] * 2000
    )


ASK = {"prompt": "Why?", "grounded": False}


async def test_only_configured_models_may_be_requested(serve: Serve, fake: ProviderFake) -> None:
    """Only listed models may be requested."""
    service = await serve(openai_base_url=fake.base_url, model="a", models=["b"])
    assert (await service.client.post("/ai/test", json=ASK | {"model": "b"})).status_code == 200
    is_problem(
        await service.client.post("/ai/test", json=ASK | {"model": "c"}), 400, "unknown_model"
    )


async def test_without_a_provider_only_the_extractive_model_answers(serve: Serve) -> None:
    """An unknown model is a 400 that names the setting to change."""
    service = await serve()

    assert (
        "OPENAI_API_KEY"
        in is_problem(
            await service.client.post("/ai/test", json=ASK | {"model": "gpt-x"}),
            400,
            "unknown_model",
        )["detail"]
    )


async def test_event_that_was_not_sent_yet_is_404(service: Service, fake: ProviderFake) -> None:
    """A position beyond the events sent so far, or of another answer, is not found."""
    fake.next(Behaviour(hang_after=2))
    answer_id = (await start_answer(service))["id"]
    await fake.wait_chunks((await fake.wait_calls(1))[0], 2)

    for event_id in (f"{answer_id}.5000", f"{create_id(utc_now())}.0", "x"):
        response = await service.client.get(
            f"/ai/answers/{answer_id}/events", headers={"Last-Event-ID": event_id}
        )
        assert response.status_code == 404


async def test_cut_before_the_first_event_does_not_start_a_second_answer(
    service: Service, fake: ProviderFake
) -> None:
    """With an idempotency key, a reconnect without an event id finds its answer."""
    params = {"prompt": "Once?", "grounded": "false", "key": "cut-early"}
    release = asyncio.Event()
    fake.next(Behaviour(hold=release, hold_after="request"))
    async with service.client.stream("GET", "/ai/stream", params=params):
        await fake.wait_calls(1)  # cut before anything was read

    async with service.client.stream("GET", "/ai/stream", params=params) as response:
        release.set()
        running = await collect(response)
    async with service.client.stream("GET", "/ai/stream", params=params) as response:
        ended = await collect(response)

    assert text_of(running) == text_of(ended) == default_text("Once?")
    assert running[0].json["id"] == ended[0].json["id"]
    assert len(fake.calls) == 1
    assert (await service.row())["status"] == "completed"


async def test_answer_in_progress_returns_its_text_so_far(
    service: Service, fake: ProviderFake
) -> None:
    """GET of a running answer is 202 with its text so far; afterwards it is the log row."""
    release = asyncio.Event()
    fake.next(Behaviour(deltas=["One ", "two."], hold=release, hold_after=1))
    started = await start_answer(service)
    path = f"/ai/answers/{started['id']}"
    await fake.wait_chunks((await fake.wait_calls(1))[0], 1)
    async with asyncio.timeout(10):
        while (running := await service.client.get(path)).json()["response"] == "":
            await asyncio.sleep(0.005)
    release.set()
    await service.wait_idle()
    ended = await service.client.get(path)

    assert (running.status_code, running.json()["status"], running.json()["response"]) == (
        202,
        "in_progress",
        "One ",
    )
    assert running.headers["retry-after"] == "1"
    assert (ended.status_code, ended.json()) == (200, await service.row())
    assert ended.json()["response"] == "One two."


@pytest.mark.parametrize("route", ["/ai/answers", "/ai/stream", "/ai/test"])
async def test_stopping_cancels_the_provider_call_and_keeps_the_text(
    service: Service, fake: ProviderFake, route: str
) -> None:
    """DELETE closes the upstream connection within a second and keeps the text so far."""
    fake.next(Behaviour(hang_after=3))
    request = asyncio.create_task(service.client.post(route, json=FREE))
    call = (await fake.wait_calls(1))[0]
    (stream,) = service.services.answers._registry
    async with asyncio.timeout(10):
        while route != "/ai/test" and (not call.text or stream.text != call.text):
            await asyncio.sleep(0.002)

    responses = [await service.client.delete(f"/ai/answers/{stream.intent.id}") for _ in range(2)]
    async with asyncio.timeout(1):
        await fake.wait_idle()
    await request
    row = await service.row()
    again = await service.client.delete(f"/ai/answers/{row['id']}")

    assert [response.status_code for response in [*responses, again]] == [204, 204, 204]
    assert call.ended is Ending.ABORTED
    assert row["status"] == "stopped"
    assert row["response"] == ("" if route == "/ai/test" else call.text)
    assert (await service.row()) == row


async def test_readers_of_a_stopped_answer_receive_done(
    service: Service, fake: ProviderFake
) -> None:
    """Readers of a stopped answer receive `done` with status stopped."""
    fake.next(Behaviour(hang_after=2))
    started = await start_answer(service)
    async with open_events(service, started["events_url"]) as stream:
        received = [await anext(stream) for _ in range(3)]
        await service.client.delete(f"/ai/answers/{started['id']}")
        received += [event async for event in stream]

    assert (received[-1].name, received[-1].json["status"]) == ("done", "stopped")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_unknown_answer_is_404(service: Service, method: str) -> None:
    """An id that was never issued is not found."""
    for answer_id in (create_id(utc_now()), "x"):
        assert (await service.client.request(method, f"/ai/answers/{answer_id}")).status_code == 404
    assert (
        await service.client.get(f"/ai/answers/{create_id(utc_now())}/events")
    ).status_code == 404


async def test_ticket_replaces_a_credential_once(serve: Serve, fake: ProviderFake) -> None:
    """The events URL works without a key, once; a reconnect may use it again."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="fake-model")
    async with (
        client(service, await make_key(service, "alice")) as alice,
        http_client(service.url) as stranger,
    ):
        started = (await alice.post("/ai/answers", json=FREE)).json()
        url = started["events_url"]
        async with stranger.stream("GET", url) as response:
            received = await collect(response)
        second = await stranger.get(url)
        reconnect = await stranger.get(url, headers={"Last-Event-ID": received[1].last_id})
        by_query = await stranger.get(
            url,
            params={"last_event_id": received[-1].last_id, "ticket": url.partition("ticket=")[2]},
        )
        elsewhere = await stranger.get(url.replace(started["id"], create_id(utc_now())))
        without = await stranger.get(url.partition("?")[0])

    assert text_of(received) == default_text(FREE["prompt"])
    assert (second.status_code, second.json()["code"]) == (403, "ticket_invalid")
    assert text_of(parse_events(reconnect.content)) == text_of(received[2:])
    assert by_query.status_code == 204
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (403, "ticket_invalid")
    assert without.status_code == 401


@pytest.mark.parametrize("place", ["header", "parameter"])
async def test_unused_ticket_cannot_resume(service: Service, place: str) -> None:
    """Without a first use, `{id}.0` opens nothing."""
    started = await start_answer(service)
    await service.wait_idle()
    event_id = f"{started['id']}.0"
    response = await service.client.get(
        started["events_url"] + (f"&last_event_id={event_id}" if place == "parameter" else ""),
        headers={"Last-Event-ID": event_id} if place == "header" else {},
    )

    is_problem(response, 403, "ticket_invalid")


async def test_ticket_resumes_only_after_sent_events(service: Service, fake: ProviderFake) -> None:
    """A position that another reader has received, but no reader of this ticket, is refused."""
    release = asyncio.Event()
    fake.next(Behaviour(deltas=["One ", "two ", "three."], hold=release, hold_after=1))
    started = await start_answer(service)
    async with open_events(service, started["events_url"]) as stream:
        received = [await anext(stream), await anext(stream)]
    (answer_stream,) = service.services.answers._registry
    async with asyncio.timeout(10):
        while answer_stream.readers:
            await asyncio.sleep(0.002)
    release.set()
    everything = await read_all_events(service, f"/ai/answers/{started['id']}/events")

    ahead, resumed = [
        await service.client.get(started["events_url"], headers={"Last-Event-ID": event.last_id})
        for event in (everything[-2], received[-1])
    ]
    is_problem(ahead, 403, "ticket_invalid")
    assert text_of(received + parse_events(resumed.content)) == "One two three."


async def test_ticket_is_invalid_after_the_resume_time(serve: Serve, fake: ProviderFake) -> None:
    """Beyond `resume_seconds` after the last reader and the end, a ticket serves no reconnect."""
    service = await serve(openai_base_url=fake.base_url, model="m", resume_seconds=0)
    started = await start_answer(service)
    received = await read_all_events(service, started["events_url"])
    response = await service.client.get(
        started["events_url"], headers={"Last-Event-ID": received[0].last_id}
    )

    is_problem(response, 403, "ticket_invalid")


@pytest.mark.parametrize("stage", ["running", "ended", "in the log"])
async def test_other_users_cannot_access_an_answer(
    serve: Serve, fake: ProviderFake, stage: str
) -> None:
    """No route lets another user read, resume, fetch or stop an answer, at any stage."""
    service = await serve(
        auth="keys",
        openai_base_url=fake.base_url,
        model="fake-model",
        resume_seconds=0 if stage == "in the log" else 9,
    )
    release = asyncio.Event()
    fake.next(Behaviour(hold=release, hold_after=3))
    async with (
        client(service, await make_key(service, "a")) as a,
        client(service, await make_key(service, "b")) as b,
    ):
        answer_id = (await a.post("/ai/answers", json=FREE)).json()["id"]
        await fake.wait_chunks((await fake.wait_calls(1))[0], 3)
        theirs = (
            (await b.post("/ai/answers", json=FREE | {"prompt": "Mine"}))
            .json()["events_url"]
            .partition("?")[2]
        )
        if stage != "running":
            release.set()
            await service.wait_idle()
        if stage == "in the log":
            await wait_evicted(service)

        events_url, last = f"/ai/answers/{answer_id}/events", {"Last-Event-ID": f"{answer_id}.1"}
        attempts = [
            await b.get(events_url),
            await b.get(events_url, headers=last),
            await b.get("/ai/stream", params={"prompt": "x"}, headers=last),
            await b.get(f"/ai/answers/{answer_id}"),
            await b.delete(f"/ai/answers/{answer_id}"),
        ]
        with_ticket = await b.get(f"{events_url}?{theirs}", headers=last)
        release.set()
        mine = await a.get(events_url)

    assert [attempt.status_code for attempt in attempts] == [404] * 5
    assert with_ticket.status_code == 403
    assert text_of(parse_events(mine.content)) == default_text(FREE["prompt"])


async def test_started_answer_is_attached_to_by_its_key(
    service: Service, fake: ProviderFake
) -> None:
    """POST /ai/answers sent twice with one key is one answer, with one ticket each."""
    key = {"Idempotency-Key": "twice"}
    first, second = [
        await service.client.post("/ai/answers", json=FREE, headers=key) for _ in range(2)
    ]

    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["idempotent-replayed"] == "true"
    assert text_of(await read_all_events(service, second.json()["events_url"])) == default_text(
        FREE["prompt"]
    )
    assert len(fake.calls) == 1
