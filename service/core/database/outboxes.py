"""Outboxes and inboxes: tables of work that is attempted until it succeeds or is given up.

Their columns are `id`, `state`, `attempts`, `next_at` (of the next attempt; None: there is none)
and `error`. An index over `state` and `next_at` finds the rows that are due.
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from service.core.database.engine import ReadSession, Session
from service.core.errors import retry_delay

PENDING, FAILED = "pending", "failed"
RETRY_SECONDS, RETRY_SECONDS_MAX = 5.0, 3600.0  # delay after the first failure, maximum delay
ATTEMPTS_MAX = 80  # the last one follows about three days after the first one
ERROR_CHARACTERS_MAX = 200


def select_due(table: sa.Table, at: datetime, count_max: int) -> sa.Select[Any]:
    """The rows whose next attempt is due, the longest due first."""
    columns = table.c
    return (
        sa.select(table)
        .where(columns.state == PENDING, columns.next_at <= at)
        .order_by(columns.next_at, columns.id)
        .limit(count_max)
    )


def describe_failure(
    attempts: int, error: str, at: datetime, *, is_final: bool = False
) -> dict[str, Any]:
    """The values of a row after failed attempt number `attempts`: it is delayed, or given up.

    `is_final`: another attempt would fail as well.
    """
    is_final = is_final or attempts >= ATTEMPTS_MAX
    delay = retry_delay(attempts, first_seconds=RETRY_SECONDS, seconds_max=RETRY_SECONDS_MAX)
    return {
        "state": FAILED if is_final else PENDING,
        "attempts": attempts,
        "next_at": None if is_final else at + timedelta(seconds=delay),
        "error": error[:ERROR_CHARACTERS_MAX],
    }


async def retry_row(
    session: Session, table: sa.Table, row_id: str, at: datetime
) -> Mapping[Any, Any] | None:
    """Attempt a failed or pending row now, counting its attempts anew; None: there is none."""
    columns = table.c
    changed = await session.execute(
        sa.update(table)
        .where(columns.id == row_id, columns.state.in_([FAILED, PENDING]))
        .values(state=PENDING, attempts=0, next_at=at)
        .returning(*columns)
    )
    return changed.mappings().first()


async def count_rows(
    session: ReadSession, table: sa.Table, states: Collection[str]
) -> dict[str, int]:
    """The number of rows in each of some states."""
    query = (
        sa.select(table.c.state, sa.func.count())
        .where(table.c.state.in_(states))
        .group_by(table.c.state)
    )
    counts = dict.fromkeys(states, 0)
    for state, count in await session.execute(query):
        counts[state] = count
    return counts
