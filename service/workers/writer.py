"""The writer: takes outcomes from the queue and puts them into the database, many in one transaction.

It is the only one that writes log rows. Its rules: an outcome leaves the queue's count only when it is committed; the
order is kept; a database that is locked, full or away is waited for, and meanwhile the answers go on; a record that the
database will never take is put aside as a file, so that it neither is lost nor stops the ones behind it. "Never" is
three failures of that record alone that are not the database's state: one such failure may be the machine's.
"""

import asyncio
import time
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
from service.workers.quarantine import quarantine_records

RETRY_SECONDS, RETRY_SECONDS_MAX = 0.05, 5  # after the first refusal of a batch, and after many
BATCH_MAX = 500  # records in one transaction
TRIES_ALONE = 3  # of one record, before it is put aside
LATE_SECONDS = 5  # after which a batch is late, even if the database has not refused it


class WriterStatistics(msgspec.Struct, frozen=True):
    """`failures`: refused batches since the last that went well."""

    written: int
    failures: int
    quarantined: int


class Writer:
    """Runs as one task between `start` and `stop`."""

    def __init__(
        self,
        database: Database,
        queue: RecordQueue,
        metrics: Metrics,
        *,
        quarantine: Path,
        batch_max: int = BATCH_MAX,
        late_seconds: float = LATE_SECONDS,
    ) -> None:
        self._database = database
        self._queue = queue
        self._metrics = metrics
        self._batch_max = batch_max
        self._quarantine = quarantine
        self._late_seconds = late_seconds
        self._task = BackgroundTask("writer", self._run)
        self._written = 0
        self._failures = 0
        self._quarantined = 0
        self._taken_at: float | None = None  # when the batch in hand was taken; None: there is none

    def start(self) -> None:
        """Start to write."""
        self._task.start()

    async def stop(self, seconds: float) -> bool:
        """Write what waits, for `seconds` at most, and end. Returns whether nothing was left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._queue.wait_committed()
        await self._task.stop()
        return self._queue.statistics().waiting == 0

    def degraded(self) -> bool:
        """Whether the database has refused twice in a row or hangs, a record was put aside, or the task has died."""
        late = self._taken_at is not None and time.monotonic() - self._taken_at > self._late_seconds
        return late or self._failures > 1 or self._quarantined > 0 or self._task.has_ended

    def statistics(self) -> WriterStatistics:
        """An immutable snapshot of the counters."""
        return WriterStatistics(
            written=self._written, failures=self._failures, quarantined=self._quarantined
        )

    async def _run(self) -> None:
        while True:
            self._taken_at = None
            outcomes = await self._queue.take_batch(self._batch_max)
            self._taken_at = time.monotonic()
            while not await self._wrote(outcomes):
                await _pause(self._failures)
            self._failures = 0
            self._queue.mark_committed(outcomes)

    async def _wrote(self, outcomes: list[Outcome], tries: int = TRIES_ALONE) -> bool:
        """One try at a batch. False: the database did not take it, try again. `tries`: how many one record alone has."""
        try:
            new = await self._insert(outcomes)
        except DatabaseUnavailable as error:
            self._failed(error)
            return False
        except Exception as error:  # noqa: BLE001 - whatever a record does to the database must not end the writer
            if len(outcomes) > 1:
                return await self._wrote_each(outcomes)
            if tries > 1:
                await _pause(TRIES_ALONE - tries + 1)
                return await self._wrote(outcomes, tries - 1)
            return await self._put_aside(outcomes[0], error)
        self._written += new
        self._metrics.records_written.inc(new)
        return True

    async def _wrote_each(self, outcomes: list[Outcome]) -> bool:
        """Some record of the batch is bad: one transaction each finds it. Those already written stay, by their id."""
        for outcome in outcomes:
            if not await self._wrote([outcome]):
                return False
        return True

    async def _insert(self, outcomes: list[Outcome]) -> int:
        async with self._database.transaction() as session:
            return await request_log.apply_outcomes(session, outcomes)

    async def _put_aside(self, outcome: Outcome, error: Exception) -> bool:
        try:
            await quarantine_records(self._quarantine, outcome, error)
        except OSError as failed:
            self._failed(failed)
            return False
        self._quarantined += 1
        return True

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._metrics.writer_failures.inc()
        log.warning(
            "records.delayed",
            failures=self._failures,
            waiting=self._queue.statistics().waiting,
            error=str(error),
        )


async def _pause(failures: int) -> None:
    await asyncio.sleep(
        retry_delay(failures, first_seconds=RETRY_SECONDS, seconds_max=RETRY_SECONDS_MAX)
    )
