"""`kotae migrate-data`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.database.instance_lock import lock_instance
from service.core.settings import Settings
from tests.command import run
from tests.postgres import PostgresServer, temporary_database
from tests.records import build_outcome
from tests.rows import write

pytestmark = pytest.mark.slow


@pytest.fixture
async def target(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Database]:
    """The configured database of PostgreSQL; the fixture `database` is the source."""
    monkeypatch.setenv("KOTAE_DATA_DIR", str(tmp_path))
    async with temporary_database(postgres) as target:
        monkeypatch.setenv("KOTAE_DATABASE_URL", target._url)
        yield target


async def count_rows(database: Database) -> int:
    """The number of log rows."""
    async with database.read_session() as session:
        return int(
            (await session.execute(sa.text("SELECT count(*) FROM request_logs"))).scalar_one()
        )


async def test_a_database_is_copied_and_audited(database: Database, target: Database) -> None:
    """The default source is the database of the data directory."""
    await write(database, [build_outcome() for _ in range(3)])
    status, output = await run("migrate-data")

    assert (status, output.count("all agrees")) == (0, 2)
    assert await count_rows(target) == 3


async def test_a_second_copy_is_refused(database: Database, target: Database) -> None:
    """The target has the data of the first one."""
    await write(database, [build_outcome()])
    await run("migrate-data")
    status, output = await run("migrate-data")

    assert status == 1
    assert await count_rows(target) == 1, output


async def test_a_database_in_use_is_not_copied(
    database: Database, target: Database, tmp_path: Path
) -> None:
    """A service would add rows that are not copied."""
    await write(database, [build_outcome()])
    settings = Settings(data_dir=tmp_path, database_url=None)
    lock = lock_instance(settings.model_copy(update={"database_url": None}), "serve")
    try:
        status, _ = await run("migrate-data", str(tmp_path / "kotae.db"))
    finally:
        lock.close()

    assert status == 1
    assert await count_rows(target) == 0


async def test_the_target_must_be_postgresql(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy to the database itself is refused."""
    monkeypatch.setenv("KOTAE_DATA_DIR", str(tmp_path))
    await write(database, [build_outcome()])
    status, _ = await run("migrate-data")

    assert status == 1
