"""Copies from SQLite to PostgreSQL."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.core.accounting.audit import audit_log
from service.core.accounting.log_pages import LogFilter, read_page
from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP
from service.core.database.copying import (
    BATCHES,
    compare_counts,
    copy_data,
    count_copied,
    count_rows,
    finish_copy,
)
from service.core.database.engine import Database
from service.core.database.tables import metadata
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.encoding import create_id, utc_now
from service.core.errors import SettingsInvalid
from service.core.ports import QuotaLimits
from service.core.search.service import SearchService
from service.core.settings import Settings
from tests.core.search.test_service import store_text
from tests.postgres import PostgresServer, temporary_database
from tests.records import (
    build_attempt,
    build_failed_attempt,
    build_intent,
    build_outcome,
    build_outcome_of_attempts,
)
from tests.rows import write
from tests.wallets import add_funds, get_balance

ROWS = 1_234


@pytest.fixture
async def target(postgres: PostgresServer) -> AsyncIterator[Database]:
    """An empty database of PostgreSQL."""
    async with temporary_database(postgres) as target:
        yield target


async def fill(database: Database, rows: int = ROWS) -> None:
    """Documents, users, plans and a log of several months."""
    settings, workers = Settings(), ChunkWorkers()
    try:
        await library.seed_documents(database, settings, workers, user_id="local")
        await store_text(database, "Penguins swim in cold water.", "alice", title="Penguins")
    finally:
        workers.close()
    await store.put_plan(database, BOOTSTRAP, "team", QuotaLimits(tokens_per_day=5))
    await store.put_user(database, BOOTSTRAP, "alice", plan="team", limits=None)
    await store.put_user(database, BOOTSTRAP, "bob", limits=QuotaLimits(concurrent=1))
    await add_funds(database, 5)
    outcomes = []
    for n in range(rows):
        at = utc_now() - timedelta(days=n % 100)
        text = "before \0 after" if n == 0 else f"answer {n}"
        intent = build_intent(id=create_id(at), created_at=at, user_id=f"user {n % 7}")
        outcomes.append(
            build_outcome_of_attempts(build_failed_attempt(), build_attempt(), intent=intent)
            if n % 50 == 1
            else build_outcome(intent, response=text)
        )
    for begin in range(0, rows, 500):
        await write(database, outcomes[begin : begin + 500])


async def read_all(database: Database) -> dict[str, list[Any]]:
    """All rows of all tables that are copied as they are."""
    contents = {}
    async with database.read_session() as session:
        for table in BATCHES:
            columns = [c for c in table.c if c.name != "version"]  # counts the triggers
            query = sa.select(*columns).order_by(*table.primary_key)
            contents[table.name] = [tuple(row) for row in await session.execute(query)]
    return contents


def test_every_table_is_copied() -> None:
    """A new table must be in the list."""
    assert {table.name for table in BATCHES} == set(metadata.tables)


@pytest.mark.slow
async def test_a_copy_has_everything(database: Database, target: Database, tmp_path: Path) -> None:
    """Rows, totals, documents and their index, in the same order; only NUL is replaced."""
    await fill(database)
    await copy_data(database, target, "here", lambda _: None)
    await finish_copy(target)
    expected = await read_all(database)
    expected["request_logs"] = [
        tuple(v.replace("\0", "\ufffd") if isinstance(v, str) else v for v in row)
        for row in expected["request_logs"]
    ]
    service = SearchService(target, Settings())
    results = await service.search("What do penguins do?", user_id="alice", limit=3)
    async with target.read_session() as session:
        page = await read_page(session, LogFilter(), limit=5)
        default = await session.execute(sa.text("SELECT count(*) FROM request_logs_default"))

    assert await compare_counts(database, target) == []
    assert await read_all(target) == expected
    assert (await audit_log(target, tmp_path)).agrees
    await add_funds(target, 7, cause="payment:pi_2")  # the sequence continues
    assert await get_balance(target) == 12
    assert "Penguins" in results.items[0].title
    assert (len(page.items), default.scalar_one()) == (5, 0)


@pytest.mark.slow
async def test_a_copied_database_can_be_written(database: Database, target: Database) -> None:
    """New rows and chunks have numbers after the copied ones."""
    await fill(database, 3)
    await copy_data(database, target, "here", lambda _: None)
    await finish_copy(target)
    await write(target, [build_outcome()])
    await store_text(target, "Seals swim in cold water, too.", "carol")
    async with target.read_session() as session:
        counts = await count_rows(session)

    assert counts["request_logs"] == 4


@pytest.mark.slow
async def test_only_an_empty_database_is_a_target(database: Database, target: Database) -> None:
    """Existing data is not mixed with other data, nor a copy continued from another source."""
    await fill(database, 3)
    await write(target, [build_outcome()])
    with pytest.raises(SettingsInvalid, match="not empty"):
        await copy_data(database, target, "here", lambda _: None)
    async with target.transaction() as session:
        await session.execute(sa.text("DELETE FROM request_logs"))
        await session.execute(sa.text("DELETE FROM rollups"))
        await session.execute(sa.text("DELETE FROM latency_counts"))
        await session.execute(sa.text("DELETE FROM rollup_groups"))
        await session.execute(sa.text("DELETE FROM quota_totals"))
    await copy_data(database, target, "here", lambda _: None)
    with pytest.raises(SettingsInvalid, match="unfinished copy of here"):
        await copy_data(database, target, "elsewhere", lambda _: None)


COPY = """
import asyncio, sys
from service.core.database.copying import copy_data
from service.core.database.engine import Database

async def copy():
    source, target = Database(sys.argv[1]), Database(sys.argv[2])
    await copy_data(source, target, "here", lambda _: print("batch", flush=True))
    await source.close()
    await target.close()
    print("done", flush=True)

asyncio.run(copy())
"""


@pytest.mark.slow
async def test_a_killed_copy_is_continued(database: Database, target: Database) -> None:
    """Killed after any batch, the next run copies the rest: nothing is missing or doubled."""
    await fill(database)
    kills, line, choice = 0, b"", random.Random(1)
    while line != b"done\n":
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", COPY, database._url, target._url, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout
        for _ in range(choice.randint(1, 6) if kills < 5 else 10**6):
            line = await process.stdout.readline()
            if line != b"batch\n":
                break
        if line != b"done\n":
            process.kill()
            kills += 1
        await process.wait()
    copied = await count_copied(target)
    await finish_copy(target)
    async with database.read_session() as session:
        rows = sum((await count_rows(session)).values())

    assert kills == 5
    assert copied == rows - 1
    assert await compare_counts(database, target) == []
