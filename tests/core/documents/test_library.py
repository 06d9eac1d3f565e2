"""Documents: kept once, whole, and by their owner."""

import asyncio

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.database.tables import chunks
from service.core.database.tables import documents as table
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.errors import DocumentsFull, InvalidCursor, NotFound, NotText
from service.core.settings import Settings

SETTINGS = Settings(_env_file=None)
TEXT = "# Lighthouse\n\n" + " ".join(
    f"Sentence number {i} says something about the lighthouse." for i in range(60)
)


async def keep(
    database: Database,
    text: str = TEXT,
    user_id: str = "a",
    title: str | None = None,
    settings: Settings = SETTINGS,
    *,
    shared: bool = False,
) -> tuple[library.Document, bool]:
    """Store a text."""
    given = library.NewDocument(title or "", text, "utf-8")
    (document,) = await library.store_documents(
        database, settings, ChunkWorkers(), [given], user_id=user_id, shared=shared
    )
    return document, document.created is True


async def rows(database: Database, table: str) -> int:
    """How many rows a table has."""
    async with database.read_session() as session:
        return int((await session.execute(sa.text(f"SELECT count(*) FROM {table}"))).scalar_one())


async def test_a_document_is_kept_whole(database: Database) -> None:
    """The document comes back as it was given, and its chunks are slices of it, numbered from 1."""
    document, created = await keep(database)
    assert created
    assert document.created is True
    assert (document.title, document.characters, document.encoding, document.shared) == (
        "Lighthouse",
        len(TEXT),
        "utf-8",
        False,
    )
    async with database.read_session() as session:
        read = await library.get_document(session, document.document_id, user_id="a")
        found = (await session.execute(sa.select(chunks).order_by(chunks.c.n))).mappings().all()
        made_by = (await session.execute(sa.select(table.c.indexed_by))).scalar_one()
    assert read.text == TEXT
    assert read.created_at == document.created_at
    assert [row["n"] for row in found] == list(range(1, document.chunks + 1))
    assert all(row["text"] == TEXT[row["start"] : row["end"]] for row in found)
    assert made_by == library.index_name(SETTINGS)


async def test_the_same_text_twice_is_one_document(database: Database) -> None:
    """A second upload of the same text by its owner is the first one; another owner has one of its own."""
    first, _ = await keep(database, title="one")
    second, created = await keep(database, TEXT.replace("\n", "\r\n"), title="two")
    assert (second.document_id, second.title, second.created, created) == (
        first.document_id,
        "one",
        False,
        False,
    )
    other, created = await keep(database, user_id="b")
    assert created
    assert other.document_id != first.document_id


async def test_parallel_uploads_make_one_document(database: Database) -> None:
    """Of many uploads of one text at once exactly one creates it, and all get it."""
    results = await asyncio.gather(*(keep(database) for _ in range(8)))
    assert len({document.document_id for document, _ in results}) == 1
    assert sum(created for _, created in results) == 1
    assert await rows(database, "documents") == 1
    assert await rows(database, "chunks") == results[0][0].chunks


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("  Given \n title ", "text", "Given title"),
        (None, "\n\n## First line ##\nmore", "First line ##"),
        ("", "#\nmore", "#"),
        ("\ud800x", "text", "\ufffdx"),
        ("あ" * 400, "text", "あ" * 300),
    ],
)
async def test_titles(database: Database, title: str | None, text: str, expected: str) -> None:
    """The title is what was given, else the first line, on one line of at most 300 characters."""
    assert (await keep(database, text, title=title))[0].title == expected


@pytest.mark.parametrize("text", ["", " \n", "a\0b", "\x01\x02\x03"])
async def test_what_is_not_a_text_is_not_kept(database: Database, text: str) -> None:
    """An empty or binary text is refused and leaves nothing."""
    with pytest.raises(NotText):
        await keep(database, text)
    assert await rows(database, "documents") == 0


async def test_documents_have_a_limit(database: Database) -> None:
    """At the limit a new text is refused; one that is there already is not."""
    settings = Settings(_env_file=None, documents_max=1)
    await keep(database, settings=settings)
    assert not (await keep(database, settings=settings))[1]
    with pytest.raises(DocumentsFull):
        await keep(database, "another text", settings=settings)


async def test_pages(database: Database) -> None:
    """Pages go from the newest to the oldest, each document once."""
    ids = [(await keep(database, f"text {i}"))[0].document_id for i in range(7)]
    seen, cursor = [], None
    while True:
        async with database.read_session() as session:
            page = await library.list_documents(session, user_id="a", limit=3, cursor=cursor)
        seen += [one.document_id for one in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert sorted(seen) == sorted(ids)
    assert seen == sorted(seen, reverse=True)
    assert set(seen[:1]) <= set(ids)
    async with database.read_session() as session:
        with pytest.raises(InvalidCursor):
            await library.list_documents(session, user_id="a", limit=3, cursor="x' OR 1")


async def test_no_one_reads_or_deletes_anothers(database: Database) -> None:
    """A foreign document is not there: not listed, not read, not deleted. A shared one is read, and deleted by its owner only."""
    mine = (await keep(database, "mine", "a"))[0].document_id
    shared = (await keep(database, "shared", "a", shared=True))[0].document_id
    async with database.read_session() as session:
        assert [
            one.document_id
            for one in (await library.list_documents(session, user_id="b", limit=9)).items
        ] == [shared]
        assert {
            one.document_id
            for one in (await library.list_documents(session, user_id=None, limit=9)).items
        } == {mine, shared}
        assert (await library.get_document(session, shared, user_id="b")).text == "shared"
        for document_id in (mine, "unknown", "\ud800"):
            with pytest.raises(NotFound):
                await library.get_document(session, document_id, user_id="b")
    for document_id in (mine, shared, "unknown", "\ud800"):
        with pytest.raises(NotFound):
            await library.delete_document(database, document_id, user_id="b")
    assert await rows(database, "documents") == 2
    await library.delete_document(database, mine, user_id="a")
    await library.delete_document(database, shared, user_id=None)
    assert await rows(database, "documents") == 0


async def test_a_delete_takes_everything_with_it(database: Database) -> None:
    """With the document go its chunks and every term of the index."""
    document, _ = await keep(database)
    await library.delete_document(database, document.document_id, user_id="a")
    assert await rows(database, "chunks") == 0
    assert await rows(database, "chunk_vocabulary") == 0


async def test_seeding_is_idempotent(database: Database) -> None:
    """The samples are kept once, in both languages, shared with everyone, whoever asks and however often."""
    first = await library.seed_documents(database, SETTINGS, ChunkWorkers(), user_id="a")
    assert len(first) >= 10
    assert all(one.shared and one.created and 600 <= one.characters <= 2500 for one in first)
    again = await library.seed_documents(database, SETTINGS, ChunkWorkers(), user_id="b")
    assert [one.document_id for one in again] == [one.document_id for one in first]
    assert not any(one.created for one in again)
