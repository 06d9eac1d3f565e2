"""Runs the migrations on the configured database or on the connection of the caller."""

import asyncio
from typing import Any, Literal

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from alembic import context
from service.core.database.tables import UtcDateTime, metadata
from service.core.settings import load_settings


def include_name(name: str | None, kind: str, parents: Any) -> bool:
    """Restrict autogenerate to tables in the metadata: others are not part of Kotae."""
    table = name if kind == "table" else parents.get("table_name")
    return table is None or table in metadata.tables


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
        render_item=render_item,
        render_as_batch=True,  # SQLite cannot alter a table in place
        compare_type=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def migrate_settings_database() -> None:
    """Migrate the configured database. The NullPool closes the connection with the command."""
    settings = load_settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(settings.database, poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run_migrations)
        await connection.commit()
    await engine.dispose()


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
