"""Warming: when uploads rest, all of the index is read into memory (`core/search/postings/memory.py`), so that searches are quick."""

import msgspec

from service.core.database.engine import Database
from service.core.search.service import Retrieval
from service.workers.background import Resting

LOOK_SECONDS = 1.0  # between two looks; uploads rest if nothing has changed from one to the next


class WarmingStatistics(msgspec.Struct, frozen=True):
    """`chunks`: how many were read into memory the last time; 0: they are too many, or nobody has searched yet.

    `failures`: looks in a row that did not do their work.
    """

    chunks: int
    failures: int


class Warming(Resting):
    """Looks at the index every `look_seconds`, once somebody has searched: a service that nobody asks needs no memory for it."""

    def __init__(self, database: Database, retrieval: Retrieval, look_seconds: float = LOOK_SECONDS) -> None:
        super().__init__("warming", look_seconds, database)
        self._retrieval = retrieval
        self._chunks = 0

    def statistics(self) -> WarmingStatistics:
        """A frozen look at it."""
        return WarmingStatistics(chunks=self._chunks, failures=self._failures)

    async def tick(self) -> None:
        """See `Resting`. Raises `DatabaseUnavailable`."""
        if self._retrieval.in_use:
            await super().tick()

    async def work(self) -> None:
        """Read the index into memory. Raises `DatabaseUnavailable`."""
        self._chunks = await self._retrieval.warm()
