"""Periodic cleanup, once per second, outside of requests.

It stops answers whose credential was revoked, writes the last uses of keys, and counts jumps of the
system time. Failed work is repeated at the next tick; the service is degraded while it keeps
failing. If quotas are in memory, it expires their holds, and loads their usage from the log: at the
start after recovery has completed the log, and after jumps of the system time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from service.core.auth.authenticator import Authenticator
from service.core.auth.revocation import RevocationMonitor
from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable
from service.core.quota.history import rebuild_usage
from service.core.quota.local import LocalQuota
from service.core.telemetry import Metrics, log
from service.workers.background import BackgroundTask, PeriodicTask

TICK_SECONDS = 1.0
JUMP_SECONDS = 0.5  # a larger difference between the two clocks is a jump; NTP slews slower
USED_TICKS = 30  # interval of writing the last uses of keys, in ticks


class ReaperStatistics(msgspec.Struct, frozen=True):
    """`failures`: failed ticks in a row."""

    ticks: int
    failures: int


class Reaper:
    """Runs the periodic task, and another one until the quota usage is rebuilt."""

    def __init__(
        self,
        authenticator: Authenticator,
        revocation: RevocationMonitor,
        quota: LocalQuota | None,
        database: Database,
        wait_recovered: Callable[[], Awaitable[None]],
        wait_committed: Callable[[], Awaitable[None]],
        metrics: Metrics,
        *,
        tick_seconds: float = TICK_SECONDS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task = PeriodicTask("reaper", self.run_checks, tick_seconds)
        self._rebuild_task = BackgroundTask("quota load", self._keep_usage_loaded)
        self._tick_seconds = tick_seconds
        self._authenticator, self._revocation, self._quota, self._database = (
            authenticator,
            revocation,
            quota,
            database,
        )
        self._wait_recovered, self._wait_committed = wait_recovered, wait_committed
        self._metrics, self._clock, self._monotonic = metrics, clock, monotonic
        self._clock_offset = clock() - monotonic()

    def start(self) -> None:
        """See `BackgroundWorker.start`."""
        if self._quota is not None:
            self._rebuild_task.start()
        self._task.start()

    async def stop(self) -> None:
        """Stop, and write the last uses of keys that are not written yet. Idempotent."""
        await self._rebuild_task.stop()
        await self._task.stop()
        try:
            await self._authenticator.write_last_used()
        except DatabaseUnavailable as error:
            log.warning("last_uses.lost", error=str(error))

    def degraded(self) -> bool:
        """Whether ticks keep failing."""
        return self._task.degraded

    def statistics(self) -> ReaperStatistics:
        """An immutable snapshot of the counters."""
        return ReaperStatistics(ticks=self._task.ticks, failures=self._task.failures)

    async def _keep_usage_loaded(self) -> None:
        """Load usage at startup, and whenever the clock has jumped to an unknown window."""
        try:
            await self._wait_recovered()
        except DatabaseUnavailable as error:  # rows are missing, which readiness reports
            log.warning("quota.incomplete", error=str(error))
        while self._quota is not None:
            await self._load_usage(self._quota)
            await self._quota.wait_load_requested()
            await self._wait_committed()

    async def _load_usage(self, quota: LocalQuota) -> None:
        while True:
            try:
                async with self._database.read_session() as session:
                    await rebuild_usage(session, quota)
            except DatabaseUnavailable as error:
                log.warning("quota.delayed", error=str(error))
                await asyncio.sleep(self._tick_seconds)
            else:
                return

    def _check_clock(self) -> None:
        """Count and log a jump of the time of day since the last tick."""
        offset = self._clock() - self._monotonic()
        seconds, self._clock_offset = offset - self._clock_offset, offset
        if abs(seconds) >= JUMP_SECONDS:
            self._metrics.clock_jumps.labels("forwards" if seconds > 0 else "backwards").inc()
            log.warning("clock.jumped", seconds=round(seconds, 3))

    async def run_checks(self) -> None:
        """Do the work of one tick. Raises `DatabaseUnavailable`."""
        self._check_clock()
        self._authenticator.refresh_keys()
        if self._quota is not None and (expired := self._quota.expire()):
            log.warning("holds.expired", holds=expired)
        if ended := await self._revocation.check_principals(self._authenticator):
            self._authenticator.clear_cache()  # may contain credentials that were revoked elsewhere
            log.info("revoked.ended", count=ended)
        if self._task.ticks % USED_TICKS == 0:
            await self._authenticator.write_last_used()
