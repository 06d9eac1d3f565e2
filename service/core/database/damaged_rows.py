"""Reads rows of a damaged database: one that cannot be read does not fail the others.

A row is unreadable if a text cannot be decoded, if a value does not have the format in which it was
written, or if its page, or one of the pages that a long row continues on, is damaged. The query is
then repeated for parts of its keys, which an index contains, until the unreadable rows are
isolated. The values of such a row are read one by one, as stored.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.core.database.constructs import as_text, read_as_bytes, read_kind, sum_exactly
from service.core.database.failures import DamagedValue, describe_error, is_damage

BATCH = 500  # rows that `iterate_rows` reads at once
REPORT = "report_damaged_row"  # in `Connection.info`: (table, key, error) → None

Column = sa.Column[Any] | sa.Label[Any]
StoredValue = int | float | str | bytes | None
"""A value as stored; bytes: a BLOB, or a text that is not UTF-8."""


class KeyedRow(NamedTuple):
    """A row, or None if it cannot be read, with its key and its name.

    Undecodable bytes of the name are surrogates (`surrogateescape`).
    """

    key: int
    name: str
    row: RowMapping | None


def read_rows(
    connection: sa.Connection,
    query: sa.Select[Any],
    key: sa.Column[int],
    name: sa.Column[str],
    *,
    condition: sa.ColumnElement[bool] | None = None,
) -> list[KeyedRow]:
    """Run a query that selects a unique key and a name, which an index contains.

    `condition`: a further condition of rows, which no index contains; if there is damage, rows
    without it count in the limit of the query, and the result may be shorter.
    Raises driver errors that are not signs of damage, and those of reading the keys.
    """
    complete = query if condition is None else query.where(condition)
    try:
        rows = connection.execute(complete).mappings().all()
    except (DBAPIError, DamagedValue) as error:
        _require_damage(error)
    else:
        return [KeyedRow(row[key.name], _to_name(row[name.name]), row) for row in rows]
    keys = connection.execute(query.with_only_columns(key, read_as_bytes(name))).all()
    values = list(dict.fromkeys(value for value, _ in keys))
    rows_by_key = dict(_isolate_rows(connection, complete, key, values))
    return [
        KeyedRow(value, decode_name(text), rows_by_key.get(value))
        for value, text in keys
        if value in rows_by_key or condition is None
    ]


async def iterate_rows(
    session: AsyncConnection, query: sa.Select[Any], key: sa.Column[int], name: sa.Column[str]
) -> AsyncGenerator[list[KeyedRow], None]:
    """Read rows like `read_rows`, in batches, in the order of their names."""
    last = b""
    while True:
        batch = query.where(name > as_text(last)).order_by(name).limit(BATCH)
        rows = await session.run_sync(read_rows, batch, key, name)
        yield rows
        if len(rows) < BATCH:
            return
        last = rows[-1].name.encode(errors="surrogateescape")


def decode_name(value: bytes | None) -> str:
    """Decode a name that may be damaged, without a loss."""
    return (value or b"").decode(errors="surrogateescape")


def _to_name(value: Any) -> str:
    return decode_name(value) if isinstance(value, bytes | None) else str(value)


def _isolate_rows(
    connection: sa.Connection, query: sa.Select[Any], key: sa.Column[int], keys: Sequence[int]
) -> Iterable[tuple[int, RowMapping | None]]:
    """Yield the rows by key, None for an unreadable one: an unreadable half is divided again."""
    if not keys:
        return
    try:
        rows = connection.execute(query.where(key.in_(keys))).mappings().all()
    except (DBAPIError, DamagedValue) as error:
        _require_damage(error)
        if len(keys) == 1:
            report_damaged_row(connection, key, keys[0], describe_error(error))
            yield keys[0], None
            return
        middle = len(keys) // 2
        for half in (keys[:middle], keys[middle:]):
            yield from _isolate_rows(connection, query, key, half)
    else:
        yield from ((row[key.name], row) for row in rows)


def _require_damage(error: Exception) -> None:
    if not is_damage(error):
        raise error


def report_damaged_row(
    connection: sa.Connection, key: sa.Column[Any], value: object, detail: str
) -> None:
    """Report a row that cannot be read to the database of the connection, see `Database.damage`."""
    report: Callable[[str, str, str], None] = connection.info[REPORT]
    report(key.table.name, f"{key.name} {value}", detail)


def read_stored_values(
    connection: sa.Connection, columns: Sequence[Column], where: sa.ColumnElement[bool]
) -> dict[str, StoredValue]:
    """Read the values of one row by column name, without those that cannot be read."""
    try:
        return _read_values(connection, columns, where)
    except DBAPIError as error:
        _require_damage(error)
    values: dict[str, StoredValue] = {}
    for column in columns:
        try:
            values |= _read_values(connection, [column], where)
        except DBAPIError as error:
            _require_damage(error)
    return values


def _read_values(
    connection: sa.Connection, columns: Sequence[Column], where: sa.ColumnElement[bool]
) -> dict[str, StoredValue]:
    parts = [part for column in columns for part in (read_kind(column), read_as_bytes(column))]
    row = connection.execute(sa.select(*parts).where(where)).first()
    if row is None:
        return {}
    values: Sequence[Any] = row
    return {
        column.name: _convert_stored(values[2 * n], values[2 * n + 1])
        for n, column in enumerate(columns)
    }


def sum_integers(columns: Sequence[sa.Column[int]]) -> list[sa.ColumnElement[Any]]:
    """Select whether a value of a group is not an integer, and the sums of those that are."""
    integers = [sa.case((read_kind(column) == "integer", column)) for column in columns]
    counts = (sa.func.count(value) for value in integers)
    has_others = reduce(or_, (count < sa.func.count() for count in counts))
    return [has_others, *map(sum_exactly, integers)]


def _convert_stored(kind: str, value: bytes | None) -> StoredValue:
    if value is None or kind == "null":
        return None
    if kind == "integer":
        return int(value)
    if kind == "real":
        return float(value)
    try:
        return value.decode() if kind == "text" else value
    except UnicodeDecodeError:
        return value
