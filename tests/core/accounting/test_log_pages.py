"""Pages of the request log follow one index, however many rows there are."""

import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import pytest
import sqlalchemy as sa

from service.core.accounting.log_pages import LogFilter, LogPage, read_page, read_tail, read_top
from service.core.database.engine import Database, ReadSession
from service.core.database.tables import request_logs
from service.core.encoding import create_id
from service.core.errors import InvalidInterval
from service.core.pricing import Usage
from service.core.records import Outcome, Status
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.every_database

START = datetime(2026, 3, 1, tzinfo=UTC)


FILTERS = {"user_id": ("x",), "endpoint": ("x",), "model": ("x",), "status": ("timeout",)}


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
            if sql.startswith("SELECT") and "request_logs" in sql  # others are periodic
        ]
        return ["; ".join(step[3] for step in steps) for steps in lines]


@pytest.mark.sqlite
@pytest.mark.parametrize("which", COMBINED, ids="+".join)
@pytest.mark.parametrize(
    "window", [{}, {"since": START, "until": START + timedelta(hours=1)}], ids=["ever", "hour"]
)
async def test_pages_follow_the_index_of_one_filter(
    database: Database, which: dict[str, tuple[str, ...]], window: dict[str, datetime]
) -> None:
    """Every combination of filters follows one index in page order, without sort or scan."""
    explained = await explain_queries(
        database,
        lambda session: read_page(
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


STATUSES = [Status.COMPLETED, Status.TIMEOUT, Status.PROVIDER_ERROR]


def build_row(n: int) -> Outcome:
    """A row a minute after the one before, with increasing time, cost and tokens per user."""
    return build_outcome(
        build_intent(
            at=START + timedelta(minutes=n),
            user_id="abc"[n % 3],
            prompt=f"{n} 返品 100%" if n % 2 else f"{n} Shipping",
        ),
        status=STATUSES[n % 4 % 3],
        response="Within 30 DAYS." if n % 5 == 0 else "No.",
        response_time_ms=n * 37 % 100,
        cost_nano_usd=None if n == 3 else n * 53 % 100,
        usage=Usage(prompt_tokens=n * 71 % 100, completion_tokens=1),
    )


ROWS = [build_row(n) for n in range(30)]


@pytest.fixture
async def filled(database: Database) -> Database:
    """A database with these rows."""
    await write(database, ROWS)
    return database


def list_numbers(page: LogPage) -> list[int]:
    """The numbers of the rows on a page."""
    return [int(str(item.prompt).split()[0]) for item in page.items]


def select_numbers(accept: Callable[[Outcome], bool]) -> list[int]:
    """The numbers of the rows that a filter accepts, newest first."""
    return [n for n in range(len(ROWS) - 1, -1, -1) if accept(ROWS[n])]


MANY = [
    (LogFilter(user_id=("a", "c")), lambda row: row.intent.user_id in "ac"),
    (LogFilter(status=("timeout", "provider_error")), lambda row: row.status != "completed"),
    (
        LogFilter(status=("timeout", "completed"), user_id=("b", "c", "nobody")),
        lambda row: row.intent.user_id in "bc" and row.status != "provider_error",
    ),
    (LogFilter(min_response_time_ms=60), lambda row: row.response_time_ms >= 60),
    (LogFilter(words=("ship",)), lambda row: "Shipping" in row.intent.prompt),
    (
        LogFilter(words=("返品", "30 days")),
        lambda row: "返" in row.intent.prompt and "30" in row.response,
    ),
    (LogFilter(words=("100%",)), lambda row: "%" in row.intent.prompt),
    (LogFilter(words=("1_0",)), lambda row: False),
    (
        LogFilter(words=("返",), user_id=("a", "b"), min_response_time_ms=40),
        lambda row: (
            "返" in row.intent.prompt
            and row.intent.user_id in "ab"
            and row.response_time_ms >= 40
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize("scan_max", [None, 4])
@pytest.mark.parametrize(("which", "accept"), MANY)
async def test_pages_merge_the_values_of_a_filter(
    filled: Database, which: LogFilter, accept: Callable[[Outcome], bool], scan_max: int | None
) -> None:
    """Pages of several values, response times or words list every matching row once, in order."""
    listed: list[int] = []
    cursor = None
    while True:
        async with filled.read_session() as session:
            page = await read_page(session, which, limit=3, cursor=cursor, scan_max=scan_max)
        listed += list_numbers(page)
        if (cursor := page.next_cursor) is None:
            break

    assert listed == select_numbers(accept)


@pytest.mark.parametrize(("which", "accept"), MANY)
async def test_tails_accept_the_same_filters(
    filled: Database, which: LogFilter, accept: Callable[[Outcome], bool]
) -> None:
    """A tail lists the rows that match, in the order of commit."""
    async with filled.read_session() as session:
        page = await read_tail(session, which, limit=200, after=ROWS[0].intent.id)

    assert list_numbers(page) == [n for n in reversed(select_numbers(accept)) if n]


@pytest.mark.parametrize(
    ("order", "value"),
    [
        ("response_time_ms", lambda row: row.response_time_ms),
        ("estimated_cost", lambda row: -1 if row.cost_nano_usd is None else row.cost_nano_usd),
        ("total_tokens", lambda row: row.usage.total_tokens),
    ],
)
@pytest.mark.parametrize(("which", "accept"), [(LogFilter(), lambda _: True), *MANY])
async def test_ordered_list_begins_with_the_largest_values(
    filled: Database,
    order: str,
    value: Callable[[Outcome], int],
    which: LogFilter,
    accept: Callable[[Outcome], bool],
) -> None:
    """An ordered list has the rows of the interval by value, unknown values last."""
    async with filled.read_session() as session:
        page = await read_top(session, which, order=order, limit=7)

    ordered = sorted(select_numbers(accept), key=lambda n: value(ROWS[n]), reverse=True)
    assert list_numbers(page) == ordered[:7]


async def test_ordered_list_of_a_long_interval_is_refused(filled: Database) -> None:
    """An ordered list reads a bounded number of rows and refuses an interval with more."""
    which = LogFilter(since=START + timedelta(minutes=20))
    async with filled.read_session() as session:
        with pytest.raises(InvalidInterval, match="9 rows"):
            await read_top(session, which, order="total_tokens", limit=1, rows_max=9)
        page = await read_top(session, which, order="total_tokens", limit=20, rows_max=10)

    assert len(page.items) == 10


@pytest.mark.sqlite
async def test_values_of_a_filter_are_ranges_of_its_index(filled: Database) -> None:
    """Each value of a filter is searched in the index; only the rows of the page are sorted."""
    (explained,) = await explain_queries(
        filled, lambda session: read_page(session, LogFilter(user_id=("a", "b")), limit=5)
    )

    assert explained.count("model_endpoint (user_id=?)") == 2, explained
    assert "SCAN request_logs" not in explained


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
            assert (await read_page(session, which, limit=50, cursor=cursor)).items
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
        LogFilter(user_id=("user 7",)),
        LogFilter(model=("model 7",)),
        LogFilter(user_id=("user 7",), model=("model 7",)),
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
