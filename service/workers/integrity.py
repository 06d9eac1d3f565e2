"""Checks the pages of the database once after the start, in the background.

The check reads the whole file, which takes seconds per gigabyte; the start does not wait for it. It
finds damage to the structure of the file, not to the values in it. Damage that reads and writes
meet is reported by `Database.damage` as well, and degrades this worker until the file is replaced.
"""

import time
from enum import StrEnum

import msgspec

from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable
from service.core.telemetry import log
from service.workers.background import BackgroundTask


class IntegrityState(StrEnum):
    """State of the check."""

    CHECKING = "checking"  # not finished
    INTACT = "intact"  # no problem so far
    DAMAGED = "damaged"  # the check, a read or a write met damage
    FAILED = "failed"  # the database could not be read, for example because it was locked


class IntegrityStatistics(msgspec.Struct, frozen=True):
    """An immutable snapshot. `seconds`: duration of the check, once it is finished.

    `damaged_rows`: rows that reads could not read, up to `DAMAGED_ROWS_MAX`.
    """

    state: IntegrityState
    damage: str | None
    damaged_rows: int
    seconds: float | None


class IntegrityChecker:
    """Runs the check as one task, and reports damage to health."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._task = BackgroundTask("integrity", self._run_check)
        self._state = IntegrityState.CHECKING
        self._seconds: float | None = None

    def start(self) -> None:
        """See `BackgroundWorker.start`."""
        self._task.start()

    async def stop(self) -> None:
        """See `BackgroundWorker.stop`."""
        await self._task.stop()

    async def wait_done(self) -> None:
        """Wait for the end of the check."""
        await self._task.wait_ended()

    def degraded(self) -> bool:
        """True if the current database file is damaged."""
        return self._database.damage is not None

    def statistics(self) -> IntegrityStatistics:
        """An immutable snapshot of the state."""
        damage = self._database.damage
        state = IntegrityState.DAMAGED if damage else self._state
        return IntegrityStatistics(
            state=state,
            damage=damage,
            damaged_rows=self._database.damaged_rows,
            seconds=self._seconds,
        )

    async def _run_check(self) -> None:
        begun = time.monotonic()
        try:
            await self._database.check_pages()
        except DatabaseUnavailable as error:
            self._state = IntegrityState.FAILED
            log.warning("integrity.unchecked", error=str(error))
        else:
            self._state = IntegrityState.INTACT
        self._seconds = round(time.monotonic() - begun, 3)
