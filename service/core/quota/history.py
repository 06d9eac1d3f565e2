"""Usage in the log: loading it into the quota, and totals for the API.

At startup the quota is empty, and the log contains the usage of earlier processes once recovery has
replayed their journals. The same holds after the clock has jumped to windows that the quota does
not know. `rebuild_usage` reads the usage by the start of its windows and, in the same snapshot,
which of the recently settled answers it includes, so nothing is counted twice or left out.
"""

import asyncio
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
from service.core.quota.local import LocalQuota
from service.core.quota.windows import DAY, MINUTE, MONTH, add_amount
from service.core.records import compute_row_charge

DAYS_MAX = 400
ROWS_MAX = 5000
ROWS_AT_ONCE = 500  # processing a row takes the event loop about 10 µs
MINUTES_SECONDS = 3600  # minutes that are loaded; later ones exist if the clock was ahead
_CHARGE_COLUMNS = (
    "created_at",
    "user_id",
    "usage_source",
    "prompt_tokens",
    "completion_tokens",
    "cost_nano_usd",
    "held_tokens",
    "held_nano_usd",
)
_Amounts = dict[tuple[str, int], list[int]]


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


async def rebuild_usage(session: ReadSession, quota: LocalQuota) -> None:
    """Load the usage of the current and later windows. Raises `DatabaseUnavailable`."""
    starts = quota.get_load_starts()
    minutes_until = starts[MINUTE] + MINUTES_SECONDS
    usage = (
        await _read_minutes(session, starts[MINUTE], minutes_until),
        await _read_days(session, starts[DAY]),
        await _read_months(session, starts[MONTH]),
    )
    later = sa.select(request_logs.c.id).where(
        request_logs.c.id >= compute_first_id(datetime.fromtimestamp(minutes_until, UTC))
    )
    has_later = (await session.execute(later.limit(1))).first() is not None
    # The snapshot exists, so what is settled from now on is not in it.
    logged = await _read_logged(session, quota.list_settled())
    quota.load(starts, usage, logged, **({"minutes_until": minutes_until} if has_later else {}))


async def _read_minutes(session: ReadSession, start: int, end: int) -> _Amounts:
    """Usage by subject and minute, from the rows."""
    amounts: _Amounts = {}
    lineage = sa.func.coalesce(api_keys.c.lineage, request_logs.c.key_id).label("key_lineage")
    first, last = (compute_first_id(datetime.fromtimestamp(at, UTC)) for at in (start, end))
    query = (
        sa.select(*(request_logs.c[name] for name in _CHARGE_COLUMNS), lineage)
        .outerjoin(api_keys, api_keys.c.id == request_logs.c.key_id)
        .where(request_logs.c.id >= first, request_logs.c.id < last)
    )
    for n, row in enumerate((await session.execute(query)).mappings()):
        at = int(row["created_at"].timestamp())
        for subject in list_subject_names(row["user_id"], row["key_lineage"]):
            total = amounts.setdefault((subject, at - at % 60), [0, 0, 0])
            add_amount(total, (1, *compute_row_charge(row)))
        if n % ROWS_AT_ONCE == ROWS_AT_ONCE - 1:
            await asyncio.sleep(0)
    return amounts


async def _read_days(session: ReadSession, start: int) -> _Amounts:
    """Usage by subject and day, from the totals."""
    query = sa.select(quota_totals).where(quota_totals.c.day >= _format_day(start))
    return {
        (row.subject, _parse_day(row.day)): [row.requests, row.tokens, row.cost_nano_usd]
        for row in await session.execute(query)
    }


async def _read_months(session: ReadSession, start: int) -> _Amounts:
    """Usage by subject and month, from the totals."""
    totals = quota_totals.c
    month = sa.func.substr(totals.day, 1, 7)
    sums = [sa.func.sum(totals[name]) for name in ("requests", "tokens", "cost_nano_usd")]
    query = (
        sa.select(totals.subject, month, *sums)
        .where(totals.day >= _format_day(start))
        .group_by(totals.subject, month)
    )
    return {
        (subject, _parse_day(f"{name}-01")): amount
        for subject, name, *amount in await session.execute(query)
    }


async def _read_logged(session: ReadSession, names: Sequence[str]) -> set[str]:
    """Those of these answers that have a row."""
    logged: set[str] = set()
    for begin in range(0, len(names), ROWS_AT_ONCE):
        batch = names[begin : begin + ROWS_AT_ONCE]
        query = sa.select(request_logs.c.id).where(request_logs.c.id.in_(batch))
        logged.update((await session.execute(query)).scalars())
    return logged


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


def _format_day(seconds: int) -> str:
    return str(datetime.fromtimestamp(seconds, UTC).date())


def _parse_day(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
