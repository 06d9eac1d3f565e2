"""The uploaded files themselves, kept beside their texts if `originals_bytes_max` is not 0.

A file is stored in parts, in the transaction that stores its document, and deleted with it. Each
part is read by a query of its own, so that a slow client holds one part in memory and no session.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import BinaryIO

import anyio.to_thread
import msgspec
import sqlalchemy as sa

from service.core.database.engine import Database, Session
from service.core.database.tables import documents, original_parts
from service.core.encoding import sanitize_text
from service.core.errors import DocumentsFull, NotFound
from service.core.fair_share import compute_user_max
from service.core.settings import Settings

PART_BYTES = 256 * 1024
NAME_CHARACTERS_MAX = 200


class Original(msgspec.Struct, frozen=True):
    """An uploaded file. `open` is called when it is stored; `hash` is its SHA-256."""

    name: str
    size: int
    hash: str
    open: Callable[[], BinaryIO]


class StoredOriginal(msgspec.Struct, frozen=True):
    """The name, the size in bytes and the SHA-256 of a stored file."""

    document_id: str
    name: str
    size: int
    hash: str


async def store_originals(
    session: Session, originals: Mapping[str, Original | None], settings: Settings, *, user_id: str
) -> None:
    """Store files by document id, instead of earlier ones. None: only delete the earlier one.

    Documents of others are left out. Raises `DocumentsFull`.
    """
    mine = sa.and_(documents.c.id.in_(list(originals)), documents.c.user_id == user_id)
    ids: Sequence[str] = (
        (await session.execute(sa.select(documents.c.id).where(mine))).scalars().all()
    )
    if not ids:
        return
    await session.execute(sa.delete(original_parts).where(original_parts.c.document_id.in_(ids)))
    await session.execute(sa.update(documents).where(mine).values(original_bytes=None))
    new = {id_: original for id_ in ids if (original := originals[id_])}
    await _require_space(session, sum(file.size for file in new.values()), settings, user_id)
    for id_, original in new.items():
        size = await _insert_parts(session, id_, original)
        values = {"file_name": _clean_name(original.name), "file_hash": original.hash}
        change = sa.update(documents).where(documents.c.id == id_)
        await session.execute(change.values(original_bytes=size, **values))


async def _require_space(session: Session, size: int, settings: Settings, user_id: str) -> None:
    """Raise `DocumentsFull` beyond the share of one user, or the limit of all users."""
    if not size:
        return
    total = sa.func.coalesce(sa.func.sum(documents.c.original_bytes), 0)
    stored = documents.c.original_bytes.is_not(None)
    own_query = sa.select(total).where(documents.c.user_id == user_id, stored)
    own = (await session.execute(own_query)).scalar_one()
    user_max = compute_user_max(settings.originals_bytes_max, settings.user_share)
    if own + size > user_max:
        raise DocumentsFull(
            f"your files would take {own + size} bytes, and one user can store {user_max}: delete "
            "documents; operators can raise KOTAE_ORIGINALS_BYTES_MAX"
        )
    if (await session.execute(sa.select(total).where(stored))).scalar_one() + size > (
        settings.originals_bytes_max
    ):
        raise DocumentsFull(
            "the files of all users together are too large; operators can raise "
            "KOTAE_ORIGINALS_BYTES_MAX"
        )


async def _insert_parts(session: Session, document_id: str, original: Original) -> int:
    """Insert the parts of a file, one statement each. Returns its size in bytes."""
    file = await anyio.to_thread.run_sync(original.open)
    size = n = 0
    while part := await anyio.to_thread.run_sync(file.read, PART_BYTES):
        values = {"document_id": document_id, "n": n, "content": part}
        await session.execute(sa.insert(original_parts), values)
        size, n = size + len(part), n + 1
    return size


def _clean_name(name: str) -> str:
    """A file name without its path and control characters; the end, which has the type, is kept."""
    name = sanitize_text(name).replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in name if c.isprintable())[-NAME_CHARACTERS_MAX:].strip()


async def find_original(
    database: Database, document_id: str, *, user_id: str | None
) -> StoredOriginal:
    """The stored file of a document that is visible to `user_id` (None: to all).

    Raises `NotFound` if there is no such document, or if its file is not stored.
    """
    names = ("id", "file_name", "original_bytes", "file_hash")
    query = sa.select(*(documents.c[name] for name in names)).where(
        documents.c.id == sanitize_text(document_id),
        documents.c.original_bytes.is_not(None),
        sa.true()
        if user_id is None
        else sa.or_(documents.c.user_id == user_id, documents.c.shared),
    )
    async with database.read_session() as session:
        row = (await session.execute(query)).first()
    if row is None:
        raise NotFound("there is no such document, or its original file is not stored")
    return StoredOriginal(*row)


async def read_original(database: Database, original: StoredOriginal) -> AsyncGenerator[bytes]:
    """Yield the parts of a file. Raises `NotFound` if it was deleted or replaced meanwhile."""
    same = sa.and_(documents.c.id == original.document_id, documents.c.file_hash == original.hash)
    parts = original_parts.join(documents, documents.c.id == original_parts.c.document_id)
    query = sa.select(original_parts.c.content).select_from(parts).where(same)
    for n in range(-(-original.size // PART_BYTES)):
        async with database.read_session() as session:
            part_query = query.where(original_parts.c.n == n)
            part = (await session.execute(part_query)).scalar_one_or_none()
        if part is None:
            raise NotFound("the file was deleted or replaced while it was sent")
        yield part
