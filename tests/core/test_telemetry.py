"""Log lines and metrics."""

import contextvars
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog
from structlog.typing import FilteringBoundLogger

from service.core.telemetry import Metrics, configure_logging, set_request_id, set_trace_ids


@contextmanager
def debug_log(form: str = "json", *, traced: bool = False) -> Iterator[FilteringBoundLogger]:
    """A logger of the service at the debug level, on the standard error of the test."""
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers, root.level
    configure_logging("debug", form, traced=traced)
    try:
        yield structlog.get_logger("kotae")
    finally:
        structlog.configure(**config)
        root.handlers = handlers
        root.setLevel(level)


def written(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The log lines written since the last call."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_has_the_id_of_its_request(capsys: pytest.CaptureFixture[str]) -> None:
    """Log lines of a request contain its id, other lines do not."""
    request = contextvars.copy_context()
    request.run(set_request_id, "r-1")
    with debug_log() as log:
        request.run(log.error, "answer.failed", code="x")
        log.error("writer.delayed")

    first, second = written(capsys)
    assert (first["event"], first["level"], first["code"], first["request_id"]) == (
        "answer.failed",
        "error",
        "x",
        "r-1",
    )
    assert "request_id" not in second


@pytest.mark.parametrize("traced", [True, False])
def test_a_line_has_the_ids_of_its_trace(
    capsys: pytest.CaptureFixture[str], *, traced: bool
) -> None:
    """With tracing, log lines of an answer have the ids of the trace and the span."""
    answer = contextvars.copy_context()
    answer.run(set_trace_ids, "4bf9", "00f0")
    with debug_log(traced=traced) as log:
        answer.run(log.error, "answer.failed")
        log.error("writer.delayed")

    first, second = written(capsys)
    assert (first.get("trace_id"), first.get("span_id")) == (
        ("4bf9", "00f0") if traced else (None, None)
    )
    assert "trace_id" not in second


@pytest.mark.parametrize(
    "value",
    [object(), "\ud800", float("nan"), {1, 2}, b"\xff"],
    ids=["object", "surrogate", "nan", "set", "bytes"],
)
def test_no_value_loses_its_line(capsys: pytest.CaptureFixture[str], value: object) -> None:
    """A line is written as JSON for any value of an argument."""
    with debug_log() as log:
        log.error("document.odd", value=value)

    (line,) = written(capsys)
    assert "document.odd" in line["event"]


def test_log_lines_are_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments, tracebacks with their causes, and the lines of libraries are redacted."""
    secret = "sk-live-" + "0123456789abcdef"  # not as it is in the lines of a traceback
    error = RuntimeError(f"https://a:{secret}@host failed")
    error.__cause__ = ValueError(f"sent {secret}")
    with debug_log() as log:
        log.error("answer.broken", reason=f"Bearer {secret}", values=[secret], exc_info=error)
        log.warning("answer.failed", error=error, fields={"x": secret})
        logging.getLogger("library").error("failed with %s", secret, exc_info=error)

    lines = [json.dumps(line) for line in written(capsys)]
    assert len(lines) == 3
    assert all("[redacted]" in line and "0123456789" not in line for line in lines)


def test_libraries_log_warnings_only() -> None:
    """At the debug level libraries would log prompts, answers and headers."""
    with debug_log():
        assert logging.getLogger().isEnabledFor(logging.DEBUG)
        for name in ("openai", "httpx2", "httpcore2", "aiosqlite", "mcp", "uvicorn.access"):
            assert not logging.getLogger(name).isEnabledFor(logging.INFO)


def test_each_service_has_separate_metrics() -> None:
    """Two services in one process do not share counters."""
    first, other = Metrics(), Metrics()
    first.attempts.labels("default", "ok").inc()

    assert (
        b'kotae_provider_attempts_total{code="ok",provider="default"} 1.0'
        in first.format_exposition()
    )
    assert b'code="ok"' not in other.format_exposition()


def test_a_request_is_one_short_line_on_a_console(capsys: pytest.CaptureFixture[str]) -> None:
    """On a console a request is one line with method, route, status and duration."""
    request_log = contextvars.copy_context()
    request_log.run(set_request_id, "r-1")
    with debug_log("console") as log:
        request_log.run(log.info, "request.served", method="GET", route="/", status=200, ms=12.3)
        request_log.run(log.warning, "disk.filled", free=1)

    request, warning = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d GET / 200 12 ms", request)
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning disk\.filled free=1 request_id=r-1", warning)
