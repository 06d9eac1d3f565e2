"""POST /ai/test and the streams, through a real server, the real AsyncOpenAI and a provider fake on a socket."""

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest

from service.core.pricing import PriceBook, Usage, format_usd
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, Ending, ProviderFake, default_text
from tests.sse import Event, collect, events, text_of

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}
FACTS = ("prompt_tokens", "completion_tokens", "usage_source", "status", "estimated_cost")


async def streamed(service: Service, **body: Any) -> list[Event]:
    """The events of POST /ai/stream."""
    async with service.client.stream("POST", "/ai/stream", json=FREE | body) as response:
        assert response.status_code == 200
        return await collect(response)


async def test_an_answer_and_its_row_say_the_same(service: Service, fake: ProviderFake) -> None:
    """The answer object of POST /ai/test is the log row."""
    response = await service.client.post("/ai/test", json=FREE)

    assert response.status_code == 200
    assert response.json() == await service.row()
    assert response.json()["response"] == fake.calls[0].text == default_text(FREE["prompt"])
    assert response.json()["request_id"] == response.headers["x-request-id"]


async def test_tokens_are_as_the_provider_said(service: Service, fake: ProviderFake) -> None:
    """Usage is recorded as reported, cached and reasoning tokens as parts."""
    answer = (await service.client.post("/ai/test", json=FREE)).json()
    told = fake.calls[0].usage

    assert answer["usage_source"] == "provider"
    assert (answer["prompt_tokens"], answer["completion_tokens"]) == (told["prompt_tokens"], told["completion_tokens"])
    assert answer["cached_tokens"] == told["prompt_tokens_details"]["cached_tokens"]
    assert answer["reasoning_tokens"] == told["completion_tokens_details"]["reasoning_tokens"]
    assert answer["total_tokens"] == told["prompt_tokens"] + told["completion_tokens"]


async def test_a_stream_says_start_deltas_done(service: Service, fake: ProviderFake) -> None:
    """The events come in order, with ids that count the characters, and their text is the provider's."""
    found = await streamed(service)

    start, *deltas, done = found
    assert (start.name, done.name) == ("start", "done")
    assert {event.name for event in deltas} == {""}
    assert text_of(found) == fake.calls[0].text
    assert [event.last_id for event in deltas] == [f"{start.json['id']}.{len(text_of(deltas[: n + 1]))}" for n in range(len(deltas))]
    assert (start.last_id, done.last_id) == (f"{start.json['id']}.0", f"{start.json['id']}.{len(text_of(found)) + 1}")


async def test_a_stream_is_metered_as_exactly_as_a_plain_answer(service: Service) -> None:
    """The same prompt costs the same tokens, streamed or not; `done` is the row without its texts."""
    done = (await streamed(service))[-1].json
    plain = (await service.client.post("/ai/test", json=FREE)).json()

    assert {name: done[name] for name in FACTS} == {name: plain[name] for name in FACTS}
    row = (await service.rows())[1]
    assert done == {name: value for name, value in row.items() if name not in ("prompt", "response")}


async def test_get_streams_the_same(service: Service, fake: ProviderFake) -> None:
    """GET /ai/stream is the stream for a native EventSource."""
    async with service.client.stream("GET", "/ai/stream", params={"prompt": "Hello?", "grounded": "false"}) as response:
        found = await collect(response)

    assert text_of(found) == fake.calls[0].text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"


async def test_start_does_not_wait_for_the_provider(service: Service, fake: ProviderFake) -> None:
    """The first event leaves while the provider has said nothing yet."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after="request"))

    async with service.client.stream("POST", "/ai/stream", json=FREE) as response, aclosing(events(response)) as stream:
        first = await anext(stream)
        held.set()
        rest = [event async for event in stream]

    assert first.name == "start"
    assert rest[-1].name == "done"


async def test_a_cut_event_source_resumes_and_pays_once(service: Service, fake: ProviderFake) -> None:
    """A reconnect with Last-Event-ID goes on byte-exactly after every event; the provider is called once."""
    params = {"prompt": "Tell me.", "grounded": "false"}
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=4))
    async with service.client.stream("GET", "/ai/stream", params=params) as response, aclosing(events(response)) as stream:
        seen = [await anext(stream) for _ in range(3)]
    held.set()

    async with service.client.stream("GET", "/ai/stream", params=params, headers={"Last-Event-ID": seen[-1].last_id}) as response:
        rest = await collect(response)
    again = await service.client.get("/ai/stream", params=params | {"last_event_id": rest[-1].last_id})

    assert text_of(seen + rest) == default_text("Tell me.")
    assert rest[-1].name == "done"
    assert again.status_code == 204
    assert len(fake.calls) == 1
    assert (await service.row())["status"] == "completed"


@pytest.mark.parametrize("event_id", ["x", "01a2095b-6360-75d3-bf35-48878f818b4d.3", "01a2095b-6360-75d3-bf35-48878f818b4d.-1"])
async def test_an_unknown_event_id_is_404(service: Service, fake: ProviderFake, event_id: str) -> None:
    """A reconnect to nothing known never asks anew."""
    response = await service.client.get("/ai/stream", params={"prompt": "x"}, headers={"Last-Event-ID": event_id})

    assert response.status_code == 404
    assert fake.calls == []


async def test_a_client_that_leaves_a_post_stream_stops_the_provider(service: Service, fake: ProviderFake) -> None:
    """The upstream connection is closed at once; the row says client_gone with estimated usage."""
    fake.next(Behaviour(hang_after=3))
    async with service.client.stream("POST", "/ai/stream", json=FREE) as response, aclosing(events(response)) as stream:
        while (await anext(stream)).name == "start":
            pass
    ending = await fake.wait_ended(fake.calls[0], 2)

    assert ending is Ending.ABORTED
    row = await service.row()
    assert (row["status"], row["usage_source"]) == ("client_gone", "estimated")
    assert row["prompt_tokens"] > 0
    assert row["completion_tokens"] > 0
    assert fake.calls[0].text.startswith(row["response"])


async def test_a_client_that_leaves_is_drained_when_asked(serve: Serve, fake: ProviderFake) -> None:
    """With drain_seconds the rest is read, and the exact usage is on the row."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", drain_seconds=20)
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=3))
    async with service.client.stream("POST", "/ai/stream", json=FREE) as response, aclosing(events(response)) as stream:
        await anext(stream)
        await fake.wait_calls(1)
    held.set()

    row = await service.row()
    assert (row["status"], row["usage_source"]) == ("completed", "provider")
    assert row["response"] == fake.calls[0].text


async def test_a_plain_answer_is_recorded_when_the_client_has_gone(service: Service, fake: ProviderFake) -> None:
    """POST /ai/test goes on to its end without its caller."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after="request"))
    task = asyncio.create_task(service.client.post("/ai/test", json=FREE))
    await fake.wait_calls(1)
    task.cancel()
    await asyncio.wait([task])
    held.set()

    row = await service.row()
    assert (row["status"], row["usage_source"]) == ("completed", "provider")


FAILURES: list[tuple[str, Behaviour, int, str, str, str]] = [
    ("500", Behaviour(status=500), 502, "provider_error", "provider_error", "unknown"),
    ("500 without body", Behaviour(status=500, body=b""), 502, "provider_error", "provider_error", "unknown"),
    ("500 with an endless body", Behaviour(status=500, body=b"x" * 50_000_000), 502, "provider_error", "provider_error", "unknown"),
    ("500 with a compressed body", Behaviour(status=500, gzip=True), 502, "provider_error", "provider_error", "unknown"),
    ("401", Behaviour(status=401), 502, "provider_refused", "provider_error", "unknown"),
    ("404", Behaviour(status=404), 502, "provider_refused", "provider_error", "unknown"),
    ("400", Behaviour(status=400), 400, "provider_rejected", "provider_error", "unknown"),
    ("504", Behaviour(status=504), 504, "provider_timeout", "timeout", "unknown"),
    ("429 for long", Behaviour(status=429, retry_after=60), 503, "provider_busy", "provider_error", "unknown"),
    ("cut before headers", Behaviour(cut_after="request"), 502, "provider_cut", "provider_error", "unknown"),
    ("HTML", Behaviour(body=b"<html>", content_type="text/html"), 502, "provider_invalid", "provider_error", "unknown"),
    ("silence", Behaviour(hang_after="request"), 504, "provider_timeout", "timeout", "unknown"),
    ("gzip", Behaviour(gzip=True), 502, "provider_invalid", "provider_error", "unknown"),
]


@pytest.mark.parametrize(
    ("behaviour", "http_status", "code", "status", "source"), [case[1:] for case in FAILURES], ids=[case[0] for case in FAILURES]
)
async def test_a_failed_plain_answer_is_a_problem_and_a_row(
    serve: Serve, fake: ProviderFake, behaviour: Behaviour, http_status: int, code: str, status: str, source: str
) -> None:
    """Whatever the provider does, the caller gets a typed problem and the log one row with the right status."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", provider_idle_seconds=0.3)
    fake.next(behaviour)

    response = await service.client.post("/ai/test", json=FREE)

    problem, row = response.json(), await service.row()
    assert (response.status_code, problem["status"], problem["code"]) == (http_status, http_status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == row["request_id"] == response.headers["x-request-id"]
    assert problem["answer_id"] == row["id"]
    assert (row["status"], row["error_code"], row["usage_source"]) == (status, code, source)
    assert row["prompt_tokens"] is row["estimated_cost"] is None
    assert row["attempts"] == 1


STREAM_FAILURES: list[tuple[str, Behaviour, str, str]] = [
    ("cut by RST", Behaviour(cut="rst", cut_after=3, gap=0.01), "provider_cut", "provider_error"),
    ("cut by FIN", Behaviour(cut_after=3), "provider_cut", "provider_error"),
    ("cut inside a line", Behaviour(cut_after=3, cut_inside=True), "provider_cut", "provider_error"),
    ("a clean end too early", Behaviour(finish_reason="absent"), "provider_cut", "provider_error"),
    ("the same without [DONE]", Behaviour(finish_reason="absent", done=False, usage=None), "provider_cut", "provider_error"),
    ("the same, ended by the connection", Behaviour(cut_after=3, framing="close"), "provider_cut", "provider_error"),
    ("an error event", Behaviour(error_after=3), "provider_error", "provider_error"),
    ("broken JSON", Behaviour(malformed_after=3), "provider_invalid", "provider_error"),
    ("broken UTF-8", Behaviour(invalid_utf8_after=3), "provider_invalid", "provider_error"),
    ("silence in the middle", Behaviour(hang_after=3), "provider_timeout", "timeout"),
    ("a huge line", Behaviour(huge_line_after=3, huge_line_bytes=3_000_000), "provider_invalid", "provider_error"),
]


@pytest.mark.parametrize(("behaviour", "code", "status"), [case[1:] for case in STREAM_FAILURES], ids=[case[0] for case in STREAM_FAILURES])
async def test_a_stream_that_fails_says_so_and_is_accounted(
    serve: Serve, fake: ProviderFake, behaviour: Behaviour, code: str, status: str
) -> None:
    """After byte one an error is a `failure` event; the row keeps the text so far, with estimated usage."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", provider_idle_seconds=0.3)
    fake.next(behaviour)

    found = await streamed(service)

    row = await service.row()
    assert found[-1].name == "failure"
    assert (found[-1].json["code"], found[-1].json["answer_id"]) == (code, row["id"])
    assert (row["status"], row["error_code"]) == (status, code)
    assert row["usage_source"] == ("provider" if code == "provider_cut" and fake.calls[0].usage else "estimated")
    assert row["response"] == text_of(found)
    assert row["completion_tokens"] > 0


@pytest.mark.parametrize("usage", [None, "null", "negative", "huge"])
@pytest.mark.parametrize("stream", [True, False])
async def test_usage_that_was_not_told_is_estimated(service: Service, fake: ProviderFake, usage: Any, stream: bool) -> None:
    """A completed answer without a credible usage is estimated from its texts, and says so."""
    fake.next(Behaviour(usage=usage))

    if stream:
        await streamed(service)
    else:
        await service.client.post("/ai/test", json=FREE)

    row = await service.row()
    assert (row["status"], row["usage_source"]) == ("completed", "estimated")
    assert 5 < row["prompt_tokens"] < 60
    assert 5 < row["completion_tokens"] < 60


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(usage_place="every"),
        Behaviour(usage_place="finish"),
        Behaviour(usage_times=2),
        Behaviour(newline="\r\n"),
        Behaviour(newline="\r"),
        Behaviour(bytes_per_write=1),
        Behaviour(chunks_per_write=0),
        Behaviour(role="null", extra=True, empty_choices=True, comments=True),
        Behaviour(done=False),
        Behaviour(finish_with_text=True),
        Behaviour(framing="close"),
        Behaviour(cut_after="usage"),
        Behaviour(finish_reason="length"),
    ],
    ids=lambda behaviour: repr(behaviour)[:0] or None,
)
async def test_unusual_but_whole_streams_are_completed(service: Service, fake: ProviderFake, behaviour: Behaviour) -> None:
    """What real servers do beside the letter changes neither text nor account."""
    fake.next(behaviour)

    found = await streamed(service)

    row = await service.row()
    assert (row["status"], row["usage_source"]) == ("completed", "provider")
    assert text_of(found) == row["response"] == default_text(FREE["prompt"])
    assert row["total_tokens"] == fake.calls[0].usage["total_tokens"]


async def test_a_provider_that_cannot_be_reached_cost_nothing(serve: Serve, fake: ProviderFake) -> None:
    """No connection: every attempt is counted, the row is 0 because the provider was never called."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", provider_attempts_max=2)
    async with fake.away():
        response = await service.client.post("/ai/test", json=FREE)

    row = await service.row()
    assert (response.status_code, response.json()["code"]) == (502, "provider_unreachable")
    assert (row["attempts"], row["usage_source"], row["total_tokens"], row["estimated_cost"]) == (2, "none", 0, "0")


async def test_a_busy_provider_is_tried_again(service: Service, fake: ProviderFake) -> None:
    """What was refused before any answer is tried again by us, and each try is counted."""
    fake.next(Behaviour(status=429, retry_after=0), Behaviour(status=503, body=b"", retry_after=0))

    response = await service.client.post("/ai/test", json=FREE)

    assert response.status_code == 200
    assert response.json()["attempts"] == len(fake.calls) == 3


async def test_an_answer_has_a_deadline(serve: Serve, fake: ProviderFake) -> None:
    """An endless answer ends at answer_seconds_max, as a timeout with what was said."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", answer_seconds_max=0.4)
    fake.next(Behaviour(endless=True, gap=0.02))

    found = await streamed(service)

    row = await service.row()
    assert found[-1].json["code"] == "provider_timeout"
    assert (row["status"], row["usage_source"]) == ("timeout", "estimated")
    assert await fake.wait_ended(fake.calls[0]) is Ending.ABORTED


async def test_an_answer_has_a_greatest_length(serve: Serve, fake: ProviderFake) -> None:
    """A text beyond answer_bytes_max ends the answer; memory stays bounded."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", answer_bytes_max=2000)
    fake.next(Behaviour(endless=True))

    found = await streamed(service)

    assert found[-1].json["code"] == "provider_invalid"
    assert len((await service.row())["response"].encode()) <= 2000 + 65_536


async def test_one_answer_too_many_is_refused(serve: Serve, fake: ProviderFake) -> None:
    """At answers_max the next is told to come back, and the provider does not hear of it."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", answers_max=1)
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after="request"))
    first = asyncio.create_task(service.client.post("/ai/test", json=FREE))
    await fake.wait_calls(1)

    refused = await service.client.post("/ai/test", json=FREE)
    held.set()

    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
    assert (await first).status_code == 200
    assert len(fake.calls) == 1


async def test_the_request_to_the_provider_is_what_was_asked(service: Service, fake: ProviderFake) -> None:
    """Model, limits and temperature are passed on; a stream asks for its usage; the key is sent and nothing retries."""
    await streamed(service, model="other", max_tokens=7, temperature=0.5)
    call = fake.calls[0]

    assert (call.body["model"], call.body["max_tokens"], call.body["temperature"]) == ("other", 7, 0.5)
    assert call.body["stream_options"] == {"include_usage": True}
    assert call.headers["authorization"] == "Bearer sk-test"
    assert call.headers["x-stainless-retry-count"] == "0"


async def test_an_unpriced_model_costs_null(service: Service) -> None:
    """Unknown is null and counted, never 0."""
    assert (await service.client.post("/ai/test", json=FREE)).json()["estimated_cost"] is None
    assert b"kotae_unpriced_answers_total 1.0" in (await service.client.get("/metrics")).content


async def test_a_listed_model_costs_what_the_list_says(serve: Serve, fake: ProviderFake) -> None:
    """The cost is the listed price of the provider's usage, in nano-dollars."""
    service = await serve(openai_base_url=fake.base_url, model="gpt-4o-mini")
    answer = (await service.client.post("/ai/test", json=FREE)).json()

    usage = Usage(**{name: answer[name] for name in ("prompt_tokens", "completion_tokens", "cached_tokens")})
    fresh, cached = usage.prompt_tokens - usage.cached_tokens, usage.cached_tokens
    assert answer["estimated_cost"] == format_usd(fresh * 150 + cached * 75 + usage.completion_tokens * 600)


async def test_own_prices_come_first(serve: Serve, fake: ProviderFake) -> None:
    """A price of the settings is used for a model that no list knows."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", prices={"fake-model": {"input": "1", "output": "2"}})
    answer = (await service.client.post("/ai/test", json=FREE)).json()

    assert answer["estimated_cost"] == format_usd(answer["prompt_tokens"] * 1000 + answer["completion_tokens"] * 2000)


def test_a_price_book_without_the_model_has_no_cost() -> None:
    """No price, no cost: the account is null."""
    from_nowhere = PriceBook({}).cost("no-such-model", Usage(prompt_tokens=1, completion_tokens=1), datetime.now(UTC))

    assert from_nowhere is None


async def test_a_stream_whose_rest_is_dear_is_not_drained(serve: Serve, fake: ProviderFake) -> None:
    """Beyond the cost cap the provider is stopped at once, though drain_seconds would allow to read on."""
    service = await serve(openai_base_url=fake.base_url, model="gpt-4o-mini", drain_seconds=20, drain_cost_usd_max="0.0001")
    fake.next(Behaviour(hang_after=3))
    async with service.client.stream("POST", "/ai/stream", json=FREE) as response, aclosing(events(response)) as stream:
        await anext(stream)
        await fake.wait_chunks((await fake.wait_calls(1))[0], 3)

    assert await fake.wait_ended(fake.calls[0], 2) is Ending.ABORTED
    assert (await service.row())["status"] == "client_gone"


async def test_the_error_of_estimates_is_kept(serve: Serve, fake: ProviderFake) -> None:
    """Of a sample of completed answers the estimate is compared with what the provider said."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", estimate_share=1)
    fake.next(Behaviour(usage=None))
    await service.client.post("/ai/test", json=FREE)
    for _ in range(3):
        await service.client.post("/ai/test", json=FREE)
    async with asyncio.timeout(10):
        while 'kotae_estimate_error_ratio_count{kind="completion"} 3.0' not in (await service.client.get("/metrics")).text:
            await asyncio.sleep(0.01)
