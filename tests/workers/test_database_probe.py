"""Probes of a PostgreSQL server that hangs, or loses a connection."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.database.health import DatabaseHealth
from service.core.database.postgres_connection import StatementConnection
from service.core.errors import DatabaseUnavailable
from service.workers.database_probe import DatabaseProbe
from tests.postgres import PostgresServer, hanging, running_server, temporary_database

pytestmark = pytest.mark.slow


@asynccontextmanager
async def probing(database: Database, seconds: float) -> AsyncIterator[DatabaseProbe]:
    """A probe without its periodic task."""
    probe = DatabaseProbe(database.health, database._url, seconds=seconds)
    try:
        yield probe
    finally:
        await probe.stop()


async def test_a_server_that_hangs_keeps_nobody_waiting() -> None:
    """Statements that wait are ended, later ones refused at once; then everything works again."""
    with running_server() as server:
        async with temporary_database(server) as database, probing(database, 0.2) as probe:
            claims = StatementConnection(database._url, {}, seconds=60, health=database.health)
            for warm_up in (database.ping(), claims.fetch_value("SELECT 1"), probe.run_checks()):
                await warm_up

            async def read() -> None:
                async with database.read_session() as session:
                    await session.execute(sa.text("SELECT 1"))

            async def write() -> None:
                async with database.transaction():
                    pass

            accesses: list[Callable[[], Coroutine[Any, Any, Any]]] = [
                read,
                write,
                lambda: database.run_blocking_read(lambda c: c.execute(sa.text("SELECT 1"))),
                lambda: claims.fetch_value("SELECT 1"),
            ]
            for access in accesses:
                await access()
            with hanging(server):
                waiting = [asyncio.ensure_future(access()) for access in accesses * 3]
                await probe.run_checks()
                async with asyncio.timeout(10):  # the statements have 30 and 60 s
                    early = await asyncio.gather(*waiting, return_exceptions=True)
                began = time.monotonic()
                late = await asyncio.gather(
                    *(access() for access in accesses), return_exceptions=True
                )
                seconds = time.monotonic() - began
                degraded = probe.degraded()
            async with asyncio.timeout(20):
                while probe.degraded():
                    await probe.run_checks()
            for access in accesses:
                await access()
            await claims.close()

    assert {type(error) for error in early + late} == {DatabaseUnavailable}
    assert seconds < 0.1
    assert degraded
    assert probe.statistics().outages == 1


async def test_a_slow_statement_and_a_lost_connection_are_no_outage(
    postgres: PostgresServer,
) -> None:
    """The probe repeats itself on a new connection, and the statement continues."""
    async with temporary_database(postgres) as database, probing(database, 20) as probe:
        await probe.run_checks()
        async with database.read_session() as session:
            slow = asyncio.ensure_future(session.execute(sa.text("SELECT pg_sleep(1)")))
            async with database.transaction() as other:
                await other.execute(
                    sa.text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = :q"
                    ),
                    {"q": "SELECT 1"},
                )
            await probe.run_checks()
            await slow

    assert not probe.degraded()
    assert probe.statistics().outages == 0


async def test_a_server_that_is_away_is_an_outage() -> None:
    """Refused connections end the availability as well."""
    health = DatabaseHealth()
    probe = DatabaseProbe(health, "postgresql://kotae@127.0.0.1:1/kotae", seconds=20)
    await probe.run_checks()
    await probe.stop()

    assert not health.is_available
