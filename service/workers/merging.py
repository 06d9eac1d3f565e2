"""Merges the full-text index when uploads pause.

SQLite: `core/search/fts5_merge.py`; PostgreSQL: `core/search/postings_merge.py`.
"""

import msgspec

from service.core.database.engine import Database
from service.core.search import fts5_merge, postings_merge
from service.workers.background import PeriodicWorker

CHECK_SECONDS = 5.0  # between two checks; uploads pause if nothing has changed from one to the next


class MergingStatistics(msgspec.Struct, frozen=True):
    """`pending`: whether the index has changed since it was last considered, as of the last check.

    `merges`: since the start. `failures`: failed checks in a row.
    """

    pending: bool
    merges: int
    failures: int


class IndexMerger(PeriodicWorker):
    """Checks the version of the index every `check_seconds`."""

    def __init__(self, database: Database, check_seconds: float = CHECK_SECONDS) -> None:
        self._database = database
        super().__init__("merging", self.check_index, check_seconds)
        self._checked_version = 0  # of the index, at the last check
        self._considered_version = 0  # the last one for which a merge was considered
        self._merged_version = 0  # the last one that was merged
        self._merges = 0

    def statistics(self) -> MergingStatistics:
        """An immutable snapshot of the counters."""
        return MergingStatistics(
            pending=self._checked_version != self._considered_version,
            merges=self._merges,
            failures=self._task.failures,
        )

    async def check_index(self) -> None:
        """Merge if the index changed before the last check. Raises `DatabaseUnavailable`."""
        version = await fts5_merge.read_version(self._database)
        if version == self._checked_version != self._considered_version:
            if await self._merge_index(version):
                self._merges += 1
                self._merged_version = version
            self._considered_version = version
        self._checked_version = version

    async def _merge_index(self, version: int) -> bool:
        """Merge if it is worthwhile; returns whether it was."""
        if self._database.dialect == "postgresql":
            changes = version - self._merged_version
            worthwhile = await postings_merge.needs_merge(self._database, changes)
            if worthwhile:
                await postings_merge.merge_postings(self._database)
            return worthwhile
        worthwhile = await fts5_merge.needs_merge(self._database)
        if worthwhile:
            await fts5_merge.merge_segments(self._database)
        return worthwhile
