"""Reading rows of which some cannot be read."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.core.database.constructs import as_text, read_as_bytes
from service.core.database.damaged_rows import (
    iterate_rows,
    read_rows,
    read_stored_values,
    sum_integers,
)
from service.core.database.engine import Database
from service.core.database.tables import request_logs
from service.core.errors import DatabaseUnavailable
from tests.damage import change_page, find_pages, set_value
from tests.records import build_intent, build_outcome
from tests.rows import write

SEQ, ID = request_logs.c.seq, request_logs.c.id
QUERY = sa.select(request_logs).order_by(ID)


async def fill(database: Database, damaged: Sequence[int], rows: int = 20) -> list[str]:
    """Write rows, and damage those at these indexes. Returns their ids."""
    outcomes = [build_outcome(build_intent(prompt=f"prompt {n}")) for n in range(rows)]
    await write(database, outcomes)
    ids = sorted(outcome.intent.id for outcome in outcomes)
    assert database.file
    for n in damaged:
        set_value(database.file, ids[n], "prompt = CAST(x'ff' AS TEXT)")
    return ids


@pytest.mark.parametrize("damaged", [[], [0], [19], [7, 8], [3, 11, 16], range(20)], ids=str)
async def test_other_rows_are_read(database: Database, damaged: Sequence[int]) -> None:
    """Rows come in the order of the query; damaged ones are None and counted."""
    ids = await fill(database, damaged)
    async with database.read_session() as session:
        rows = await session.run_sync(read_rows, QUERY, SEQ, ID)

    assert [keyed.name for keyed in rows] == ids
    assert [n for n, keyed in enumerate(rows) if keyed.row is None] == list(damaged)
    assert database.damaged_rows == len(damaged)
    assert (database.damage is not None) == bool(damaged)


async def test_rows_of_a_damaged_page_keep_their_names(database: Database, tmp_path: Path) -> None:
    """If a page of rows is unreadable, the index still has their keys and names."""
    ids = await fill(database, [], rows=200)
    assert database.file
    pages = find_pages(database.file, b"/ai/test")
    table = [page for page in pages if b"Because." in _read_page(database.file, page)]
    shutil.copy(database.file, tmp_path / "copy.db")
    change_page(tmp_path / "copy.db", table[1], lambda data: data.__setitem__(0, 0xFF))
    copy = Database(f"sqlite+aiosqlite:///{tmp_path / 'copy.db'}")
    async with copy.read_session() as session:
        rows = await session.run_sync(read_rows, QUERY, SEQ, ID)
    await copy.close()

    unreadable = [keyed for keyed in rows if keyed.row is None]
    assert [keyed.name for keyed in rows] == ids
    assert 0 < len(unreadable) < 100


def _read_page(file: Path, page: int) -> bytes:
    return file.read_bytes()[page * 4096 : (page + 1) * 4096]


async def test_batches_contain_every_row_once(database: Database) -> None:
    """Batches follow the names, also undecodable ones."""
    ids = await fill(database, [4], rows=1203)
    assert database.file
    for n in (499, 500, 999):
        set_value(database.file, ids[n], "id = CAST(id || x'ff' AS TEXT)")
    names: list[str] = []
    async with database.read_session() as session:
        async for rows in iterate_rows(session, sa.select(request_logs), SEQ, ID):
            names += [keyed.name for keyed in rows]

    assert [name.removesuffix("\udcff") for name in names] == ids


async def test_other_errors_are_raised(database: Database) -> None:
    """Only signs of damage are isolated."""
    query = QUERY.where(sa.func.json_extract("{", "$") == 1)
    with pytest.raises(DatabaseUnavailable):
        async with database.read_session() as session:
            await session.run_sync(read_rows, query, SEQ, ID)

    assert database.damage is None


async def test_stored_values_are_read_one_by_one(database: Database) -> None:
    """Values keep their stored type; undecodable texts stay bytes."""
    (answer_id,) = await fill(database, [0], rows=1)
    assert database.file
    set_value(database.file, answer_id, "attempts = 'x', price = NULL, first_token_ms = 1.5")
    columns = [request_logs.c[name] for name in ("prompt", "attempts", "price", "first_token_ms")]
    async with database.read_session() as session:
        values = await session.run_sync(read_stored_values, columns, ID.in_([answer_id]))

    assert values == {"prompt": b"\xff", "attempts": "x", "price": None, "first_token_ms": 1.5}


async def test_sums_leave_out_other_types(database: Database) -> None:
    """The sum of the integers, and whether there were other values."""
    ids = await fill(database, [])
    assert database.file
    columns = [request_logs.c.prompt_tokens, request_logs.c.attempts]
    sums = []
    for _ in range(2):
        async with database.read_session() as session:
            sums.append(tuple((await session.execute(sa.select(*sum_integers(columns)))).one()))
        set_value(database.file, ids[3], "prompt_tokens = 'many'")

    assert sums == [(0, 200, 20), (1, 190, 20)]


def test_undecodable_texts_are_compared_as_stored() -> None:
    """A text of bytes is compared byte by byte."""
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        query = sa.select(read_as_bytes(as_text(b"a\xff")), as_text(b"a\xff") > as_text(b"a\xfe"))
        row = connection.execute(query).one()
    engine.dispose()

    assert tuple(row) == (b"a\xff", 1)
