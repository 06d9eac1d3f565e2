"""Reconciliation: the stored sums of an interval beside the sums over its rows, in one snapshot.

The audit compares every quarter, group and row without a limit of time; this compares the totals of
an interval while an admin waits. The rows are counted first, so that a request that is too large is
refused before it sums anything.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.accounting.analytics import SECONDS_MAX, build_sums
from service.core.accounting.rollups import (
    COUNTS,
    DIMENSIONS,
    select_contributions,
)
from service.core.database.tables import request_logs, rollup_groups, rollups
from service.core.encoding import QUARTER_SECONDS, compute_first_id, find_quarter, read_id_time
from service.core.errors import InvalidInterval
from service.core.pricing import format_usd

_DESCRIBED = ("cost_nano_usd", "unpriced")  # under other names

ROWS_MAX = 200_000
_END = datetime(9999, 12, 31, tzinfo=UTC)  # so that its quarter ends within the years of `datetime`
STEP_QUARTERS = 96  # summed between two checks of the time: a day


class ReconciledSums(msgspec.Struct, frozen=True):
    """Sums by name: over the rows, and as stored. `since` and `until` are those of quarters."""

    since: datetime
    until: datetime
    rows: Counter[str]
    sums: Counter[str]

    @property
    def agrees(self) -> bool:
        """Whether all sums are equal."""
        return self.rows == self.sums


def reconcile_sums(
    connection: sa.Connection,
    *,
    since: datetime,
    until: datetime,
    rows_max: int = ROWS_MAX,
    clock: Callable[[], float] = time.monotonic,
) -> ReconciledSums:
    """Sum the rows and the rollups of the quarters that contain an interval.

    Raises `InvalidInterval` for more than `rows_max` answers, or if it takes too long.
    """
    first = find_quarter(since)
    last = max(first, -(-int(min(until, _END).timestamp() * 1000) // (QUARTER_SECONDS * 1000)))
    start, end = _start_quarter(first), _start_quarter(last)
    limited = sa.select(request_logs.c.id).where(*_select_ids(start, end)).limit(rows_max + 1)
    count = sa.select(sa.func.count()).select_from(limited.subquery())
    if connection.execute(count).scalar_one() > rows_max:
        raise InvalidInterval(
            f"more than {rows_max:,} answers: use a shorter interval, or `kotae audit`"
        )
    sums = _sum_rollups(connection, first, last)
    rows: Counter[str] = Counter()
    deadline = clock() + SECONDS_MAX
    for step_start, step_end in _list_steps(connection, start, end):
        if clock() > deadline:
            raise InvalidInterval(
                f"the sums take more than {SECONDS_MAX:.0f} s: use a shorter interval, or"
                " `kotae audit`"
            )
        rows.update(_sum_rows(connection, step_start, step_end))
    return ReconciledSums(start, end, rows, sums)


def describe_sums(sums: Counter[str]) -> dict[str, Any]:
    """The sums as they are sent."""
    counted = {
        name: sums[name] for name in ("answers", "errors", *COUNTS) if name not in _DESCRIBED
    }
    return counted | {
        "cost": format_usd(sums["cost_nano_usd"]),
        "unpriced_answers": sums["unpriced"],
        "unknown_answers": sums["unknown"],
    }


def _start_quarter(quarter: int) -> datetime:
    return datetime.fromtimestamp(quarter * QUARTER_SECONDS, UTC)


def _select_ids(start: datetime, end: datetime) -> list[sa.ColumnElement[bool]]:
    ids = request_logs.c.id
    return [ids >= compute_first_id(start), ids < compute_first_id(end)]


def _list_steps(
    connection: sa.Connection, start: datetime, end: datetime
) -> Iterator[tuple[datetime, datetime]]:
    """Divide the part of the interval that has rows."""
    ids = request_logs.c.id
    bounds = sa.select(sa.func.min(ids), sa.func.max(ids)).where(*_select_ids(start, end))
    first, last = connection.execute(bounds).one()
    if first is None:
        return
    step = timedelta(seconds=STEP_QUARTERS * QUARTER_SECONDS)
    start, last_time = read_id_time(first) or start, read_id_time(last) or end
    while start <= last_time:
        yield start, min(start + step, end)
        start += step


def _sum_rows(connection: sa.Connection, start: datetime, end: datetime) -> Counter[str]:
    rows = sa.union_all(*select_contributions(*_select_ids(start, end))).subquery()
    columns = {column.name: column for column in rows.c}
    return _execute_sums(connection, sa.select(*build_sums(columns).values()).select_from(rows))


def _sum_rollups(connection: sa.Connection, first: int, last: int) -> Counter[str]:
    columns = {name: rollup_groups.c[name] for name in DIMENSIONS} | {
        name: rollups.c[name] for name in COUNTS
    }
    joined = rollups.join(rollup_groups, rollup_groups.c.id == rollups.c.group_id)
    statement = sa.select(*build_sums(columns).values()).select_from(joined)
    return _execute_sums(
        connection, statement.where(rollups.c.quarter >= first, rollups.c.quarter < last)
    )


def _execute_sums(connection: sa.Connection, statement: sa.Select[Any]) -> Counter[str]:
    return Counter(dict(connection.execute(statement).mappings().one()))
