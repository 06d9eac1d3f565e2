"""Periodic cleanup, once per second, outside of requests.

It stops answers whose credential was revoked, expires quota holds, and writes the last uses of
keys. Failed work is repeated at the next tick; the service is degraded while it keeps failing. At
start, it rebuilds quota usage from the log after recovery has completed the log.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from service.core.auth.authenticator import Authenticator
from service.core.auth.revocation import RevocationMonitor
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.errors import DatabaseUnavailable
from service.core.quota.history import rebuild_usage
from service.core.quota.local import LocalQuota
from service.core.telemetry import log
from service.workers.background import BackgroundTask, PeriodicTask

TICK_SECONDS = 1.0
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
        quota: LocalQuota,
        database: Database,
        wait_recovered: Callable[[], Awaitable[None]],
        *,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        self._task = PeriodicTask("reaper", self.run_checks, tick_seconds)
        self._rebuild_task = BackgroundTask("quota load", self._rebuild_usage)
        self._tick_seconds = tick_seconds
        self._authenticator, self._revocation, self._quota, self._database = (
            authenticator,
            revocation,
            quota,
            database,
        )
        self._wait_recovered = wait_recovered
        self._started = utc_now()

    def start(self) -> None:
        """See `BackgroundWorker.start`."""
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

    async def _rebuild_usage(self) -> None:
        try:
            await self._wait_recovered()
        except DatabaseUnavailable as error:  # rows are missing, which readiness reports
            log.warning("quota.incomplete", error=str(error))
        while True:
            try:
                async with self._database.read_session() as session:
                    await rebuild_usage(session, self._quota, self._started)
            except DatabaseUnavailable as error:
                log.warning("quota.delayed", error=str(error))
                await asyncio.sleep(self._tick_seconds)
            else:
                return

    async def run_checks(self) -> None:
        """Do the work of one tick. Raises `DatabaseUnavailable`."""
        self._authenticator.refresh_keys()
        if expired := self._quota.expire():
            log.warning("holds.expired", holds=expired)
        if ended := await self._revocation.check_principals(self._authenticator):
            self._authenticator.clear_cache()  # may contain credentials that were revoked elsewhere
            log.info("revoked.ended", count=ended)
        if self._task.ticks % USED_TICKS == 0:
            await self._authenticator.write_last_used()
