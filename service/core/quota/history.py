"""What earlier processes used, and what the log says of usage.

At start the ledger is empty, and the log, once recovery has brought in what the journal of a dead process held, has all
that was used. `rebuild` adds it: the totals of this month less the rows of this process, which the ledger knows already.
One snapshot has both, so that nothing counts twice and nothing is left out.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.database.engine import ReadSession
from service.core.database.tables import daily_totals, quota_totals, request_logs
from service.core.encoding import compute_first_id
from service.core.ports import list_subject_names
from service.core.pricing import format_usd
from service.core.quota.local import DAY, MINUTE, MONTH, LocalQuota
from service.core.records import compute_row_charge

DAYS_MAX = 400
ROWS_MAX = 5000


class UsageTotal(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one day, model and endpoint. `unpriced`: answers whose cost nobody knows."""

    day: str
    model: str
    endpoint: str
    answers: int
    prompt_tokens: int
    completion_tokens: int
    cost: str
    unpriced: int


async def rebuild_usage(session: ReadSession, ledger: LocalQuota, started: datetime) -> None:
    """Bring into the ledger what was used before this process `started`. Raises `DatabaseUnavailable`."""
    minute: dict[str, list[int]] = {}
    day: dict[str, list[int]] = {}
    month: dict[str, list[int]] = {}
    starts = ledger.starts()
    today, first = (_day(starts[window]) for window in (DAY, MONTH))
    totals = quota_totals.c
    for row in await session.execute(sa.select(quota_totals).where(totals.day >= first)):
        amount = (row.requests, row.tokens, row.cost_nano_usd)
        _sum(month, row.subject, amount, 1)
        if row.day == today:
            _sum(day, row.subject, amount, 1)
    since = min(started, datetime.fromtimestamp(starts[MINUTE], UTC))
    names = (
        "id",
        "created_at",
        "user_id",
        "key_id",
        "usage_source",
        "prompt_tokens",
        "completion_tokens",
        "cost_nano_usd",
        "held_tokens",
    )
    columns = [request_logs.c[name] for name in (*names, "held_nano_usd")]
    for own in (
        await session.execute(
            sa.select(*columns).where(request_logs.c.id >= compute_first_id(since))
        )
    ).mappings():
        for subject in list_subject_names(own["user_id"], own["key_id"]):
            amount = (1, *compute_row_charge(own))
            if own["created_at"] < started:
                if own["created_at"].timestamp() >= starts[MINUTE]:
                    _sum(minute, subject, amount, 1)
                continue
            if own["created_at"].timestamp() >= starts[MONTH]:
                _sum(month, subject, amount, -1)
            if own["created_at"].timestamp() >= starts[DAY]:
                _sum(day, subject, amount, -1)
    ledger.load(day, month, minute)


async def read_totals(
    session: ReadSession, *, user_id: str | None, since: date, until: date
) -> list[UsageTotal]:
    """Sums by day, model and endpoint, newest first; of everybody if `user_id` is None. `until` is exclusive."""
    columns = daily_totals.c
    key = (columns.day, columns.model, columns.endpoint)
    names = ("answers", "prompt_tokens", "completion_tokens", "cost_nano_usd", "unpriced")
    query = sa.select(*key, *(sa.func.sum(columns[name]).label(name) for name in names))
    query = (
        query.where(columns.day >= str(since), columns.day < str(until))
        .group_by(*key)
        .order_by(columns.day.desc(), *key[1:])
    )
    if user_id is not None:
        query = query.where(columns.user_id == user_id)
    found = []
    for row in (await session.execute(query.limit(ROWS_MAX))).mappings():
        values: dict[str, Any] = {str(name): value for name, value in row.items()}
        found.append(UsageTotal(cost=format_usd(values.pop("cost_nano_usd")), **values))
    return found


def _sum(sums: dict[str, list[int]], subject: str, amount: Sequence[int], sign: int) -> None:
    have = sums.setdefault(subject, [0, 0, 0])
    for n, part in enumerate(amount):
        have[n] += sign * part


def _day(seconds: int) -> str:
    return str(datetime.fromtimestamp(seconds, UTC).date())
