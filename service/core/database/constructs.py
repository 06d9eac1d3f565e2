"""SQL that SQLite and PostgreSQL write differently, as expressions that compile for both.

Queries use these instead of asking which database they run on. Statements that insert or update are
in `upserts.py`.
"""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from service.core.encoding import to_json

_Form = Callable[[Any, SQLCompiler], str]


class _AsBytes(FunctionElement[bytes]):
    """The stored bytes of a value."""

    name, type, inherit_cache = "as_bytes", sa.LargeBinary(), True


class _AsText(FunctionElement[str]):
    """Bytes as a text."""

    name, type, inherit_cache = "as_text", sa.Text(), True


class _ValueKind(FunctionElement[str]):
    """The kind of a stored value."""

    name, type, inherit_cache = "value_kind", sa.Text(), True


class _WithoutIndex(FunctionElement[Any]):
    """A column for which no index is chosen."""

    name, inherit_cache = "without_index", True

    def __init__(self, column: sa.ColumnElement[Any]) -> None:
        self.type = column.type
        super().__init__(column)


class _ListedNumbers(FunctionElement[int]):
    """The numbers of a JSON list, as rows."""

    name, inherit_cache = "listed_numbers", True


class _Quarter(FunctionElement[int]):
    """The number of a quarter of an hour since 1970."""

    name, type, inherit_cache = "quarter", sa.Integer(), True


class _ListedValues(FunctionElement[str]):
    """The texts of a JSON list, as rows."""

    name, inherit_cache = "listed_values", True


def _write(construct: type[FunctionElement[Any]], sqlite: str, postgresql: str) -> None:
    """Define the two forms of a construct with one argument, `{}`."""
    for dialect, form in (("sqlite", sqlite), ("postgresql", postgresql)):

        def compile_form(
            element: Any, compiler: SQLCompiler, form: str = form, **options: Any
        ) -> str:
            return form.replace("{}", compiler.process(element.clauses.clauses[0], **options))

        compiles(construct, dialect)(compile_form)


_write(_AsBytes, "CAST({} AS BLOB)", "convert_to(CAST({} AS TEXT), 'UTF8')")
_write(_AsText, "CAST({} AS TEXT)", "convert_from({}, 'UTF8')")
# Values of PostgreSQL have the type of their column.
_write(
    _ValueKind,
    "typeof({})",
    "CASE WHEN {} IS NULL THEN 'null' WHEN CAST(pg_typeof({}) AS TEXT) IN ('integer', 'bigint')"
    " THEN 'integer' WHEN CAST(pg_typeof({}) AS TEXT) = 'double precision' THEN 'real'"
    " ELSE 'text' END",
)
# The planner of PostgreSQL knows the frequencies of values, and checks conditions in the index.
_write(_WithoutIndex, "({} || '')", "{}")
_write(
    _ListedValues,
    "(SELECT value FROM json_each({}))",
    "(SELECT value FROM json_array_elements_text(CAST({} AS JSON)) AS listed(value))",
)


_write(
    _ListedNumbers,
    "(SELECT value FROM json_each({}))",
    "(SELECT CAST(value AS bigint)"
    " FROM json_array_elements_text(CAST({} AS JSON)) AS listed(value))",
)
_write(
    _Quarter,
    "CAST(strftime('%s', {}) AS INTEGER) / 900",
    "CAST(floor(extract(epoch FROM {}) / 900) AS integer)",
)


def read_as_bytes(value: sa.ColumnElement[Any]) -> sa.ColumnElement[bytes]:
    """Select a value as bytes: unlike a text, they need not be decoded."""
    return _AsBytes(value)


def as_text(value: bytes) -> sa.ColumnElement[str]:
    """A text to compare with, which need not be decodable."""
    return _AsText(sa.literal(value, sa.LargeBinary))


def to_quarter(moment: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    """The number of the quarter of an hour since 1970 in which a time is."""
    return _Quarter(moment)


def read_kind(value: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """Select the kind of a stored value: integer, real, text, blob or null."""
    return _ValueKind(value)


def without_index(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """A column to compare with, for which SQLite chooses no index."""
    return _WithoutIndex(column)


def is_listed(column: sa.ColumnElement[str], values: list[str]) -> sa.ColumnElement[bool]:
    """The condition that a column has one of these values, of any number. One parameter."""
    return column.op("IN", is_comparison=True)(_ListedValues(sa.literal(to_json(values).decode())))


def is_listed_number(column: sa.ColumnElement[int], values: list[int]) -> sa.ColumnElement[bool]:
    """The same for numbers."""
    return column.op("IN", is_comparison=True)(_ListedNumbers(sa.literal(to_json(values).decode())))


def sum_exactly(value: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    """A sum of integers as an integer: PostgreSQL's are decimals."""
    return sa.cast(sa.func.coalesce(sa.func.sum(value), 0), sa.BigInteger)
