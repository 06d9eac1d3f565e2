"""Recovery: what the journal of a dead process holds becomes rows, once, in the background of the next start.

Outcomes are applied as the writer applies them; an intent without an outcome becomes a row `interrupted`, its usage
`unknown`, for nobody knows how far the provider came. Applying is idempotent, so a recovery that is itself killed is
simply done again. A process's segments are read in order and together, because an outcome may stand in a later one than
its intent. Files are removed when their rows are committed; one with a frame that cannot be read is kept as `.bad`.
"""

import asyncio
import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from service.core.accounting import log as request_log
from service.core.accounting.journal import decode_frames, find_orphans
from service.core.accounting.outcomes import build_interrupted
from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable, retry_delay
from service.core.records import Intent, Outcome
from service.core.telemetry import log
from service.workers.background import BackgroundTask
from service.workers.quarantine import quarantine_records

BATCH = 500
RETRY_SECONDS, RETRY_SECONDS_MAX = 0.1, 1  # while the database is unavailable


class RecoveryState(StrEnum):
    """Where recovery is."""

    RUNNING = "running"  # orphaned segments are being looked for, or applied
    DONE = "done"  # nothing is left of processes that are gone
    FAILED = "failed"  # it stopped at something unexpected; the files are still there


class RecoveryStatistics(msgspec.Struct, frozen=True):
    """`rows`: new in the log. `interrupted`: those of them whose end nobody knows. `bad_frames`: runs of unreadable bytes."""

    state: RecoveryState
    segments: int
    rows: int
    interrupted: int
    bad_frames: int
    quarantined: int


class JournalRecovery:
    """One recovery, at start."""

    def __init__(
        self, database: Database, folder: Path, spool: Path | None, *, quarantine: Path
    ) -> None:
        self._task = BackgroundTask("recovery", self._run)
        self._database = database
        self._folder, self._spool, self._quarantine = folder, spool, quarantine
        self._state = RecoveryState.RUNNING
        self._segments = self._rows = self._interrupted = self._bad_frames = self._quarantined = 0

    def start(self) -> None:
        """See `BackgroundWorker.start`."""
        self._task.start()

    async def stop(self) -> None:
        """See `BackgroundWorker.stop`."""
        await self._task.stop()

    async def wait_done(self) -> None:
        """Wait until every row of earlier processes is in the database. Raises `DatabaseUnavailable` if that failed."""
        await self._task.wait_ended()
        if self._state is RecoveryState.FAILED:
            raise DatabaseUnavailable("the journal of an earlier process could not be recovered")

    def degraded(self) -> bool:
        """Whether something is in the journal that could not become a row."""
        return self._state is RecoveryState.FAILED or self._bad_frames > 0 or self._quarantined > 0

    def statistics(self) -> RecoveryStatistics:
        """An immutable snapshot of the counters."""
        return RecoveryStatistics(
            state=self._state,
            segments=self._segments,
            rows=self._rows,
            interrupted=self._interrupted,
            bad_frames=self._bad_frames,
            quarantined=self._quarantined,
        )

    async def _run(self) -> None:
        try:
            for segments in (
                await asyncio.to_thread(find_orphans, self._folder, self._spool)
            ).values():
                await self._recover(segments)
        except Exception:  # noqa: BLE001 - a service whose past is damaged still answers, and says so
            self._state = RecoveryState.FAILED
            log.exception("recovery.failed")
            return
        self._state = RecoveryState.DONE
        if self._segments:
            log.info(
                "recovery.done",
                segments=self._segments,
                rows=self._rows,
                interrupted=self._interrupted,
                bad_frames=self._bad_frames,
            )

    async def _recover(self, segments: list[tuple[int, Path, list[Path]]]) -> None:
        """Apply the segments of one process, then let go of them."""
        bad: set[Path] = set()
        try:
            outcomes, interrupted = await asyncio.to_thread(
                self._read, [path for _, path, _ in segments], bad
            )
            for begin in range(0, len(outcomes), BATCH):
                await self._apply(outcomes[begin : begin + BATCH])
            self._segments += len(segments)
            self._interrupted += interrupted
            await asyncio.to_thread(_let_go, segments, bad)
        finally:
            for lock, _, _ in segments:
                os.close(lock)

    def _read(self, paths: list[Path], bad: set[Path]) -> tuple[list[Outcome], int]:
        """The outcomes of a process, and how many of them it never came to."""
        intents: dict[str, Intent] = {}
        outcomes: dict[str, Outcome] = {}
        for path, record in _records(paths):
            if record is None:
                bad.add(path)
                self._bad_frames += 1
            elif isinstance(record, Intent):
                intents[record.id] = record
            else:
                outcomes[record.intent.id] = record
        whole = [_with_prompt(outcome, intents.get(id_)) for id_, outcome in outcomes.items()]
        lost = [build_interrupted(intent) for id_, intent in intents.items() if id_ not in outcomes]
        return sorted(whole + lost, key=lambda outcome: outcome.intent.id), len(lost)

    async def _apply(self, outcomes: list[Outcome]) -> None:
        """Apply a batch, waiting for the database as long as it takes; of a batch with a bad record, each alone."""
        failures = 0
        while True:
            try:
                async with self._database.transaction() as session:
                    new = await request_log.apply_outcomes(session, outcomes)
            except DatabaseUnavailable as error:
                log.warning("recovery.delayed", error=str(error))
                failures += 1
                await asyncio.sleep(
                    retry_delay(
                        failures, first_seconds=RETRY_SECONDS, seconds_max=RETRY_SECONDS_MAX
                    )
                )
            except Exception as error:  # noqa: BLE001 - whatever a record does to the database must not end the recovery
                if len(outcomes) == 1:
                    self._quarantined += 1
                    await quarantine_records(self._quarantine, outcomes[0], error)
                else:
                    for outcome in outcomes:
                        await self._apply([outcome])
                return
            else:
                self._rows += new
                return


def _records(paths: list[Path]) -> Iterator[tuple[Path, Intent | Outcome | None]]:
    for path in paths:
        for record in decode_frames(path.read_bytes()):
            yield path, record


def _with_prompt(outcome: Outcome, intent: Intent | None) -> Outcome:
    """A lean outcome gets its prompt back from the intent."""
    return (
        msgspec.structs.replace(outcome, intent=intent)
        if intent and not outcome.intent.prompt
        else outcome
    )


def _let_go(segments: list[tuple[int, Path, list[Path]]], bad: set[Path]) -> None:
    """Remove the files; keep one that has something unreadable, under a name that is not read again.

    Of each segment the one that was read goes last: should this process die meanwhile, the next one would read what is left, and a copy
    may end in the middle of a frame.
    """
    for _, read, paths in segments:
        for path in reversed(paths):
            if path is read and path in bad:
                path.rename(path.with_suffix(".bad"))
            else:
                path.unlink(missing_ok=True)
