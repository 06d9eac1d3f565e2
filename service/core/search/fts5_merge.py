"""Merging of FTS5 segments. Each transaction adds a segment, and a lookup reads every segment.

FTS5 merges segments of similar size automatically and leaves about ten; in one segment, lookups
take half the time. Therefore all segments are merged when uploads pause: a few pages per
transaction, each of which takes a few milliseconds, so that other writers wait no longer and
searches are hardly affected. The content does not change, nor does `index_scopes`.

Merging rewrites the whole index, so it happens only if the other segments are large enough in
comparison with the largest one (`LOOSE_SHARE`). See https://sqlite.org/fts5.html, "The 'merge'
Command".
"""

import asyncio

from service.core.database.engine import Database, Session

LOOSE_SHARE = 0.1  # of the largest segment: minimum size of the others for a merge
PAGES_AT_ONCE = 16  # of 4 KB
PAUSE_SECONDS = 0.05  # between two transactions, for other writers
WORKED_CHANGES = 2  # minimum increase of total_changes() by a merge that did something


async def read_version(database: Database) -> int:
    """Return the version of the index, which increases with every change.

    Raises `DatabaseUnavailable`.
    """
    async with database.read_session() as session:
        return int((await session.exec_driver_sql(_VERSION)).scalar_one())


async def needs_merge(database: Database) -> bool:
    """Return whether a merge is worthwhile. Raises `DatabaseUnavailable`."""
    async with database.read_session() as session:
        sizes = sorted((await session.exec_driver_sql(_SIZES)).scalars())
    return sum(sizes[:-1]) > LOOSE_SHARE * sizes[-1] if sizes else False


async def merge_segments(database: Database, pause_seconds: float = PAUSE_SECONDS) -> None:
    """Merge all segments into one. Raises `DatabaseUnavailable`; completed steps are kept."""
    first = True
    while await merge_step(database, first=first):
        first = False
        await asyncio.sleep(pause_seconds)


async def merge_step(database: Database, *, first: bool, pages_max: int = PAGES_AT_ONCE) -> bool:
    """Merge up to `pages_max` pages in one transaction. Returns False if nothing was left to merge.

    The `first` step of a merge selects all segments, whatever their sizes; the others continue it.
    """
    pages = -pages_max if first else pages_max
    async with database.transaction() as session:
        before = await _count_changes(session)
        await session.exec_driver_sql(
            "INSERT INTO chunk_terms(chunk_terms, rank) VALUES ('merge', ?)", (pages,)
        )
        return await _count_changes(session) - before >= WORKED_CHANGES


async def _count_changes(session: Session) -> int:
    return int((await session.exec_driver_sql("SELECT total_changes()")).scalar_one())


_VERSION = "SELECT sum(version) FROM index_scopes"
# One row per page of a segment, except for terms that span several pages.
_SIZES = "SELECT count(*) FROM chunk_terms_idx GROUP BY segid"
