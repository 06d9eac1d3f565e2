"""`INSERT … ON CONFLICT` for the database in use.

SQLAlchemy has a class of such statements for each database, with the same methods. Statements that
are executed often are built once for each database (`functools.cache` over its name).
"""

from typing import TYPE_CHECKING, cast

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import Insert

from service.core.database.engine import ReadSession
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
