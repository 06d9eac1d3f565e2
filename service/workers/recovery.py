"""Recovery: the journals of dead processes become rows, once, after startup.

Outcomes are applied as the writer applies them; an intent without an outcome becomes a row with
status `interrupted` and usage `unknown`, because the progress of the provider is unknown; attempts
that ended before are kept. Applying
is idempotent, so an interrupted recovery is repeated. The segments of a process are read together
in order: an outcome may be in a later segment than its intent. Files are removed once their rows
are committed; a file with an invalid frame is kept as `.bad`.
"""

import asyncio
import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from service.core.accounting import log as request_log
from service.core.accounting.journal import Record, decode_frames, find_orphans
from service.core.accounting.outcomes import build_interrupted
from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable, retry_delay
from service.core.records import EndedAttempt, Intent, Outcome
from service.core.telemetry import log
from service.workers.background import BackgroundTask
from service.workers.quarantine import quarantine_record

BATCH_RECORDS = 500  # per transaction
RETRY_SECONDS, RETRY_SECONDS_MAX = 0.1, 1  # while the database is unavailable


class RecoveryState(StrEnum):
    """The state of recovery."""

    RUNNING = "running"  # finding or applying orphaned segments
    DONE = "done"  # no journal of a dead process is left
    FAILED = "failed"  # unexpected error; the files are kept


class RecoveryStatistics(msgspec.Struct, frozen=True):
    """`rows`: new rows. `interrupted`: those without an outcome. `bad_frames`: unreadable."""

    state: RecoveryState
    segments: int
    rows: int
    interrupted: int
    bad_frames: int
    quarantined: int


class JournalRecovery:
    """The recovery at startup."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        spool: Path | None,
        *,
        quarantine: Path,
        batch_records: int = BATCH_RECORDS,
    ) -> None:
        self._task = BackgroundTask("recovery", self._run)
        self._database = database
        self._folder, self._spool, self._quarantine = folder, spool, quarantine
        self._batch_records = batch_records
        self._state = RecoveryState.RUNNING
        self._segments = self._rows = self._interrupted = self._bad_frames = self._quarantined = 0

    def start(self) -> None:
        """See `BackgroundWorker.start`."""
        self._task.start()

    async def stop(self) -> None:
        """See `BackgroundWorker.stop`."""
        await self._task.stop()

    async def wait_done(self) -> None:
        """Wait until the rows of earlier processes are stored. Raises `DatabaseUnavailable`."""
        await self._task.wait_ended()
        if self._state is RecoveryState.FAILED:
            raise DatabaseUnavailable("the journal of an earlier process could not be recovered")

    def degraded(self) -> bool:
        """True if the journal contains something that could not become a row."""
        return self._state is RecoveryState.FAILED or self._bad_frames > 0 or self._quarantined > 0

    def statistics(self) -> RecoveryStatistics:
        """Return an immutable snapshot of the counters."""
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
                await self._recover_process(segments)
        except Exception:  # noqa: BLE001 - the service answers, degraded
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

    async def _recover_process(self, segments: list[tuple[int, Path, list[Path]]]) -> None:
        """Apply the segments of one process, then remove them."""
        bad: set[Path] = set()
        try:
            outcomes, interrupted = await asyncio.to_thread(
                self._read_records, [path for _, path, _ in segments], bad
            )
            for begin in range(0, len(outcomes), self._batch_records):
                await self._apply_batch(outcomes[begin : begin + self._batch_records])
            self._segments += len(segments)
            self._interrupted += interrupted
            await asyncio.to_thread(_remove_files, segments, bad)
        finally:
            for lock, _, _ in segments:
                os.close(lock)

    def _read_records(self, paths: list[Path], bad: set[Path]) -> tuple[list[Outcome], int]:
        """Return the outcomes of a process, and how many of them have only an intent."""
        intents: dict[str, Intent] = {}
        outcomes: dict[str, Outcome] = {}
        attempts: dict[str, list[EndedAttempt]] = {}
        for path, record in _iterate_records(paths):
            if record is None:
                bad.add(path)
                self._bad_frames += 1
            elif isinstance(record, Intent):
                intents[record.id] = record
            elif isinstance(record, EndedAttempt):
                attempts.setdefault(record.answer_id, []).append(record)
            else:
                outcomes[record.intent.id] = record
        complete = [_restore_prompt(outcome, intents.get(id_)) for id_, outcome in outcomes.items()]
        unfinished = [
            build_interrupted(intent, attempts.get(id_, ()))
            for id_, intent in intents.items()
            if id_ not in outcomes
        ]
        return sorted(complete + unfinished, key=lambda outcome: outcome.intent.id), len(unfinished)

    async def _apply_batch(self, outcomes: list[Outcome]) -> None:
        """Apply a batch, retrying while the database is unavailable; isolate a bad record."""
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
            except Exception as error:  # noqa: BLE001 - no record may end recovery
                if len(outcomes) == 1:
                    self._quarantined += 1
                    await quarantine_record(self._quarantine, outcomes[0], error)
                else:
                    for outcome in outcomes:
                        await self._apply_batch([outcome])
                return
            else:
                self._rows += new
                return


def _iterate_records(paths: list[Path]) -> Iterator[tuple[Path, Record | None]]:
    for path in paths:
        for record in decode_frames(path.read_bytes()):
            yield path, record


def _restore_prompt(outcome: Outcome, intent: Intent | None) -> Outcome:
    """Restore the prompt of a lean outcome from its intent."""
    return (
        msgspec.structs.replace(outcome, intent=intent)
        if intent and not outcome.intent.prompt
        else outcome
    )


def _remove_files(segments: list[tuple[int, Path, list[Path]]], bad: set[Path]) -> None:
    """Remove the files; rename those with invalid frames, so that they are not read again.

    The file that was read is removed last: if this process dies in between, the next one reads what
    is left, and a copy may end within a frame.
    """
    for _, path_read, paths in segments:
        for path in reversed(paths):
            if path is path_read and path in bad:
                path.rename(path.with_suffix(".bad"))
            else:
                path.unlink(missing_ok=True)
