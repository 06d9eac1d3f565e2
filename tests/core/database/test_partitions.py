"""Partitions of the log in PostgreSQL."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from service.core.accounting.log_pages import LogFilter, read_page
from service.core.database.engine import Database
from service.core.database.partitions import count_default_rows, create_partitions, list_months
from service.core.encoding import compute_first_id
from tests.postgres import PostgresServer, temporary_database
from tests.records import build_intent, build_outcome
from tests.rows import write

NOVEMBER = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A database of PostgreSQL."""
    async with temporary_database(postgres) as database:
        yield database


async def create(database: Database, now: datetime = NOVEMBER) -> list[str]:
    """Create the partitions of a month and the next one."""
    async with database.transaction() as session:
        return await create_partitions(session, now, months_ahead=1)


async def list_places(database: Database) -> list[str]:
    """The tables of the rows, in the order of their ids."""
    query = "SELECT CAST(tableoid::regclass AS text) FROM request_logs ORDER BY id"
    async with database.read_session() as session:
        return list((await session.execute(sa.text(query.replace("::", "\\:\\:")))).scalars())


def test_months_continue_in_the_next_year() -> None:
    """The last moment is the end of the last month."""
    assert list_months(NOVEMBER, 1) == [
        datetime(2026, 11, 1, tzinfo=UTC),
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    ]


@pytest.mark.slow
async def test_partitions_are_created_once(database: Database) -> None:
    """The second call creates nothing; a month later there is one more."""
    created = [await create(database), await create(database)]
    created.append(await create(database, datetime(2026, 12, 31, 23, 59, tzinfo=UTC)))

    assert created == [
        ["request_logs_2026_11", "request_logs_2026_12"],
        [],
        ["request_logs_2027_01"],
    ]


@pytest.mark.slow
async def test_rows_are_in_the_partition_of_their_month(database: Database) -> None:
    """The first and the last millisecond of a month belong to it."""
    await create(database)
    moments = [
        datetime(2026, 10, 31, 23, 59, 59, 999000, tzinfo=UTC),
        datetime(2026, 11, 1, tzinfo=UTC),
        datetime(2026, 11, 30, 23, 59, 59, 999000, tzinfo=UTC),
        datetime(2026, 12, 1, tzinfo=UTC),
    ]
    await write(database, [build_outcome(build_intent(at=at)) for at in moments])

    assert await list_places(database) == [
        "request_logs_default",
        "request_logs_2026_11",
        "request_logs_2026_11",
        "request_logs_2026_12",
    ]


@pytest.mark.slow
async def test_rows_without_a_partition_are_not_lost(database: Database) -> None:
    """They can be read and replaced, and a partition that is created later takes them over."""
    outcome = build_outcome(build_intent(at=NOVEMBER))
    await write(database, [outcome])
    async with database.read_session() as session:
        before = await count_default_rows(session)
    await create(database)
    again = await write(database, [outcome])

    async with database.read_session() as session:
        page = await read_page(session, LogFilter(), limit=5)
        assert await count_default_rows(session) == 0
    assert (before, again, len(page.items)) == (1, 0, 1)
    assert await list_places(database) == ["request_logs_2026_11"]


@pytest.mark.slow
async def test_a_day_is_read_from_its_partition(database: Database) -> None:
    """An interval of time is one of ids, so the plan leaves out the other months."""
    await create(database)
    values = [compute_first_id(NOVEMBER.replace(day=day)) for day in (10, 11)]
    query = sa.text(
        "EXPLAIN SELECT * FROM request_logs WHERE id >= :since AND id < :until ORDER BY id DESC"
    )
    async with database.read_session() as session:
        rows = await session.execute(query, dict(zip(("since", "until"), values, strict=True)))
        plan = "\n".join(rows.scalars())

    assert "request_logs_2026_11" in plan
    assert "request_logs_2026_12" not in plan
    assert "request_logs_default" not in plan
