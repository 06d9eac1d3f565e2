"""`INSERT … ON CONFLICT` for the database in use.

SQLAlchemy has a class of such statements for each database, with the same methods. Statements that
are executed often are built once for each database (`functools.cache` over its name).
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import Insert

from service.core.database.engine import ReadSession, Session
from service.core.lazy import LazyModule

if TYPE_CHECKING:
    from service.core.database import postgres
else:
    postgres = LazyModule("service.core.database.postgres")


def build_insert(dialect: str, table: sa.Table) -> Insert:
    """An insert statement with `on_conflict_do_update` and `on_conflict_do_nothing`."""
    if dialect == "postgresql":
        return cast("Insert", postgres.Insert(table))
    return Insert(table)


def insert_into(session: ReadSession, table: sa.Table) -> Insert:
    """See `build_insert`, for the database of a session."""
    return build_insert(session.dialect.name, table)


async def insert_new(
    session: Session, table: sa.Table, rows: Sequence[Mapping[str, Any]]
) -> set[str]:
    """Insert the rows that do not exist yet, by any unique key; return their ids.

    The rows are parameters, not values of the statement, which would be compiled for each number of
    rows: tens of milliseconds for 500.
    """
    statement = insert_into(session, table).on_conflict_do_nothing().returning(table.c.id)
    return set((await session.execute(statement, list(rows))).scalars())


@cache
def build_addition(
    dialect: str, table: sa.Table, key: tuple[str, ...], names: tuple[str, ...]
) -> Insert:
    """A statement that adds numbers to the sums of keys.

    Its parameter `rows` is a JSON list of lists, each with the values of `key` and of `names`. One
    parameter for all rows: the parameters of a row would cost more time than the row.
    """
    columns = [table.c[name] for name in (*key, *names)]
    parameter = sa.bindparam("rows", type_=sa.Text)
    values: list[sa.ColumnElement[Any]]
    if dialect == "postgresql":
        rows = sa.func.json_array_elements(sa.cast(parameter, sa.JSON)).table_valued("value")
        texts = [rows.c.value.op("->>")(sa.literal(n, sa.Integer)) for n in range(len(columns))]
        values = [sa.cast(text, column.type) for text, column in zip(texts, columns, strict=True)]
    else:
        rows = sa.func.json_each(parameter).table_valued("value")
        values = [sa.func.json_extract(rows.c.value, f"$[{n}]") for n in range(len(columns))]
    insert = build_insert(dialect, table)
    # Without a condition, SQLite would take ON CONFLICT for that of a join.
    selected = sa.select(*values).select_from(rows).where(sa.literal(1) == sa.literal(1))
    sums = {name: table.c[name] + insert.excluded[name] for name in names}
    return insert.from_select(columns, selected).on_conflict_do_update(
        index_elements=list(key), set_=sums
    )
