"""Merging: when uploads rest, the index becomes one segment again (`core/segments.py`), so that searches are quick."""

import asyncio

import msgspec

from service.core import segments
from service.core.db import Database
from service.core.errors import DatabaseUnavailable
from service.core.telemetry import log
from service.workers.background import Background

LOOK_SECONDS = 5.0  # between two looks; uploads rest if nothing has changed from one to the next
FAILURES_MAX = 10  # looks in a row that may fail before it is worth saying


class MergingStatistics(msgspec.Struct, frozen=True):
    """`pending`: whether the index has changed since a merge was last thought of, as of the last look. `merges`: since the start.

    `failures`: looks in a row that did not do their work.
    """

    pending: bool
    merges: int
    failures: int


class Merging(Background):
    """Looks at the index every `look_seconds`."""

    def __init__(self, database: Database, look_seconds: float = LOOK_SECONDS) -> None:
        super().__init__("merging")
        self._database, self._look_seconds = database, look_seconds
        self._seen = self._merged = 0  # versions of the index: at the last look, and at the last one that had nothing left to do
        self._merges = self._failures = 0

    def degraded(self) -> bool:
        """Whether it has failed for long, or the task has died."""
        return self._failures > FAILURES_MAX or (self._task is not None and self._task.done())

    def statistics(self) -> MergingStatistics:
        """A frozen look at it."""
        return MergingStatistics(pending=self._seen != self._merged, merges=self._merges, failures=self._failures)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._look_seconds)
            try:
                await self.look()
            except DatabaseUnavailable as error:
                self._failures += 1
                log.warning("merging.delayed", failures=self._failures, error=str(error))
            except Exception:  # noqa: BLE001 - searches go on with the index as it is
                self._failures += 1
                log.exception("merging.broken")
            else:
                self._failures = 0

    async def look(self) -> None:
        """Merge what is worth it, if nothing was added or deleted since the last look. Raises `DatabaseUnavailable`."""
        version = await segments.version(self._database)
        if version == self._seen != self._merged:
            if await segments.loose(self._database):
                await segments.merge(self._database)
                self._merges += 1
            self._merged = version
        self._seen = version
