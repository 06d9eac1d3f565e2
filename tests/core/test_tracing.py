"""Traces of answers: one span for each outcome, as a collector receives it."""

import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import error_attributes

from service.core.ports import ProviderRequest
from service.core.providers.openai import OpenAIProvider
from service.core.records import Message
from service.core.tracing import CLOSE_SECONDS
from tests.conftest import Serve, Service, service_starter
from tests.fakes.collector import CollectorFake, ReceivedSpan, read_point_attributes
from tests.fakes.provider import Behaviour, ProviderFake
from tests.sse import events
from tests.streams import FREE, open_events, post_stream, start_answer
from tests.waiting import wait_until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
PRICES = {"fake-model": {"input": "1", "output": "2"}}
Traced = Callable[..., Awaitable[Service]]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[CollectorFake]:
    """A collector to which services of the test export soon."""
    with CollectorFake() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
        yield collector


@pytest.fixture
async def traced(collector: CollectorFake, serve: Serve, fake: ProviderFake) -> Traced:
    """Start a service that exports to the collector."""

    async def start(**overrides: Any) -> Service:
        return await serve(
            **{
                "tracing": True,
                "openai_base_url": fake.base_url,
                "model": "fake-model",
                "prices": PRICES,
            }
            | overrides
        )

    return start


async def wait_answer(collector: CollectorFake, count: int = 1) -> ReceivedSpan:
    """Return the last of this number of spans of answers, once all were received."""
    await wait_until(lambda: len(collector.answers) >= count)
    assert len(collector.answers) == count
    return collector.answers[-1]


async def test_an_answer_is_a_span_below_that_of_the_request(
    traced: Traced, fake: ProviderFake, collector: CollectorFake
) -> None:
    """The incoming traceparent names the parent, and the provider receives that of the attempt."""
    service = await traced()
    answer = (await service.client.post("/ai/test", json=FREE, headers=TRACED)).json()
    span = await wait_answer(collector)
    (attempt,) = collector.find_children(span)

    assert (span.trace_id, span.parent_id, span.failed) == (TRACE, PARENT, False)
    assert span.attributes["kotae.answer.id"] == answer["id"]
    assert span.attributes["kotae.status"] == "completed"
    assert span.attributes["kotae.usage_source"] == "provider"
    assert span.attributes["kotae.cost_nano_usd"] == round(float(answer["estimated_cost"]) * 1e9)
    sent = fake.calls[0].headers
    assert sent["traceparent"] == f"00-{TRACE}-{attempt.span_id}-01"
    assert sent["tracestate"] == "vendor=1"


async def test_an_attempt_follows_the_conventions(
    traced: Traced, fake: ProviderFake, collector: CollectorFake
) -> None:
    """The span of a call has the model, the tokens and the reason of its end, and no texts."""
    service = await traced()
    await service.client.post("/ai/test", json=FREE | {"max_tokens": 50, "temperature": 0.5})
    (attempt,) = collector.find_children(await wait_answer(collector))
    usage = fake.calls[0].usage

    assert attempt.name == "chat fake-model"
    values = {
        gen_ai.GEN_AI_PROVIDER_NAME: "default",
        gen_ai.GEN_AI_REQUEST_MODEL: "fake-model",
        gen_ai.GEN_AI_REQUEST_MAX_TOKENS: 50,
        gen_ai.GEN_AI_REQUEST_TEMPERATURE: 0.5,
        gen_ai.GEN_AI_USAGE_INPUT_TOKENS: usage["prompt_tokens"],
        gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: usage["completion_tokens"],
        gen_ai.GEN_AI_RESPONSE_FINISH_REASONS: ["stop"],
        "kotae.usage_source": "provider",
    }
    assert values.items() <= attempt.attributes.items()
    assert gen_ai.GEN_AI_OUTPUT_MESSAGES not in attempt.attributes


async def test_a_search_is_a_child(traced: Traced, collector: CollectorFake) -> None:
    """A grounded answer has the span of its search, with its result but without its texts."""
    service = await traced(seeded=True)
    await service.client.post("/ai/test", json={"prompt": "返品は何日以内にできますか？"})
    search, attempt = collector.find_children(await wait_answer(collector))

    assert (search.name, search.attributes["kotae.answerable"]) == ("retrieval documents", True)
    assert search.attributes["kotae.passages"] > 0
    assert gen_ai.GEN_AI_RETRIEVAL_QUERY_TEXT not in search.attributes
    assert attempt.name == "chat fake-model"


async def test_a_refusal_has_a_span(traced: Traced, collector: CollectorFake) -> None:
    """Without a relevant passage the span has a search and no attempt, and is no failure."""
    service = await traced(seeded=True)
    await service.client.post("/ai/test", json={"prompt": "Who painted the Mona Lisa?"})
    span = await wait_answer(collector)

    assert [child.name for child in collector.find_children(span)] == ["retrieval documents"]
    assert span.attributes["kotae.status"] == "no_context"
    assert (span.attributes["kotae.cost_nano_usd"], span.failed) == (0, False)


@pytest.mark.parametrize(
    ("behaviour", "status", "code", "source"),
    [
        (Behaviour(status=400), "provider_error", "provider_rejected", "unknown"),
        (Behaviour(cut_after=3), "provider_error", "provider_cut", "estimated"),
        (Behaviour(first_delay=60), "timeout", "provider_timeout", "unknown"),
    ],
)
async def test_failures_have_a_span(
    traced: Traced,
    fake: ProviderFake,
    collector: CollectorFake,
    behaviour: Behaviour,
    status: str,
    code: str,
    source: str,
) -> None:
    """A failed answer is an error with its code; unknown usage has no cost."""
    service = await traced(provider_idle_seconds=0.2)
    fake.next(behaviour)
    await post_stream(service)
    span = await wait_answer(collector)
    (attempt,) = collector.find_children(span)

    for failed in (span, attempt):
        assert (failed.failed, failed.attributes[error_attributes.ERROR_TYPE]) == (True, code)
        assert failed.attributes["kotae.usage_source"] == source
        assert ("kotae.cost_nano_usd" in failed.attributes) == (source != "unknown")
    assert span.attributes["kotae.status"] == status


async def test_each_attempt_has_a_span(
    traced: Traced, fake: ProviderFake, collector: CollectorFake
) -> None:
    """A busy provider is called again: two attempts below one answer, the first one failed."""
    service = await traced()
    fake.next(Behaviour(status=503))
    await service.client.post("/ai/test", json=FREE)
    span = await wait_answer(collector)
    attempts = collector.find_children(span)

    assert [attempt.failed for attempt in attempts] == [True, False]
    assert attempts[0].attributes[error_attributes.ERROR_TYPE] == "provider_busy"
    assert (span.attributes["kotae.attempts"], span.failed) == (2, False)
    assert [call.headers["traceparent"].split("-")[2] for call in fake.calls] == [
        attempt.span_id for attempt in attempts
    ]


async def test_a_fallback_names_both_providers(
    collector: CollectorFake, serve: Serve, fake: ProviderFake, tmp_path: Path
) -> None:
    """The attempts of a route have the provider and the model that was called."""
    async with ProviderFake() as first:
        names = {"first": first, "second": fake}
        content = {
            "providers": [
                {"name": name, "base_url": provider.base_url, "models": [{"name": f"{name}-model"}]}
                for name, provider in names.items()
            ],
            "routes": [
                {
                    "alias": "chat",
                    "targets": [{"provider": name, "model": f"{name}-model"} for name in names],
                }
            ],
        }
        file = tmp_path / "providers.json"
        file.write_text(json.dumps(content))
        first.next(Behaviour(status=503))
        service = await serve(tracing=True, providers=file)
        await service.client.post("/ai/test", json=FREE | {"model": "chat"})
        span = await wait_answer(collector)

    attempts = collector.find_children(span)
    assert [
        (
            attempt.attributes[gen_ai.GEN_AI_PROVIDER_NAME],
            attempt.attributes[gen_ai.GEN_AI_REQUEST_MODEL],
        )
        for attempt in attempts
    ] == [("first", "first-model"), ("second", "second-model")]


async def test_a_client_that_leaves_does_not_lose_the_span(
    traced: Traced, fake: ProviderFake, collector: CollectorFake
) -> None:
    """The stream's client disconnects: the answer's owner ends its span."""
    service = await traced(resume_seconds=0, drain_seconds=0)
    fake.next(Behaviour(endless=True, gap=0.01))
    async with (
        service.client.stream("POST", "/ai/stream", json=FREE) as response,
        aclosing(events(response)) as stream,
    ):
        await anext(stream)
        await fake.wait_calls(1)
        await anext(stream)
    span = await wait_answer(collector)
    (attempt,) = collector.find_children(span)

    assert (span.attributes["kotae.status"], span.failed) == ("client_gone", False)
    assert attempt.attributes["kotae.usage_source"] == "estimated"


async def test_a_stopped_answer_has_a_span(
    traced: Traced, fake: ProviderFake, collector: CollectorFake
) -> None:
    """An explicit stop is the end of the span."""
    service = await traced()
    fake.next(Behaviour(endless=True, gap=0.01))
    started = await start_answer(service)
    async with open_events(service, started["events_url"]) as events:
        await anext(events)
        await service.client.delete(f"/ai/answers/{started['id']}")
    span = await wait_answer(collector)

    assert (span.attributes["kotae.status"], span.failed) == ("stopped", False)


async def test_the_end_of_the_process_exports_the_interrupted_answer(
    collector: CollectorFake, migrated: Path, tmp_path: Path, fake: ProviderFake
) -> None:
    """Answers that the shutdown interrupts are exported before the process ends."""
    fake.default = Behaviour(endless=True, gap=0.01)
    async with service_starter(migrated, tmp_path) as start:
        service = await start(tracing=True, openai_base_url=fake.base_url, model="fake-model")
        await start_answer(service)
        await fake.wait_calls(1)

    (span,) = collector.answers
    assert (span.attributes["kotae.status"], span.failed) == ("interrupted", True)


async def test_chat_completions_are_traced(traced: Traced, collector: CollectorFake) -> None:
    """A stream of /v1 has the same span, with the time of its first chunk as a metric."""
    service = await traced()
    body = {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with service.client.stream(
        "POST", "/v1/chat/completions", json=body, headers=TRACED
    ) as response:
        await response.aread()
    span = await wait_answer(collector)

    assert span.parent_id == PARENT
    assert span.attributes["kotae.endpoint"] == "/v1/chat/completions"
    name = gen_ai_metrics.GEN_AI_CLIENT_OPERATION_TIME_TO_FIRST_CHUNK
    await wait_until(lambda: bool(collector.points.get(name)))
    assert collector.points[name][0].count == 1


async def test_rejected_requests_have_a_span(traced: Traced, collector: CollectorFake) -> None:
    """A request that is rejected before its answer begins has a failed span with the code."""
    service = await traced()
    key = {"Idempotency-Key": "k"}
    await service.client.post("/ai/test", json=FREE | {"conversation_id": str(UUID(int=7))})
    await service.client.post("/ai/test", json=FREE, headers=key)
    await service.client.post("/ai/test", json=FREE | {"max_tokens": 9}, headers=key)
    await wait_until(lambda: len(collector.answers) >= 3)

    assert [
        (span.attributes["kotae.status"], span.attributes.get(error_attributes.ERROR_TYPE))
        for span in collector.answers
    ] == [("refused", "not_found"), ("completed", None), ("refused", "idempotency_conflict")]


async def test_metrics_are_those_of_the_conventions(
    traced: Traced, fake: ProviderFake, collector: CollectorFake
) -> None:
    """Tokens and durations of calls are exported as histograms by model and provider."""
    service = await traced()
    await service.client.post("/ai/test", json=FREE)
    usage = fake.calls[0].usage
    tokens = gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE
    await wait_until(lambda: len(collector.points.get(tokens, [])) == 2)

    assert {
        read_point_attributes(point)[gen_ai.GEN_AI_TOKEN_TYPE]: point.sum
        for point in collector.points[tokens]
    } == {"input": usage["prompt_tokens"], "output": usage["completion_tokens"]}
    (duration,) = collector.points[gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION]
    assert duration.count == 1
    assert read_point_attributes(duration)[gen_ai.GEN_AI_REQUEST_MODEL] == "fake-model"


async def test_the_resource_names_the_service(
    traced: Traced, collector: CollectorFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard variables add to the attributes of the service and replace them."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    service = await traced()
    await service.client.post("/ai/test", json=FREE)
    resource = (await wait_answer(collector)).resource

    assert (resource["service.name"], resource["deployment.environment.name"]) == ("kotae", "test")
    assert resource["service.version"]
    assert resource["service.instance.id"]


@pytest.mark.parametrize("stored", [True, False])
async def test_texts_are_exported_on_request_only(
    traced: Traced, collector: CollectorFake, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """With the SDK's setting the spans have the texts, but never those that are not stored."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    service = await traced()
    messages = [{"role": "user", "content": "Where is it?"}]
    await service.client.post(
        "/v1/chat/completions",
        json={"model": "fake-model", "messages": messages, "store": stored},
    )
    span = await wait_answer(collector)
    exported = json.dumps([listed.attributes for listed in [span, *collector.find_children(span)]])

    assert ("Where is it?" in exported) is stored


async def test_an_unreachable_collector_delays_nothing(
    migrated: Path, tmp_path: Path, fake: ProviderFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are as fast as ever, and the process ends within the bound."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    async with service_starter(migrated, tmp_path) as start:
        service = await start(tracing=True, openai_base_url=fake.base_url, model="fake-model")
        responses = [await service.client.post("/ai/test", json=FREE) for _ in range(5)]
        began = time.monotonic()

    assert {response.status_code for response in responses} == {200}
    assert time.monotonic() - began < CLOSE_SECONDS + 3


async def test_requests_through_the_sdk_have_the_headers() -> None:
    """A provider behind a proxy receives the trace context too."""
    received: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        received.append(request)
        return httpx2.Response(400, json={"error": {"message": "no"}})

    provider = OpenAIProvider(
        base_url="http://provider.test/v1",
        api_key="k",
        idle_seconds=1,
        answer_bytes_max=1000,
        transport=httpx2.MockTransport(answer),
    )
    request = ProviderRequest(
        model="m",
        messages=[Message("user", "x")],
        max_tokens=1,
        temperature=None,
        stream=False,
        trace_headers=(f"traceparent: {TRACED['traceparent']}".encode(),),
    )
    with pytest.raises(Exception, match="no"):
        await anext(provider.stream(request, lambda: None))
    await provider.aclose()

    assert received[0].headers["traceparent"] == TRACED["traceparent"]


@pytest.mark.slow
def test_nothing_is_imported_without_tracing() -> None:
    """The start without KOTAE_TRACING imports no part of the extra; FastAPI imports the API."""
    program = (
        "import sys, service.__main__, service.cli.app, service.main, service.server; "
        "extra = ('opentelemetry.sdk', 'opentelemetry.exporter', 'opentelemetry.util.genai'); "
        "print(any(name.startswith(extra) for name in sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    assert result.stdout == "False\n"
