"""PostgreSQL: errors, sessions, times, and the order of commits."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from service.core.accounting.log_pages import LogFilter, read_page, read_tail
from service.core.database.engine import Database
from service.core.database.postgres import explain_error
from service.core.database.tables import request_logs
from service.core.errors import DatabaseUnavailable
from tests.postgres import PostgresServer, temporary_database
from tests.records import build_intent, build_outcome
from tests.rows import write


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A database of PostgreSQL."""
    async with temporary_database(postgres) as database:
        yield database


class ServerError(Exception):
    """An error of the server, as the dialect has it."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__("as the server says")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    "sqlstate",
    [
        "08006",  # the connection failed
        "25006",  # a standby after a failover
        "28P01",  # the password was changed
        "3D000",  # the database was dropped
        "40001",  # serialization failure
        "40P01",  # deadlock
        "42P01",  # a table is missing
        "53100",  # disk full
        "55P03",  # the lock was not available in time
        "57014",  # the statement took too long
        "57P01",  # the server stops
        "58030",  # input/output error
        "XX001",  # a page is damaged
    ],
)
def test_states_of_the_server_may_change(sqlstate: str) -> None:
    """These errors do not depend on the statement: it is repeated."""
    error = DBAPIError("", {}, ServerError(sqlstate))

    assert explain_error(error) == "as the server says"


@pytest.mark.parametrize(
    "sqlstate",
    [
        "21000",  # a row is changed twice
        "22021",  # a NUL character
        "22003",  # a number out of range
        "23505",  # not unique
        "42601",  # syntax error
    ],
)
def test_mistakes_are_not_repeated(sqlstate: str) -> None:
    """These errors come again with the same statement."""
    assert explain_error(DBAPIError("", {}, ServerError(sqlstate))) is None


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "refused"), TimeoutError()])
def test_errors_of_connecting_may_end(error: OSError) -> None:
    """The driver raises these as they are."""
    assert explain_error(error)


@pytest.mark.parametrize("error", [ValueError("bad"), KeyError("bad")])
def test_other_errors_are_mistakes(error: Exception) -> None:
    """An error of the code is not one of the database."""
    assert explain_error(error) is None


async def test_a_server_that_is_away_is_unavailable(tmp_path: Path) -> None:
    """Neither a refused connection nor a missing socket is an unexpected error."""
    for place in ("127.0.0.1:1/kotae", f"/kotae?host={tmp_path}"):
        database = Database(f"postgresql://kotae@{place}")
        with pytest.raises(DatabaseUnavailable):
            await database.ping()
        with pytest.raises(DatabaseUnavailable):
            await database.run_blocking_read(lambda connection: connection)
        await database.close()


@pytest.mark.slow
async def test_a_reading_session_cannot_write(database: Database) -> None:
    """The server rejects a write in a read session, and in a blocking read."""
    statement = sa.delete(request_logs)
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        async with database.read_session() as session:
            await session.execute(statement)
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        await database.run_blocking_read(lambda connection: connection.execute(statement))


@pytest.mark.slow
async def test_a_read_is_one_snapshot(database: Database) -> None:
    """A row that is committed during a read is not part of it."""
    query = sa.select(sa.func.count()).select_from(request_logs)
    async with database.read_session() as session:
        before = (await session.execute(query)).scalar_one()
        await write(database, [build_outcome()])
        after = (await session.execute(query)).scalar_one()

    assert (before, after) == (0, 0)


@pytest.mark.slow
async def test_times_do_not_depend_on_time_zones(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a row is that of its id, whatever the zones of client and server."""
    url = await postgres.create_database()
    name = url.partition("@/")[2].partition("?")[0]
    await postgres.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    database = Database(url)
    try:
        at = datetime(2026, 3, 1, 12, tzinfo=UTC)
        await write(database, [build_outcome(build_intent(at=at))])
        async with database.read_session() as session:
            (row,) = (await read_page(session, LogFilter(), limit=2)).items
            quarter = (await session.execute(sa.text("SELECT quarter FROM rollups"))).scalar_one()
    finally:
        await database.close()
        monkeypatch.undo()
        time.tzset()
        await postgres.drop_database(url)

    assert (row.created_at, quarter) == (at, int(at.timestamp()) // 900)


@pytest.mark.slow
async def test_a_tail_misses_no_row_of_several_writers(
    postgres: PostgresServer, database: Database
) -> None:
    """Rows that several processes write are tailed in the order of their commits."""
    first = build_outcome()
    await write(database, [first])
    last, ids = first.intent.id, set[str]()
    async with AsyncExitStack() as stack:
        writers = [Database(database._url) for _ in range(6)]
        for writer in writers:
            stack.push_async_callback(writer.close)

        async def write_rows(writer: Database) -> None:
            for _ in range(15):
                await write(writer, [build_outcome() for _ in range(3)])

        writing = asyncio.gather(*map(write_rows, writers))
        ended = False
        while not ended:
            ended = writing.done()  # before the last page is read
            async with database.read_session() as session:
                page = await read_tail(session, LogFilter(), limit=200, after=last)
            ids |= {item.id for item in page.items}
            last = page.next_cursor or last
        await writing

    assert len(ids) == 6 * 15 * 3


@pytest.mark.slow
async def test_transactions_wait_for_each_other(database: Database) -> None:
    """A transaction of another process may read before it writes: nothing changes in between."""
    other = Database(database._url)
    try:
        async with database.transaction():
            waiting = asyncio.create_task(write(other, [build_outcome()]))
            done, _ = await asyncio.wait([waiting], timeout=0.1)
            assert not done
        assert await waiting == 1
    finally:
        await other.close()


@pytest.mark.slow
async def test_a_slow_statement_is_ended(postgres: PostgresServer) -> None:
    """A statement that takes longer than the limit is an unavailable database."""
    database = Database(postgres.build_url("postgres"), statement_seconds=0.05)
    with pytest.raises(DatabaseUnavailable, match="statement timeout"):
        async with database.read_session() as session:
            await session.execute(sa.text("SELECT pg_sleep(10)"))
    await database.close()


@pytest.mark.slow
async def test_a_restarted_server_is_available_again(
    postgres: PostgresServer, database: Database
) -> None:
    """Connections of before a crash of the server are replaced, without an error."""
    outcome = build_outcome()
    await write(database, [outcome])
    postgres.stop()
    with pytest.raises(DatabaseUnavailable):
        await database.ping()
    postgres.start()

    await database.ping()
    assert await write(database, [outcome, build_outcome()]) == 1
