"""A connection for single statements."""

import asyncio
from contextlib import suppress

import pytest

from service.core.database.postgres_connection import StatementConnection
from service.core.errors import DatabaseUnavailable
from tests.postgres import PostgresServer

pytestmark = pytest.mark.slow


async def test_a_lost_connection_is_opened_again(postgres: PostgresServer) -> None:
    """A statement may notice it, and fail; later ones succeed on another connection."""
    connection = StatementConnection(postgres.build_url("postgres"), {}, seconds=20)
    first = pid = await connection.fetch_value("SELECT pg_backend_pid()")
    await postgres.execute(f"SELECT pg_terminate_backend({pid})")
    async with asyncio.timeout(20):
        while pid == first:
            with suppress(DatabaseUnavailable):
                pid = await connection.fetch_value("SELECT pg_backend_pid()")

    assert pid != first
    await connection.close()


async def test_a_statement_ends_in_time(postgres: PostgresServer) -> None:
    """The limit includes connecting and waiting for other statements."""
    connection = StatementConnection(postgres.build_url("postgres"), {}, seconds=0.5)
    with pytest.raises(DatabaseUnavailable):
        await connection.fetch_value("SELECT pg_sleep(60)")
    await connection.close()
