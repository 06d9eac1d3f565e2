"""Rollups: sums over log rows for each quarter of an hour, updated with the rows.

Days begin within an hour of UTC in some time zones, but never within a quarter. The dimensions of a
row are a group, whose id is their hash, so that sums have short keys and no lookup precedes them.
Answers and latencies count for the model that was asked for; attempts, tokens and cost for the
provider and the model of the attempt. A row that is replaced is subtracted, so the rollups are the
sums of the rows after any order of records. They can be computed again from the rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import sqlalchemy as sa

from service.core.accounting.latency_bins import find_bin
from service.core.accounting.rows import read_attempts
from service.core.database.constructs import is_listed_number, to_quarter
from service.core.database.damaged_rows import iterate_rows
from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import (
    attempts,
    latency_counts,
    request_logs,
    rollup_groups,
    rollups,
)
from service.core.database.upserts import build_addition, build_insert
from service.core.encoding import (
    QUARTER_SECONDS,
    compute_first_id,
    find_quarter,
    read_id_time,
    to_json,
)
from service.core.records import Attempt

DIMENSIONS = ("user_id", "key_id", "model", "provider", "endpoint", "status", "usage_source")
TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
USED = ("attempts", *TOKENS, "cost_nano_usd")  # counted for the attempt
COUNTS = ("answers", *USED, "unpriced")
LATENCIES = ("response_time_ms", "first_token_ms")  # by their number in `latency_counts.kind`
ROW_COLUMNS = [
    request_logs.c[name]
    for name in ("created_at", "provider_model", *DIMENSIONS, *USED, *LATENCIES)
]
Row = Mapping[str, Any]
Group = tuple[str, ...]
"""The values of `DIMENSIONS`; empty ones for no key and no provider."""


@lru_cache(maxsize=10_000)
def compute_group_id(group: Group) -> int:
    """The id of a group: 63 bits of a hash, unique but for one chance in a hundred million."""
    digest = blake2b("\0".join(group).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def build_group(row: Row) -> Group:
    """The group of a row: of its answer and its latencies."""
    return tuple(row[name] or "" for name in DIMENSIONS)


def list_contributions(
    row: Row, attempt_list: Sequence[Attempt]
) -> Iterator[tuple[Group, list[int]]]:
    """What a row with these attempts adds to `COUNTS`, by group.

    `attempt_list` is empty if there is only one attempt. `unpriced`: the cost is unknown.
    """
    group = build_group(row)
    is_unpriced = row["cost_nano_usd"] is None
    used = [] if attempt_list else [row[name] or 0 for name in USED]
    if used and row["provider_model"] is None:
        yield group, [1, *used, int(is_unpriced)]
        return
    yield group, [1, *[0] * len(USED), int(is_unpriced)]
    if used:
        yield _replace_model(row, row["provider_model"]), [0, *used, 0]
    is_unknown = row["prompt_tokens"] is None
    for attempt in attempt_list:
        usage = None if is_unknown else attempt.usage
        tokens = [0 if usage is None else getattr(usage, name) for name in TOKENS]
        cost = 0 if is_unpriced else attempt.cost_nano_usd or 0
        group = _replace_model({**row, "provider": attempt.provider}, attempt.model)
        yield group, [0, 1, *tokens, cost, 0]


def _replace_model(row: Row, model: str) -> Group:
    return build_group({**row, "model": model})


def list_latencies(row: Row) -> list[tuple[int, int]]:
    """The kinds and bins of the latencies of a row."""
    return [
        (kind, find_bin(row[name])) for kind, name in enumerate(LATENCIES) if row[name] is not None
    ]


def select_contributions(*where: sa.ColumnElement[bool]) -> list[sa.Select[Any]]:
    """The same as `list_contributions` in SQL: quarter, dimensions and counts of each row."""
    logs, zero = request_logs.c, sa.literal(0)
    dimensions = {name: sa.func.coalesce(logs[name], "") for name in DIMENSIONS}
    answers = {
        "answers": sa.literal(1),
        "unpriced": sa.case((logs.cost_nano_usd.is_(None), 1), else_=0),
    }
    used = {name: sa.func.coalesce(logs[name], 0) for name in USED}
    is_known = {name: logs.prompt_tokens.is_not(None) for name in TOKENS} | {
        "cost_nano_usd": logs.cost_nano_usd.is_not(None)
    }
    of_attempts = {
        name: sa.case((condition, sa.func.coalesce(attempts.c[name], 0)), else_=0)
        for name, condition in is_known.items()
    } | {"attempts": sa.literal(1)}
    has_attempts = sa.exists().where(attempts.c.answer_id == logs.id)

    def select(
        groups: Mapping[str, sa.ColumnElement[Any]], counts: Mapping[str, sa.ColumnElement[Any]]
    ) -> sa.Select[Any]:
        columns: list[sa.ColumnElement[Any]] = [
            to_quarter(logs.created_at).label("quarter"),
            *(groups.get(name, dimensions[name]).label(name) for name in DIMENSIONS),
            *(counts.get(name, zero).label(name) for name in COUNTS),
        ]
        return sa.select(*columns).where(*where)

    attempt_groups = {"model": attempts.c.model, "provider": attempts.c.provider}
    single = {"model": sa.func.coalesce(logs.provider_model, logs.model)}
    return [
        select({}, answers),
        select(single, used).where(~has_attempts),
        select(attempt_groups, of_attempts).select_from(
            request_logs.join(attempts, attempts.c.answer_id == logs.id)
        ),
    ]


async def add_rollups(
    session: Session,
    added: Iterable[tuple[Row, Sequence[Attempt]]],
    replaced: Iterable[tuple[Row, Sequence[Attempt]]],
) -> None:
    """Add rows with their attempts, and subtract those that they replace."""
    groups: dict[int, Group] = {}
    sums: dict[tuple[int, ...], list[int]] = {}
    latencies: dict[tuple[int, ...], list[int]] = {}
    for sign, rows in ((1, added), (-1, replaced)):
        for row, attempt_list in rows:
            quarter = find_quarter(row["created_at"])
            for group, counts in list_contributions(row, attempt_list):
                group_id = compute_group_id(group)
                groups[group_id] = group
                total = sums.setdefault((quarter, group_id), [0] * len(COUNTS))
                for n, value in enumerate(counts):
                    total[n] += sign * value
            group_id = compute_group_id(build_group(row))
            for latency in list_latencies(row):
                latencies.setdefault((quarter, group_id, *latency), [0])[0] += sign
    await _add_groups(session, groups)
    await add_sums(session, rollups, ("quarter", "group_id"), COUNTS, sums)
    changed = {key: count for key, count in latencies.items() if count != [0]}
    keys = ("quarter", "group_id", "kind", "bin")
    await add_sums(session, latency_counts, keys, ("answers",), changed)


async def _add_groups(session: Session, groups: Mapping[int, Group]) -> None:
    """Insert the groups that are new."""
    query = sa.select(rollup_groups.c.id).where(is_listed_number(rollup_groups.c.id, list(groups)))
    new = groups.keys() - set((await session.execute(query)).scalars())
    if new:
        insert = build_insert(session.dialect.name, rollup_groups).on_conflict_do_nothing()
        await session.execute(
            insert,
            [
                {"id": group_id, **dict(zip(DIMENSIONS, groups[group_id], strict=True))}
                for group_id in sorted(new)
            ],
        )


async def rebuild_rollups(database: Database, since: date | None) -> None:
    """Compute the rollups from day `since` on again; None: all of them.

    A day is one transaction, so they are exact also while answers are recorded. Rows that
    cannot be read are left out. Raises `DatabaseUnavailable`, and `AnswerDamaged` for attempts that
    cannot be read.
    """
    async with database.read_session() as session:
        days = await _list_ends(session)
    if not days:
        return
    day = max(min(days), since or min(days))
    while day <= max(days):
        async with database.transaction() as session:
            await _rebuild_day(session, day)
        day += timedelta(days=1)


async def _list_ends(session: ReadSession) -> list[date]:
    """The first and the last day of the rows and of the rollups."""
    ids, days = request_logs.c.id, []
    for end in (sa.func.min, sa.func.max):
        moment = read_id_time((await session.execute(sa.select(end(ids)))).scalar() or "")
        if moment is not None:
            days.append(moment.date())
        for table in (rollups, latency_counts):
            quarter = (await session.execute(sa.select(end(table.c.quarter)))).scalar()
            if quarter is not None:
                days.append(datetime.fromtimestamp(quarter * QUARTER_SECONDS, UTC).date())
    return days


async def _rebuild_day(session: Session, day: date) -> None:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    end = start + timedelta(days=1)
    for table in (rollups, latency_counts):
        quarter = table.c.quarter
        is_of_day = sa.and_(quarter >= find_quarter(start), quarter < find_quarter(end))
        await session.execute(sa.delete(table).where(is_of_day))
    ids = request_logs.c.id
    query = sa.select(request_logs.c.seq, ids, *ROW_COLUMNS).where(
        ids >= compute_first_id(start), ids < compute_first_id(end)
    )
    async for keyed_rows in iterate_rows(session, query, request_logs.c.seq, ids):
        rows = [
            {str(name): value for name, value in keyed.row.items()}
            for keyed in keyed_rows
            if keyed.row is not None
        ]
        several = [row["id"] for row in rows if row["attempts"] > 1]
        by_answer = await session.run_sync(read_attempts, several)
        await add_rollups(session, [(row, by_answer.get(row["id"], [])) for row in rows], [])


async def add_sums(
    session: Session,
    table: sa.Table,
    key: tuple[str, ...],
    names: tuple[str, ...],
    sums: Mapping[Any, Sequence[int]],
) -> None:
    """Add to sums, in the order of their keys: all transactions lock them in one order."""
    if sums:
        rows = to_json([[*values, *sums[values]] for values in sorted(sums)])
        statement = build_addition(session.dialect.name, table, key, names)
        await session.execute(statement, {"rows": rows.decode()})
