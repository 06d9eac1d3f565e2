"""Original files: stored with their documents, within limits, deleted with them."""

import hashlib
import io

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.database.tables import original_parts
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.documents.library import Document, NewDocument
from service.core.documents.originals import PART_BYTES, Original
from service.core.errors import DocumentsFull, NotFound
from service.core.settings import Settings

SETTINGS = Settings(_env_file=None, originals_bytes_max=1_000_000)


def build_original(content: bytes, name: str = "a.pdf") -> Original:
    """A file in memory."""
    digest = hashlib.sha256(content).hexdigest()
    return Original(name, len(content), digest, lambda: io.BytesIO(content))


async def store(
    database: Database,
    content: bytes,
    *,
    text: str = "A kettle.",
    name: str = "a.pdf",
    user_id: str = "a",
    source: str | None = None,
    settings: Settings = SETTINGS,
    kept: bool = True,
) -> Document:
    """Store a text and, if `kept`, the file that it was read from."""
    original = build_original(content, name)
    new = NewDocument(
        "",
        text,
        "binary",
        source=source,
        file_hash=original.hash,
        original=original if kept else None,
    )
    (document,) = await library.store_documents(
        database, settings, ChunkWorkers(), [new], user_id=user_id
    )
    return document


async def read(database: Database, document: Document, user_id: str | None = "a") -> bytes:
    """The stored file of a document."""
    original = await library.find_original(database, document.document_id, user_id=user_id)
    return b"".join([part async for part in library.read_original(database, original)])


async def count_parts(database: Database) -> int:
    """The number of all parts."""
    async with database.read_session() as session:
        query = sa.select(sa.func.count()).select_from(original_parts)
        return int((await session.execute(query)).scalar_one())


async def test_a_file_is_stored_in_parts_and_returned_unchanged(database: Database) -> None:
    """Also at the boundaries of parts."""
    for size in (1, PART_BYTES, PART_BYTES + 1):
        content = bytes(n % 251 for n in range(size))
        document = await store(database, content, text=f"Kettle {size}.")
        assert document.original_bytes == size
        assert await read(database, document) == content
    assert await count_parts(database) == 4


async def test_a_file_is_deleted_with_its_document(database: Database) -> None:
    """Its parts too."""
    document = await store(database, b"file")
    await library.delete_document(database, document.document_id, user_id="a")
    assert await count_parts(database) == 0


async def test_a_replaced_document_loses_its_file(database: Database) -> None:
    """An upload from the same source has its own file."""
    await store(database, b"old", source="/a.pdf")
    document = await store(database, b"new", text="A teapot.", source="/a.pdf")
    assert await read(database, document) == b"new"
    assert await count_parts(database) == 1


async def test_the_last_file_of_a_text_is_kept(database: Database) -> None:
    """A text that is uploaded again as another file is stored with that file."""
    first = await store(database, b"one", name="one.txt")
    second = await store(database, b"two", name="two.txt")
    original = await library.find_original(database, first.document_id, user_id="a")
    assert second.document_id == first.document_id
    assert await read(database, first) == b"two"
    assert (original.name, original.hash) == ("two.txt", second.file_hash)


async def test_a_text_that_is_stored_gets_its_file(database: Database) -> None:
    """Files can be added after the setting was changed, by uploading them again."""
    without = await store(database, b"file", kept=False)
    with pytest.raises(NotFound):
        await read(database, without)
    document = await store(database, b"file")
    assert (document.created, document.original_bytes) == (False, 4)


async def test_a_file_that_is_no_longer_that_of_the_text_is_deleted(database: Database) -> None:
    """When files are no longer kept, and the source has another one with the same text."""
    await store(database, b"one", source="/a.txt")
    document = await store(database, b"two", source="/a.txt", kept=False)
    assert document.original_bytes is None
    assert await count_parts(database) == 0


async def test_files_have_a_limit_of_all_users(database: Database) -> None:
    """At the limit nothing of the upload is stored; a replaced file makes room."""
    settings = Settings(_env_file=None, originals_bytes_max=10)
    await store(database, b"x" * 6, source="/a", settings=settings)
    with pytest.raises(DocumentsFull, match="KOTAE_ORIGINALS_BYTES_MAX"):
        await store(database, b"y" * 5, text="A teapot.", settings=settings)
    async with database.read_session() as session:
        page = await library.list_documents(session, user_id=None, limit=10)
    assert len(page.items) == 1
    await store(database, b"z" * 10, text="A cup.", source="/a", settings=settings)
    assert await count_parts(database) == 1


async def test_one_user_can_have_half(database: Database) -> None:
    """With keys; others keep their half, and the message has only the user's own numbers."""
    settings = Settings(_env_file=None, originals_bytes_max=10, auth="keys")
    with pytest.raises(DocumentsFull, match="take 6 bytes, and one user can store 5"):
        await store(database, b"x" * 6, settings=settings)
    await store(database, b"x" * 5, settings=settings)
    document = await store(database, b"y" * 5, user_id="b", settings=settings)
    assert document.original_bytes == 5


async def test_a_file_is_visible_with_its_document(database: Database) -> None:
    """To its owner and admins only, unless it is shared."""
    document = await store(database, b"file")
    assert await read(database, document, None) == b"file"
    with pytest.raises(NotFound):
        await read(database, document, "b")
    changes = {"shared": True}
    await library.update_document(
        database, SETTINGS, ChunkWorkers(), document.document_id, changes, user_id=None
    )
    assert await read(database, document, "b") == b"file"


async def test_a_file_that_is_replaced_while_it_is_read_is_cut_off(database: Database) -> None:
    """Parts of two files are never mixed."""
    document = await store(database, b"a" * (PART_BYTES + 1))
    original = await library.find_original(database, document.document_id, user_id="a")
    parts = library.read_original(database, original)
    assert await anext(parts) == b"a" * PART_BYTES
    await store(database, b"b" * (PART_BYTES + 1))
    with pytest.raises(NotFound):
        await anext(parts)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("C:\\docs\\a.pdf", "a.pdf"),
        ("../../etc/passwd", "passwd"),
        ("a\r\nX: y\u202e.txt", "aX: y.txt"),
        ("x" * 300 + ".pdf", "x" * 196 + ".pdf"),
    ],
)
async def test_names_are_cleaned(database: Database, name: str, expected: str) -> None:
    """No path, no control characters; a long name keeps its type."""
    document = await store(database, b"file", name=name)
    original = await library.find_original(database, document.document_id, user_id="a")
    assert original.name == expected
