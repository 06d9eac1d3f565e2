"""Log lines (structlog) and metrics (Prometheus).

Log events consist of a noun and a past participle (`answer.recorded`). They never contain prompts,
answers, documents or credentials.
"""

import logging
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import msgspec
import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from structlog.typing import FilteringBoundLogger

from service.core.redaction import redact_secrets

log: FilteringBoundLogger = structlog.get_logger("kotae")
disable_created_metrics()  # type: ignore[no-untyped-call]  # a further series for each counter

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
LABELS_MAX = 1_000  # cached combinations of label values per metric
# Fields whose values are created by Kotae. Every request logs these.
_SAFE_FIELDS = frozenset(
    {
        *("event", "level", "timestamp", "request_id", "method", "route", "status", "ms"),
        *("trace_id", "span_id"),
    }
)
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_trace_ids: ContextVar[tuple[str, str] | None] = ContextVar("trace_ids", default=None)


def configure_logging(level: str, form: str, *, traced: bool = False) -> None:
    """Write log lines of Kotae and of libraries to standard error in one format.

    Kotae writes one line per request, directly to the stream; the few lines of libraries pass
    through `logging` and its formatter. `traced`: lines have the ids of the current trace.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        _add_request_id,
        *([_add_trace_ids] if traced else []),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        if console
        else structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = [
        structlog.processors.format_exc_info,
        _redact_values,
        _render_console if console else _render_json,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _redact_message],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # At DEBUG these would log prompts, answers and headers.
    for name in (
        "openai",
        "httpx2",
        "httpcore2",
        "aiosqlite",
        "sse_starlette",
        "asyncio",
        "alembic",
        "mcp",  # and at INFO two lines per request
        "uvicorn.access",
        "uvicorn.error",  # its steps of start and end; ours are service.started and service.stopped
    ):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(root.level),
        cache_logger_on_first_use=True,
    )


def set_request_id(request_id: str) -> None:
    """Add the request id to all log lines of this task and of tasks that it starts."""
    _request_id.set(request_id)


def get_request_id() -> str | None:
    """The id of the request in which this task runs."""
    return _request_id.get()


def set_trace_ids(trace_id: str, span_id: str) -> None:
    """Add these ids to all log lines of this task and of tasks that it starts."""
    _trace_ids.set((trace_id, span_id))


def _add_trace_ids(
    _logger: Any, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    if (ids := _trace_ids.get()) is not None:
        event["trace_id"], event["span_id"] = ids
    return event


def _add_request_id(
    _logger: Any, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    if (request_id := _request_id.get()) is not None:
        event["request_id"] = request_id
    return event


def _redact_message(
    _logger: Any, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Redact the message of a library; those of Kotae are constants."""
    event["event"] = redact_secrets(event["event"])
    return event


def _redact_values(
    _logger: Any, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if name not in _SAFE_FIELDS:
            event[name] = _redact_value(value)
    return event


def _redact_value(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return redact_secrets(value)
    if isinstance(value, dict):
        return {name: _redact_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_value(item) for item in value]
    return redact_secrets(repr(value))


def _render_json(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=repr).decode()
    except (TypeError, ValueError):  # an escaped line is better than none
        return msgspec.json.encode({name: ascii(value) for name, value in event.items()}).decode()


def _render_console(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> str:
    """One line for people, without colors and, below warnings, without the request id."""
    when, level, name = event.pop("timestamp"), event.pop("level"), event.pop("event")
    traceback = event.pop("exception", "")
    if name == "request.served":
        return "{} {method} {route} {status} {ms:.0f} ms".format(when, **event)
    if level == "info":
        for field in ("request_id", "trace_id", "span_id"):
            event.pop(field, None)
    fields = [f"{field}={value}" for field, value in event.items()]
    line = " ".join([when, *([] if level == "info" else [level]), str(name), *fields])
    return f"{line}\n{traceback}" if traceback else line


class Metrics:
    """The metrics of one service, in a separate registry.

    No label has values chosen by callers, because every value is stored.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "kotae_http_requests",
            "HTTP requests by route and status",
            ["method", "route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "kotae_http_request_seconds",
            "Time to the end of the response",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.connections = Gauge("kotae_connections", "Open connections", registry=registry)
        self.connections_dropped = Counter(
            "kotae_connections_dropped",
            "Connections that were closed because they exceeded a limit",
            ["limit"],
            registry=registry,
        )
        self.clock_jumps = Counter(
            "kotae_clock_jumps",
            "Jumps of the system time",
            ["direction"],
            registry=registry,
        )
        self.answers = Counter(
            "kotae_answers",
            "Answers by final status",
            ["endpoint", "status", "usage_source"],
            registry=registry,
        )
        self.answer_seconds = Histogram(
            "kotae_answer_seconds",
            "Time to the end of the answer",
            ["endpoint"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "kotae_first_token_seconds",
            "Time to the first text",
            ["endpoint"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter("kotae_tokens", "Tokens by kind", ["kind"], registry=registry)
        self.cost_usd = Counter(
            "kotae_cost_usd",
            "Cost in USD, rounded; the log has the exact sum",
            registry=registry,
        )
        self.unpriced = Counter(
            "kotae_unpriced_answers", "Answers of models without a price", registry=registry
        )
        self.attempts = Counter(
            "kotae_provider_attempts",
            "Provider calls by provider and result",
            ["provider", "code"],
            registry=registry,
        )
        self.fallbacks = Counter(
            "kotae_provider_fallbacks",
            "Calls that failed and were followed by a call of another provider",
            ["provider", "code"],
            registry=registry,
        )
        self.provider_up = Gauge(
            "kotae_provider_up",
            "Whether the last call of the provider was answered",
            ["provider"],
            registry=registry,
        )
        self.quota_refusals = Counter(
            "kotae_quota_refusals",
            "Requests rejected by a quota",
            ["of", "limit"],
            registry=registry,
        )
        self.budget_alerts = Counter(
            "kotae_budget_alerts",
            "Alerts of budgets and about low credit that were created",
            registry=registry,
        )
        self.webhook_attempts = Counter(
            "kotae_webhook_attempts",
            "Attempts to deliver an alert, by the state of the alert after it",
            ["state"],
            registry=registry,
        )
        self.meter_event_attempts = Counter(
            "kotae_meter_event_attempts",
            "Attempts to send a meter event to Stripe, by the state of the event after it",
            ["state"],
            registry=registry,
        )
        self.meter_events = Gauge(
            "kotae_meter_events",
            "Meter events that wait to be sent, and those to be reviewed",
            ["state"],
            registry=registry,
        )
        self.stripe_webhooks = Counter(
            "kotae_stripe_webhooks",
            "Signed events from Stripe: stored, repeated, or of a type that is not used",
            ["result"],
            registry=registry,
        )
        self.streams_degraded = Counter(
            "kotae_streams_degraded",
            "Streams that are not resumable because the buffers were full",
            registry=registry,
        )
        self.in_progress = Gauge(
            "kotae_answers_in_progress", "Answers in progress", registry=registry
        )
        self.records_waiting = Gauge(
            "kotae_records_waiting", "Records not yet in the database", registry=registry
        )
        self.replica_slot = Gauge(
            "kotae_replica_slot", "Slot of this replica; 0 with SQLite", registry=registry
        )
        self.replica_lease = Gauge(
            "kotae_replica_lease", "Whether the slot is leased", registry=registry
        )
        self.replica_leader = Gauge(
            "kotae_replica_leader", "Whether this replica leads", registry=registry
        )
        self.replicas = Gauge(
            "kotae_replicas", "Replicas with a lease, as this one sees them", registry=registry
        )
        self.rows_damaged = Gauge(
            "kotae_rows_damaged", "Rows of the database that could not be read", registry=registry
        )
        self.records_written = Counter(
            "kotae_records_written", "Log rows written", registry=registry
        )
        self.writer_failures = Counter(
            "kotae_writer_failures", "Batches that could not be written", registry=registry
        )
        self.citations = Counter(
            "kotae_citations",
            "Citations in answers, valid or removed",
            ["what"],
            registry=registry,
        )
        self.searches = Counter(
            "kotae_searches",
            "Searches by answerability",
            ["answerable"],
            registry=registry,
        )
        # The library takes 3 µs per lookup of label values, several times per request.
        for metric in vars(self).values():
            if isinstance(metric, Counter | Histogram):
                metric.labels = lru_cache(LABELS_MAX)(metric.labels)  # type: ignore[method-assign, assignment]

    def format_exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
