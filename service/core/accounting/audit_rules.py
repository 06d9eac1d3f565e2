"""What every log row must satisfy: the rules of docs/explanation/accounting.md. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from service.core.encoding import read_id_time
from service.core.records import RANKS, Attempt, Status, UsageSource, sum_attempts

TOKEN_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
WRONG_TYPES = (ValueError, TypeError, ArithmeticError)  # of rules over a damaged row
# The usage sources that each status may have: the table of docs/explanation/accounting.md, and
# answers that end before the first call.
_COUNTED = frozenset({UsageSource.PROVIDER, UsageSource.ESTIMATED})
_SOURCES: dict[str, frozenset[str]] = {
    Status.COMPLETED: _COUNTED,
    Status.NO_CONTEXT: frozenset({UsageSource.NONE}),
    Status.TIMEOUT: frozenset(UsageSource),
    Status.STOPPED: frozenset(UsageSource),
    Status.CLIENT_GONE: frozenset(UsageSource),
    Status.PROVIDER_ERROR: frozenset(UsageSource),
    Status.INTERRUPTED: frozenset(UsageSource),
}


def check_attempts(row: Mapping[Any, Any], listed: Sequence[Attempt]) -> Iterator[str]:
    """Yield the differences between a row and the sum of its attempts."""
    if row["attempts"] != len(listed):
        yield f"{row['attempts']} attempts, and {len(listed)} of them recorded"
        return
    total = sum_attempts(listed)
    usage = msgspec.structs.asdict(total.usage) if total.usage else {}
    expected = {
        "usage_source": total.usage_source,
        **{name: usage.get(name) for name in TOKEN_COUNTS},
        "cost_nano_usd": total.cost_nano_usd,
    }
    for name, value in expected.items():
        if row[name] != value:
            yield f"{name} {row[name]} in the row, {value} in its attempts"


def check_row(row: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the violations of docs/explanation/accounting.md in a single row."""
    status, source = row["status"], row["usage_source"]
    if source not in _SOURCES.get(status, ()):
        yield f"status {status} with usage {source}"
    if source in RANKS and row["rank"] != RANKS[source]:
        yield f"rank {row['rank']} with usage {source}"
    if row["created_at"] != read_moment(row["id"]):
        yield f"its id has another time than {row['created_at']:%Y-%m-%dT%H:%M:%S.%fZ}"
    tokens = [row[name] for name in TOKEN_COUNTS]
    if None not in tokens:
        yield from _check_counts(row)
        return
    if any(count is not None for count in tokens):
        yield "some token counts are missing, so there is no total"
    if source != UsageSource.UNKNOWN:
        yield f"usage {source} without tokens"
    if row["cost_nano_usd"] is not None:
        yield "a cost without tokens"


def _check_counts(row: Mapping[Any, Any]) -> Iterator[str]:
    source, cost = row["usage_source"], row["cost_nano_usd"]
    prompt, completion, cached, reasoning = (row[name] for name in TOKEN_COUNTS)
    if min(prompt, completion, cached, reasoning, cost or 0) < 0:
        yield "a negative count"
    if cached > prompt:
        yield f"{cached} cached of {prompt} prompt tokens"
    if reasoning > completion:
        yield f"{reasoning} reasoning of {completion} completion tokens"
    if source == UsageSource.UNKNOWN:
        yield "usage unknown with tokens"
    elif source == UsageSource.NONE:
        if prompt or completion or cost != 0:
            yield "tokens or a cost without a provider call"
    elif (cost is None) != (row["price"] is None):
        yield "a price without a cost" if cost is None else "a cost without a price"


def read_moment(answer_id: str) -> datetime | None:
    """Return the time of an id; None if it is not a UUIDv7, or of the year 9999."""
    at = read_id_time(answer_id)
    return at if at is not None and at.year < 9999 else None
