"""Migrations: upgrade and downgrade with data, without touching foreign tables."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.core.database.engine import MIGRATIONS, Database
from service.core.database.migrations import find_oldest_compatible, open_scripts
from service.core.database.tables import api_keys, quota_totals
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.errors import DatabaseUnavailable, SettingsInvalid
from service.core.search.embeddings import EmbeddingStore
from service.core.search.results import SearchResults
from service.core.search.service import SearchService
from service.core.settings import Settings
from tests.core.search.test_embeddings import Letters, embed_missing
from tests.core.search.test_service import store_text
from tests.postgres import PostgresServer, temporary_database
from tests.records import build_outcome
from tests.rows import write

ROOT = Path(__file__).parents[3]


def alembic(data_dir: Path, *arguments: str, url: str = "") -> str:
    """Run the alembic command line and return its output."""
    environment = {**os.environ, "KOTAE_DATA_DIR": str(data_dir)}
    if url:
        environment["KOTAE_DATABASE_URL"] = url
        arguments = ("-n", "postgresql", *arguments)
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


def test_both_databases_have_the_same_newest_revision() -> None:
    """A migration has the same number and name for both, beginning with the baseline."""
    sqlite, postgresql = (
        sorted(path.name for path in (MIGRATIONS / folder).glob("0*.py"))
        for folder in ("versions", "postgresql")
    )
    baseline = postgresql[0].partition("_")[0]

    assert postgresql[1:] == [name for name in sqlite if name.partition("_")[0] > baseline]
    assert baseline in {name.partition("_")[0] for name in sqlite}


@pytest.mark.slow
async def test_postgresql_has_the_declared_schema(postgres: PostgresServer, tmp_path: Path) -> None:
    """Autogenerate finds nothing to do, and migrations never touch a foreign table."""
    url = await postgres.create_database("template0")
    name = url.partition("@/")[2].partition("?")[0]
    await asyncio.to_thread(alembic, tmp_path, "upgrade", "head", url=url)
    await postgres.execute("CREATE TABLE invoices AS SELECT 1 AS id", name)
    output = await asyncio.to_thread(alembic, tmp_path, "check", url=url)
    await asyncio.to_thread(alembic, tmp_path, "downgrade", "base", url=url)
    database = Database(url)
    async with database.read_session() as session:
        tables = await session.run_sync(lambda c: sa.inspect(c).get_table_names())
        routines = await session.execute(
            sa.text("SELECT count(*) FROM pg_proc WHERE proname LIKE 'kotae_%'")
        )
        remaining = routines.scalar_one()
    await database.close()
    await postgres.drop_database(url)

    assert "No new upgrade operations detected" in output
    assert (sorted(tables), remaining) == (["alembic_version", "invoices"], 0)


@pytest.mark.slow
async def test_several_migrate_postgresql_at_once(postgres: PostgresServer) -> None:
    """Concurrent migrations of processes that start together succeed."""
    url = await postgres.create_database("template0")
    databases = [Database(url) for _ in range(4)]
    await asyncio.gather(*(database.migrate() for database in databases))
    revision, newest = await databases[0].read_revision()
    for database in databases:
        await database.close()
    await postgres.drop_database(url)

    assert revision == newest


def test_the_oldest_compatible_revision_precedes_steps_that_run_beside_it(tmp_path: Path) -> None:
    """Consecutive steps that declare it, up to the newest one, do not exclude older versions."""
    steps = {"0001": None, "0002": "0001", "0003": "0002", "0004": "0003", "0005": "0004"}
    for revision, previous in steps.items():
        text = f"revision, down_revision = {revision!r}, {previous!r}\n"
        text += "runs_beside_previous = True\n" if revision not in {"0001", "0003"} else ""
        (tmp_path / f"{revision}_step.py").write_text(text)
    scripts = open_scripts(MIGRATIONS, tmp_path)

    oldest = {revision: find_oldest_compatible(scripts, revision) for revision in steps}

    assert list(oldest.values()) == ["0001", "0001", "0003", "0003", "0003"]
    assert find_oldest_compatible(scripts, "head") == "0003"
    with pytest.raises(SettingsInvalid, match="cannot migrate to 0009"):
        find_oldest_compatible(scripts, "0009")


@pytest.mark.slow
async def test_a_later_schema_states_whether_this_version_can_use_it(
    postgres: PostgresServer,
) -> None:
    """A migrated PostgreSQL database says which versions can use it, and `migrate` changes it."""
    async with temporary_database(postgres) as database:
        _, newest = await database.read_revision()
        usable = {}
        for oldest in ("0001", newest, "9998"):
            async with database.transaction() as session:
                await session.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
                await session.exec_driver_sql(f"COMMENT ON TABLE alembic_version IS '{oldest}'")
            usable[oldest] = await database.is_current()
        with pytest.raises(SettingsInvalid, match="install a newer version"):
            await database.require_current_schema()
        async with database.transaction() as session:
            await session.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{newest}'")
        await database.migrate()
        async with database.read_session() as session:
            marked = (
                await session.exec_driver_sql("SELECT obj_description('alembic_version'::regclass)")
            ).scalar()

    assert usable == {"0001": True, newest: True, "9998": False}
    scripts = open_scripts(MIGRATIONS, MIGRATIONS / "postgresql")
    assert marked == find_oldest_compatible(scripts, "head")


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


async def test_keys_get_lineages_and_their_totals_are_merged(tmp_path: Path) -> None:
    """Upgrading charges the usage of each chain of rotations to its first key."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'kotae.db'}")
    await database.migrate("0009")
    keys = [("a1", "a2"), ("a2", "a3"), ("a3", None), ("b", None)]
    totals = [("day 1", "key:a1", 1), ("day 1", "key:a2", 2), ("day 2", "key:a3", 4)]
    totals += [("day 1", "key:b", 8), ("day 1", "user:u", 11), ("day 1", "key:gone", 16)]
    async with database.transaction() as session:
        await session.execute(
            sa.text("INSERT INTO users VALUES ('u', 0, NULL, NULL, '2026-01-01')")
        )
        for key, replaced_by in keys:
            await session.execute(
                sa.text(
                    "INSERT INTO api_keys (id, hash, prefix, name, user_id, role, scopes,"
                    " created_at, replaced_by)"
                    " VALUES (:id, :id, '', '', 'u', 'user', '[]', '2026-01-01', :replaced_by)"
                ),
                {"id": key, "replaced_by": replaced_by},
            )
        for day, subject, requests in totals:
            await session.execute(
                sa.insert(quota_totals).values(
                    day=day, subject=subject, requests=requests, tokens=0, cost_nano_usd=0
                )
            )
    await database.migrate()

    async with database.read_session() as session:
        lineages = await session.execute(sa.select(api_keys.c.id, api_keys.c.lineage))
        assert dict(map(tuple, lineages)) == {"a1": "a1", "a2": "a1", "a3": "a1", "b": "b"}
        merged = await session.execute(
            sa.select(quota_totals.c.day, quota_totals.c.subject, quota_totals.c.requests)
        )
        assert sorted(map(tuple, merged)) == [
            ("day 1", "key:a1", 3),
            ("day 1", "key:b", 8),
            ("day 1", "key:gone", 16),
            ("day 1", "user:u", 11),
            ("day 2", "key:a1", 4),
        ]
    await database.close()


async def test_a_migration_to_an_older_revision(database: Database) -> None:
    """A revision below the current one downgrades, a higher one upgrades."""
    await database.migrate("0008")
    older = (await database.read_revision())[0]
    await database.migrate("0009")

    assert (older, (await database.read_revision())[0]) == ("0008", "0009")


async def test_an_unknown_revision(database: Database) -> None:
    """The error names the revision."""
    with pytest.raises(SettingsInvalid, match="9999"):
        await database.migrate("9999")


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

    assert await databases[0].read_revision() == ("0043", "0043")
    for database in databases:
        await database.close()


async def test_the_search_index_survives_migrations(database: Database) -> None:
    """Documents of several owners and their vectors are found after a downgrade and an upgrade."""
    for user_id, shared in (("u", False), ("v", False), ("v", True)):
        await store_text(database, f"A lantern of {user_id}, {shared}.", user_id, shared=shared)
    store = EmbeddingStore(database, Letters(), None, None)
    await embed_missing(store)

    async def search_all() -> list[SearchResults]:
        service = SearchService(database, Settings(), store)
        return [
            await service.search("A lantern of v", user_id=user_id, limit=5)
            for user_id in ("u", "v", "w", None)
        ]

    before = await search_all()
    await database.migrate("0018")
    await database.migrate()

    assert [len(results.items) for results in before] == [2, 2, 1, 3]
    assert await search_all() == before
