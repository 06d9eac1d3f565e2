"""The request log: rows are written once, replaced by rank, and read through indexes."""

import random
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import pytest
import sqlalchemy as sa

from service.core.accounting import log as request_log
from service.core.accounting.log import LogFilter
from service.core.database.engine import Database, ReadSession
from service.core.database.tables import quota_totals, request_logs
from service.core.encoding import create_id
from service.core.pricing import Usage
from service.core.records import Outcome, Status, UsageSource
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.every_database

START = datetime(2026, 3, 1, tzinfo=UTC)


async def test_a_row_is_written_once(database: Database) -> None:
    """A duplicate record changes nothing."""
    first, second = build_outcome(), build_outcome()

    assert await write(database, [first]) == 1
    assert await write(database, [first, second, second]) == 1
    async with database.read_session() as session:
        assert len((await request_log.read_page(session, LogFilter(), limit=10)).items) == 2


FILTERS = {"user_id": "x", "endpoint": "x", "model": "x", "status": "timeout"}


COMBINED = [dict(chosen) for size in range(1, 5) for chosen in combinations(FILTERS.items(), size)]


async def explain_queries(
    database: Database, ask: Callable[[ReadSession], Awaitable[object]]
) -> list[str]:
    """Return the query plan of each SELECT statement."""
    statements: list[tuple[str, Any]] = []
    engine = database._reader.sync_engine

    def listen(
        _connection: object, _cursor: object, statement: str, parameters: Any, *_: object
    ) -> None:
        statements.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", listen)
    async with database.read_session() as session:
        await ask(session)
    sa.event.remove(engine, "before_cursor_execute", listen)
    assert database.file
    with closing(sqlite3.connect(database.file)) as connection:
        lines = [
            connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)
            for sql, parameters in statements
            if sql.startswith("SELECT")
        ]
        return ["; ".join(step[3] for step in steps) for steps in lines]


@pytest.mark.sqlite
@pytest.mark.parametrize("which", COMBINED, ids="+".join)
@pytest.mark.parametrize(
    "window", [{}, {"since": START, "until": START + timedelta(hours=1)}], ids=["ever", "hour"]
)
async def test_pages_follow_the_index_of_one_filter(
    database: Database, which: dict[str, str], window: dict[str, datetime]
) -> None:
    """Every combination of filters follows one index in page order, without sort or scan."""
    explained = await explain_queries(
        database,
        lambda session: request_log.read_page(
            session,
            LogFilter(**which, **window),  # type: ignore[arg-type]
            limit=50,
        ),
    )

    leading = next(name for name in ("user_id", "status", "model", "endpoint") if name in which)
    assert len(explained) == (2 if len(which) > 1 else 1)
    assert all(
        plan.startswith("SEARCH") and f"INDEX ix_request_logs_{leading}_id" in plan
        for plan in explained
    ), explained
    assert all("; " not in plan for plan in explained), explained
    assert len(which) == 1 or "COVERING" in explained[0]


async def read_totals(database: Database) -> dict[str, int]:
    """Read the sum of the totals."""
    names = (
        "answers",
        "prompt_tokens",
        "completion_tokens",
        "cached_tokens",
        "reasoning_tokens",
        "cost_nano_usd",
        "unpriced",
    )
    columns = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in names)
    async with database.read_session() as session:
        return dict(
            (await session.execute(sa.text(f"SELECT {columns} FROM daily_totals"))).mappings().one()
        )


async def compute_sums(database: Database) -> dict[str, int]:
    """Compute the same sums from the rows."""
    async with database.read_session() as session:
        query = """SELECT count(*) AS answers, coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
            coalesce(sum(completion_tokens), 0) AS completion_tokens,
            coalesce(sum(cached_tokens), 0) AS cached_tokens,
            coalesce(sum(reasoning_tokens), 0) AS reasoning_tokens,
            coalesce(sum(cost_nano_usd), 0) AS cost_nano_usd,
            coalesce(sum(CASE WHEN cost_nano_usd IS NULL THEN 1 END), 0) AS unpriced
            FROM request_logs"""
        return dict((await session.execute(sa.text(query))).mappings().one())


def build_versions(seed: int) -> list[Outcome]:
    """Build the records of one answer: interrupted, estimated, and twice the final one."""
    intent = build_intent(at=START + timedelta(hours=seed), user_id="ab"[seed % 2])
    reported = Usage(prompt_tokens=100 + seed, completion_tokens=50, cached_tokens=seed)
    return [
        build_outcome(
            intent,
            status=Status.INTERRUPTED,
            usage_source=UsageSource.UNKNOWN,
            usage=None,
            cost_nano_usd=None,
        ),
        build_outcome(
            intent,
            status=Status.CLIENT_GONE,
            usage_source=UsageSource.ESTIMATED,
            cost_nano_usd=seed,
        ),
        build_outcome(intent, usage=reported, cost_nano_usd=1000 + seed),
        build_outcome(intent, usage=reported, cost_nano_usd=1000 + seed),
    ]


async def test_record_order_and_duplicates_do_not_matter(database: Database) -> None:
    """Duplicated and reordered records end with the best rows; totals are always their sum."""
    choose = random.Random(11)
    records = [version for seed in range(20) for version in build_versions(seed)]
    delivered = records * 2
    choose.shuffle(delivered)
    while delivered:
        size = choose.randint(1, 9)
        batch, delivered = delivered[:size], delivered[size:]
        await write(database, batch)
        assert await read_totals(database) == await compute_sums(database)
    await write(database, records)

    async with database.read_session() as session:
        rows = (await request_log.read_page(session, LogFilter(), limit=100)).items
    assert [(row.status, row.usage_source, row.prompt_tokens) for row in reversed(rows)] == [
        ("completed", "provider", 100 + seed) for seed in range(20)
    ]
    assert await read_totals(database) == await compute_sums(database)


async def test_records_of_lower_rank_change_nothing(database: Database) -> None:
    """A record of equal or lower rank changes nothing."""
    unknown, estimated, truth, _ = build_versions(1)
    for record in (truth, estimated, unknown):
        await write(database, [record])

    async with database.read_session() as session:
        row = (await request_log.read_page(session, LogFilter(), limit=1)).items[0]
    assert (row.usage_source, row.estimated_cost) == ("provider", "0.000001001")


async def test_a_later_record_replaces_the_held_charge(database: Database) -> None:
    """A record of higher rank changes the charge by the difference."""
    intent = build_intent(held_tokens=1000)
    unknown = build_outcome(
        intent,
        usage=None,
        usage_source=UsageSource.UNKNOWN,
        status=Status.INTERRUPTED,
        cost_nano_usd=None,
        price=None,
    )
    async with database.transaction() as session:
        await request_log.apply_outcomes(session, [unknown])
        await request_log.apply_outcomes(session, [build_outcome(intent)])
    async with database.read_session() as session:
        row = (await session.execute(sa.select(quota_totals))).mappings().one()
    assert (row["subject"], row["requests"], row["tokens"], row["cost_nano_usd"]) == (
        "user:local",
        1,
        15,
        1500,
    )


async def fill(database: Database, rows: int) -> None:
    """Copies of one row, a second apart, of a hundred users, ten models and two statuses."""
    await write(database, [build_outcome(build_intent(at=START))])
    assert database.file
    with closing(sqlite3.connect(database.file)) as connection, connection:
        connection.row_factory = sqlite3.Row
        (row,) = connection.execute("SELECT * FROM request_logs").fetchall()
        columns = [name for name in row.keys() if name != "seq"]  # noqa: SIM118 - a sqlite3.Row iterates over its values
        values = ", ".join(f":{name}" for name in columns)
        copies = (
            dict(row)
            | {"id": create_id(START + timedelta(seconds=n)), "user_id": f"user {n % 100}"}
            | {"model": f"model {n % 10}", "status": "completed" if n % 1000 else "timeout"}
            for n in range(1, rows)
        )
        connection.executemany(
            f"INSERT INTO request_logs ({', '.join(columns)}) VALUES ({values})",
            copies,
        )


async def read_seconds(database: Database, which: LogFilter, cursor: str | None) -> float:
    """The shortest of several reads of a page."""
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        async with database.read_session() as session:
            assert (await request_log.read_page(session, which, limit=50, cursor=cursor)).items
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@pytest.mark.sqlite
@pytest.mark.nightly
@pytest.mark.timeout(900)
async def test_pages_of_a_large_log_are_as_quick_as_of_a_small_one(database: Database) -> None:
    """Pages, filtered or not, newest or older, do not take longer with a million rows."""
    rows = 1_000_000
    filters = [
        LogFilter(),
        LogFilter(user_id="user 7"),
        LogFilter(model="model 7"),
        LogFilter(user_id="user 7", model="model 7"),
    ]
    await fill(database, 10_000)
    small = [await read_seconds(database, which, None) for which in filters]
    async with database.transaction() as session:
        await session.execute(sa.delete(request_logs))
    await fill(database, rows)
    large = [
        [await read_seconds(database, which, cursor) for which in filters]
        for cursor in (None, create_id(START + timedelta(seconds=rows // 2)))
    ]

    for seconds in large:
        for now, before in zip(seconds, small, strict=True):
            assert now < 3 * before + 0.005
