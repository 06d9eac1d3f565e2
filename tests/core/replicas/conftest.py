"""A PostgreSQL database for the tests of replicas."""

from collections.abc import AsyncIterator

import pytest

from service.core.database.engine import Database
from tests.postgres import PostgresServer, temporary_database


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A migrated database of PostgreSQL."""
    async with temporary_database(postgres) as database:
        yield database
