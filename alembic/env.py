"""Runs the migrations on the configured database or on the connection of the caller.

`versions/` is for SQLite and `postgresql/` for PostgreSQL. A step has the same number in both.
"""

import asyncio
from typing import Any, Literal

from sqlalchemy import Connection

from alembic import context
from service.core.database.engine import open_database
from service.core.database.migrations import mark_compatibility
from service.core.database.tables import UtcDateTime, metadata
from service.core.settings import load_settings

# Indexes that are different on PostgreSQL: the primary key of a partitioned table contains the id,
# and so would unique indexes. A source may be too long for an index.
DIFFERENT_INDEXES = {
    "ix_documents_user_id_source",
    "ix_request_logs_seq",
    "ix_request_logs_user_id_idempotency_key",
    "uq_request_logs_id",
    "uq_request_logs_user_id_idempotency_key",
}


def include_name(name: str | None, kind: str, parents: Any) -> bool:
    """Restrict autogenerate to tables in the metadata: others are not part of Kotae."""
    table = name if kind == "table" else parents.get("table_name")
    return table is None or table in metadata.tables


def include_object(_: Any, name: str | None, kind: str, *__: Any) -> bool:
    """Leave out what is different on PostgreSQL on purpose."""
    is_postgresql = context.get_context().dialect.name == "postgresql"
    return not (is_postgresql and kind != "table" and name in DIFFERENT_INDEXES)


def render_item(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Avoid references to Kotae's types in migrations, which must not change with the code."""
    return (
        "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False
    )


def run_migrations(connection: Connection) -> None:
    """Migrate to the requested revision in one transaction."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_name=include_name,
        include_object=include_object,
        render_item=render_item,
        render_as_batch=connection.dialect.name == "sqlite",  # it cannot alter a table in place
        compare_type=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()
    if connection.dialect.name == "postgresql":
        mark_compatibility(connection, context.script)


async def migrate_settings_database() -> None:
    """Migrate the configured database."""
    database = open_database(load_settings())
    try:
        await database.run_migrations(run_migrations)
    finally:
        await database.close()


if context.is_offline_mode():
    context.configure(
        url=load_settings().database,
        target_metadata=metadata,
        literal_binds=True,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()
elif (caller_connection := context.config.attributes.get("connection")) is not None:
    run_migrations(caller_connection)
else:
    asyncio.run(migrate_settings_database())
