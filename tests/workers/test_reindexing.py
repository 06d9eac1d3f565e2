"""Re-indexing of documents that were indexed by other rules."""

import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.database.tables import chunks
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.documents.chunker import chunk_document
from service.core.search.service import SearchService
from service.core.settings import Settings
from service.workers.reindexing import Reindexer, ReindexingState
from tests.conftest import Serve

OLD, NEW = (
    Settings(_env_file=None, dictionary="none", chunk_characters=100),
    Settings(_env_file=None),
)
TEXT = "\n\n".join(
    f"第{n}章。灯台の管理人は毎朝レンズを磨きました。嵐の夜には{n}回鐘を鳴らします。"
    for n in range(1, 30)
)


async def store_outdated(database: Database, *texts: str) -> list[str]:
    """Store documents indexed by the old rules."""
    stored = await library.store_documents(
        database,
        OLD,
        ChunkWorkers(),
        [library.NewDocument("", text, "utf-8") for text in texts],
        user_id="u",
    )
    return [document.document_id for document in stored]


async def read_words(database: Database) -> list[tuple[str, str, str]]:
    """Return document, text and words of each chunk."""
    async with database.read_session() as session:
        results = await session.execute(
            sa.select(chunks.c.document_id, chunks.c.text, chunks.c.words).order_by(
                chunks.c.document_id, chunks.c.n
            )
        )
        return [(row.document_id, row.text, row.words) for row in results]


async def test_documents_become_as_if_stored_now(database: Database) -> None:
    """After the pass all chunks are those of the new rules, and nothing is outdated."""
    ids = await store_outdated(database, TEXT, TEXT.replace("灯台", "港"))
    worker = Reindexer(database, NEW, ChunkWorkers())
    worker.start()
    await worker.wait_done()

    async with database.read_session() as session:
        rows = [
            (await library.get_document(session, document_id, user_id="u"))
            for document_id in sorted(ids)
        ]
    expected = [
        (row.document_id, piece["text"], piece["words"])
        for row in rows
        for piece in chunk_document(
            {"id": row.document_id, "title": row.title, "text": row.text}, NEW
        )
    ]
    assert await read_words(database) == expected
    assert sum(row.chunks for row in rows) == len(expected)
    assert await library.list_outdated(database, NEW) == []
    results = worker.statistics()
    assert (results.state, results.documents, results.done) == (ReindexingState.DONE, 2, 2)


async def test_searches_continue_and_deleted_documents_stay_deleted(database: Database) -> None:
    """After each re-indexed document a search finds exactly the existing documents."""
    ids = await store_outdated(
        database, *(f"灯台{n}の管理人は毎朝レンズを磨きました。" for n in range(8))
    )
    service = SearchService(database, NEW)
    await library.delete_document(database, ids[3], user_id="u")
    there = set(ids) - {ids[3]}
    for document_id in ids:
        await library.reindex_document(database, NEW, ChunkWorkers(), document_id)
        results = await service.search("灯台の管理人のレンズ", user_id="u", limit=20)
        assert {hit.document_id for hit in results.items} == there


async def test_reindexing_is_in_the_health_report(serve: Serve) -> None:
    """/health/ready contains the number of outdated and of re-indexed documents."""
    service = await serve(dictionary="none", seeded=True)
    reindexing = (await service.client.get("/health/ready")).json()["reindexing"]
    assert reindexing["state"] in {"running", "done"}
    assert reindexing["documents"] == reindexing["done"] == 0
