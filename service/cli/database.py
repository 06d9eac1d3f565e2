"""Runs commands on the configured database."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from service.core.database.engine import Database
from service.core.settings import Settings

T = TypeVar("T")


def run_on_database(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    """Run `work` on the configured database. Raises `SettingsInvalid` for an outdated schema."""

    async def run(database: Database) -> T:
        await database.require_current_schema()
        return await work(database)

    return asyncio.run(with_database(settings, run))


async def with_database(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    """Run `work` on the configured database, and close it."""
    return await run_with(Database(settings.database), work)


async def run_with(database: Database, work: Callable[[Database], Awaitable[T]]) -> T:
    """Run `work` on a database, and close it."""
    try:
        return await work(database)
    finally:
        await database.close()


def describe_database(settings: Settings) -> str:
    """The database as shown to users: its URL, or the path of the default file."""
    return settings.database if settings.database_url else str(settings.data_dir / "kotae.db")
