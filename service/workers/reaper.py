"""The reaper: what has to be looked at now and then, once a second, so that no request has to.

It writes when keys were last used. None of it is urgent: what fails is tried again a second later, and the service says
`degraded` when it fails for long.
"""

import asyncio
from contextlib import suppress

import msgspec

from service.core.auth.door import Door
from service.core.errors import DatabaseUnavailable
from service.core.telemetry import log

TICK_SECONDS = 1.0
USED_TICKS = 30  # last uses are written every so many ticks
FAILURES_MAX = 10  # ticks in a row that may fail before it is worth saying


class ReaperStatistics(msgspec.Struct, frozen=True):
    """`failures`: ticks in a row that did not do all of their work."""

    ticks: int
    failures: int


class Reaper:
    """Runs as one task between `start` and `stop`."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._task: asyncio.Task[None] | None = None
        self._ticks = self._failures = 0

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="reaper")

    async def stop(self) -> None:
        """End, and write what is not written."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        try:
            await self._door.write_used()
        except DatabaseUnavailable as error:
            log.warning("last_uses.lost", error=str(error))

    def degraded(self) -> bool:
        """Whether it has failed for long, or the task has died."""
        return self._failures > FAILURES_MAX or (self._task is not None and self._task.done())

    def statistics(self) -> ReaperStatistics:
        """A frozen look at the reaper."""
        return ReaperStatistics(ticks=self._ticks, failures=self._failures)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._ticks += 1
            try:
                await self.tick()
            except DatabaseUnavailable as error:
                self._failures += 1
                log.warning("reaper.delayed", failures=self._failures, error=str(error))
            except Exception:  # noqa: BLE001 - a tick that breaks must not end the next ones
                self._failures += 1
                log.exception("reaper.broken")
            else:
                self._failures = 0

    async def tick(self) -> None:
        """One look. Raises `DatabaseUnavailable`."""
        if self._ticks % USED_TICKS == 0:
            await self._door.write_used()
