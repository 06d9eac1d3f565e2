"""Runs the migrations, on the database of the settings or on the connection that the caller hands in."""

import asyncio
from typing import Any, Literal

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from alembic import context
from service.core.database.tables import UtcDateTime, metadata
from service.core.settings import load_settings


def ours(name: str | None, kind: str, parents: Any) -> bool:
    """Whether autogenerate may look at this: tables that are not in our metadata belong to somebody else."""
    table = name if kind == "table" else parents.get("table_name")
    return table is None or table in metadata.tables


def render(kind: str, thing: Any, _: Any) -> str | Literal[False]:
    """Keep our code out of migrations: they must run the same when it has changed."""
    return (
        "sa.DateTime(timezone=True)" if kind == "type" and isinstance(thing, UtcDateTime) else False
    )


def migrate(connection: Connection) -> None:
    """Bring the database to the revision asked for, in one transaction."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_name=ours,
        render_item=render,
        render_as_batch=True,  # SQLite cannot alter a table in place
        compare_type=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def migrate_settings_database() -> None:
    """Connect as the settings say. A NullPool, so that nothing outlives the command."""
    settings = load_settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(settings.database, poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
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
elif (handed_in := context.config.attributes.get("connection")) is not None:
    migrate(handed_in)
else:
    asyncio.run(migrate_settings_database())
