"""Documents: stored once, completely, and by owner."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.database.tables import chunks
from service.core.database.tables import documents as table
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkInput, ChunkWorkers, Rows
from service.core.documents.chunker import ChunkRules
from service.core.errors import DocumentsFull, InvalidCursor, NotFound, NotText
from service.core.settings import Settings

pytestmark = pytest.mark.every_database

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
    new_document = library.NewDocument(title or "", text, "utf-8")
    (document,) = await library.store_documents(
        database, settings, ChunkWorkers(), [new_document], user_id=user_id, shared=shared
    )
    return document, document.created is True


async def rows(database: Database, table: str) -> int:
    """How many rows a table has."""
    async with database.read_session() as session:
        return int((await session.execute(sa.text(f"SELECT count(*) FROM {table}"))).scalar_one())


async def test_a_document_is_stored_completely(database: Database) -> None:
    """The text is returned unchanged, and its chunks are slices of it, numbered from 1."""
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
        chunk_rows = (
            (await session.execute(sa.select(chunks).order_by(chunks.c.n))).mappings().all()
        )
        indexed_by = (await session.execute(sa.select(table.c.indexed_by))).scalar_one()
    assert read.text == TEXT
    assert read.created_at == document.created_at
    assert [row["n"] for row in chunk_rows] == list(range(1, document.chunks + 1))
    assert all(row["text"] == TEXT[row["start"] : row["end"]] for row in chunk_rows)
    assert indexed_by == library.index_name(SETTINGS)


async def test_the_same_text_twice_is_one_document(database: Database) -> None:
    """A second upload by the same owner returns the first document; other owners get their own."""
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


async def test_parallel_uploads_create_one_document(database: Database) -> None:
    """Exactly one of several concurrent uploads of a text creates it, and all return it."""
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
    """The title is the `title` or the first line, on one line, up to 300 characters."""
    assert (await keep(database, text, title=title))[0].title == expected


@pytest.mark.parametrize("text", ["", " \n", "\x01\x02\x03"])
async def test_invalid_text_is_not_stored(database: Database, text: str) -> None:
    """An empty or binary text is rejected."""
    with pytest.raises(NotText):
        await keep(database, text)
    assert await rows(database, "documents") == 0


async def test_documents_have_a_limit(database: Database) -> None:
    """At the limit a new text is rejected, but not a stored one."""
    settings = Settings(_env_file=None, documents_max=1)
    await keep(database, settings=settings)
    assert not (await keep(database, settings=settings))[1]
    with pytest.raises(DocumentsFull):
        await keep(database, "another text", settings=settings)


async def test_pages(database: Database) -> None:
    """Pages contain every document once, newest first."""
    ids = [(await keep(database, f"text {i}"))[0].document_id for i in range(7)]
    listed, cursor = [], None
    while True:
        async with database.read_session() as session:
            page = await library.list_documents(session, user_id="a", limit=3, cursor=cursor)
        listed += [document.document_id for document in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert sorted(listed) == sorted(ids)
    assert listed == sorted(listed, reverse=True)
    assert set(listed[:1]) <= set(ids)
    async with database.read_session() as session:
        with pytest.raises(InvalidCursor):
            await library.list_documents(session, user_id="a", limit=3, cursor="x' OR 1")


async def test_documents_of_other_users_are_inaccessible(database: Database) -> None:
    """Documents of others cannot be listed, read or deleted; shared ones can be read."""
    mine = (await keep(database, "mine", "a"))[0].document_id
    shared = (await keep(database, "shared", "a", shared=True))[0].document_id
    async with database.read_session() as session:
        visible = await library.list_documents(session, user_id="b", limit=9)
        everything = await library.list_documents(session, user_id=None, limit=9)
        assert [document.document_id for document in visible.items] == [shared]
        assert {document.document_id for document in everything.items} == {mine, shared}
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
    """Deleting a document deletes its chunks and index terms."""
    document, _ = await keep(database)
    await library.delete_document(database, document.document_id, user_id="a")
    assert await rows(database, "chunks") == 0
    index = {"sqlite": "chunk_vocabulary", "postgresql": "postings"}
    assert await rows(database, index[database.dialect]) == 0


class HookedWorkers(ChunkWorkers):
    """Calls `before` ahead of splitting documents."""

    def __init__(self, before: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self.before = before

    async def chunk_documents(self, documents: Sequence[ChunkInput], rules: ChunkRules) -> Rows:
        """Split documents after `before`."""
        if documents:
            await self.before()
        return await super().chunk_documents(documents, rules)


async def test_chunking_holds_no_transaction(database: Database) -> None:
    """Others can write while a document is split that was deleted during its upload."""
    first, _ = await keep(database, "to be deleted")
    writes: list[object] = []

    async def delete_and_write() -> None:
        writes.append(await keep(database, f"another text {len(writes)}", "other"))
        if len(writes) == 1:
            await library.delete_document(database, first.document_id, user_id="a")

    texts = [library.NewDocument("", text, "utf-8") for text in ("to be deleted", "new")]
    async with asyncio.timeout(4):  # a write waits five seconds for a transaction, then fails
        stored = await library.store_documents(
            database, SETTINGS, HookedWorkers(delete_and_write), texts, user_id="a"
        )

    assert [document.created for document in stored] == [True, True]
    assert len(writes) == 2


async def test_a_document_that_is_deleted_and_uploaded_again_is_not_duplicated(
    database: Database,
) -> None:
    """An upload that commits between the two transactions of another one wins."""
    first, _ = await keep(database)

    async def replace() -> None:
        await library.delete_document(database, first.document_id, user_id="a")
        workers.before = store_again

    async def store_again() -> None:
        await keep(database)

    workers = HookedWorkers(replace)
    texts = [library.NewDocument("", text, "utf-8") for text in (TEXT, "new")]
    stored = await library.store_documents(database, SETTINGS, workers, texts, user_id="a")

    assert [document.created for document in stored] == [False, True]
    assert await rows(database, "documents") == 2


async def test_seeding_is_idempotent(database: Database) -> None:
    """The samples are stored once, shared with everyone, regardless of user and repetition."""
    first = await library.seed_documents(database, SETTINGS, ChunkWorkers(), user_id="a")
    assert len(first) >= 10
    assert all(document.shared and document.created for document in first)
    assert all(600 <= document.characters <= 2500 for document in first)
    again = await library.seed_documents(database, SETTINGS, ChunkWorkers(), user_id="b")
    assert [document.document_id for document in again] == [
        document.document_id for document in first
    ]
    assert not any(document.created for document in again)
