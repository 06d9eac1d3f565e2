"""The segments of the index are merged when uploads rest, and nobody notices but by the time that searches take."""

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


async def give(database: Database, *numbers: int) -> list[str]:
    """Documents of some chunks each, in a transaction of their own."""
    texts = [
        f"# Lighthouse {n}\n\n"
        + "\n\n".join(f"Keeper {n} rang bell {n * i} in storm {i}. " * 9 for i in range(12))
        for n in numbers
    ]
    given = [library.NewDocument("", text, "utf-8") for text in texts]
    with closing(ChunkWorkers()) as workers:
        stored = await library.store_documents(database, SETTINGS, workers, given, user_id="u")
    return [document.document_id for document in stored]


async def sizes(database: Database) -> list[int]:
    """How many pages each segment has."""
    async with database.read_session() as session:
        found = await session.exec_driver_sql("SELECT count(*) FROM chunk_terms_idx GROUP BY segid")
        return sorted(found.scalars())


async def require_sound(database: Database) -> None:
    """Raises if the index is not what stands in the chunks."""
    async with database.transaction() as session:
        await session.exec_driver_sql(
            "INSERT INTO chunk_terms(chunk_terms, rank) VALUES ('integrity-check', 1)"
        )


@pytest.fixture
async def scattered(database: Database) -> Database:
    """An index of several segments."""
    for n in range(7):
        await give(database, n)
    assert len(await sizes(database)) > 2
    return database


async def test_while_segments_merge_what_is_there_is_found_and_nothing_else(
    scattered: Database,
) -> None:
    """After every step of a merge a new document is found, and once it is deleted all is found that was found before, as it was."""
    retrieval = SearchService(scattered, SETTINGS)
    before = await retrieval.search("storm 3 of keeper 5", user_id="u", limit=50)
    steps = 0
    while await fts5_merge.merge_step(scattered, first=steps == 0, pages_max=1):
        steps += 1
        (new,) = await give(scattered, 100 + steps)
        assert (await retrieval.search(f"keeper {100 + steps}", user_id="u", limit=50)).items[
            0
        ].document_id == new
        await library.delete_document(scattered, new, user_id="u")
        for remembers in (retrieval, SearchService(scattered, SETTINGS)):
            assert await remembers.search("storm 3 of keeper 5", user_id="u", limit=50) == before
    assert steps > 2
    await fts5_merge.merge_segments(scattered, pause_seconds=0)  # what came in the middle
    assert len(await sizes(scattered)) == 1
    await require_sound(scattered)


async def test_a_merge_that_was_cut_short_is_gone_on_with(scattered: Database) -> None:
    """A process that dies between two steps leaves a sound index, which the next one merges."""
    assert await fts5_merge.merge_step(scattered, first=True, pages_max=1)
    await require_sound(scattered)
    assert len(await sizes(scattered)) > 1
    await fts5_merge.merge_segments(scattered, pause_seconds=0)
    assert len(await sizes(scattered)) == 1
    await require_sound(scattered)


async def test_the_worker_waits_for_uploads_to_rest_and_merges_once(scattered: Database) -> None:
    """A look that finds something new only remembers it; one that finds the same merges, and the next ones do nothing."""
    worker = IndexMerger(scattered)
    await worker.check_index()
    await give(scattered, 100)
    await worker.check_index()
    assert (worker.statistics().pending, worker.statistics().merges) == (True, 0)
    await worker.check_index()
    await worker.check_index()
    assert (worker.statistics().pending, worker.statistics().merges) == (False, 1)
    assert len(await sizes(scattered)) == 1


async def test_a_small_document_does_not_write_a_large_index_anew(scattered: Database) -> None:
    """What lies beside the largest segment must be a tenth of it; many small ones come to that together."""
    await give(scattered, *range(300, 400))
    await fts5_merge.merge_segments(scattered, pause_seconds=0)
    await give(scattered, 500)
    assert len(await sizes(scattered)) == 2
    assert not await fts5_merge.count_loose_pages(scattered)
    await give(scattered, *range(600, 620))
    assert await fts5_merge.count_loose_pages(scattered)


async def test_an_empty_index_is_left_alone(database: Database) -> None:
    """There is nothing to merge."""
    assert not await fts5_merge.count_loose_pages(database)
    worker = IndexMerger(database)
    for _ in range(3):
        await worker.check_index()
    assert worker.statistics().merges == 0


async def test_a_locked_database_is_waited_for(scattered: Database) -> None:
    """While another process holds the lock a look fails; the worker says so, goes on looking, and merges when it can."""
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
    assert len(await sizes(scattered)) == 1


async def test_the_service_tells_of_its_merges(serve: Serve) -> None:
    """/health/ready has the worker, which has not failed."""
    service = await serve(seeded=True)
    told = (await service.client.get("/health/ready")).json()["merging"]
    assert told["failures"] == 0
