"""A connection for single statements."""

import pytest

from service.core.database.postgres_connection import StatementConnection
from service.core.errors import DatabaseUnavailable
from tests.postgres import PostgresServer

pytestmark = pytest.mark.slow


async def test_a_lost_connection_is_opened_again(postgres: PostgresServer) -> None:
    """The statement that notices it fails, and the next one succeeds."""
    connection = StatementConnection(postgres.build_url("postgres"), {}, seconds=20)
    pid = await connection.fetch_value("SELECT pg_backend_pid()")
    await postgres.execute(f"SELECT pg_terminate_backend({pid})")
    with pytest.raises(DatabaseUnavailable):
        await connection.fetch_value("SELECT 1")

    assert await connection.fetch_value("SELECT 1") == 1
    await connection.close()


async def test_a_statement_ends_in_time(postgres: PostgresServer) -> None:
    """The limit includes connecting and waiting for other statements."""
    connection = StatementConnection(postgres.build_url("postgres"), {}, seconds=0.5)
    with pytest.raises(DatabaseUnavailable):
        await connection.fetch_value("SELECT pg_sleep(60)")
    await connection.close()
