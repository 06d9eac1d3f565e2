"""The writer: moves outcomes from the queue to the database, in batched transactions.

It is the only component that writes log rows. An outcome is counted as waiting until it is
committed, and the order is preserved. While the database is locked, full or unreachable, the writer
retries and answers continue. A record that the database rejects permanently is written to a
quarantine file, so that it is neither lost nor blocks others. Permanently means three failures of
that record in a transaction of its own, for reasons other than an unavailable database: a single
failure may be caused by the machine.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from service.core.accounting import log as request_log
from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable, retry_delay
from service.core.ports import RecordQueue
from service.core.records import Outcome
from service.core.telemetry import Metrics, log
from service.workers.background import BackgroundTask
from service.workers.quarantine import quarantine_record

RETRY_SECONDS, RETRY_SECONDS_MAX = 0.05, 5  # delay after the first failure, maximum delay
BATCH_MAX = 500  # records in one transaction
TRIES_ALONE = 3  # for one record, before it is quarantined
LATE_SECONDS = 5  # an uncommitted batch is late after this time, even without a failure


class WriterStatistics(msgspec.Struct, frozen=True):
    """An immutable snapshot. `failures`: failed batches since the last success."""

    written: int
    failures: int
    quarantined: int


class Writer:
    """One task between `start` and `stop`. `on_written`: gets the ids of committed answers."""

    def __init__(
        self,
        database: Database,
        queue: RecordQueue,
        metrics: Metrics,
        *,
        quarantine: Path,
        batch_max: int = BATCH_MAX,
        late_seconds: float = LATE_SECONDS,
        on_written: Callable[[list[str]], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._queue = queue
        self._metrics = metrics
        self._batch_max = batch_max
        self._quarantine = quarantine
        self._late_seconds, self._on_written = late_seconds, on_written
        self._task = BackgroundTask("writer", self._run)
        self._written = 0
        self._failures = 0
        self._quarantined = 0
        self._batch_started_at: float | None = None  # monotonic; None without a batch

    def start(self) -> None:
        """Start the task."""
        self._task.start()

    async def stop(self, seconds: float) -> bool:
        """Write the waiting outcomes within `seconds`, then end. Returns whether none is left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._queue.wait_committed()
        await self._task.stop()
        return self._queue.statistics().waiting == 0

    def degraded(self) -> bool:
        """True after two failures in a row, a late batch, a quarantined record, or a dead task."""
        late = (
            self._batch_started_at is not None
            and time.monotonic() - self._batch_started_at > self._late_seconds
        )
        return late or self._failures > 1 or self._quarantined > 0 or self._task.has_ended

    def statistics(self) -> WriterStatistics:
        """Return an immutable snapshot of the counters."""
        return WriterStatistics(
            written=self._written, failures=self._failures, quarantined=self._quarantined
        )

    async def _run(self) -> None:
        while True:
            self._batch_started_at = None
            outcomes = await self._queue.take_batch(self._batch_max)
            self._batch_started_at = time.monotonic()
            while not await self._write_batch(outcomes):
                await _wait_backoff(self._failures)
            self._failures = 0
            self._queue.mark_committed(outcomes)
            self._on_written([outcome.intent.id for outcome in outcomes])

    async def _write_batch(self, outcomes: list[Outcome], tries: int = TRIES_ALONE) -> bool:
        """Write a batch. Returns False if it must be retried. `tries`: left for a single record."""
        try:
            new = await self._insert_rows(outcomes)
        except DatabaseUnavailable as error:
            self._count_failure(error)
            return False
        except Exception as error:  # noqa: BLE001 - no record may end the writer
            if len(outcomes) > 1:
                return await self._write_singly(outcomes)
            if tries > 1:
                await _wait_backoff(TRIES_ALONE - tries + 1)
                return await self._write_batch(outcomes, tries - 1)
            return await self._quarantine_outcome(outcomes[0], error)
        self._written += new
        self._metrics.records_written.inc(new)
        return True

    async def _write_singly(self, outcomes: list[Outcome]) -> bool:
        """Write each record in its own transaction to isolate a bad one. Rows are idempotent."""
        for outcome in outcomes:
            if not await self._write_batch([outcome]):
                return False
        return True

    async def _insert_rows(self, outcomes: list[Outcome]) -> int:
        async with self._database.transaction() as session:
            return await request_log.apply_outcomes(session, outcomes)

    async def _quarantine_outcome(self, outcome: Outcome, error: Exception) -> bool:
        try:
            await quarantine_record(self._quarantine, outcome, error)
        except OSError as write_error:
            self._count_failure(write_error)
            return False
        self._quarantined += 1
        return True

    def _count_failure(self, error: Exception) -> None:
        self._failures += 1
        self._metrics.writer_failures.inc()
        log.warning(
            "records.delayed",
            failures=self._failures,
            waiting=self._queue.statistics().waiting,
            error=str(error),
        )


async def _wait_backoff(failures: int) -> None:
    await asyncio.sleep(
        retry_delay(failures, first_seconds=RETRY_SECONDS, seconds_max=RETRY_SECONDS_MAX)
    )
