"""The segments of the index. What a transaction adds is a segment of its own, and a search looks into each for every term.

FTS5 merges a few of equal size by itself, and leaves some ten; in one, terms are found in half the time. So all of them are
merged when uploads rest, some pages at a time, each in a transaction of a few milliseconds: others who want to write wait no
longer, and searches hardly feel it. The content stays the same, and with it `index_state`.

Not for every upload: merging writes all of the index anew, so what lies beside the largest segment must be worth it
(`LOOSE_SHARE`). Formats: https://sqlite.org/fts5.html, "The 'merge' Command".
"""

import asyncio

from service.core.database.engine import Database, Session

LOOSE_SHARE = 0.1  # of the largest segment: so much beside it is worth a merge
PAGES_AT_ONCE = 16  # of 4 KB
PAUSE_SECONDS = 0.05  # between two transactions, in which others may write
WORKED_CHANGES = 2  # in total_changes(): fewer, and there was nothing to merge


async def read_version(database: Database) -> int:
    """The version of the index: another one, and something was added or deleted. Raises `DatabaseUnavailable`."""
    async with database.read_session() as session:
        return int((await session.exec_driver_sql("SELECT version FROM index_state")).scalar_one())


async def count_loose_pages(database: Database) -> bool:
    """Whether a merge is worth it. Raises `DatabaseUnavailable`."""
    async with database.read_session() as session:
        sizes = sorted((await session.exec_driver_sql(_SIZES)).scalars())
    return sum(sizes[:-1]) > LOOSE_SHARE * sizes[-1] if sizes else False


async def merge_segments(database: Database, pause_seconds: float = PAUSE_SECONDS) -> None:
    """Make the index one segment. Raises `DatabaseUnavailable`; the steps done until then stay done."""
    first = True
    while await merge_step(database, first=first):
        first = False
        await asyncio.sleep(pause_seconds)


async def merge_step(database: Database, *, first: bool, pages_max: int = PAGES_AT_ONCE) -> bool:
    """Merge up to `pages_max` pages in one transaction. False: nothing was left to merge.

    The `first` step of a merge takes all segments, whatever their sizes; the others continue it.
    """
    pages = -pages_max if first else pages_max
    async with database.transaction() as session:
        before = await _changes(session)
        await session.exec_driver_sql(
            "INSERT INTO chunk_terms(chunk_terms, rank) VALUES ('merge', ?)", (pages,)
        )
        return await _changes(session) - before >= WORKED_CHANGES


async def _changes(session: Session) -> int:
    return int((await session.exec_driver_sql("SELECT total_changes()")).scalar_one())


# One row for each page of a segment (but for what is too large for one).
_SIZES = "SELECT count(*) FROM chunk_terms_idx GROUP BY segid"
