"""Merging: when uploads rest, the index becomes one segment again (`core/search/fts5_merge.py`), so that searches are quick."""

import msgspec

from service.core.database.engine import Database
from service.core.search import fts5_merge
from service.workers.background import Resting

LOOK_SECONDS = 5.0  # between two looks; uploads rest if nothing has changed from one to the next


class MergingStatistics(msgspec.Struct, frozen=True):
    """`pending`: whether the index has changed since a merge was last thought of, as of the last look. `merges`: since the start.

    `failures`: looks in a row that did not do their work.
    """

    pending: bool
    merges: int
    failures: int


class Merging(Resting):
    """Looks at the index every `look_seconds`."""

    def __init__(self, database: Database, look_seconds: float = LOOK_SECONDS) -> None:
        super().__init__("merging", look_seconds, database)
        self._merges = 0

    def statistics(self) -> MergingStatistics:
        """A frozen look at it."""
        return MergingStatistics(
            pending=self._seen != self._done, merges=self._merges, failures=self._failures
        )

    async def work(self) -> None:
        """Merge what is worth it. Raises `DatabaseUnavailable`."""
        if await fts5_merge.count_loose_pages(self._database):
            await fts5_merge.merge_segments(self._database)
            self._merges += 1
