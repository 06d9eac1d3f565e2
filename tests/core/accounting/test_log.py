"""Rows of the log: written once, updated by records that know more, read through an index."""

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
from tests.records import intent, outcome
from tests.rows import write

START = datetime(2026, 3, 1, tzinfo=UTC)


async def test_a_row_is_written_once(database: Database) -> None:
    """A record that comes again changes nothing."""
    first, second = outcome(), outcome()

    assert await write(database, [first]) == 1
    assert await write(database, [first, second, second]) == 1
    async with database.read_session() as session:
        assert len((await request_log.read_page(session, LogFilter(), limit=10)).items) == 2


FILTERS = {"user_id": "x", "endpoint": "x", "model": "x", "status": "timeout"}


COMBINED = [dict(chosen) for size in range(1, 5) for chosen in combinations(FILTERS.items(), size)]


async def plans(database: Database, ask: Callable[[ReadSession], Awaitable[object]]) -> list[str]:
    """How SQLite finds what each statement of a question wants."""
    said: list[tuple[str, Any]] = []
    engine = database._reader.sync_engine

    def listen(
        _connection: object, _cursor: object, statement: str, parameters: Any, *_: object
    ) -> None:
        said.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", listen)
    async with database.read_session() as session:
        await ask(session)
    sa.event.remove(engine, "before_cursor_execute", listen)
    assert database.file
    with closing(sqlite3.connect(database.file)) as connection:
        explained = [
            connection.execute(f"EXPLAIN QUERY PLAN {sql}", given)
            for sql, given in said
            if sql.startswith("SELECT")
        ]
        return ["; ".join(step[3] for step in steps) for steps in explained]


@pytest.mark.parametrize("which", COMBINED, ids="+".join)
@pytest.mark.parametrize(
    "window", [{}, {"since": START, "until": START + timedelta(hours=1)}], ids=["ever", "hour"]
)
async def test_pages_follow_the_index_of_one_filter(
    database: Database, which: dict[str, str], window: dict[str, datetime]
) -> None:
    """Whatever is combined, one index in the order of the page is followed: nothing is sorted, no table is scanned."""
    found = await plans(
        database,
        lambda session: request_log.read_page(
            session,
            LogFilter(**which, **window),  # type: ignore[arg-type]
            limit=50,
        ),
    )

    leading = next(name for name in ("user_id", "status", "model", "endpoint") if name in which)
    assert len(found) == (2 if len(which) > 1 else 1)
    assert all(
        plan.startswith("SEARCH") and f"INDEX ix_request_logs_{leading}_id" in plan
        for plan in found
    ), found
    assert all("; " not in plan for plan in found), found
    assert len(which) == 1 or "COVERING" in found[0]


async def totals(database: Database) -> dict[str, int]:
    """The sum of the totals."""
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


async def sums(database: Database) -> dict[str, int]:
    """The same, made from the rows."""
    async with database.read_session() as session:
        query = """SELECT count(*) AS answers, coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
            coalesce(sum(completion_tokens), 0) AS completion_tokens, coalesce(sum(cached_tokens), 0) AS cached_tokens,
            coalesce(sum(reasoning_tokens), 0) AS reasoning_tokens, coalesce(sum(cost_nano_usd), 0) AS cost_nano_usd,
            coalesce(sum(cost_nano_usd IS NULL), 0) AS unpriced FROM request_logs"""
        return dict((await session.execute(sa.text(query))).mappings().one())


def versions(seed: int) -> list[Outcome]:
    """What may be heard of one answer: that it was interrupted, an estimate, and the truth, twice."""
    begun = intent(at=START + timedelta(hours=seed), user_id="ab"[seed % 2])
    told = Usage(prompt_tokens=100 + seed, completion_tokens=50, cached_tokens=seed)
    return [
        outcome(
            begun,
            status=Status.INTERRUPTED,
            usage_source=UsageSource.UNKNOWN,
            usage=None,
            cost_nano_usd=None,
        ),
        outcome(
            begun, status=Status.CLIENT_GONE, usage_source=UsageSource.ESTIMATED, cost_nano_usd=seed
        ),
        outcome(begun, usage=told, cost_nano_usd=1000 + seed),
        outcome(begun, usage=told, cost_nano_usd=1000 + seed),
    ]


async def test_records_in_any_order_and_number_give_the_same_log(database: Database) -> None:
    """Redelivery, reordering and late truth: rows end with what is known best, totals equal their sum at every step."""
    choose = random.Random(11)
    told = [version for seed in range(20) for version in versions(seed)]
    heard = told * 2
    choose.shuffle(heard)
    while heard:
        size = choose.randint(1, 9)
        batch, heard = heard[:size], heard[size:]
        await write(database, batch)
        assert await totals(database) == await sums(database)
    await write(database, told)

    async with database.read_session() as session:
        rows = (await request_log.read_page(session, LogFilter(), limit=100)).items
    assert [(row.status, row.usage_source, row.prompt_tokens) for row in reversed(rows)] == [
        ("completed", "provider", 100 + seed) for seed in range(20)
    ]
    assert await totals(database) == await sums(database)


async def test_what_is_known_is_not_forgotten(database: Database) -> None:
    """A record that knows less, or as much, changes nothing."""
    unknown, estimated, truth, _ = versions(1)
    for record in (truth, estimated, unknown):
        await write(database, [record])

    async with database.read_session() as session:
        row = (await request_log.read_page(session, LogFilter(), limit=1)).items[0]
    assert (row.usage_source, row.estimated_cost) == ("provider", "0.000001001")


async def test_what_becomes_known_later_replaces_what_was_held(database: Database) -> None:
    """When a record that knows more arrives, the charge changes by the difference."""
    begun = intent(held_tokens=1000)
    unknown = outcome(
        begun,
        usage=None,
        usage_source=UsageSource.UNKNOWN,
        status=Status.INTERRUPTED,
        cost_nano_usd=None,
        price=None,
    )
    async with database.transaction() as session:
        await request_log.apply_outcomes(session, [unknown])
        await request_log.apply_outcomes(session, [outcome(begun)])
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
    await write(database, [outcome(intent(at=START))])
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
