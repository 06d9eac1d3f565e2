"""Analytics are the sums of the rows of their interval, in any group and bucket."""

import random
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from service.core.accounting.analytics import (
    METRICS,
    AnalyticsQuery,
    Bucket,
    GroupResult,
    compute_analytics,
    list_buckets,
)
from service.core.database.engine import Database
from service.core.errors import InvalidInterval
from service.core.pricing import Usage, format_usd
from service.core.records import FAILURES, Outcome, Status, UsageSource
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.every_database

UTC_ZONE = ZoneInfo("UTC")
START = datetime(2026, 3, 28, 21, 3, tzinfo=UTC)


def build_row(choose: random.Random) -> Outcome:
    """A random row within eight hours."""
    source = choose.choice(list(UsageSource)[:3])
    unknown = source == UsageSource.UNKNOWN
    return build_outcome(
        build_intent(
            at=START + timedelta(seconds=choose.randrange(8 * 3600)),
            user_id=choose.choice("abc"),
            model=choose.choice(["m", "n"]),
            key_id=choose.choice([None, "k1", "k2"]),
        ),
        status=choose.choice([Status.TIMEOUT, Status.STOPPED, Status.INTERRUPTED]),
        usage_source=source,
        usage=None
        if unknown
        else Usage(prompt_tokens=choose.randrange(100), completion_tokens=choose.randrange(9)),
        cost_nano_usd=None if unknown else choose.choice([None, choose.randrange(10**9)]),
        attempts=choose.randint(1, 3),
        response_time_ms=choose.choice([3, 20, 24]),  # bins of one millisecond
        first_token_ms=choose.choice([None, 2]),
    )


CHOOSE = random.Random(5)
ROWS = [build_row(CHOOSE) for _ in range(200)]
VALUES: dict[str, Callable[[Outcome], str]] = {
    "user_id": lambda row: row.intent.user_id,
    "key_id": lambda row: row.intent.key_id or "",
    "model": lambda row: row.intent.model,
    "endpoint": lambda row: row.intent.endpoint,
    "status": lambda row: row.status,
    "usage_source": lambda row: row.usage_source,
}


@pytest.fixture
async def filled(database: Database) -> Database:
    """A database with these rows."""
    await write(database, ROWS)
    return database


def describe(rows: list[Outcome]) -> dict[str, Any]:
    """The metrics of these rows, computed one by one."""
    usages = [row.usage for row in rows if row.usage]
    times = sorted(row.response_time_ms for row in rows)
    firsts = [row.first_token_ms for row in rows if row.first_token_ms]
    return {
        "answers": len(rows),
        "errors": sum(row.status in FAILURES for row in rows),
        "attempts": sum(row.attempts for row in rows),
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "total_tokens": sum(usage.total_tokens for usage in usages),
        "cost": format_usd(sum(row.cost_nano_usd or 0 for row in rows)),
        "unpriced_answers": sum(row.cost_nano_usd is None and bool(row.usage) for row in rows),
        "unknown_answers": sum(row.usage is None for row in rows),
        "response_time_ms": {
            name: float(times[-(-len(times) * percent // 100) - 1])
            for name, percent in (("p50", 50), ("p95", 95), ("p99", 99))
        },
        "first_token_ms": dict.fromkeys(("p50", "p95", "p99"), 2.0 if firsts else None),
    }


async def compute(database: Database, query: AnalyticsQuery) -> list[GroupResult]:
    """The results of a query."""
    return await database.run_blocking_read(partial(compute_analytics, query=query))


@pytest.mark.parametrize("seed", range(12))
async def test_analytics_equal_the_rows(filled: Database, seed: int) -> None:
    """Any interval, also within a quarter, by any dimensions, is the sum of its rows."""
    choose = random.Random(seed)
    since, until = sorted(
        START + timedelta(seconds=choose.randrange(-900, 9 * 3600)) for _ in range(2)
    )
    group_by = tuple(choose.sample(list(VALUES), choose.randint(0, 3)))
    filters = {"user_id": ("a", "b")} if seed % 3 == 0 else {}
    unit = choose.choice([None, "hour", "day"])
    buckets = tuple(list_buckets(since, until, unit, ZoneInfo("Asia/Kathmandu")))
    query = AnalyticsQuery(
        metrics=METRICS, group_by=group_by, buckets=buckets, order="cost", filters=filters
    )
    results = await compute(filled, query)

    expected: dict[Any, list[Outcome]] = defaultdict(list)
    for row in ROWS:
        for bucket in buckets:
            selected = not filters or row.intent.user_id in "ab"
            if selected and bucket.start <= row.intent.created_at < bucket.end:
                expected[bucket, tuple(VALUES[name](row) for name in group_by)].append(row)
    listed = {
        (result.bucket, tuple(result.values.pop(name) or "" for name in group_by)): result.values
        for result in results
    }
    assert listed == {key: describe(rows) for key, rows in expected.items()}


async def test_groups_are_ordered_within_buckets(filled: Database) -> None:
    """The largest group of a bucket is the first."""
    query = AnalyticsQuery(
        metrics=("answers",),
        group_by=("model", "user_id"),
        buckets=(Bucket(START, START + timedelta(hours=9)),),
        order="answers",
        filters={},
    )
    answers = [result.values["answers"] for result in await compute(filled, query)]

    assert (sum(answers), len(answers)) == (200, 6)
    assert answers == sorted(answers, reverse=True)


def test_days_are_those_of_the_time_zone() -> None:
    """A day with a change of the clock has 23 or 25 hours, and begins at local midnight."""
    zone = ZoneInfo("Europe/Berlin")
    since = datetime(2026, 3, 28, 12, tzinfo=zone).astimezone(UTC)
    until = datetime(2026, 3, 30, 12, tzinfo=zone).astimezone(UTC)
    days = list_buckets(since, until, "day", zone)

    assert [(bucket.end - bucket.start).total_seconds() / 3600 for bucket in days] == [12, 23, 12]
    assert [bucket.start.astimezone(zone).hour for bucket in days] == [12, 0, 0]
    assert len(list_buckets(since, until, "hour", zone)) == 47


def test_months_end_at_the_first_of_the_next() -> None:
    """Months have their length, also at the end of the year."""
    zone = ZoneInfo("Asia/Tokyo")
    since = datetime(2026, 11, 30, 23, tzinfo=zone)
    months = list_buckets(since, datetime(2027, 3, 1, tzinfo=zone), "month", zone)

    assert [bucket.end.astimezone(zone).strftime("%m-%d %H") for bucket in months] == [
        "12-01 00",
        "01-01 00",
        "02-01 00",
        "03-01 00",
    ]


def test_too_many_buckets_are_refused() -> None:
    """An interval is divided into at most 1,000 buckets."""
    with pytest.raises(InvalidInterval, match="1000 buckets"):
        list_buckets(START, START + timedelta(hours=1001), "hour", UTC_ZONE)


async def test_sums_that_take_too_long_are_refused(filled: Database) -> None:
    """A request ends after ten seconds, at the end of a bucket."""
    seconds = iter([0.0, 4.0, 11.0, 12.0])
    query = AnalyticsQuery(
        metrics=("answers",),
        group_by=(),
        buckets=tuple(list_buckets(START, START + timedelta(hours=3), "hour", UTC_ZONE)),
        order="answers",
        filters={},
    )
    with pytest.raises(InvalidInterval, match="more than 10 s"):
        await filled.run_blocking_read(
            partial(compute_analytics, query=query, clock=lambda: next(seconds))
        )
