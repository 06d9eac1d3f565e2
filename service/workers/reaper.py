"""The reaper: what has to be looked at now and then, once a second, so that no request has to.

It ends what goes on by a revoked credential, lets holds expire, and writes when keys were last used. What fails is tried
again a second later, and the service says `degraded` when it fails for long. At start it has the quota learn what earlier
processes used, once recovery has brought that into the log.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from service.core.auth.authenticator import Authenticator
from service.core.auth.revocation import RevocationMonitor
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.errors import DatabaseUnavailable
from service.core.quota.history import rebuild_usage
from service.core.quota.local import LocalQuota
from service.core.telemetry import log
from service.workers.background import Periodic

TICK_SECONDS = 1.0
USED_TICKS = 30  # last uses are written every so many ticks


class ReaperStatistics(msgspec.Struct, frozen=True):
    """`failures`: ticks in a row that did not do all of their work."""

    ticks: int
    failures: int


class Reaper(Periodic):
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
        super().__init__("reaper", tick_seconds)
        self._door, self._watch, self._ledger, self._database = door, watch, ledger, database
        self._wait_recovered = wait_recovered
        self._started = utc_now()
        self._loading: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._loading = asyncio.create_task(self._load(), name="quota load")
        super().start()

    async def stop(self) -> None:
        """End, and write what is not written."""
        if self._loading:
            self._loading.cancel()
            with suppress(asyncio.CancelledError):
                await self._loading
        await super().stop()
        try:
            await self._door.write_last_used()
        except DatabaseUnavailable as error:
            log.warning("last_uses.lost", error=str(error))

    def statistics(self) -> ReaperStatistics:
        """A frozen look at the reaper."""
        return ReaperStatistics(ticks=self._ticks, failures=self._failures)

    async def _load(self) -> None:
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

    async def tick(self) -> None:
        """One look. Raises `DatabaseUnavailable`."""
        if expired := self._ledger.expire():
            log.warning("holds.expired", holds=expired)
        if ended := await self._watch.check_principals(self._door):
            self._door.clear_cache()  # what was revoked elsewhere may still be known here
            log.info("revoked.ended", count=ended)
        if self._ticks % USED_TICKS == 0:
            await self._door.write_last_used()
