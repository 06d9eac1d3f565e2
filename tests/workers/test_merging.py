"""Merging of index segments: results do not change, and the worker waits for uploads to pause."""

import asyncio
import sqlite3
from contextlib import closing

import pytest

from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.errors import DatabaseUnavailable
from service.core.search import fts5_merge
from service.core.search.service import SearchService
from service.core.settings import Settings
from service.workers.merging import IndexMerger
from tests.conftest import Serve

SETTINGS = Settings(_env_file=None)


async def store_numbers(database: Database, *numbers: int) -> list[str]:
    """Store documents of several chunks in one transaction and return their ids."""
    texts = [
        f"# Lighthouse {n}\n\n"
        + "\n\n".join(f"Keeper {n} rang bell {n * i} in storm {i}. " * 9 for i in range(12))
        for n in numbers
    ]
    new_documents = [library.NewDocument("", text, "utf-8") for text in texts]
    with closing(ChunkWorkers()) as workers:
        stored = await library.store_documents(
            database, SETTINGS, workers, new_documents, user_id="u"
        )
    return [document.document_id for document in stored]


async def list_segment_sizes(database: Database) -> list[int]:
    """Return the number of pages of each segment."""
    async with database.read_session() as session:
        rows = await session.exec_driver_sql("SELECT count(*) FROM chunk_terms_idx GROUP BY segid")
        return sorted(rows.scalars())


async def check_integrity(database: Database) -> None:
    """Raise an error if the index differs from the chunks."""
    async with database.transaction() as session:
        await session.exec_driver_sql(
            "INSERT INTO chunk_terms(chunk_terms, rank) VALUES ('integrity-check', 1)"
        )


@pytest.fixture
async def scattered(database: Database) -> Database:
    """An index of several segments."""
    for n in range(7):
        await store_numbers(database, n)
    assert len(await list_segment_sizes(database)) > 2
    return database


async def test_merging_does_not_change_results(
    scattered: Database,
) -> None:
    """After each step a new document is found, and after its deletion results are as before."""
    service = SearchService(scattered, SETTINGS)
    before = await service.search("storm 3 of keeper 5", user_id="u", limit=50)
    steps = 0
    while await fts5_merge.merge_step(scattered, first=steps == 0, pages_max=1):
        steps += 1
        (new,) = await store_numbers(scattered, 100 + steps)
        assert (await service.search(f"keeper {100 + steps}", user_id="u", limit=50)).items[
            0
        ].document_id == new
        await library.delete_document(scattered, new, user_id="u")
        for searching in (service, SearchService(scattered, SETTINGS)):
            assert await searching.search("storm 3 of keeper 5", user_id="u", limit=50) == before
    assert steps > 2
    await fts5_merge.merge_segments(scattered, pause_seconds=0)  # the documents added in between
    assert len(await list_segment_sizes(scattered)) == 1
    await check_integrity(scattered)


async def test_an_interrupted_merge_is_continued(scattered: Database) -> None:
    """A process that dies between two steps leaves a valid index, which the next one merges."""
    assert await fts5_merge.merge_step(scattered, first=True, pages_max=1)
    await check_integrity(scattered)
    assert len(await list_segment_sizes(scattered)) > 1
    await fts5_merge.merge_segments(scattered, pause_seconds=0)
    assert len(await list_segment_sizes(scattered)) == 1
    await check_integrity(scattered)


async def test_the_worker_waits_for_a_pause_and_merges_once(scattered: Database) -> None:
    """A check after a change does nothing, the next one merges, and further ones do nothing."""
    worker = IndexMerger(scattered)
    await worker.check_index()
    await store_numbers(scattered, 100)
    await worker.check_index()
    assert (worker.statistics().pending, worker.statistics().merges) == (True, 0)
    await worker.check_index()
    await worker.check_index()
    assert (worker.statistics().pending, worker.statistics().merges) == (False, 1)
    assert len(await list_segment_sizes(scattered)) == 1


async def test_a_small_document_does_not_cause_a_merge(scattered: Database) -> None:
    """The smaller segments must add up to a tenth of the largest one."""
    await store_numbers(scattered, *range(300, 400))
    await fts5_merge.merge_segments(scattered, pause_seconds=0)
    await store_numbers(scattered, 500)
    assert len(await list_segment_sizes(scattered)) == 2
    assert not await fts5_merge.needs_merge(scattered)
    await store_numbers(scattered, *range(600, 620))
    assert await fts5_merge.needs_merge(scattered)


async def test_an_empty_index_is_not_merged(database: Database) -> None:
    """An empty index needs no merge."""
    assert not await fts5_merge.needs_merge(database)
    worker = IndexMerger(database)
    for _ in range(3):
        await worker.check_index()
    assert worker.statistics().merges == 0


async def test_the_worker_retries_while_the_database_is_locked(scattered: Database) -> None:
    """Checks fail while another process holds the lock; then the worker merges."""
    assert scattered.file
    impatient = Database(f"sqlite+aiosqlite:///{scattered.file}?timeout=0.05")
    worker = IndexMerger(impatient, check_seconds=0.01)
    lock = sqlite3.connect(scattered.file, isolation_level=None)
    try:
        lock.execute("BEGIN IMMEDIATE")
        await worker.check_index()
        with pytest.raises(DatabaseUnavailable):
            await worker.check_index()
        worker.start()
        async with asyncio.timeout(10):
            while not worker.degraded():
                await asyncio.sleep(0.01)
        lock.execute("ROLLBACK")
        async with asyncio.timeout(10):
            while not worker.statistics().merges:
                await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            while worker.statistics().failures:
                await asyncio.sleep(0.01)
    finally:
        lock.close()
        await worker.stop()
        await impatient.close()
    assert len(await list_segment_sizes(scattered)) == 1


async def test_merging_is_in_the_health_report(serve: Serve) -> None:
    """/health/ready contains the statistics of the worker."""
    service = await serve(seeded=True)
    statistics = (await service.client.get("/health/ready")).json()["merging"]
    assert statistics["failures"] == 0
