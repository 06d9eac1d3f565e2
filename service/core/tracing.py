"""OpenTelemetry: one span for each answer, with its search and its provider calls as children.

The only module that imports `opentelemetry`; it is imported with `KOTAE_TRACING` only. The names of
spans, attributes and metrics of the GenAI conventions are those of `opentelemetry-util-genai`,
because they still change; ours are in the namespace `kotae`. The SDK reads the `OTEL_` variables.

An answer is a workflow, a search a retrieval, and each attempt an inference. The owner of the
answer begins and ends its span, never a response generator, so it is not lost with a client.
Telemetry is exported by threads of the SDK from bounded queues: if the collector is unreachable,
spans are dropped, and neither answers nor the end of the process wait for it longer than
`CLOSE_SECONDS`. No method fails or blocks.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import format_span_id, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.genai.handler import TelemetryHandler
from opentelemetry.util.genai.invocation import InferenceInvocation, WorkflowInvocation
from opentelemetry.util.genai.types import Error, InputMessage, OutputMessage, TextPart

from service import __version__
from service.core.encoding import create_id, utc_now
from service.core.ports import AttemptUsage, ProviderRequest, SearchSpan
from service.core.pricing import Usage
from service.core.records import FAILURES, Intent, Message, Outcome, UsageSource

CLOSE_SECONDS = 3.0  # maximum wait at shutdown for the collector
_PROPAGATOR = TraceContextTextMapPropagator()


class OpenTelemetryTracer:
    """Implements `AnswerTracer`. Close it once all answers have ended."""

    def __init__(self) -> None:
        ours = {
            "service.name": "kotae",
            "service.version": __version__,
            "service.instance.id": create_id(utc_now()),
        }
        resource = Resource.create(ours).merge(OTELResourceDetector().detect())
        self._spans = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._metrics = MeterProvider(
            [PeriodicExportingMetricReader(OTLPMetricExporter())], resource, shutdown_on_exit=False
        )
        self._handler = TelemetryHandler(
            self._spans,
            self._metrics,
            instrumentation_scope_name="kotae",
            instrumentation_scope_version=__version__,
        )

    def begin_answer(
        self, headers: Mapping[str, str], *, endpoint: str, stored: bool
    ) -> "AnswerSpan":
        """See `AnswerTracer.begin_answer`."""
        workflow = self._handler.workflow("answer", context=_PROPAGATOR.extract(dict(headers)))
        workflow.suspend()  # it may end in another task
        workflow.attributes["kotae.endpoint"] = endpoint
        return AnswerSpan(self._handler, workflow, stored=stored)

    async def aclose(self) -> None:
        """Export what is queued, for at most `CLOSE_SECONDS`."""
        closed = [_run_in_daemon(close) for close in (self._spans.shutdown, self._metrics.shutdown)]
        await asyncio.wait(closed, timeout=CLOSE_SECONDS)


class AnswerSpan:
    """Implements `AnswerTrace`."""

    def __init__(
        self, handler: TelemetryHandler, workflow: WorkflowInvocation, *, stored: bool
    ) -> None:
        self._handler, self._workflow = handler, workflow
        self._attempt: InferenceInvocation | None = None
        self._stored = stored
        context = workflow.span.get_span_context()
        self.ids = format_trace_id(context.trace_id), format_span_id(context.span_id)

    def describe(self, intent: Intent) -> None:
        """See `AnswerTrace.describe`."""
        self._workflow.conversation_id = intent.conversation_id
        self._workflow.attributes |= {
            "kotae.answer.id": intent.id,
            "kotae.request.id": intent.request_id,
            "kotae.model": intent.model,
            "kotae.grounded": intent.grounded,
        }

    @contextmanager
    def search(self, query: str) -> Iterator[SearchSpan]:
        """See `AnswerTrace.search`."""
        search = SearchSpan()
        context = self._workflow.context
        with self._handler.retrieval(data_source_id="documents", context=context) as retrieval:
            retrieval.suspend()
            if self._stored:
                retrieval.query_text = query  # exported only if content is captured
            yield search
            retrieval.attributes["kotae.passages"] = search.passages
            retrieval.attributes["kotae.answerable"] = search.answerable

    def begin_attempt(self, provider: str, request: ProviderRequest) -> tuple[bytes, ...]:
        """See `AnswerTrace.begin_attempt`."""
        attempt = self._handler.inference(
            provider, request_model=request.model, context=self._workflow.context
        )
        attempt.suspend()
        attempt.max_tokens, attempt.temperature = request.max_tokens, request.temperature
        attempt.request_stream = request.stream
        if attempt.should_capture_content and self._stored:
            attempt.input_messages = list(_describe_messages(request.messages))
        self._attempt = attempt
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, attempt.context)
        return tuple(f"{name}: {value}".encode("latin-1") for name, value in carrier.items())

    def record_first_output(self) -> None:
        """See `AnswerTrace.record_first_output`."""
        if self._attempt is not None:
            self._attempt.record_stream_chunk()

    def end_attempt(self, used: AttemptUsage, *, text: str = "") -> None:
        """See `AnswerTrace.end_attempt`."""
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return
        _set_usage(attempt, used)
        if used.finish_reason:
            attempt.finish_reasons = [used.finish_reason]
        if attempt.should_capture_content and self._stored and text:
            attempt.output_messages = [OutputMessage("assistant", [TextPart(text)])]
        if used.status in FAILURES:
            attempt.fail(_build_error(used.error_code or used.status))
        else:
            attempt.stop()

    def finish(self, outcome: Outcome, used: AttemptUsage) -> None:
        """See `AnswerTrace.finish`."""
        self.end_attempt(used, text=outcome.response)
        workflow = self._workflow
        workflow.attributes |= {
            "kotae.status": outcome.status,
            "kotae.attempts": outcome.attempts,
            **_describe_usage(outcome.usage_source, outcome.usage, outcome.cost_nano_usd),
        }
        workflow.metric_attributes["kotae.status"] = outcome.status
        if workflow.should_capture_content and self._stored:
            workflow.input_messages = list(
                _describe_messages([Message("user", outcome.intent.prompt)])
            )
            workflow.output_messages = [OutputMessage("assistant", [TextPart(outcome.response)])]
        if outcome.status in FAILURES:
            workflow.fail(_build_error(outcome.error_code or outcome.status))
        else:
            workflow.stop()

    def refuse(self, code: str) -> None:
        """See `AnswerTrace.refuse`."""
        self._workflow.attributes.setdefault("kotae.status", "refused")
        self._workflow.fail(_build_error(code))


def _set_usage(attempt: InferenceInvocation, used: AttemptUsage) -> None:
    """Tokens that nobody was billed for are no usage, and unknown ones are absent."""
    usage, source = used.usage, used.usage_source
    attempt.attributes |= _describe_usage(source, usage, used.cost_nano_usd)
    attempt.metric_attributes["kotae.usage_source"] = source
    if usage is None or source is UsageSource.NONE:
        return
    attempt.input_tokens, attempt.output_tokens = usage.prompt_tokens, usage.completion_tokens
    attempt.cache_read_input_tokens = usage.cached_tokens or None
    attempt.thinking_tokens = usage.reasoning_tokens or None


def _describe_usage(
    source: UsageSource, usage: Usage | None, cost_nano_usd: int | None
) -> dict[str, str | int]:
    """The cost is absent if it is unknown, never 0."""
    described: dict[str, str | int] = {"kotae.usage_source": source}
    if usage is not None:
        described["kotae.usage.total_tokens"] = usage.total_tokens
    if cost_nano_usd is not None:
        described["kotae.cost_nano_usd"] = cost_nano_usd
    return described


def _describe_messages(messages: Iterable[Message]) -> Iterator[InputMessage]:
    for message in messages:
        yield InputMessage(message.role, [TextPart(message.content)])


def _build_error(code: str) -> Error:
    return Error(message=code, type=code)


def _run_in_daemon(function: Callable[[], None]) -> "asyncio.Future[None]":
    """Run it in a thread that does not delay the end of the process."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        with suppress(Exception):  # nothing can be exported any more
            function()
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(finished.set_result, None)

    threading.Thread(target=run, name="telemetry", daemon=True).start()
    return finished
