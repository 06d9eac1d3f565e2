"""Rows of the log in tests."""

from collections.abc import Sequence

from service.core.accounting import log as request_log
from service.core.database.engine import Database
from service.core.records import Outcome


async def write(database: Database, outcomes: Sequence[Outcome]) -> int:
    """Insert rows as the writer does."""
    async with database.transaction() as session:
        return await request_log.apply(session, outcomes)
