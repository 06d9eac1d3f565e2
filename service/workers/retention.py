"""Erases the texts of log rows that are older than `KOTAE_TEXT_DAYS`."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec

from service.core.accounting.retention import BATCH_ROWS, erase_texts_before
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.telemetry import log
from service.workers.background import PeriodicWorker

CHECK_SECONDS = 600.0
TICKS_OF_A_PASS = 144  # once per day all old rows are visited: records may arrive late
PAUSE_SECONDS = 0.05  # between transactions, in which log rows are written


class RetentionStatistics(msgspec.Struct, frozen=True):
    """`erased`: rows since the start. `failures`: failed ticks in a row."""

    erased: int
    failures: int


class TextRetention(PeriodicWorker):
    """Erases texts every `check_seconds`, in short transactions."""

    def __init__(
        self,
        database: Database,
        text_days: float,
        check_seconds: float = CHECK_SECONDS,
        *,
        batch_rows: int = BATCH_ROWS,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__("retention", self.erase_old, check_seconds)
        self._database, self._age = database, timedelta(days=text_days)
        self._batch_rows, self._clock = batch_rows, clock
        self._position = ""
        self._erased = self._ticks = 0

    def statistics(self) -> RetentionStatistics:
        """An immutable snapshot of the counters."""
        return RetentionStatistics(erased=self._erased, failures=self._task.failures)

    async def erase_old(self) -> None:
        """Erase what has become old since the last time. Raises `DatabaseUnavailable`."""
        if self._ticks % TICKS_OF_A_PASS == 0:
            self._position = ""
        self._ticks += 1
        before, erased_before = self._clock() - self._age, self._erased
        while True:
            batch = await erase_texts_before(
                self._database, before, self._position, batch_rows=self._batch_rows
            )
            if not batch.ids:
                break
            self._erased += batch.erased
            self._position = batch.ids[-1]
            await asyncio.sleep(PAUSE_SECONDS)
        if self._erased > erased_before:
            log.info("texts.erased", rows=self._erased - erased_before)
