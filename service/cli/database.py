"""Runs commands on the configured database."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.engine import make_url

from service.core.database.engine import Database, open_database
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
    return await run_with(open_database(settings), work)


async def run_with(database: Database, work: Callable[[Database], Awaitable[T]]) -> T:
    """Run `work` on a database, and close it."""
    try:
        return await work(database)
    finally:
        await database.close()


def describe_database(settings: Settings) -> str:
    """The database as shown to users: its URL without a password, or the default file."""
    if settings.database_url is None:
        return str(settings.data_dir / "kotae.db")
    return make_url(settings.database).render_as_string(hide_password=True)
