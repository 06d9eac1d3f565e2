"""Analytics: sums and percentiles over the log, by group and time bucket.

Whole quarters of an hour are read from the rollups. An interval that begins or ends within a
quarter reads the rest from the rows, so the result is always the sum of the rows of the interval.
All queries of a request see one snapshot.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from datetime import time as day_time
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import sqlalchemy as sa

from service.core.accounting.latency_bins import compute_percentile
from service.core.accounting.rollups import (
    COUNTS,
    DIMENSIONS,
    LATENCIES,
    TOKENS,
    Group,
    list_latencies,
    select_contributions,
)
from service.core.database.constructs import sum_exactly
from service.core.database.tables import (
    latency_counts,
    request_logs,
    rollup_groups,
    rollups,
)
from service.core.encoding import QUARTER_SECONDS, compute_first_id, find_quarter
from service.core.errors import InvalidInterval
from service.core.pricing import format_usd
from service.core.records import FAILURES, UsageSource

BUCKETS_MAX = 1000
EDGE_ROWS_MAX = 20_000  # rows of the quarters that an interval divides
GROUPS_MAX = 20_000  # in all buckets
ANALYTICS_MAX = 2  # requests at a time, one of a user: they share the readers with searches
OPEN_MAX = 32  # requests that run or wait; a page of charts needs a few of a user
WAIT_SECONDS_MAX = 15.0  # of a request for its turn, more than the longest request takes
SECONDS_MAX = 10.0  # of a request, checked after each bucket
_PERCENTS = {"p50": 50, "p95": 95, "p99": 99}
ROWS_AT_ONCE = 1000  # read from the database together
METRICS = ("answers", "errors", "attempts", *TOKENS, "total_tokens", "cost", *LATENCIES)
ORDERS = ("answers", "errors", "total_tokens", "cost")


class Bucket(msgspec.Struct, frozen=True):
    """An interval of time: `start` is inclusive, `end` exclusive."""

    start: datetime
    end: datetime


class AnalyticsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What to compute. `filters`: the values that each dimension may have."""

    metrics: tuple[str, ...]
    group_by: tuple[str, ...]
    buckets: tuple[Bucket, ...]
    order: str
    filters: Mapping[str, tuple[str, ...]]


class GroupResult(msgspec.Struct, frozen=True):
    """The metrics of one group in one bucket."""

    bucket: Bucket
    values: dict[str, Any]


class _Sums:
    """The counts of a group, and its latencies by kind and bin."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.latencies: tuple[Counter[int], ...] = tuple(Counter() for _ in LATENCIES)


def list_buckets(
    since: datetime, until: datetime, unit: str | None, zone: ZoneInfo
) -> list[Bucket]:
    """Divide an interval at the hours, days or months of a time zone; None: do not divide it.

    Raises `InvalidInterval` for more than `BUCKETS_MAX`.
    """
    buckets: list[Bucket] = []
    start = since
    while start < until:
        end = until if unit is None else min(until, _find_end(start.astimezone(zone), unit))
        buckets.append(Bucket(start, end))
        if len(buckets) > BUCKETS_MAX:
            raise InvalidInterval(f"more than {BUCKETS_MAX} buckets: choose longer ones")
        start = end
    return buckets


def _find_end(moment: datetime, unit: str) -> datetime:
    """The end of the hour, day or month of a local time."""
    if unit == "hour":
        passed = timedelta(
            minutes=moment.minute, seconds=moment.second, microseconds=moment.microsecond
        )
        return (moment.astimezone(UTC) - passed) + timedelta(hours=1)
    day = moment.date() + timedelta(days=1)
    if unit == "month":
        day = (moment.date().replace(day=1) + timedelta(days=31)).replace(day=1)
    return datetime.combine(day, day_time(), moment.tzinfo).astimezone(UTC)


def compute_analytics(
    connection: sa.Connection,
    query: AnalyticsQuery,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> list[GroupResult]:
    """Compute the metrics of each group in each bucket, the largest first within a bucket.

    Raises `InvalidInterval` if there are too many groups, or too many rows in divided quarters, or
    if it takes too long.
    """
    results: list[GroupResult] = []
    end = clock() + SECONDS_MAX
    statements = _build_statements(query)
    for bucket in query.buckets:
        groups = _sum_bucket(connection, query, statements, bucket)
        listed = [(group, sums) for group, sums in groups.items() if any(sums.counts.values())]
        listed.sort(key=lambda item: (-_get_order(item[1].counts, query.order), item[0]))
        results += [GroupResult(bucket, _describe(query, *item)) for item in listed]
        if clock() > end and bucket is not query.buckets[-1]:
            raise InvalidInterval(
                f"the sums take more than {SECONDS_MAX:.0f} s: use a shorter interval, longer"
                " buckets or fewer dimensions"
            )
        if len(results) > GROUPS_MAX:
            raise InvalidInterval(
                f"more than {GROUPS_MAX:,} groups: use a shorter interval or fewer dimensions"
            )
    return results


class _RollupStatements(msgspec.Struct, frozen=True):
    """The statements of a query over rollups of the quarters from `first` up to `last`.

    They are built once, which takes longer than to execute them for a short bucket.
    """

    counts: sa.Select[Any]
    latencies: sa.Select[Any] | None  # None: not needed


def _build_statements(query: AnalyticsQuery) -> _RollupStatements:
    dimensions = {name: rollup_groups.c[name] for name in DIMENSIONS}
    columns = dimensions | {name: rollups.c[name] for name in COUNTS}
    joined = rollups.join(rollup_groups, rollup_groups.c.id == rollups.c.group_id)
    counts = _select_counts(query, columns, joined).where(*_limit_quarters(rollups))
    if not _needs_latencies(query):
        return _RollupStatements(counts, None)
    kind, number = latency_counts.c.kind, latency_counts.c.bin
    keys = [*(dimensions[name] for name in query.group_by), kind, number]
    latencies = (
        sa.select(*keys, sum_exactly(latency_counts.c.answers))
        .select_from(_join_groups(latency_counts, query))
        .where(*_limit_quarters(latency_counts), *_filter(query, dimensions))
        .group_by(*keys)
    )
    return _RollupStatements(counts, latencies)


def _limit_quarters(table: sa.Table) -> list[sa.ColumnElement[bool]]:
    return [
        table.c.quarter >= sa.bindparam("first", type_=sa.Integer),
        table.c.quarter < sa.bindparam("last", type_=sa.Integer),
    ]


def _sum_bucket(
    connection: sa.Connection,
    query: AnalyticsQuery,
    statements: _RollupStatements,
    bucket: Bucket,
) -> dict[Group, _Sums]:
    groups: defaultdict[Group, _Sums] = defaultdict(_Sums)
    first = -(-int(bucket.start.timestamp() * 1000) // (QUARTER_SECONDS * 1000))
    last = find_quarter(bucket.end)
    if first >= last:
        _add_rows(connection, query, groups, bucket.start, bucket.end)
        return groups
    _add_rows(connection, query, groups, bucket.start, _start_quarter(first))
    _add_rollups(connection, query, statements, groups, (first, last))
    _add_rows(connection, query, groups, _start_quarter(last), bucket.end)
    return groups


def _start_quarter(quarter: int) -> datetime:
    return datetime.fromtimestamp(quarter * QUARTER_SECONDS, UTC)


def _add_rollups(
    connection: sa.Connection,
    query: AnalyticsQuery,
    statements: _RollupStatements,
    groups: defaultdict[Group, _Sums],
    quarters: tuple[int, int],
) -> None:
    """Add the rollups of whole quarters, from the first up to the last, exclusive."""
    interval = {"first": quarters[0], "last": quarters[1]}
    _add_counts(connection, query, groups, statements.counts, interval)
    if statements.latencies is None:
        return
    size = len(query.group_by)
    for part in connection.execute(statements.latencies, interval).partitions(ROWS_AT_ONCE):
        for row in part:
            kind, number, count = row[size:]
            groups[row[:size]].latencies[kind][number] += count


def _join_groups(table: sa.Table, query: AnalyticsQuery) -> sa.FromClause:
    """The table, with its groups if the query needs them: they double its time."""
    if not query.group_by and not query.filters:
        return table
    return table.join(rollup_groups, rollup_groups.c.id == table.c.group_id)


def _add_rows(
    connection: sa.Connection,
    query: AnalyticsQuery,
    groups: defaultdict[Group, _Sums],
    since: datetime,
    until: datetime,
) -> None:
    """Add the rows of a part of a quarter."""
    if since >= until:
        return
    ids = request_logs.c.id
    interval = [ids >= compute_first_id(since), ids < compute_first_id(until)]
    limited = sa.select(ids).where(*interval).limit(EDGE_ROWS_MAX + 1).subquery()
    count = sa.select(sa.func.count()).select_from(limited)
    if connection.execute(count).scalar_one() > EDGE_ROWS_MAX:
        raise InvalidInterval(
            f"more than {EDGE_ROWS_MAX:,} answers in a divided quarter of an hour: let the interval"
            " begin and end at :00, :15, :30 or :45"
        )
    rows = sa.union_all(*select_contributions(*interval)).subquery()
    statement = _select_counts(query, {column.name: column for column in rows.c}, rows)
    _add_counts(connection, query, groups, statement, {})
    if not _needs_latencies(query):
        return
    dimensions = {name: sa.func.coalesce(request_logs.c[name], "") for name in DIMENSIONS}
    statement = sa.select(
        *(dimensions[name] for name in query.group_by),
        *(request_logs.c[name] for name in LATENCIES),
    ).where(*interval, *_filter(query, dimensions))
    size = len(query.group_by)
    for row in connection.execute(statement):
        sums = groups[row[:size]]
        for kind, number in list_latencies(dict(zip(LATENCIES, row[size:], strict=True))):
            sums.latencies[kind][number] += 1


def _needs_latencies(query: AnalyticsQuery) -> bool:
    return not set(LATENCIES).isdisjoint(query.metrics)


def _select_counts(
    query: AnalyticsQuery,
    columns: Mapping[str, sa.ColumnElement[Any]],
    source: sa.FromClause,
) -> sa.Select[Any]:
    """Select groups and their sums from `source`, whose dimensions and counts are `columns`."""
    selected = [columns[name] for name in query.group_by]
    return (
        sa.select(*selected, *build_sums(columns).values())
        .select_from(source)
        .where(*_filter(query, columns))
        .group_by(*selected)
    )


def build_sums(
    columns: Mapping[str, sa.ColumnElement[Any]],
) -> dict[str, sa.ColumnElement[Any]]:
    """The sums of counts by name. Failures and unknown usage are counted by their dimensions."""
    is_unknown = columns["usage_source"] == UsageSource.UNKNOWN
    answers = columns["answers"]
    values: dict[str, sa.ColumnElement[Any]] = {name: columns[name] for name in COUNTS} | {
        "errors": sa.case((columns["status"].in_(FAILURES), answers), else_=0),
        "unknown": sa.case((is_unknown, answers), else_=0),
        "unpriced": sa.case((is_unknown, 0), else_=columns["unpriced"]),
    }
    return {name: sum_exactly(value).label(name) for name, value in values.items()}


def _add_counts(
    connection: sa.Connection,
    query: AnalyticsQuery,
    groups: defaultdict[Group, _Sums],
    statement: sa.Select[Any],
    parameters: Mapping[str, int],
) -> None:
    """Add the counts of a statement of `_select_counts`."""
    size = len(query.group_by)
    result = connection.execute(statement, parameters)
    names = list(result.keys())[size:]
    for part in result.partitions(ROWS_AT_ONCE):
        for row in part:
            groups[row[:size]].counts.update(dict(zip(names, row[size:], strict=True)))


def _filter(
    query: AnalyticsQuery, columns: Mapping[str, sa.ColumnElement[Any]]
) -> list[sa.ColumnElement[bool]]:
    return [columns[name].in_(values) for name, values in query.filters.items()]


def _get_order(counts: Mapping[str, int], order: str) -> int:
    if order == "total_tokens":
        return counts["prompt_tokens"] + counts["completion_tokens"]
    return counts["cost_nano_usd" if order == "cost" else order]


def _describe(query: AnalyticsQuery, group: Group, sums: _Sums) -> dict[str, Any]:
    """The values of a group. Unknown costs are counted beside the known ones."""
    counts = sums.counts
    values: dict[str, Any] = dict(zip(query.group_by, group, strict=True))
    for name in {"key_id", "provider"} & values.keys():
        values[name] = values[name] or None
    for metric in query.metrics:
        if metric == "total_tokens":
            values[metric] = counts["prompt_tokens"] + counts["completion_tokens"]
        elif metric == "cost":
            values |= {
                "cost": format_usd(counts["cost_nano_usd"]),
                "unpriced_answers": counts["unpriced"],
                "unknown_answers": counts["unknown"],
            }
        elif metric in LATENCIES:
            values[metric] = dict(_list_percentiles(sums.latencies[LATENCIES.index(metric)]))
        else:
            values[metric] = counts[metric]
    return values


def _list_percentiles(counts: Mapping[int, int]) -> Iterator[tuple[str, float | None]]:
    for name, percent in _PERCENTS.items():
        value = compute_percentile(counts, percent)
        yield name, None if value is None else round(value, 1)
