"""The database in tests: rows of the log, and a database that is away."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from service.core.accounting import log as request_log
from service.core.database.engine import Database
from service.core.records import Outcome


async def write(database: Database, outcomes: Sequence[Outcome]) -> int:
    """Insert rows as the writer does."""
    async with database.transaction() as session:
        return await request_log.apply_outcomes(session, outcomes)


@contextmanager
def away(database: Database) -> Iterator[None]:
    """Rename the folder of the database, so that none of its files can be opened."""
    assert database.file
    folder = database.file.parent
    elsewhere = folder.rename(folder.with_name(f"{folder.name}-away"))
    try:
        yield
    finally:
        elsewhere.rename(folder)
