"""Documents: the texts that were given, their chunks, and who may see them.

A document is visible to its owner and, if it is shared, to everyone; only its owner may delete it. The same text given
twice by one owner is one document. All of a document is written in one transaction, chunks and index included (triggers
keep the index in step with `chunks`), so that a search sees the whole of it or nothing.

Chunking takes about a second per million characters. It is done outside the event loop (`chunk_workers.py`), before the
transaction begins.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import sqlalchemy as sa

from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import chunks, documents, vectors
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.documents.chunker import ChunkRow, hash_text
from service.core.encoding import create_id, replace_surrogates, utc_now
from service.core.errors import DocumentsFull, InvalidCursor, NotFound
from service.core.settings import Settings
from service.core.text.chunking import TITLE_CHARACTERS_MAX, derive_title
from service.core.text.decoding import normalize_text
from service.core.text.tokenizer import get_tokenizer

CHUNKS_AT_ONCE = 50  # rows of one statement: preparing them is work on the loop, about 20 µs a row
# The public interface of this package.
__all__ = [
    "ChunkWorkers",
    "Document",
    "DocumentPage",
    "NewDocument",
    "delete_document",
    "get_document",
    "index_name",
    "list_documents",
    "list_outdated",
    "reindex_document",
    "seed_documents",
    "store_documents",
]

SAMPLES = Path(__file__).parents[2] / "samples"


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A document as the wire shows it. `created` is there in the answer to an upload: False if it was there before."""

    document_id: str
    title: str
    chunks: int
    characters: int
    encoding: str
    shared: bool
    created_at: datetime
    created: bool | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET


class NewDocument(msgspec.Struct, frozen=True):
    """A text as it was given, decoded. Without a title its first line is its title."""

    title: str
    text: str
    encoding: str


class DocumentPage(msgspec.Struct, frozen=True, kw_only=True):
    """Documents, newest first, and what to pass as `cursor` for those after them."""

    items: list[Document]
    next_cursor: str | None


async def store_documents(
    database: Database,
    settings: Settings,
    workers: ChunkWorkers,
    given: Sequence[NewDocument],
    *,
    user_id: str,
    shared: bool = False,
) -> list[Document]:
    """Keep texts, all of them or none; each result says whether it is new.

    Raises `NotText`, `DocumentsFull`, `DatabaseUnavailable`.
    """
    rows = await anyio.to_thread.run_sync(
        lambda: [_row(each, settings, user_id=user_id, shared=shared) for each in given]
    )
    if not rows:
        return []
    there = await database.run_blocking_read(partial(_there, rows=rows))
    pieces = await workers.chunk_documents(_missing(rows, there, settings), settings)
    async with database.transaction() as session:  # asked again, now that nobody else can write
        there = await session.run_sync(_there, rows)
        missing = _missing(rows, there, settings)
        deleted_meanwhile = [row for row in missing if row["id"] not in pieces]
        pieces |= await workers.chunk_documents(deleted_meanwhile, settings)
        new = [row | {"chunks": len(pieces[row["id"]])} for row in missing]
        await _insert(session, new, pieces)
    known = there.documents | {
        row["content_hash"]: _document({name: row[name] for name in _NAMES}) for row in new
    }
    found = [known[row["content_hash"]] for row in rows]
    created, first = (
        {row["id"] for row in new},
        {document.document_id: n for n, document in reversed(list(enumerate(found)))},
    )
    return [
        msgspec.structs.replace(
            document, created=document.document_id in created and first[document.document_id] == n
        )
        for n, document in enumerate(found)
    ]


def _row(given: NewDocument, settings: Settings, *, user_id: str, shared: bool) -> dict[str, Any]:
    """The row of a document, before it is split into chunks."""
    text = normalize_text(given.text)
    return {
        "id": create_id(at := utc_now()),
        "user_id": user_id,
        "shared": shared,
        "title": " ".join(replace_surrogates(given.title).split())[:TITLE_CHARACTERS_MAX]
        or derive_title(text),
        "content_hash": hash_text(text),
        "text": text,
        "characters": len(text),
        "encoding": given.encoding,
        "created_at": at,
        "indexed_by": index_name(settings),
    }


class _There(msgspec.Struct, frozen=True):
    """How many documents are kept in all; and, by their hash, those of some texts that the owner has."""

    count: int
    documents: dict[str, Document]


def _there(connection: sa.Connection, rows: list[dict[str, Any]]) -> _There:
    """What is kept, of the documents with these texts; for shared ones, what anybody shares, too."""
    values = {"user_id": rows[0]["user_id"], "hashes": [row["content_hash"] for row in rows]}
    found = [
        dict(row)
        for row in connection.execute(_same_texts(or_shared=rows[0]["shared"]), values).mappings()
    ]
    kept = max(row.pop("kept") for row in found)
    return _There(
        kept,
        {
            content_hash: _document(row)
            for row in found
            if (content_hash := row.pop("content_hash"))
        },
    )


@lru_cache  # to make it takes longer than to ask it
def _same_texts(*, or_shared: bool) -> sa.Select[Any]:
    """One row at least, which has the count."""
    mine = documents.c.user_id == sa.bindparam("user_id")
    visible = sa.or_(mine, documents.c.shared) if or_shared else mine
    same = sa.and_(visible, documents.c.content_hash.in_(sa.bindparam("hashes", expanding=True)))
    all_ = sa.select(sa.func.count().label("kept")).select_from(documents).subquery()
    query = sa.select(all_.c.kept, documents.c.content_hash, *_COLUMNS).select_from(
        all_.outerjoin(documents, same)
    )
    return query.order_by(documents.c.id.desc())


def _missing(rows: list[dict[str, Any]], there: _There, settings: Settings) -> list[dict[str, Any]]:
    """Those rows that are not there, each text once. Raises `DocumentsFull`."""
    missing = list(
        {
            row["content_hash"]: row
            for row in reversed(rows)
            if row["content_hash"] not in there.documents
        }.values()
    )[::-1]
    if missing and there.count + len(missing) > settings.documents_max:
        raise DocumentsFull(
            f"{there.count} documents are kept, and KOTAE_DOCUMENTS_MAX is {settings.documents_max}: delete some, or raise it."
        )
    return missing


async def _insert(
    session: Session, rows: list[dict[str, Any]], pieces: dict[str, list[ChunkRow]]
) -> None:
    if rows:
        await session.execute(sa.insert(documents), rows)
        await _insert_chunks(session, [piece for row in rows for piece in pieces[row["id"]]])


async def _insert_chunks(session: Session, pieces: list[ChunkRow]) -> None:
    """Insert the rows of chunks, some at a time: preparing them is work on the loop.

    Whoever asks for the ids gets one statement for many rows, and FTS5 writes its terms once a statement, which is half the time.
    """
    statement = sa.insert(chunks).returning(chunks.c.id)
    for begin in range(0, len(pieces), CHUNKS_AT_ONCE):
        await session.execute(statement, pieces[begin : begin + CHUNKS_AT_ONCE])


async def list_documents(
    session: ReadSession, *, user_id: str | None, limit: int, cursor: str | None = None
) -> DocumentPage:
    """The documents that `user_id` may see, newest first; None sees all. Raises `InvalidCursor`."""
    query = (
        sa.select(*_COLUMNS)
        .where(_visible(user_id))
        .order_by(documents.c.id.desc())
        .limit(limit + 1)
    )
    if cursor is not None:
        query = query.where(documents.c.id < _checked(cursor))
    found = [_document(row) for row in (await session.execute(query)).mappings()]
    return DocumentPage(
        items=found[:limit],
        next_cursor=found[limit - 1].document_id if len(found) > limit else None,
    )


async def get_document(session: ReadSession, document_id: str, *, user_id: str | None) -> Document:
    """One document with its text. Raises `NotFound` if there is none, or none for this user."""
    return await _one(
        session,
        sa.and_(documents.c.id == replace_surrogates(document_id), _visible(user_id)),
        documents.c.text,
    )


async def delete_document(database: Database, document_id: str, *, user_id: str | None) -> None:
    """Delete a document of this user's, with its chunks and index; None may delete any. Raises `NotFound`."""
    query = sa.delete(documents).where(documents.c.id == replace_surrogates(document_id))
    if user_id is not None:
        query = query.where(documents.c.user_id == user_id)
    its = sa.select(chunks.c.content_hash).where(
        chunks.c.document_id == replace_surrogates(document_id), chunks.c.content_hash.is_not(None)
    )
    async with database.transaction() as session:
        hashes = list((await session.execute(its.distinct())).scalars())
        if not (await session.execute(query)).rowcount:
            raise NotFound("There is no such document.")
        await _forget_vectors(session, hashes)


async def _forget_vectors(session: Session, hashes: Sequence[str]) -> None:
    """Delete the vectors of texts that no chunk has any more."""
    for begin in range(0, len(hashes), CHUNKS_AT_ONCE):
        some = hashes[begin : begin + CHUNKS_AT_ONCE]
        there = sa.exists().where(chunks.c.content_hash == vectors.c.content_hash)
        await session.execute(sa.delete(vectors).where(vectors.c.content_hash.in_(some), ~there))


async def seed_documents(
    database: Database, settings: Settings, workers: ChunkWorkers, *, user_id: str
) -> list[Document]:
    """Keep the sample documents, shared with everyone, once however often and by whom it is asked for."""
    texts = [
        await anyio.Path(path).read_text(encoding="utf-8") for path in sorted(SAMPLES.glob("*.md"))
    ]
    given = [NewDocument("", text, "utf-8") for text in texts]
    return await store_documents(database, settings, workers, given, user_id=user_id, shared=True)


async def list_outdated(database: Database, settings: Settings) -> list[str]:
    """The ids of the documents whose chunks are not what they would be today, oldest first."""
    query = (
        sa.select(documents.c.id)
        .where(documents.c.indexed_by != index_name(settings))
        .order_by(documents.c.id)
    )
    async with database.read_session() as session:
        return list((await session.execute(query)).scalars())


async def reindex_document(
    database: Database, settings: Settings, workers: ChunkWorkers, document_id: str
) -> None:
    """Replace the chunks of a document, if it still exists."""
    query = sa.select(documents.c.id, documents.c.title, documents.c.text).where(
        documents.c.id == document_id
    )
    async with database.read_session() as session:
        row = (await session.execute(query)).mappings().first()
    if row is None:
        return
    pieces = (await workers.chunk_documents([dict(row)], settings))[document_id]
    change = (
        sa.update(documents)
        .where(documents.c.id == document_id)
        .values(chunks=len(pieces), indexed_by=index_name(settings))
    )
    async with database.transaction() as session:
        if (await session.execute(change)).rowcount:  # else it was deleted meanwhile
            its = sa.select(chunks.c.content_hash).where(
                chunks.c.document_id == document_id, chunks.c.content_hash.is_not(None)
            )
            hashes = list((await session.execute(its.distinct())).scalars())
            await session.execute(sa.delete(chunks).where(chunks.c.document_id == document_id))
            await _insert_chunks(session, pieces)
            await _forget_vectors(session, hashes)


def index_name(settings: Settings) -> str:
    """What a document's chunks depend on besides its text. Those made by another are made anew."""
    return f"{get_tokenizer(settings.dictionary).name} {settings.chunk_characters} {settings.chunk_overlap_characters}"


_NAMES = ("id", "title", "chunks", "characters", "encoding", "shared", "created_at")
_COLUMNS = tuple(documents.c[name] for name in _NAMES)


def _document(row: Any) -> Document:
    values = dict(row)
    return Document(document_id=values.pop("id"), **values)


async def _one(session: ReadSession, condition: Any, *more: Any) -> Document:
    row = (await session.execute(sa.select(*_COLUMNS, *more).where(condition))).mappings().first()
    if row is None:
        raise NotFound("There is no such document.")
    return _document(row)


def _visible(user_id: str | None) -> Any:
    return (
        sa.true() if user_id is None else sa.or_(documents.c.user_id == user_id, documents.c.shared)
    )


def _checked(cursor: str) -> str:
    try:
        return str(uuid.UUID(cursor))
    except ValueError as error:
        raise InvalidCursor(
            "The cursor is not the `next_cursor` of a list of documents."
        ) from error
