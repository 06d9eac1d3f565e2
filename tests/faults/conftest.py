"""Fixtures of the tests with replicas."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.provider import ProviderFake
from tests.faults.cluster import Cluster
from tests.postgres import PostgresServer, temporary_database


@pytest.fixture
async def cluster(
    postgres: PostgresServer, fake: ProviderFake, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """Replicas with one database and one provider fake."""
    async with (
        temporary_database(postgres) as database,
        Cluster(database, fake, tmp_path) as cluster,
    ):
        yield cluster
