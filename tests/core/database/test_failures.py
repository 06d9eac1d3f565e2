"""Errors of the driver, and damaged database files."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.database.failures import DamagedValue, load_json
from service.core.database.tables import metadata, request_logs
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.errors import DatabaseUnavailable
from service.core.settings import Settings
from tests.damage import change_page
from tests.records import build_intent, build_outcome
from tests.rows import write

SETTINGS = Settings(_env_file=None)


@pytest.fixture
async def filled(database: Database) -> Path:
    """A database file with rows, documents and an index, without a WAL."""
    await library.seed_documents(database, SETTINGS, ChunkWorkers(), user_id="local")
    await write(database, [build_outcome(build_intent(user_id=f"u{n}")) for n in range(30)])
    await database.close()
    assert database.file
    with sqlite3.connect(database.file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    return database.file


async def read_everything(database: Database) -> None:
    """Read all tables and the terms of the full-text index."""
    async with database.read_session() as session:
        for table in metadata.tables.values():
            (await session.execute(sa.select(table))).all()
        (await session.execute(sa.text("SELECT * FROM chunk_vocabulary"))).all()
        await session.execute(
            sa.text("SELECT rowid FROM chunk_terms WHERE chunk_terms MATCH 'tea'")
        )


async def test_an_intact_database_has_no_damage(database: Database) -> None:
    """The check finds nothing, and reads report nothing."""
    await library.seed_documents(database, SETTINGS, ChunkWorkers(), user_id="local")

    assert await database.check_pages() is None
    await read_everything(database)
    assert database.damage is None


@pytest.mark.slow
async def test_a_failed_read_of_a_damaged_page_is_remembered(filled: Path, tmp_path: Path) -> None:
    """For bit flips in each page: a read either succeeds or reports damage."""
    pages, failures = filled.stat().st_size // 4096, 0
    choice = random.Random(7)
    for page in range(pages):
        copy = tmp_path / f"{page}.db"
        data = bytearray(filled.read_bytes())
        for _ in range(40):
            data[page * 4096 + choice.randrange(4096)] ^= 1 << choice.randrange(8)
        copy.write_bytes(data)
        database = Database(f"sqlite+aiosqlite:///{copy}")
        try:
            await read_everything(database)
        except DatabaseUnavailable:
            failures += 1
            assert database.damage, page
        finally:
            await database.close()
        copy.unlink()

    assert failures > pages / 3


@pytest.mark.parametrize("length", [0.3, 0.7])
async def test_a_truncated_database_is_damaged(filled: Path, length: float) -> None:
    """A file that lost its end is reported by the check and by reads."""
    with filled.open("r+b") as file:
        file.truncate(int(filled.stat().st_size * length) // 4096 * 4096 + 100)
    database = Database(f"sqlite+aiosqlite:///{filled}")

    with pytest.raises(DatabaseUnavailable):
        await read_everything(database)
    assert database.damage
    await database.close()


async def test_the_check_finds_damage_that_no_read_has_met(filled: Path) -> None:
    """`check_pages` reports a problem."""
    with sqlite3.connect(filled) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name='request_logs'"
        (page,) = connection.execute(query).fetchone()
    connection.close()
    with filled.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 50)
    database = Database(f"sqlite+aiosqlite:///{filled}")
    with suppress(DatabaseUnavailable):
        await database.check_pages()

    assert database.damage
    await database.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.__setitem__(slice(36, 40), bytes([0, 0, 0, 1])),
        lambda data: data.__setitem__(slice(32, 36), b"\xff" * 4),
    ],
    ids=["count", "first page"],
)
async def test_the_check_includes_free_pages(
    filled: Path, change: Callable[[bytearray], None]
) -> None:
    """`check_pages` finds damage to the list of free pages, before a write uses it."""
    with closing(sqlite3.connect(filled)) as connection:
        connection.execute("CREATE TABLE temporary AS SELECT zeroblob(50000)")
        connection.execute("DROP TABLE temporary")
        connection.commit()
        assert connection.execute("PRAGMA freelist_count").fetchone()[0] > 2
    change_page(filled, 0, change)
    database = Database(f"sqlite+aiosqlite:///{filled}")
    problem = await database.check_pages()
    await database.close()

    assert problem is not None
    assert "freelist" in problem


async def test_damage_ends_with_the_file(filled: Path, tmp_path: Path) -> None:
    """A file that replaces the damaged one is not damaged."""
    backup = shutil.copy(filled, tmp_path / "backup.db")
    database = Database(f"sqlite+aiosqlite:///{filled}")
    database.report_damage("a value cannot be decoded")
    before = database.damage
    Path(backup).replace(filled)

    assert (before, database.damage) == ("a value cannot be decoded", None)
    await database.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (request_logs.c.created_at, b"2026-13-45 99:00"),
        (request_logs.c.sources, b"{"),
        (request_logs.c.prompt, b"secret \xff\xfe"),
    ],
    ids=["time", "JSON", "text"],
)
async def test_a_value_that_cannot_be_decoded_is_damage(
    filled: Path, column: sa.Column[object], value: bytes
) -> None:
    """The error reports damage without showing the value."""
    with sqlite3.connect(filled) as connection:
        connection.execute(f"UPDATE request_logs SET {column.name} = CAST(? AS TEXT)", [value])
    connection.close()
    database = Database(f"sqlite+aiosqlite:///{filled}")

    with pytest.raises(DatabaseUnavailable) as caught:
        async with database.read_session() as session:
            (await session.execute(sa.select(column))).all()
    assert "secret" not in caught.value.detail
    assert database.damage
    await database.close()


async def test_a_locked_database_is_not_damaged(database: Database) -> None:
    """Other errors of the driver are not signs of damage."""
    assert database.file
    lock = sqlite3.connect(database.file, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    locked = Database(f"sqlite+aiosqlite:///{database.file}?timeout=0.01")
    with pytest.raises(DatabaseUnavailable):
        async with locked.transaction():
            pass

    assert locked.damage is None
    await locked.close()
    lock.close()


def test_invalid_json_is_a_damaged_value() -> None:
    """Unlike an error of the parser, the exception does not contain the text."""
    with pytest.raises(DamagedValue) as caught:
        load_json("secret")
    assert "secret" not in str(caught.value)
