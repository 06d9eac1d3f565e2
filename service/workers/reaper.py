"""The reaper: what has to be looked at now and then, once a second, so that no request has to.

It ends what goes on by a revoked credential, lets holds expire, and writes when keys were last used. What fails is tried
again a second later, and the service says `degraded` when it fails for long. At start it has the quota learn what earlier
processes used, once recovery has brought that into the log.
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
USED_TICKS = 30  # last uses are written every so many ticks


class ReaperStatistics(msgspec.Struct, frozen=True):
    """`failures`: ticks in a row that did not do all of their work."""

    ticks: int
    failures: int


class Reaper:
    """Runs as one task, and as a second one until the quota has learned."""

    def __init__(
        self,
        door: Authenticator,
        watch: RevocationMonitor,
        ledger: LocalQuota,
        database: Database,
        wait_recovered: Callable[[], Awaitable[None]],
        *,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        self._task = PeriodicTask("reaper", self.run_checks, tick_seconds)
        self._loading = BackgroundTask("quota load", self._load_quota)
        self._tick_seconds = tick_seconds
        self._door, self._watch, self._ledger, self._database = door, watch, ledger, database
        self._wait_recovered = wait_recovered
        self._started = utc_now()

    def start(self) -> None:
        """See `BackgroundWorker.start`."""
        self._loading.start()
        self._task.start()

    async def stop(self) -> None:
        """Stop, and write the last uses of keys that are not written yet. Idempotent."""
        await self._loading.stop()
        await self._task.stop()
        try:
            await self._door.write_last_used()
        except DatabaseUnavailable as error:
            log.warning("last_uses.lost", error=str(error))

    def degraded(self) -> bool:
        """Whether ticks keep failing."""
        return self._task.degraded

    def statistics(self) -> ReaperStatistics:
        """An immutable snapshot of the counters."""
        return ReaperStatistics(ticks=self._task.ticks, failures=self._task.failures)

    async def _load_quota(self) -> None:
        try:
            await self._wait_recovered()
        except DatabaseUnavailable as error:  # those rows will be missing; readiness says so
            log.warning("quota.incomplete", error=str(error))
        while True:
            try:
                async with self._database.read_session() as session:
                    await rebuild_usage(session, self._ledger, self._started)
            except DatabaseUnavailable as error:
                log.warning("quota.delayed", error=str(error))
                await asyncio.sleep(self._tick_seconds)
            else:
                return

    async def run_checks(self) -> None:
        """Do the work of one tick. Raises `DatabaseUnavailable`."""
        if expired := self._ledger.expire():
            log.warning("holds.expired", holds=expired)
        if ended := await self._watch.check_principals(self._door):
            self._door.clear_cache()  # what was revoked elsewhere may still be known here
            log.info("revoked.ended", count=ended)
        if self._task.ticks % USED_TICKS == 0:
            await self._door.write_last_used()
