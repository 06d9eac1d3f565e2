"""A database with the schema that Alembic makes, migrated once per test process."""

import asyncio
import tempfile
from functools import cache
from pathlib import Path

from service.core.database.engine import Database

_FOLDER = tempfile.TemporaryDirectory(prefix="kotae-migrated-")


@cache
def migrated_database() -> Path:
    """A migrated database file to copy. Blocks; call it in a thread without an event loop."""
    file = Path(_FOLDER.name) / "kotae.db"

    async def migrate() -> None:
        database = Database(f"sqlite+aiosqlite:///{file}")
        await database.migrate()
        await database.close()

    asyncio.run(migrate())
    return file
