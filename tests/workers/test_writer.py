"""The writer: in order, in batches, through bad times."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.core.accounting import log as request_log
from service.core.accounting.journal import Journal
from service.core.accounting.log import LogFilter
from service.core.accounting.queue import JournaledQueue
from service.core.database.engine import Database
from service.core.records import Outcome
from service.core.telemetry import Metrics
from service.workers.writer import Writer
from tests.records import intent, outcome


@pytest.fixture
async def impatient(database: Database) -> AsyncIterator[Database]:
    """The same database file, by connections that wait for a lock for a moment only."""
    assert database.file
    other = Database(f"sqlite+aiosqlite:///{database.file}?timeout=0.02")
    yield other
    await other.close()


def queue_in(tmp_path: Path) -> JournaledQueue:
    """A queue with a journal in a folder of the test, not synced by a thread."""
    (tmp_path / "journal").mkdir(exist_ok=True)
    return JournaledQueue(1000, Journal(tmp_path / "journal", None, sync_ms=50, bytes_max=2**26))


def put(queue: JournaledQueue, count: int, **fields: Any) -> list[Outcome]:
    """That many ended answers."""
    outcomes = [outcome(**fields) for _ in range(count)]
    for each in outcomes:
        queue.add_intent(each.intent)
        queue.add_outcome(each)
    return outcomes


async def written(database: Database) -> list[str]:
    """The ids in the log, in the order of commit."""
    async with database.read_session() as session:
        items = (await request_log.read_page(session, LogFilter(), limit=1000)).items
    return sorted(item.id for item in items)


def writer_for(
    database: Database, queue: JournaledQueue, tmp_path: Path, batch_max: int = 10
) -> Writer:
    """A writer whose quarantine is a folder of the test."""
    return Writer(
        database, queue, Metrics(), batch_max=batch_max, quarantine=tmp_path / "quarantine"
    )


async def test_everything_is_written_before_it_stops(database: Database, tmp_path: Path) -> None:
    """`stop` returns True when nothing is left, over more batches than one."""
    queue = queue_in(tmp_path)
    writer = writer_for(database, queue, tmp_path)
    outcomes = put(queue, 95)
    writer.start()

    assert await writer.stop(10)
    assert await written(database) == sorted(each.intent.id for each in outcomes)
    assert writer.statistics().written == 95


async def test_a_locked_database_is_waited_for(impatient: Database, tmp_path: Path) -> None:
    """While another process holds the lock, records wait and the writer is degraded; afterwards all are written, once."""
    queue = queue_in(tmp_path)
    writer = writer_for(impatient, queue, tmp_path)
    assert impatient.file
    lock = sqlite3.connect(impatient.file, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    outcomes = put(queue, 30)
    writer.start()
    async with asyncio.timeout(10):
        while not writer.degraded():
            await asyncio.sleep(0.01)
    assert queue.statistics().waiting == 30

    lock.execute("ROLLBACK")
    lock.close()

    assert await writer.stop(10)
    assert await written(impatient) == sorted(each.intent.id for each in outcomes)
    assert not writer.degraded()


async def test_a_batch_that_takes_long_degrades_the_writer(
    database: Database, tmp_path: Path
) -> None:
    """Even if the database has refused nothing yet."""
    queue = queue_in(tmp_path)
    writer = Writer(
        database, queue, Metrics(), batch_max=10, quarantine=tmp_path / "quarantine", late_seconds=0
    )
    assert database.file
    lock = sqlite3.connect(database.file, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    put(queue, 1)
    writer.start()
    async with asyncio.timeout(10):
        while not writer.degraded():
            await asyncio.sleep(0.001)
    assert writer.statistics().failures == 0
    lock.execute("ROLLBACK")
    lock.close()

    assert await writer.stop(10)
    assert not writer.degraded()


async def test_what_cannot_be_written_in_time_is_said(impatient: Database, tmp_path: Path) -> None:
    """`stop` returns False when its time is over before the database came back."""
    queue = queue_in(tmp_path)
    writer = writer_for(impatient, queue, tmp_path)
    assert impatient.file
    lock = sqlite3.connect(impatient.file, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    put(queue, 1)
    writer.start()

    assert not await writer.stop(0.2)
    lock.close()


async def test_a_poison_record_is_put_aside(database: Database, tmp_path: Path) -> None:
    """A record that the database will never take goes to a file; the rest of its batch is written."""
    queue = queue_in(tmp_path)
    writer = writer_for(database, queue, tmp_path)
    good = put(queue, 2)
    (poison,) = put(queue, 1, response_time_ms=2**63)
    good += put(queue, 2)
    writer.start()

    assert await writer.stop(10)
    assert await written(database) == sorted(each.intent.id for each in good)
    assert writer.statistics().quarantined == 1
    file = tmp_path / "quarantine" / f"{poison.intent.id}.json"
    assert msgspec.json.decode(file.read_bytes(), type=Outcome) == poison


async def test_redelivery_changes_nothing(database: Database, tmp_path: Path) -> None:
    """The same outcome twice is one row."""
    begun = intent()
    for _ in range(2):
        queue = queue_in(tmp_path)
        queue.add_intent(begun)
        queue.add_outcome(outcome(begun))
        writer = writer_for(database, queue, tmp_path)
        writer.start()
        assert await writer.stop(10)

    assert await written(database) == [begun.id]
