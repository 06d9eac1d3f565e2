"""Documents: uploaded texts, their chunks, and their visibility.

A document is visible to its owner and, if it is shared, to everyone; only its owner may delete it.
A text that one owner uploads twice is stored once. A document is written in one transaction with
its chunks and index entries (triggers update the index), so a search sees all of it or none.

Chunking takes about one second per million characters. It runs outside the event loop
(`chunk_workers.py`), before the transaction begins: nothing else can write during a transaction.
"""

import datetime as dt
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import sqlalchemy as sa

from service.core.audit_log import Action, Actor, record_action
from service.core.database.constructs import is_listed
from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import chunks, documents, index_scopes, vectors
from service.core.documents.archives import ArchiveBudget, open_archive
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.documents.chunker import ChunkRow, hash_text
from service.core.documents.file_readers import FileReader, FileReaders
from service.core.documents.originals import (
    Original,
    StoredOriginal,
    find_original,
    read_original,
    store_originals,
)
from service.core.documents.readers.extracted import Format
from service.core.documents.tags import decode_tags, encode_tags, has_tag
from service.core.encoding import create_id, sanitize_text, utc_now
from service.core.errors import DocumentsFull, InvalidCursor, NotFound
from service.core.fair_share import compute_user_max
from service.core.settings import Settings
from service.core.text.chunking import RULES, TITLE_CHARACTERS_MAX, derive_title
from service.core.text.decoding import normalize_text, replace_nul
from service.core.text.pages import PAGE_BREAK
from service.core.text.tokenizer import get_tokenizer

STATEMENT_ROWS_MAX = 50  # preparing a row takes the event loop about 20 µs
# The public interface of this package.
__all__ = [
    "ArchiveBudget",
    "ChunkWorkers",
    "Document",
    "DocumentFilters",
    "DocumentPage",
    "FileReader",
    "FileReaders",
    "NewDocument",
    "Original",
    "StoredOriginal",
    "delete_document",
    "find_original",
    "find_private_owner",
    "get_document",
    "index_name",
    "list_documents",
    "list_outdated",
    "list_tagged",
    "list_titles",
    "open_archive",
    "read_original",
    "reindex_document",
    "seed_documents",
    "store_documents",
    "update_document",
]

SAMPLES = Path(__file__).parents[2] / "samples"


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A document as in the API. Uploads set `created`: False if the text was already stored.

    `user_id`: the owner, in lists for admins only.
    """

    document_id: str
    title: str
    chunks: int
    characters: int
    encoding: str
    format: str
    pages: int | None
    date: dt.date | None
    source: str | None
    file_hash: str | None
    original_bytes: int | None
    tags: list[str]
    shared: bool
    created_at: dt.datetime
    user_id: str | msgspec.UnsetType = msgspec.UNSET
    created: bool | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET


class NewDocument(msgspec.Struct, frozen=True):
    """An uploaded text, decoded. An empty title is replaced by the first line."""

    title: str
    text: str
    encoding: str
    format: Format = Format.TEXT
    date: dt.date | None = None
    has_pages: bool = False  # separated by `PAGE_BREAK`
    source: str | None = None  # documents of the owner with this source are replaced
    file_hash: str | None = None
    tags: Sequence[str] = ()  # none: those of a replaced document
    original: Original | None = None


class DocumentFilters(msgspec.Struct, frozen=True, kw_only=True):
    """Which documents to list. `source` is the beginning of their source."""

    owner: str | None = None
    source: str | None = None
    tags: Sequence[str] = ()


class DocumentPage(msgspec.Struct, frozen=True, kw_only=True):
    """Documents, newest first, and the `cursor` of the next page."""

    items: list[Document]
    next_cursor: str | None


async def store_documents(
    database: Database,
    settings: Settings,
    workers: ChunkWorkers,
    new_documents: Sequence[NewDocument],
    *,
    user_id: str,
    shared: bool = False,
    replace_titles: bool = False,
) -> list[Document]:
    """Store texts, all or none. `created` of each result tells whether the text is new.

    Documents of the owner with the same source, or with `replace_titles` the same title, are
    deleted in the same transaction.

    Raises `NotText`, `DocumentsFull`, `DatabaseUnavailable`.
    """
    create_row = partial(_create_row, settings=settings, user_id=user_id, shared=shared)
    rows = await anyio.to_thread.run_sync(lambda: [create_row(new) for new in new_documents])
    if not rows:
        return []
    chunk_rows: dict[str, list[ChunkRow]] = {}
    existing = await database.run_blocking_read(partial(_read_existing, rows=rows))
    missing = _select_missing(rows, existing, settings)
    while True:
        unchunked = [row for row in missing if row["id"] not in chunk_rows]
        chunk_rows |= await workers.chunk_documents(unchunked, settings)
        async with database.transaction() as session:
            # Uploads and deletes may have committed since. A document that was deleted is chunked
            # after this transaction, at most once, and then inserted by another one.
            existing = await session.run_sync(_read_existing, rows)
            missing = _select_missing(rows, existing, settings)
            if all(row["id"] in chunk_rows for row in missing):
                new = [row | {"chunks": len(chunk_rows[row["id"]])} for row in missing]
                await _insert_documents(session, new, chunk_rows)
                existing.documents.update(
                    (row["content_hash"], _to_document({name: row[name] for name in _COLUMN_NAMES}))
                    for row in new
                )
                originals = _select_originals(rows, new_documents, existing)
                changed = await _replace_documents(session, rows, existing, titles=replace_titles)
                if originals:
                    await store_originals(session, originals, settings, user_id=user_id)
                if changed or originals:
                    existing = await session.run_sync(_read_existing, rows)
                break
    results = [existing.documents[row["content_hash"]] for row in rows]
    return _mark_created(results, {row["id"] for row in new})


async def _replace_documents(
    session: Session, rows: list[dict[str, Any]], stored: "_ExistingDocuments", *, titles: bool
) -> bool:
    """Delete the documents that these rows replace, and keep their tags. Returns whether it did.

    A text that was stored already gets the source and the tags of its row.
    """
    changed = False
    for row in rows:
        replaces = [documents.c.source == row["source"]] if row["source"] is not None else []
        replaces += [documents.c.title == row["title"]] if titles else []
        if not replaces and not row["tags"]:
            continue
        document_id = stored.documents[row["content_hash"]].document_id
        mine = documents.c.user_id == row["user_id"]
        replaced = sa.select(documents.c.id, documents.c.tags).where(
            mine, documents.c.id != document_id, sa.or_(sa.false(), *replaces)
        )
        names = ["source", "file_hash", "tags"] if row["source"] is not None else ["tags"]
        changes = {name: row[name] for name in names if row[name]}
        for replaced_id, tags in (await session.execute(replaced)).all():
            changes.setdefault("tags", tags)
            await _delete_in_session(session, replaced_id, sa.true())
        if changes:
            change = sa.update(documents).where(documents.c.id == document_id, mine)
            await session.execute(change.values(changes))
            changed = True
    return changed


def _select_originals(
    rows: list[dict[str, Any]], new_documents: Sequence[NewDocument], stored: "_ExistingDocuments"
) -> dict[str, Original | None]:
    """The files to store by document id; None: the stored one is no longer that of the text."""
    selected: dict[str, Original | None] = {}
    for row, new in zip(rows, new_documents, strict=True):
        document = stored.documents[row["content_hash"]]
        is_stored, file_hash = document.original_bytes is not None, document.file_hash
        if new.original and not (is_stored and file_hash == new.original.hash):
            selected[document.document_id] = new.original
        elif is_stored and row["source"] and row["file_hash"] not in {None, file_hash}:
            selected[document.document_id] = None
    return selected


def _mark_created(documents: list[Document], created_ids: set[str]) -> list[Document]:
    """Set `created` on the first occurrence of each new document."""
    first = {document.document_id: n for n, document in reversed(list(enumerate(documents)))}
    return [
        msgspec.structs.replace(
            document,
            created=document.document_id in created_ids and first[document.document_id] == n,
        )
        for n, document in enumerate(documents)
    ]


def _create_row(
    new_document: NewDocument, settings: Settings, *, user_id: str, shared: bool
) -> dict[str, Any]:
    """Create the row of a document, without the number of chunks."""
    text = normalize_text(replace_nul(new_document.text))
    return {
        "id": create_id(created_at := utc_now()),
        "user_id": user_id,
        "shared": shared,
        "title": " ".join(sanitize_text(new_document.title).split())[:TITLE_CHARACTERS_MAX]
        or derive_title(text),
        "content_hash": hash_text(text),
        "text": text,
        "characters": len(text),
        "encoding": new_document.encoding,
        "format": new_document.format,
        "pages": text.count(PAGE_BREAK) + 1 if new_document.has_pages else None,
        "date": new_document.date,
        "source": new_document.source,
        "file_hash": new_document.file_hash,
        "original_bytes": None,
        "tags": encode_tags(new_document.tags),
        "created_at": created_at,
        "indexed_by": index_name(settings),
    }


class _ExistingDocuments(msgspec.Struct, frozen=True):
    """The number of all documents, that of the owner, and certain texts by content hash."""

    count: int
    own_count: int
    documents: dict[str, Document]


def _read_existing(connection: sa.Connection, rows: list[dict[str, Any]]) -> _ExistingDocuments:
    """Read the owner's documents with these texts; for shared texts, also those of others."""
    values = {"user_id": rows[0]["user_id"], "hashes": [row["content_hash"] for row in rows]}
    result_rows = [
        dict(row)
        for row in connection.execute(
            _select_same_texts(or_shared=rows[0]["shared"]), values
        ).mappings()
    ]
    counts = {(row.pop("total"), row.pop("own")) for row in result_rows}
    return _ExistingDocuments(
        *counts.pop(),
        {
            content_hash: _to_document(row)
            for row in result_rows
            if (content_hash := row.pop("content_hash"))
        },
    )


@lru_cache  # building the query takes longer than executing it
def _select_same_texts(*, or_shared: bool) -> sa.Select[Any]:
    """The result has at least one row, which contains the counts."""
    mine = documents.c.user_id == sa.bindparam("user_id")
    visible = sa.or_(mine, documents.c.shared) if or_shared else mine
    same = sa.and_(visible, documents.c.content_hash.in_(sa.bindparam("hashes", expanding=True)))
    own = sa.select(sa.func.count()).select_from(documents).where(mine).scalar_subquery()
    total = sa.select(sa.func.count()).select_from(documents).scalar_subquery()
    count = sa.select(total.label("total"), own.label("own")).subquery()
    query = sa.select(count.c.total, count.c.own, documents.c.content_hash, *_COLUMNS).select_from(
        count.outerjoin(documents, same)
    )
    return query.order_by(documents.c.id.desc())


def _select_missing(
    rows: list[dict[str, Any]], existing: _ExistingDocuments, settings: Settings
) -> list[dict[str, Any]]:
    """The rows that are not stored yet, each text once. Raises `DocumentsFull`."""
    missing = list(
        {
            row["content_hash"]: row
            for row in reversed(rows)
            if row["content_hash"] not in existing.documents
        }.values()
    )[::-1]
    if missing:
        _require_space(existing, len(missing), settings)
    return missing


def _require_space(existing: _ExistingDocuments, new: int, settings: Settings) -> None:
    """Raise `DocumentsFull` beyond the share of one user, or the limit of all users."""
    user_max = compute_user_max(settings.documents_max, settings.user_share)
    if existing.own_count + new > user_max:
        raise DocumentsFull(
            f"you have {existing.own_count} documents, and one user can have {user_max}: delete "
            "some; operators can raise KOTAE_DOCUMENTS_MAX"
        )
    if existing.count + new > settings.documents_max:
        raise DocumentsFull(
            "all users together have too many documents; operators can raise KOTAE_DOCUMENTS_MAX"
        )


async def _insert_documents(
    session: Session, rows: list[dict[str, Any]], chunk_rows: dict[str, list[ChunkRow]]
) -> None:
    if rows:
        await session.execute(sa.insert(documents), rows)
        numbered = (_number_pages(row, chunk_rows[row["id"]]) for row in rows)
        await _insert_chunks(session, list(chain.from_iterable(numbered)))


def _number_pages(document: Mapping[str, Any], rows: list[ChunkRow]) -> Iterator[dict[str, Any]]:
    """Yield chunk rows with the page on which each begins."""
    page, position = 1, 0
    for row in rows:
        page += document["text"].count(PAGE_BREAK, position, row["start"])
        position = row["start"]
        yield {**row, "page": page if document["pages"] else None}


async def _insert_chunks(session: Session, rows: list[dict[str, Any]]) -> None:
    """Insert chunk rows, of documents with one owner and visibility, with their scope.

    This happens in batches, because preparing them blocks the event loop. `RETURNING` makes
    SQLAlchemy use one statement for many rows. FTS5 writes its terms once per statement, which
    halves the time.
    """
    if not rows:
        return
    scope = (await session.execute(_SCOPE, {"id": rows[0]["document_id"]})).scalar_one()
    statement = sa.insert(chunks).returning(chunks.c.id)
    for begin in range(0, len(rows), STATEMENT_ROWS_MAX):
        batch = [{**row, "scope": scope} for row in rows[begin : begin + STATEMENT_ROWS_MAX]]
        await session.execute(statement, batch)


# A trigger creates the scope of an owner with their first document.
_SCOPE = (
    sa.select(sa.case((documents.c.shared, 0), else_=index_scopes.c.id))
    .select_from(documents.outerjoin(index_scopes, index_scopes.c.user_id == documents.c.user_id))
    .where(documents.c.id == sa.bindparam("id"))
)


async def list_documents(
    session: ReadSession,
    *,
    user_id: str | None,
    limit: int,
    cursor: str | None = None,
    filters: DocumentFilters | None = None,
) -> DocumentPage:
    """A page of the documents visible to `user_id` (None: all, with their owners).

    Raises `InvalidCursor`.
    """
    owner_columns = () if user_id is not None else (documents.c.user_id,)
    query = (
        sa.select(*_COLUMNS, *owner_columns)
        .where(_visible_to(user_id), *(_list_conditions(filters) if filters else ()))
        .order_by(documents.c.id.desc())
        .limit(limit + 1)
    )
    if cursor is not None:
        query = query.where(documents.c.id < _parse_cursor(cursor))
    page = [_to_document(row) for row in (await session.execute(query)).mappings()]
    return DocumentPage(
        items=page[:limit],
        next_cursor=page[limit - 1].document_id if len(page) > limit else None,
    )


async def list_titles(
    session: ReadSession, *, user_id: str | None, within: Sequence[str] | None, limit: int
) -> tuple[list[str], int]:
    """The titles of the newest documents visible to `user_id` (None: all), and their number.

    `within` restricts both to documents with these ids.
    """
    visible = _visible_to(user_id)
    if within is not None:
        visible = sa.and_(visible, _has_id(within))
    query = sa.select(documents.c.title).where(visible).order_by(documents.c.id.desc())
    titles = list((await session.execute(query.limit(limit))).scalars())
    count_query = sa.select(sa.func.count()).select_from(documents).where(visible)
    return titles, (await session.execute(count_query)).scalar_one()


def _has_id(ids: Sequence[str]) -> Any:
    """The condition that a document has one of these ids, of any number."""
    return is_listed(documents.c.id, [sanitize_text(id_) for id_ in ids])


def _list_conditions(filters: DocumentFilters) -> Iterator[Any]:
    if filters.owner is not None:
        yield documents.c.user_id == filters.owner
    if filters.source is not None:
        length = len(filters.source)
        yield sa.func.substr(documents.c.source, 1, length) == sanitize_text(filters.source)
    if filters.tags:
        yield has_tag(filters.tags)


async def list_tagged(
    database: Database, tags: Sequence[str], *, user_id: str | None, within: Sequence[str] | None
) -> list[str]:
    """The ids of the visible documents with one of these tags; `within`: only of these."""
    query = sa.select(documents.c.id).where(_visible_to(user_id), has_tag(tags))
    if within is not None:
        query = query.where(_has_id(within))
    async with database.read_session() as session:
        return list((await session.execute(query)).scalars())


async def get_document(session: ReadSession, document_id: str, *, user_id: str | None) -> Document:
    """A document with its text. Raises `NotFound` if it does not exist or is not visible."""
    return await _read_document(
        session,
        sa.and_(documents.c.id == sanitize_text(document_id), _visible_to(user_id)),
        documents.c.text,
    )


async def delete_document(
    database: Database, document_id: str, *, user_id: str | None, actor: Actor | None = None
) -> None:
    """Delete a document of `user_id` (None: of anyone) with its chunks. Raises `NotFound`.

    `actor`: who is recorded if the document belongs to another user.
    """
    document_id = sanitize_text(document_id)
    async with database.transaction() as session:
        await _record_change(session, actor, Action.DOCUMENT_DELETED, document_id)
        await _delete_in_session(session, document_id, _owned_by(user_id))


async def _record_change(
    session: Session,
    actor: Actor | None,
    action: Action,
    document_id: str,
    detail: dict[str, Any] | None = None,
) -> None:
    """Record a change of another user's document in its transaction."""
    if actor is None:
        return
    query = sa.select(documents.c.user_id).where(documents.c.id == document_id)
    owner = (await session.execute(query)).scalar()
    if owner not in {None, actor.user_id}:
        await record_action(
            session, actor, action, target_id=document_id, user_id=owner, detail=detail
        )


async def find_private_owner(session: ReadSession, document_id: str) -> str | None:
    """The owner of a document that is not shared; None if there is no such document."""
    query = sa.select(documents.c.user_id).where(
        documents.c.id == sanitize_text(document_id), documents.c.shared.is_(False)
    )
    owner: str | None = (await session.execute(query)).scalar()
    return owner


async def _delete_in_session(session: Session, document_id: str, condition: Any) -> None:
    scope, hashes = await _read_texts(session, document_id)
    query = sa.delete(documents).where(documents.c.id == document_id, condition)
    if not (await session.execute(query)).rowcount:
        raise NotFound("there is no such document")
    await _delete_unused_vectors(session, scope, hashes)


async def update_document(
    database: Database,
    settings: Settings,
    workers: ChunkWorkers,
    document_id: str,
    changes: Mapping[str, Any],
    *,
    user_id: str | None,
    actor: Actor | None = None,
) -> Document:
    """Change `title`, `tags`, `date` or `shared` of a document of `user_id` (None: of anyone).

    A new title or visibility creates its chunks again, as the index contains both. `actor`: who is
    recorded if the document belongs to another user. Raises `NotFound`, `DatabaseUnavailable`.
    """
    document_id, values = sanitize_text(document_id), dict(changes)
    if "title" in values:
        values["title"] = " ".join(sanitize_text(values["title"]).split())[:TITLE_CHARACTERS_MAX]
    if "tags" in values:
        values["tags"] = encode_tags(values["tags"])
    reindex = not values.keys().isdisjoint({"title", "shared"})
    if reindex:
        values["indexed_by"] = ""  # reindexed after the next start if this process ends before
    change = sa.update(documents).where(documents.c.id == document_id, _owned_by(user_id))
    async with database.transaction() as session:
        if values and not (await session.execute(change.values(values))).rowcount:
            raise NotFound("there is no such document")
        if values:
            detail = {"fields": sorted(changes)}
            await _record_change(session, actor, Action.DOCUMENT_CHANGED, document_id, detail)
    if reindex:
        await reindex_document(database, settings, workers, document_id)
    async with database.read_session() as session:
        return await _read_document(
            session, sa.and_(documents.c.id == document_id, _owned_by(user_id))
        )


def _owned_by(user_id: str | None) -> Any:
    return sa.true() if user_id is None else documents.c.user_id == user_id


async def _read_texts(session: Session, document_id: str) -> tuple[int | None, list[str]]:
    """Return the scope of a document's chunks, and the hashes of their texts."""
    query = sa.select(chunks.c.scope, chunks.c.content_hash).where(
        chunks.c.document_id == document_id, chunks.c.content_hash.is_not(None)
    )
    rows = (await session.execute(query.distinct())).all()
    return (rows[0][0] if rows else None), [row[1] for row in rows]


async def _delete_unused_vectors(
    session: Session, scope: int | None, hashes: Sequence[str]
) -> None:
    """Delete the vectors of texts that no chunk of the scope contains any longer."""
    for begin in range(0, len(hashes), STATEMENT_ROWS_MAX):
        batch = hashes[begin : begin + STATEMENT_ROWS_MAX]
        still_used = sa.exists().where(
            chunks.c.scope == vectors.c.scope, chunks.c.content_hash == vectors.c.content_hash
        )
        await session.execute(
            sa.delete(vectors).where(
                vectors.c.scope == scope, vectors.c.content_hash.in_(batch), ~still_used
            )
        )


async def seed_documents(
    database: Database, settings: Settings, workers: ChunkWorkers, *, user_id: str
) -> list[Document]:
    """Store the sample documents, shared with everyone. Idempotent, regardless of the user."""
    texts = [
        await anyio.Path(path).read_text(encoding="utf-8") for path in sorted(SAMPLES.glob("*.md"))
    ]
    samples = [NewDocument("", text, "utf-8") for text in texts]
    return await store_documents(database, settings, workers, samples, user_id=user_id, shared=True)


async def list_outdated(database: Database, settings: Settings) -> list[str]:
    """The ids of documents that were indexed with other rules, oldest first."""
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
    query = sa.select(documents.c.id, documents.c.title, documents.c.text, documents.c.pages).where(
        documents.c.id == document_id
    )
    async with database.read_session() as session:
        row = (await session.execute(query)).mappings().first()
    if row is None:
        return
    chunk_rows = (await workers.chunk_documents([dict(row)], settings))[document_id]
    change = (
        sa.update(documents)
        .where(documents.c.id == document_id)
        .values(chunks=len(chunk_rows), indexed_by=index_name(settings))
    )
    async with database.transaction() as session:
        if (await session.execute(change)).rowcount:  # 0: the document was deleted in between
            scope, hashes = await _read_texts(session, document_id)
            await session.execute(sa.delete(chunks).where(chunks.c.document_id == document_id))
            await _insert_chunks(session, list(_number_pages(dict(row), chunk_rows)))
            await _delete_unused_vectors(session, scope, hashes)


def index_name(settings: Settings) -> str:
    """The rules of chunking as text. Documents indexed with other rules are reindexed."""
    tokenizer = get_tokenizer(settings.dictionary).name
    target, overlap = settings.chunk_characters, settings.chunk_overlap_characters
    return f"{tokenizer} {target} {overlap} chunks-{RULES}"


_COLUMN_NAMES = (
    "id", "title", "chunks", "characters", "encoding", "format", "pages", "date", "source",
    "file_hash", "original_bytes", "tags", "shared", "created_at",
)  # fmt: skip
_COLUMNS = tuple(documents.c[name] for name in _COLUMN_NAMES)


def _to_document(row: Any) -> Document:
    values = dict(row)
    values["tags"] = decode_tags(values["tags"])
    return Document(document_id=values.pop("id"), **values)


async def _read_document(session: ReadSession, condition: Any, *extra_columns: Any) -> Document:
    row = (
        (await session.execute(sa.select(*_COLUMNS, *extra_columns).where(condition)))
        .mappings()
        .first()
    )
    if row is None:
        raise NotFound("there is no such document")
    return _to_document(row)


def _visible_to(user_id: str | None) -> Any:
    return (
        sa.true() if user_id is None else sa.or_(documents.c.user_id == user_id, documents.c.shared)
    )


def _parse_cursor(cursor: str) -> str:
    try:
        return str(uuid.UUID(cursor))
    except ValueError as error:
        raise InvalidCursor("the cursor is not the `next_cursor` of a list of documents") from error
