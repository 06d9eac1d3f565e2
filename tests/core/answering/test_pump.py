"""The pump: provider failures, retries, deadlines, readers, usage and shutdown."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest

from service.core.accounting.journal import Journal
from service.core.accounting.outcomes import AnswerAccount
from service.core.accounting.queue import JournaledQueue
from service.core.accounting.recorder import Recorder
from service.core.answering.pump import Pump, PumpLimits
from service.core.answering.streams import Stream
from service.core.errors import KotaeError, ProviderBusy, ProviderUnreachable, ShuttingDown
from service.core.limits import ServiceLimits
from service.core.ports import Delta, Provider, ProviderRequest
from service.core.pricing import PriceBook, Usage
from service.core.providers.routes import Endpoint, Route, RoutePlan, Target
from service.core.quota.local import LocalQuota
from service.core.records import Message, Outcome, Status, UsageSource
from service.core.telemetry import Metrics
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, Ending, ProviderFake, default_text
from tests.records import build_intent
from tests.sse import events, text_of
from tests.streams import open_events, post_stream, start_answer

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}
OTHER_CHOICE = (
    b'data: {"choices":[{"index":1,"delta":{"content":"x"},"finish_reason":"length"}]}\n\n'
)
ZERO_USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0}}\n\n'
LIMITS = PumpLimits(answer_seconds_max=20, leave_seconds=None, leave_nano_usd_max=None)
USAGE = Usage(prompt_tokens=10, completion_tokens=5)


async def test_an_abandoned_stream_is_drained_if_configured(
    serve: Serve, fake: ProviderFake
) -> None:
    """With drain_seconds the rest is read, and the row has the exact usage."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", drain_seconds=20)
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=3))
    async with (
        service.client.stream("POST", "/ai/stream", json=FREE) as response,
        aclosing(events(response)) as stream,
    ):
        await anext(stream)
        await fake.wait_calls(1)
    held.set()

    row = await service.row()
    assert (row["status"], row["usage_source"]) == ("completed", "provider")
    assert row["response"] == fake.calls[0].text


FAILURES: list[tuple[str, Behaviour, int, str, str, str]] = [
    ("500", Behaviour(status=500), 502, "provider_error", "provider_error", "unknown"),
    (
        "500 without body",
        Behaviour(status=500, body=b""),
        502,
        "provider_error",
        "provider_error",
        "unknown",
    ),
    (
        "500 with an endless body",
        Behaviour(status=500, body=b"x" * 50_000_000),
        502,
        "provider_error",
        "provider_error",
        "unknown",
    ),
    (
        "500 with a compressed body",
        Behaviour(status=500, gzip=True),
        502,
        "provider_error",
        "provider_error",
        "unknown",
    ),
    ("401", Behaviour(status=401), 502, "provider_refused", "provider_error", "unknown"),
    ("404", Behaviour(status=404), 502, "provider_refused", "provider_error", "unknown"),
    ("400", Behaviour(status=400), 400, "provider_rejected", "provider_error", "unknown"),
    ("504", Behaviour(status=504), 504, "provider_timeout", "timeout", "unknown"),
    (
        "429 for long",
        Behaviour(status=429, retry_after=60),
        503,
        "provider_busy",
        "provider_error",
        "unknown",
    ),
    (
        "cut before headers",
        Behaviour(cut_after="request"),
        502,
        "provider_cut",
        "provider_error",
        "unknown",
    ),
    (
        "HTML",
        Behaviour(body=b"<html>", content_type="text/html"),
        502,
        "provider_invalid",
        "provider_error",
        "unknown",
    ),
    ("silence", Behaviour(hang_after="request"), 504, "provider_timeout", "timeout", "unknown"),
    ("gzip", Behaviour(gzip=True), 502, "provider_invalid", "provider_error", "unknown"),
]


@pytest.mark.parametrize(
    ("behaviour", "http_status", "code", "status", "source"),
    [case[1:] for case in FAILURES],
    ids=[case[0] for case in FAILURES],
)
async def test_a_failed_plain_answer_is_a_problem_and_a_row(
    serve: Serve,
    fake: ProviderFake,
    behaviour: Behaviour,
    http_status: int,
    code: str,
    status: str,
    source: str,
) -> None:
    """For every provider failure the caller gets a problem and the log a row."""
    service = await serve(
        openai_base_url=fake.base_url,
        model="fake-model",
        provider_idle_seconds=0.3 if code == "provider_timeout" else 30,
    )
    fake.next(behaviour)

    response = await service.client.post("/ai/test", json=FREE)

    problem, row = response.json(), await service.row()
    assert (response.status_code, problem["status"], problem["code"]) == (
        http_status,
        http_status,
        code,
    )
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == row["request_id"] == response.headers["x-request-id"]
    assert problem["answer_id"] == row["id"]
    assert (row["status"], row["error_code"], row["usage_source"]) == (status, code, source)
    assert row["prompt_tokens"] is row["estimated_cost"] is None
    assert row["attempts"] == 1


STREAM_FAILURES: list[tuple[str, Behaviour, str, str]] = [
    ("cut by RST", Behaviour(cut="rst", cut_after=3, gap=0.01), "provider_cut", "provider_error"),
    ("cut by FIN", Behaviour(cut_after=3), "provider_cut", "provider_error"),
    (
        "cut inside a line",
        Behaviour(cut_after=3, cut_inside=True),
        "provider_cut",
        "provider_error",
    ),
    ("a clean end too early", Behaviour(finish_reason="absent"), "provider_cut", "provider_error"),
    (
        "the same without [DONE]",
        Behaviour(finish_reason="absent", done=False, usage=None),
        "provider_cut",
        "provider_error",
    ),
    (
        "the same, ended by the connection",
        Behaviour(cut_after=3, framing="close"),
        "provider_cut",
        "provider_error",
    ),
    ("an error event", Behaviour(error_after=3), "provider_error", "provider_error"),
    ("broken JSON", Behaviour(malformed_after=3), "provider_invalid", "provider_error"),
    ("broken UTF-8", Behaviour(invalid_utf8_after=3), "provider_invalid", "provider_error"),
    ("silence in the middle", Behaviour(hang_after=3), "provider_timeout", "timeout"),
    (
        "a huge line",
        Behaviour(huge_line_after=3, huge_line_bytes=3_000_000),
        "provider_invalid",
        "provider_error",
    ),
]


@pytest.mark.parametrize(
    ("behaviour", "code", "status"),
    [case[1:] for case in STREAM_FAILURES],
    ids=[case[0] for case in STREAM_FAILURES],
)
async def test_a_failed_stream_is_a_failure_event_and_a_row(
    serve: Serve, fake: ProviderFake, behaviour: Behaviour, code: str, status: str
) -> None:
    """After the first byte an error is a `failure` event; the row keeps text and usage."""
    service = await serve(
        openai_base_url=fake.base_url,
        model="fake-model",
        provider_idle_seconds=0.3 if code == "provider_timeout" else 30,
    )
    fake.next(behaviour)

    received = await post_stream(service)

    row = await service.row()
    assert received[-1].name == "failure"
    assert (received[-1].json["code"], received[-1].json["answer_id"]) == (code, row["id"])
    assert (row["status"], row["error_code"]) == (status, code)
    assert row["usage_source"] == (
        "provider" if code == "provider_cut" and fake.calls[0].usage else "estimated"
    )
    assert row["response"] == text_of(received)
    assert row["completion_tokens"] > 0


@pytest.mark.parametrize("usage", [None, "null", "negative", "huge"])
@pytest.mark.parametrize("stream", [True, False])
async def test_missing_usage_is_estimated(
    service: Service, fake: ProviderFake, usage: Any, stream: bool
) -> None:
    """A completed answer without credible usage is estimated from its texts."""
    fake.next(Behaviour(usage=usage))

    if stream:
        await post_stream(service)
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
        Behaviour(raw_after="headers", raw=b"\xef\xbb\xbf"),
        Behaviour(raw_after=2, raw=OTHER_CHOICE),
        Behaviour(raw_after="usage", raw=ZERO_USAGE),
        Behaviour(raw_after="finish", raw=ZERO_USAGE),
        Behaviour(raw_after=1, raw=ZERO_USAGE, usage_place="every"),
    ],
    ids=lambda behaviour: repr(behaviour)[:0] or None,
)
async def test_unusual_but_complete_streams_are_completed(
    service: Service, fake: ProviderFake, behaviour: Behaviour
) -> None:
    """Deviations of real servers from the protocol change neither text nor usage."""
    fake.next(behaviour)

    received = await post_stream(service)

    row = await service.row()
    assert (row["status"], row["usage_source"]) == ("completed", "provider")
    assert text_of(received) == row["response"] == default_text(FREE["prompt"])
    assert row["total_tokens"] == fake.calls[0].usage["total_tokens"]


async def test_an_unreachable_provider_costs_nothing(serve: Serve, fake: ProviderFake) -> None:
    """Without a connection every attempt is counted, and tokens and cost are 0."""
    service = await serve(
        openai_base_url=fake.base_url, model="fake-model", limits=ServiceLimits(attempts_max=2)
    )
    async with fake.away():
        response = await service.client.post("/ai/test", json=FREE)

    row = await service.row()
    assert (response.status_code, response.json()["code"]) == (502, "provider_unreachable")
    assert (row["attempts"], row["usage_source"], row["total_tokens"], row["estimated_cost"]) == (
        2,
        "none",
        0,
        "0",
    )


async def test_a_busy_provider_is_retried(service: Service, fake: ProviderFake) -> None:
    """A request rejected before any answer is retried, and each attempt is counted."""
    fake.next(Behaviour(status=429, retry_after=0), Behaviour(status=503, body=b"", retry_after=0))

    response = await service.client.post("/ai/test", json=FREE)

    assert response.status_code == 200
    assert response.json()["attempts"] == len(fake.calls) == 3


async def test_an_answer_has_a_deadline(serve: Serve, fake: ProviderFake) -> None:
    """An endless answer ends at answer_seconds_max as a timeout with the text so far."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", answer_seconds_max=0.4)
    fake.next(Behaviour(endless=True, gap=0.02))

    received = await post_stream(service)

    row = await service.row()
    assert received[-1].json["code"] == "provider_timeout"
    assert (row["status"], row["usage_source"]) == ("timeout", "estimated")
    assert await fake.wait_ended(fake.calls[0]) is Ending.ABORTED


async def test_answers_are_bounded_in_length(serve: Serve, fake: ProviderFake) -> None:
    """A text beyond answer_bytes_max ends the answer; memory stays bounded."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", answer_bytes_max=2000)
    fake.next(Behaviour(endless=True))

    received = await post_stream(service)

    assert received[-1].json["code"] == "provider_invalid"
    assert len((await service.row())["response"].encode()) <= 2000 + 65_536


async def test_an_expensive_rest_is_not_drained(serve: Serve, fake: ProviderFake) -> None:
    """Beyond the cost limit the provider is stopped at once, despite drain_seconds."""
    service = await serve(
        openai_base_url=fake.base_url,
        model="gpt-4o-mini",
        drain_seconds=20,
        limits=ServiceLimits(drain_nano_usd_max=100_000),
    )
    fake.next(Behaviour(hang_after=3))
    async with (
        service.client.stream("POST", "/ai/stream", json=FREE) as response,
        aclosing(events(response)) as stream,
    ):
        await anext(stream)
        await fake.wait_chunks((await fake.wait_calls(1))[0], 3)

    assert await fake.wait_ended(fake.calls[0], 2) is Ending.ABORTED
    assert (await service.row())["status"] == "client_gone"


async def test_an_answer_continues_without_a_reader(serve: Serve, fake: ProviderFake) -> None:
    """The pump continues for resume_seconds without a reader, then ends as client_gone."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_seconds=0.2)
    fake.next(Behaviour(hang_after=2))
    started = await start_answer(service)
    async with open_events(service, started["events_url"]) as stream:
        await anext(stream)
    (pump,) = service.services.answers._pumps.values()
    async with asyncio.timeout(10):
        while pump.stream.readers:
            await asyncio.sleep(0.001)
    assert pump._ending is None

    await fake.wait_idle()

    assert (await service.row())["status"] == "client_gone"


async def test_an_answer_without_a_first_reader_is_stopped(
    serve: Serve, fake: ProviderFake
) -> None:
    """An answer without a reader ends when its ticket expires."""
    service = await serve(
        openai_base_url=fake.base_url, model="fake-model", resume_seconds=0, ticket_seconds=0.2
    )
    fake.default = Behaviour(hang_after=2)
    await start_answer(service)

    await fake.wait_idle()

    assert (await service.row())["status"] == "client_gone"


class ScriptedProvider(Provider):
    """A provider that plays scripts: lists of batches, errors to raise, events to await."""

    def __init__(self, *attempts: list[list[Delta] | Exception | asyncio.Event]) -> None:
        self.attempts = list(attempts)
        self.waiting = asyncio.Event()  # set when the script waits for an event
        self.ended = asyncio.Event()  # set when an attempt has ended

    async def stream(
        self, request: ProviderRequest, on_sent: Callable[[], None]
    ) -> AsyncGenerator[list[Delta], None]:
        """Play the next attempt."""
        try:
            for step in self.attempts.pop(0):
                if isinstance(step, list):
                    on_sent()
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, asyncio.Event):
                    self.waiting.set()
                    await step.wait()
                else:
                    yield step
        finally:
            self.ended.set()

    async def fetch_embeddings(self, body: bytes) -> bytes:
        """Not used."""
        raise NotImplementedError(body)

    async def aclose(self) -> None:
        """Nothing is open."""


class RunningPump:
    """A running pump, with its stream and record queue."""

    def __init__(self, provider: Provider, folder: Path, *, sync_ms: int = 50) -> None:
        folder.mkdir()
        self.queue = JournaledQueue(100, Journal(folder, None, sync_ms=sync_ms, bytes_max=2**26))
        recorder = Recorder(self.queue, LocalQuota(60), Metrics())
        recorded_intent = build_intent()
        recorder.record_intent(recorded_intent)
        self.stream = Stream(recorded_intent, [])
        request = ProviderRequest(
            model=recorded_intent.model,
            messages=[Message("user", "Why?")],
            max_tokens=10**6,
            temperature=None,
            stream=True,
        )
        account = AnswerAccount(
            recorded_intent,
            request.messages,
            recorder,
            PriceBook({}),
            completion_tokens_max=10**6,
            started=time.perf_counter(),
        )
        route = Route("m", (Target(Endpoint("default", provider), "m"),))
        self.pump = Pump(self.stream, account, request, RoutePlan(route, 3), LIMITS)
        self.task = asyncio.create_task(self.pump.run())

    async def cancel(self) -> None:
        """Cancel the task, as a process does at the end of its grace period."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def take_outcome(self) -> Outcome:
        """Return the single recorded outcome, which is also that of the stream."""
        (outcome,) = await self.queue.take_batch(10)
        assert self.stream.outcome is outcome
        return outcome


async def test_a_cancelled_answer_is_recorded(tmp_path: Path) -> None:
    """Cancelled during a text: an estimated outcome, and an error for the readers."""
    script = ScriptedProvider([[Delta("Because ")], asyncio.Event()])
    running = RunningPump(script, tmp_path / "journal")
    await script.waiting.wait()
    await running.cancel()
    outcome = await running.take_outcome()

    assert (outcome.status, outcome.usage_source) == (Status.INTERRUPTED, UsageSource.ESTIMATED)
    assert (outcome.response, outcome.error_code) == ("Because ", "shutting_down")
    assert isinstance(running.stream.error, ShuttingDown)


async def test_an_answer_cancelled_while_its_tokens_are_counted_is_recorded(tmp_path: Path) -> None:
    """Cancelled while a thread counts tokens: the outcome does not wait for it."""
    script = ScriptedProvider([[Delta("word " * 200_000, finish_reason="stop")]])
    running = RunningPump(script, tmp_path / "journal")
    await script.ended.wait()
    await running.cancel()
    outcome = await running.take_outcome()

    assert (outcome.usage_source, len(outcome.response)) == (UsageSource.ESTIMATED, 1_000_000)


async def test_an_answer_cancelled_before_its_first_call_used_nothing(tmp_path: Path) -> None:
    """Cancelled while a synchronous journal syncs the intent: usage `none`."""
    running = RunningPump(ScriptedProvider(), tmp_path / "journal", sync_ms=0)
    await asyncio.sleep(0)
    await running.cancel()
    outcome = await running.take_outcome()

    assert (outcome.status, outcome.usage_source, outcome.attempts) == (
        Status.INTERRUPTED,
        UsageSource.NONE,
        0,
    )


async def test_an_unexpected_error_ends_in_an_outcome(tmp_path: Path) -> None:
    """A bug during an attempt: usage `unknown`, and an internal error for the readers."""
    running = RunningPump(ScriptedProvider([ValueError("a fault")]), tmp_path / "journal")
    await running.task
    outcome = await running.take_outcome()

    assert (outcome.status, outcome.usage_source) == (Status.PROVIDER_ERROR, UsageSource.UNKNOWN)
    assert running.stream.error is not None
    assert running.stream.error.code == KotaeError.code


async def test_attempts_are_counted(tmp_path: Path) -> None:
    """An attempt that cannot have been billed is retried, and both are counted."""
    script = ScriptedProvider(
        [ProviderBusy("busy", retry_after_seconds=0)],
        [[Delta("Because.", finish_reason="stop", usage=USAGE)]],
    )
    running = RunningPump(script, tmp_path / "journal")
    await running.task
    outcome = await running.take_outcome()

    assert (outcome.status, outcome.usage, outcome.attempts) == (Status.COMPLETED, USAGE, 2)


async def test_an_answer_stopped_while_connecting_used_nothing(tmp_path: Path) -> None:
    """Stopped during an attempt that was not sent: usage `none`, and the attempt is counted."""
    script = ScriptedProvider([asyncio.Event()])
    running = RunningPump(script, tmp_path / "journal")
    await script.waiting.wait()
    running.pump.stop(Status.STOPPED)
    await running.task
    outcome = await running.take_outcome()

    assert (outcome.status, outcome.usage_source, outcome.attempts) == (
        Status.STOPPED,
        UsageSource.NONE,
        1,
    )


async def test_an_answer_stopped_before_its_first_text_is_unknown(tmp_path: Path) -> None:
    """Stopped during an attempt that was sent: it may be billed."""
    script = ScriptedProvider([[], asyncio.Event()])
    running = RunningPump(script, tmp_path / "journal")
    await script.waiting.wait()
    running.pump.stop(Status.STOPPED)
    await running.task

    assert (await running.take_outcome()).usage_source is UsageSource.UNKNOWN


async def test_text_after_a_usage_makes_it_an_estimate(tmp_path: Path) -> None:
    """A stream that is cut after a report has at least the tokens of its text."""
    early = Usage(prompt_tokens=500, completion_tokens=1)
    script = ScriptedProvider(
        [[Delta("a", usage=early)], [Delta("word " * 100)], ProviderUnreachable("cut")]
    )
    running = RunningPump(script, tmp_path / "journal")
    await running.task
    outcome = await running.take_outcome()

    assert outcome.usage_source is UsageSource.ESTIMATED
    assert outcome.usage is not None
    assert outcome.usage.prompt_tokens == 500
    assert 90 < outcome.usage.completion_tokens < 200


async def test_an_answer_stopped_between_unsent_attempts_used_nothing(
    tmp_path: Path,
) -> None:
    """Stopped between two attempts, none of which had a connection: usage `none`."""
    script = ScriptedProvider([ProviderUnreachable("no connection", retry_after_seconds=3)])
    running = RunningPump(script, tmp_path / "journal")
    await script.ended.wait()
    running.pump.stop(Status.STOPPED)
    await running.task
    outcome = await running.take_outcome()

    assert (outcome.status, outcome.usage_source, outcome.attempts) == (
        Status.STOPPED,
        UsageSource.NONE,
        1,
    )


async def test_a_long_retry_after_ends_the_answer(tmp_path: Path) -> None:
    """A Retry-After of more than three seconds ends the answer."""
    running = RunningPump(
        ScriptedProvider([ProviderBusy("busy", retry_after_seconds=4)]), tmp_path / "journal"
    )
    await running.task

    assert (await running.take_outcome()).error_code == "provider_busy"
