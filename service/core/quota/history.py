"""Usage of earlier processes, and usage totals.

At startup the quota is empty, and the log contains all usage once recovery has replayed the
journal of the previous process. `rebuild_usage` adds the totals of this month without the rows of
this process, which the quota has counted already. It reads both in one snapshot, so nothing is
counted twice or left out.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.database.engine import ReadSession
from service.core.database.tables import api_keys, daily_totals, quota_totals, request_logs
from service.core.encoding import compute_first_id
from service.core.ports import list_subject_names
from service.core.pricing import format_usd
from service.core.quota.local import DAY, MINUTE, MONTH, LocalQuota
from service.core.records import compute_row_charge

DAYS_MAX = 400
ROWS_MAX = 5000


class UsageTotal(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one day, model and endpoint. `unpriced`: answers without a known cost."""

    day: str
    model: str
    endpoint: str
    answers: int
    prompt_tokens: int
    completion_tokens: int
    cost: str
    unpriced: int


async def rebuild_usage(session: ReadSession, ledger: LocalQuota, started: datetime) -> None:
    """Add the usage before `started` to the quota. Raises `DatabaseUnavailable`."""
    minute: dict[str, list[int]] = {}
    day: dict[str, list[int]] = {}
    month: dict[str, list[int]] = {}
    starts = ledger.get_window_starts()
    today, first = (_format_day(starts[window]) for window in (DAY, MONTH))
    totals = quota_totals.c
    for row in await session.execute(sa.select(quota_totals).where(totals.day >= first)):
        amount = (row.requests, row.tokens, row.cost_nano_usd)
        _add_amount(month, row.subject, amount, 1)
        if row.day == today:
            _add_amount(day, row.subject, amount, 1)
    since = min(started, datetime.fromtimestamp(starts[MINUTE], UTC))
    names = (
        "id",
        "created_at",
        "user_id",
        "usage_source",
        "prompt_tokens",
        "completion_tokens",
        "cost_nano_usd",
        "held_tokens",
    )
    columns = [request_logs.c[name] for name in (*names, "held_nano_usd")]
    lineage = sa.func.coalesce(api_keys.c.lineage, request_logs.c.key_id).label("key_lineage")
    for log_row in (
        await session.execute(
            sa.select(*columns, lineage)
            .outerjoin(api_keys, api_keys.c.id == request_logs.c.key_id)
            .where(request_logs.c.id >= compute_first_id(since))
        )
    ).mappings():
        for subject in list_subject_names(log_row["user_id"], log_row["key_lineage"]):
            amount = (1, *compute_row_charge(log_row))
            if log_row["created_at"] < started:
                if log_row["created_at"].timestamp() >= starts[MINUTE]:
                    _add_amount(minute, subject, amount, 1)
                continue
            if log_row["created_at"].timestamp() >= starts[MONTH]:
                _add_amount(month, subject, amount, -1)
            if log_row["created_at"].timestamp() >= starts[DAY]:
                _add_amount(day, subject, amount, -1)
    ledger.load(day, month, minute)


async def read_totals(
    session: ReadSession, *, user_id: str | None, since: date, until: date
) -> list[UsageTotal]:
    """Sums by day, model and endpoint, newest first; of all users if `user_id` is None.

    `until` is exclusive.
    """
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
    items = []
    for row in (await session.execute(query.limit(ROWS_MAX))).mappings():
        values: dict[str, Any] = {str(name): value for name, value in row.items()}
        items.append(UsageTotal(cost=format_usd(values.pop("cost_nano_usd")), **values))
    return items


def _add_amount(sums: dict[str, list[int]], subject: str, amount: Sequence[int], sign: int) -> None:
    total = sums.setdefault(subject, [0, 0, 0])
    for n, part in enumerate(amount):
        total[n] += sign * part


def _format_day(seconds: int) -> str:
    return str(datetime.fromtimestamp(seconds, UTC).date())
