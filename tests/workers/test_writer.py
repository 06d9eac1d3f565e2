"""The writer: order, batches, and database failures."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.core.accounting.journal import Journal
from service.core.accounting.log_pages import LogFilter, read_page
from service.core.accounting.queue import JournaledQueue
from service.core.database.engine import Database
from service.core.records import Outcome
from service.core.telemetry import Metrics
from service.workers.writer import Writer
from tests.damage import set_value
from tests.records import build_intent, build_outcome
from tests.rows import write


@pytest.fixture
async def impatient(database: Database) -> AsyncIterator[Database]:
    """A connection to the same database with a short lock timeout."""
    assert database.file
    other = Database(f"sqlite+aiosqlite:///{database.file}?timeout=0.02")
    yield other
    await other.close()


def create_queue(tmp_path: Path) -> JournaledQueue:
    """Create a queue with a journal that no thread syncs."""
    (tmp_path / "journal").mkdir(exist_ok=True)
    return JournaledQueue(1000, Journal(tmp_path / "journal", None, sync_ms=50, bytes_max=2**26))


def add_outcomes(queue: JournaledQueue, count: int, **fields: Any) -> list[Outcome]:
    """Add ended answers to the queue."""
    outcomes = [build_outcome(**fields) for _ in range(count)]
    for outcome in outcomes:
        queue.add_intent(outcome.intent)
        queue.add_outcome(outcome)
    return outcomes


async def read_ids(database: Database) -> list[str]:
    """Read the ids in the log, sorted."""
    async with database.read_session() as session:
        items = (await read_page(session, LogFilter(), limit=1000)).items
    return sorted(item.id for item in items)


def create_writer(
    database: Database, queue: JournaledQueue, tmp_path: Path, batch_max: int = 10
) -> Writer:
    """Create a writer with a quarantine directory of the test."""
    return Writer(
        database, queue, Metrics(), batch_max=batch_max, quarantine=tmp_path / "quarantine"
    )


async def test_stop_writes_all_batches(database: Database, tmp_path: Path) -> None:
    """`stop` returns True after several batches when nothing is left."""
    queue = create_queue(tmp_path)
    writer = create_writer(database, queue, tmp_path)
    outcomes = add_outcomes(queue, 95)
    writer.start()

    assert await writer.stop(10)
    assert await read_ids(database) == sorted(outcome.intent.id for outcome in outcomes)
    assert writer.statistics().written == 95


async def test_a_locked_database_delays_rows(impatient: Database, tmp_path: Path) -> None:
    """While the database is locked the writer is degraded; afterwards all rows are written."""
    queue = create_queue(tmp_path)
    writer = create_writer(impatient, queue, tmp_path)
    assert impatient.file
    lock = sqlite3.connect(impatient.file, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    outcomes = add_outcomes(queue, 30)
    writer.start()
    async with asyncio.timeout(10):
        while not writer.degraded():
            await asyncio.sleep(0.01)
    assert queue.statistics().waiting == 30

    lock.execute("ROLLBACK")
    lock.close()

    assert await writer.stop(10)
    assert await read_ids(impatient) == sorted(outcome.intent.id for outcome in outcomes)
    assert not writer.degraded()


async def test_a_late_batch_degrades_the_writer(database: Database, tmp_path: Path) -> None:
    """A late batch degrades the writer before the first failure."""
    queue = create_queue(tmp_path)
    writer = Writer(
        database, queue, Metrics(), batch_max=10, quarantine=tmp_path / "quarantine", late_seconds=0
    )
    assert database.file
    lock = sqlite3.connect(database.file, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    add_outcomes(queue, 1)
    writer.start()
    async with asyncio.timeout(10):
        while not writer.degraded():
            await asyncio.sleep(0.001)
    assert writer.statistics().failures == 0
    lock.execute("ROLLBACK")
    lock.close()

    assert await writer.stop(10)
    assert not writer.degraded()


async def test_stop_reports_unwritten_rows(impatient: Database, tmp_path: Path) -> None:
    """`stop` returns False when its time ends before the database is available."""
    queue = create_queue(tmp_path)
    writer = create_writer(impatient, queue, tmp_path)
    assert impatient.file
    lock = sqlite3.connect(impatient.file, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    add_outcomes(queue, 1)
    writer.start()

    assert not await writer.stop(0.2)
    lock.close()


async def test_a_rejected_record_is_quarantined(database: Database, tmp_path: Path) -> None:
    """A record that the database rejects is quarantined; the rest of its batch is written."""
    queue = create_queue(tmp_path)
    writer = create_writer(database, queue, tmp_path)
    good = add_outcomes(queue, 2)
    (poison,) = add_outcomes(queue, 1, response_time_ms=2**63)
    good += add_outcomes(queue, 2)
    writer.start()

    assert await writer.stop(10)
    assert await read_ids(database) == sorted(outcome.intent.id for outcome in good)
    assert writer.statistics().quarantined == 1
    file = tmp_path / "quarantine" / f"{poison.intent.id}.json"
    assert msgspec.json.decode(file.read_bytes(), type=Outcome) == poison


async def test_redelivery_changes_nothing(database: Database, tmp_path: Path) -> None:
    """A duplicated outcome is one row."""
    intent = build_intent()
    for _ in range(2):
        queue = create_queue(tmp_path)
        queue.add_intent(intent)
        queue.add_outcome(build_outcome(intent))
        writer = create_writer(database, queue, tmp_path)
        writer.start()
        assert await writer.stop(10)

    assert await read_ids(database) == [intent.id]


async def test_a_damaged_row_does_not_delay_others(database: Database, tmp_path: Path) -> None:
    """A record whose row exists and cannot be read is quarantined; others are written."""
    queue = create_queue(tmp_path)
    writer = create_writer(database, queue, tmp_path)
    outcomes = add_outcomes(queue, 5)
    await write(database, outcomes[2:3])
    assert database.file
    set_value(database.file, outcomes[2].intent.id, "user_id = CAST(x'ff' AS TEXT)")
    writer.start()

    assert await writer.stop(10)
    assert writer.statistics().written == 4
    assert [file.stem for file in (tmp_path / "quarantine").iterdir()] == [outcomes[2].intent.id]
    assert writer.degraded()
