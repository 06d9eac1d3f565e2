"""Upkeep of a PostgreSQL database."""

from collections.abc import AsyncIterator

import pytest

from service.core.database.engine import Database
from service.core.database.partitions import MONTHS_AHEAD
from service.core.database.postgres_lock import ServiceLock
from service.core.errors import DatabaseUnavailable, SettingsInvalid
from service.workers.postgres import PostgresUpkeep
from tests.core.database.test_postgres_lock import cut_connections
from tests.postgres import PostgresServer, temporary_database

pytestmark = pytest.mark.slow


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A database of PostgreSQL."""
    async with temporary_database(postgres) as database:
        yield database


async def test_upkeep_locks_and_partitions_the_database(database: Database) -> None:
    """After the start the database is locked, with partitions for the next months."""
    upkeep = PostgresUpkeep(database, ServiceLock(database._url), on_lost=pytest.fail)
    await upkeep.open()
    await upkeep.run_checks()

    assert upkeep.statistics().partitions_created == MONTHS_AHEAD + 1
    with pytest.raises(SettingsInvalid):
        await ServiceLock(database._url).acquire()
    await upkeep.stop()


async def test_a_superseded_process_ends(database: Database) -> None:
    """`on_lost` is called when another process has acquired the lock."""
    calls: list[None] = []
    upkeep = PostgresUpkeep(database, ServiceLock(database._url), lambda: calls.append(None))
    await upkeep.open()
    await cut_connections(database._url)
    other = ServiceLock(database._url)
    await other.acquire()
    with pytest.raises(DatabaseUnavailable):
        await upkeep.run_checks()

    await upkeep.run_checks()

    assert calls == [None]
    await upkeep.stop()
    await other.close()
