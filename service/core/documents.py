"""Documents: the texts that were given, their chunks, and who may see them.

A document is visible to its owner and, if it is shared, to everyone; only its owner may delete it. The same text given
twice by one owner is one document. All of a document is written in one transaction, chunks and index included (triggers
keep the index in step with `chunks`), so that a search sees the whole of it or nothing.

Cutting and tokenising take about a second per million characters; they are done in a thread, one document at a time,
before the transaction begins.
"""

import hashlib
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import anyio.to_thread
import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from service.core.db import Database, ReadSession, Session
from service.core.errors import DocumentsFull, InvalidCursor, NotFound
from service.core.events import clean, new_id, now
from service.core.settings import Settings
from service.core.tables import chunks, documents, index_info
from service.core.terms import TOKENIZER, japanese_share, terms
from service.core.texts import is_heading, split, tidy

TITLE_CHARACTERS_MAX = 300
SHARE_CHARACTERS = 20_000  # of a text's beginning, by which its language is judged
CHUNKS_AT_ONCE = 100  # rows of one statement: preparing them is work on the loop, about 20 µs a row
SAMPLES = Path(__file__).parents[1] / "samples"

Prepared: TypeAlias = tuple[dict[str, Any], list[dict[str, Any]]]  # the row of a document, the rows of its chunks

_indexing = anyio.CapacityLimiter(1)


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


class Given(msgspec.Struct, frozen=True):
    """A text as it was given, decoded. Without a title its first line is its title."""

    title: str
    text: str
    encoding: str


class DocumentPage(msgspec.Struct, frozen=True, kw_only=True):
    """Documents, newest first, and what to pass as `cursor` for those after them."""

    items: list[Document]
    next_cursor: str | None


async def store(database: Database, settings: Settings, given: Sequence[Given], *, user_id: str, shared: bool = False) -> list[Document]:
    """Keep texts, all of them or none; each result says whether it is new.

    Raises `NotText`, `DocumentsFull`, `DatabaseUnavailable`.
    """
    prepared = [await _prepare(database, settings, each, user_id=user_id, shared=shared) for each in given]
    async with database.transaction() as session:
        await session.execute(insert(index_info).values(name="tokenizer", value=TOKENIZER).on_conflict_do_nothing())
        return [await _insert(session, settings, row, pieces) for row, pieces in prepared]


async def _prepare(database: Database, settings: Settings, given: Given, *, user_id: str, shared: bool) -> Prepared:
    """The rows of a document and its chunks. One that is there already is not cut again."""
    text = await anyio.to_thread.run_sync(tidy, given.text)
    row = {
        "id": new_id(at := now()),
        "user_id": user_id,
        "shared": shared,
        "title": _title(given.title, text),
        "content_hash": await anyio.to_thread.run_sync(lambda: hashlib.sha256(text.encode()).hexdigest()),
        "text": text,
        "characters": len(text),
        "encoding": given.encoding,
        "created_at": at,
    }
    async with database.reading() as session:
        if await _same(session, row):
            return row, []
        await _check_room(session, settings)
    return row, await anyio.to_thread.run_sync(_pieces, row, settings, limiter=_indexing)


async def _insert(session: Session, settings: Settings, row: dict[str, Any], pieces: list[dict[str, Any]]) -> Document:
    """Insert one document, unless it is there: asked again, now that nobody else can write."""
    if there := await _same(session, row):
        return there
    if not pieces:  # it was there a moment ago, and has been deleted meanwhile
        pieces = await anyio.to_thread.run_sync(_pieces, row, settings, limiter=_indexing)
    await _check_room(session, settings)
    await session.execute(sa.insert(documents).values(**row, chunks=len(pieces)))
    await session.execute(sa.insert(chunks), pieces)
    return msgspec.structs.replace(await _one(session, documents.c.id == row["id"]), created=True)


async def list_documents(session: ReadSession, *, user_id: str | None, limit: int, cursor: str | None = None) -> DocumentPage:
    """The documents that `user_id` may see, newest first; None sees all. Raises `InvalidCursor`."""
    query = sa.select(*_COLUMNS).where(_visible(user_id)).order_by(documents.c.id.desc()).limit(limit + 1)
    if cursor is not None:
        query = query.where(documents.c.id < _checked(cursor))
    found = [_document(row) for row in (await session.execute(query)).mappings()]
    return DocumentPage(items=found[:limit], next_cursor=found[limit - 1].document_id if len(found) > limit else None)


async def get(session: ReadSession, document_id: str, *, user_id: str | None) -> Document:
    """One document with its text. Raises `NotFound` if there is none, or none for this user."""
    return await _one(session, sa.and_(documents.c.id == clean(document_id), _visible(user_id)), documents.c.text)


async def delete(database: Database, document_id: str, *, user_id: str | None) -> None:
    """Delete a document of this user's, with its chunks and index; None may delete any. Raises `NotFound`."""
    query = sa.delete(documents).where(documents.c.id == clean(document_id))
    if user_id is not None:
        query = query.where(documents.c.user_id == user_id)
    async with database.transaction() as session:
        if not (await session.execute(query)).rowcount:
            raise NotFound("There is no such document.")


async def seed(database: Database, settings: Settings, *, user_id: str) -> list[Document]:
    """Keep the sample documents, shared with everyone, once however often and by whom it is asked for."""
    texts = [await anyio.Path(path).read_text(encoding="utf-8") for path in sorted(SAMPLES.glob("*.md"))]
    return await store(database, settings, [Given("", text, "utf-8") for text in texts], user_id=user_id, shared=True)


def _pieces(document: dict[str, Any], settings: Settings) -> list[dict[str, Any]]:
    """The rows of a document's chunks. The index also knows each chunk by the title and the heading that it stands under."""
    text, heading, rows = document["text"], "", []
    position = 0
    # A Japanese character says about as much as two Latin letters.
    scale = 1 if japanese_share(text[:SHARE_CHARACTERS]) >= 0.1 else 2
    for n, piece in enumerate(split(text, settings.chunk_characters * scale, settings.chunk_overlap_characters * scale), 1):
        heading = _last_heading(text, position, piece.start) or heading
        above = "" if is_heading(text, piece.start) else heading
        known = terms(f"{document['title']}\n{above}\n{piece.text}")
        position = piece.start
        rows.append(
            {
                "document_id": document["id"],
                "n": n,
                "start": piece.start,
                "end": piece.end,
                "text": piece.text,
                "words": " ".join(known.words),
                "grams": " ".join(known.grams),
            }
        )
    return rows


def _last_heading(text: str, start: int, end: int) -> str:
    """The last Markdown heading that begins in `text[start:end]`, or nothing."""
    at = text.rfind("\n#", start, end) + 1 if not is_heading(text, start) or text.rfind("\n#", start, end) >= 0 else start
    return text[at:end].partition("\n")[0] if is_heading(text, at) and start <= at < end else ""


def _title(given: str, text: str) -> str:
    first = next(line for line in text.splitlines() if line.strip())
    title = " ".join(clean(given).split()) or first.strip().lstrip("#").strip() or first.strip()
    return title[:TITLE_CHARACTERS_MAX]


_COLUMNS = tuple(documents.c[name] for name in ("id", "title", "chunks", "characters", "encoding", "shared", "created_at"))


def _document(row: Any) -> Document:
    values = dict(row)
    return Document(document_id=values.pop("id"), **values)


async def _one(session: ReadSession, condition: Any, *more: Any) -> Document:
    row = (await session.execute(sa.select(*_COLUMNS, *more).where(condition))).mappings().first()
    if row is None:
        raise NotFound("There is no such document.")
    return _document(row)


async def _same(session: ReadSession, row: dict[str, Any]) -> Document | None:
    """The document with this text that the owner has; for a shared one, that anybody shares."""
    mine = documents.c.user_id == row["user_id"]
    condition = sa.and_(documents.c.content_hash == row["content_hash"], sa.or_(mine, documents.c.shared) if row["shared"] else mine)
    found = (await session.execute(sa.select(*_COLUMNS).where(condition).limit(1))).mappings().first()
    return None if found is None else msgspec.structs.replace(_document(found), created=False)


async def _check_room(session: ReadSession, settings: Settings) -> None:
    count = (await session.execute(sa.select(sa.func.count()).select_from(documents))).scalar_one()
    if count >= settings.documents_max:
        raise DocumentsFull(f"{count} documents are kept, which is KOTAE_DOCUMENTS_MAX: delete some, or raise it.")


def _visible(user_id: str | None) -> Any:
    return sa.true() if user_id is None else sa.or_(documents.c.user_id == user_id, documents.c.shared)


def _checked(cursor: str) -> str:
    try:
        return str(uuid.UUID(cursor))
    except ValueError as error:
        raise InvalidCursor("The cursor is not the `next_cursor` of a list of documents.") from error
