"""Migrations: upgrade and downgrade with data, without touching foreign tables."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.errors import DatabaseUnavailable
from service.core.settings import Settings
from tests.records import build_outcome
from tests.rows import write

ROOT = Path(__file__).parents[3]


def alembic(data_dir: Path, *arguments: str) -> str:
    """Run the alembic command line and return its output."""
    environment = {**os.environ, "KOTAE_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini"), *arguments]
    result = subprocess.run(
        command, cwd=data_dir, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
async def test_the_newest_revision_is_in_the_last_file(tmp_path: Path, database: Database) -> None:
    """The service derives the newest revision from file names, without importing alembic."""
    assert (await database.read_revision())[1] in alembic(tmp_path, "heads").split()


@pytest.mark.slow
def test_autogenerate_never_touches_a_foreign_table(tmp_path: Path) -> None:
    """Autogenerate ignores foreign tables, indexes and views, and the full-text index."""
    alembic(tmp_path, "upgrade", "head")
    foreign = sqlite3.connect(tmp_path / "kotae.db")
    foreign.executescript(
        """CREATE TABLE invoices (id INTEGER PRIMARY KEY, document TEXT);
        CREATE INDEX by_document ON invoices (document);
        CREATE TABLE documents_old AS SELECT * FROM documents;
        CREATE VIEW recent AS SELECT * FROM invoices;
        INSERT INTO invoices VALUES (1, 'x')"""
    )
    foreign.close()

    assert "No new upgrade operations detected" in alembic(tmp_path, "check")

    alembic(tmp_path, "downgrade", "base")
    alembic(tmp_path, "upgrade", "head")
    assert sqlite3.connect(tmp_path / "kotae.db").execute("SELECT * FROM invoices").fetchall() == [
        (1, "x")
    ]


async def test_downgrade_and_upgrade_with_data(database: Database) -> None:
    """A database with rows and documents can be downgraded to nothing and upgraded again."""
    settings = Settings()
    await library.seed_documents(database, settings, ChunkWorkers(), user_id="local")
    await write(database, [build_outcome()])

    await database.migrate("base")
    async with database.read_session() as session:
        tables = set(
            (
                await session.execute(
                    sa.text("SELECT name FROM sqlite_master WHERE type IN ('table', 'trigger')")
                )
            ).scalars()
        )
    await database.migrate()

    assert tables <= {"alembic_version", "sqlite_sequence"}
    assert (
        len(await library.seed_documents(database, settings, ChunkWorkers(), user_id="local")) == 10
    )
    await write(database, [build_outcome()])


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    """A migration is applied completely or not at all."""
    file = tmp_path / "kotae.db"
    sqlite3.connect(file).executescript("CREATE TABLE request_logs (mine TEXT)")
    database = Database(f"sqlite+aiosqlite:///{file}")
    with pytest.raises(DatabaseUnavailable, match="request_logs"):
        await database.migrate()
    await database.close()

    names = {name for (name,) in sqlite3.connect(file).execute("SELECT name FROM sqlite_master")}
    assert names <= {"request_logs", "alembic_version", "sqlite_autoindex_alembic_version_1"}


@pytest.mark.slow
async def test_several_migrate_at_once(tmp_path: Path) -> None:
    """Concurrent migrations of processes that start together succeed."""
    databases = [Database(f"sqlite+aiosqlite:///{tmp_path / 'kotae.db'}") for _ in range(6)]
    await asyncio.gather(*(database.migrate() for database in databases))

    assert await databases[0].read_revision() == ("0009", "0009")
    for database in databases:
        await database.close()
