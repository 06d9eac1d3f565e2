"""What was indexed by other rules is made anew."""

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


async def keep(database: Database, *texts: str) -> list[str]:
    """Documents indexed by the old rules."""
    stored = await library.store_documents(
        database,
        OLD,
        ChunkWorkers(),
        [library.NewDocument("", text, "utf-8") for text in texts],
        user_id="u",
    )
    return [document.document_id for document in stored]


async def words(database: Database) -> list[tuple[str, str, str]]:
    """Of every chunk: its document, text and words."""
    async with database.read_session() as session:
        found = await session.execute(
            sa.select(chunks.c.document_id, chunks.c.text, chunks.c.words).order_by(
                chunks.c.document_id, chunks.c.n
            )
        )
        return [(row.document_id, row.text, row.words) for row in found]


async def test_every_document_becomes_as_if_stored_today(database: Database) -> None:
    """Afterwards each document has the chunks and words that the rules of today give it, and nothing is outdated."""
    ids = await keep(database, TEXT, TEXT.replace("灯台", "港"))
    worker = Reindexer(database, NEW, ChunkWorkers())
    worker.start()
    await worker.wait_done()

    async with database.read_session() as session:
        rows = [
            (await library.get_document(session, document_id, user_id="u"))
            for document_id in sorted(ids)
        ]
    fresh = [
        (row.document_id, piece["text"], piece["words"])
        for row in rows
        for piece in chunk_document(
            {"id": row.document_id, "title": row.title, "text": row.text}, NEW
        )
    ]
    assert await words(database) == fresh
    assert sum(row.chunks for row in rows) == len(fresh)
    assert await library.list_outdated(database, NEW) == []
    found = worker.statistics()
    assert (found.state, found.documents, found.done) == (ReindexingState.DONE, 2, 2)


async def test_searches_go_on_and_a_deleted_document_stays_deleted(database: Database) -> None:
    """Between any two documents that are made anew a search finds every document that is there, and none that is not."""
    ids = await keep(database, *(f"灯台{n}の管理人は毎朝レンズを磨きました。" for n in range(8)))
    retrieval = SearchService(database, NEW)
    await library.delete_document(database, ids[3], user_id="u")
    there = set(ids) - {ids[3]}
    for document_id in ids:
        await library.reindex_document(database, NEW, ChunkWorkers(), document_id)
        found = await retrieval.search("灯台の管理人のレンズ", user_id="u", limit=20)
        assert {hit.document_id for hit in found.items} == there


async def test_the_service_tells_how_far_it_is(serve: Serve) -> None:
    """/health/ready says how many documents have to be made anew and how many are."""
    service = await serve(dictionary="none", seeded=True)
    begun = (await service.client.get("/health/ready")).json()["reindexing"]
    assert begun["state"] in {"running", "done"}
    assert begun["documents"] == begun["done"] == 0
