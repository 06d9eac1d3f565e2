"""Migrations: ours alone, up and down, on data."""

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
    """What the alembic command line says."""
    environment = {**os.environ, "KOTAE_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini"), *arguments]
    done = subprocess.run(
        command, cwd=data_dir, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
async def test_the_newest_revision_is_the_last_file_s(tmp_path: Path, database: Database) -> None:
    """The service knows it by the names of the files, without loading alembic."""
    assert (await database.read_revision())[1] in alembic(tmp_path, "heads").split()


@pytest.mark.slow
def test_autogenerate_never_touches_a_foreign_table(tmp_path: Path) -> None:
    """A table, an index and a view of somebody else, in the same database, are not seen; neither is the full-text index."""
    alembic(tmp_path, "upgrade", "head")
    foreign = sqlite3.connect(tmp_path / "kotae.db")
    foreign.executescript(
        """CREATE TABLE invoices (id INTEGER PRIMARY KEY, document TEXT); CREATE INDEX by_document ON invoices (document);
        CREATE TABLE documents_old AS SELECT * FROM documents; CREATE VIEW recent AS SELECT * FROM invoices;
        INSERT INTO invoices VALUES (1, 'x')"""
    )
    foreign.close()

    assert "No new upgrade operations detected" in alembic(tmp_path, "check")

    alembic(tmp_path, "downgrade", "base")
    alembic(tmp_path, "upgrade", "head")
    assert sqlite3.connect(tmp_path / "kotae.db").execute("SELECT * FROM invoices").fetchall() == [
        (1, "x")
    ]


async def test_down_and_up_on_data(database: Database) -> None:
    """With rows, documents and their index there, the schema goes to nothing and comes back, empty and working."""
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
    """A schema is brought up to date whole or not at all."""
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
    """Processes that start together bring the schema up once."""
    databases = [Database(f"sqlite+aiosqlite:///{tmp_path / 'kotae.db'}") for _ in range(6)]
    await asyncio.gather(*(database.migrate() for database in databases))

    assert await databases[0].read_revision() == ("0009", "0009")
    for database in databases:
        await database.close()
