"""Usage in the log: loading it into the quota, and totals for the API.

At startup the quota is empty, and the log contains the usage of earlier processes once recovery has
replayed their journals. The same holds after the clock has jumped to windows that the quota does
not know. `rebuild_usage` reads the usage by the start of its windows and, in the same snapshot,
which of the recently settled answers it includes, so nothing is counted twice or left out.

A row or total of a damaged database that cannot be read is reported and not counted; the others
are.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from service.core.database.constructs import read_as_bytes
from service.core.database.damaged_rows import iterate_rows, report_damaged_row, sum_integers
from service.core.database.engine import ReadSession
from service.core.database.tables import (
    api_keys,
    quota_totals,
    request_logs,
    rollup_groups,
    rollups,
)
from service.core.encoding import EPOCH, QUARTERS_PER_DAY, compute_first_id, read_id_time
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
    "seq",
    "id",
    "user_id",
    "usage_source",
    "prompt_tokens",
    "completion_tokens",
    "cost_nano_usd",
    "held_tokens",
    "held_nano_usd",
)
_COUNT_COLUMNS = _CHARGE_COLUMNS[4:]
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
    async for rows in iterate_rows(session, query, request_logs.c.seq, request_logs.c.id):
        for keyed in rows:
            if keyed.row is not None and not _add_row(amounts, keyed.name, keyed.row):
                await session.run_sync(
                    report_damaged_row, request_logs.c.seq, keyed.key, "a value has the wrong type"
                )
    return amounts


def _add_row(amounts: _Amounts, answer_id: str, row: RowMapping) -> bool:
    """Add the charge of a row. Returns False if a value has the wrong type."""
    moment = read_id_time(answer_id)
    values = [row[name] for name in _COUNT_COLUMNS]
    if (
        moment is None
        or not isinstance(row["user_id"], str)
        or not all(isinstance(value, int | None) for value in values)
    ):
        return False
    at = int(moment.timestamp())
    for subject in list_subject_names(row["user_id"], row["key_lineage"]):
        total = amounts.setdefault((subject, at - at % 60), [0, 0, 0])
        add_amount(total, (1, *compute_row_charge(row)))
    return True


async def _read_days(session: ReadSession, start: int) -> _Amounts:
    """Usage by subject and day, from the totals."""
    return await _read_sums(session, start, quota_totals.c.day)


async def _read_months(session: ReadSession, start: int) -> _Amounts:
    """Usage by subject and month, from the totals."""
    month = sa.func.substr(quota_totals.c.day, 1, 7).concat("-01")
    return await _read_sums(session, start, month)


async def _read_sums(
    session: ReadSession, start: int, first_day: sa.ColumnElement[str]
) -> _Amounts:
    """Sums of the totals by subject and period, which is named by its first day."""
    totals = quota_totals.c
    key = (totals.subject, first_day)
    counts = [totals[name] for name in ("requests", "tokens", "cost_nano_usd")]
    query = (
        sa.select(*map(read_as_bytes, key), *sum_integers(counts))
        .where(totals.day >= _format_day(start))
        .group_by(*key)
    )
    amounts: _Amounts = {}
    for subject, period, has_others, *amount in await session.execute(query):
        damaged = bool(has_others)
        try:
            begin = _parse_day(period.decode())
            amounts[subject.decode(), begin] = amount
        except ValueError:
            damaged = True
        if damaged:
            await session.run_sync(_report_total, totals.subject, subject)
    return amounts


def _report_total(connection: sa.Connection, column: sa.Column[str], value: bytes) -> None:
    report_damaged_row(connection, column, value.decode(errors="replace"), "a total is damaged")


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
    columns = rollups.c
    day_number = (columns.quarter // QUARTERS_PER_DAY).label("day")
    names = ("answers", "prompt_tokens", "completion_tokens", "cost_nano_usd", "unpriced")
    key = (rollup_groups.c.model, rollup_groups.c.endpoint)
    query = sa.select(
        day_number, *map(read_as_bytes, key), *sum_integers([columns[name] for name in names])
    )
    first, last = ((day - EPOCH.date()).days * QUARTERS_PER_DAY for day in (since, until))
    query = (
        query.select_from(rollups.join(rollup_groups, rollup_groups.c.id == columns.group_id))
        .where(columns.quarter >= first, columns.quarter < last)
        .group_by(day_number, *key)
        .having(sa.func.sum(columns.answers + columns.attempts) > 0)
        .order_by(day_number.desc(), *key)
    )
    if user_id is not None:
        query = query.where(rollup_groups.c.user_id == user_id)
    items = []
    for (
        day,
        *texts,
        has_others,
        answers,
        prompt,
        completion,
        cost,
        unpriced,
    ) in await session.execute(query.limit(ROWS_MAX)):
        model, endpoint = (text.decode(errors="replace") for text in texts)
        name = str(EPOCH.date() + timedelta(days=day))
        if has_others or "\ufffd" in model + endpoint:
            await session.run_sync(_report_total, rollup_groups.c.model, name.encode())
        items.append(
            UsageTotal(
                day=name,
                model=model,
                endpoint=endpoint,
                answers=answers,
                prompt_tokens=prompt,
                completion_tokens=completion,
                cost=format_usd(cost),
                unpriced=unpriced,
            )
        )
    return items


def _format_day(seconds: int) -> str:
    return str(datetime.fromtimestamp(seconds, UTC).date())


def _parse_day(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
