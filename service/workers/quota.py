"""Signs of life of this replica in the shared store of quotas, once per second.

They also expire holds of replicas that are gone, and find out that the store is back.
"""

import asyncio

from service.core.errors import QuotaUnavailable
from service.core.quota.shared import SharedQuota, SharedQuotaStatistics
from service.core.telemetry import log
from service.workers.background import BackgroundTask

TICK_SECONDS = 1.0


class QuotaUpkeep:
    """The periodic task. `open` comes before `start`."""

    def __init__(self, quota: SharedQuota, tick_seconds: float = TICK_SECONDS) -> None:
        self._quota, self._tick_seconds = quota, tick_seconds
        self._task = BackgroundTask("quota upkeep", self._run)

    async def open(self) -> None:
        """Register this replica. An unavailable store is logged, and tried again."""
        await self._quota.start()

    def start(self) -> None:
        """See `BackgroundWorker.start`."""
        self._task.start()

    async def stop(self) -> None:
        """Stop, and withdraw this replica. Idempotent."""
        await self._task.stop()
        await self._quota.stop()

    def degraded(self) -> bool:
        """Whether holds are refused, or the task has ended."""
        return not self.statistics().available or self._task.has_ended

    def statistics(self) -> SharedQuotaStatistics:
        """An immutable snapshot of the counters."""
        return self._quota.statistics()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._tick_seconds)
            await self.run_checks()

    async def run_checks(self) -> None:
        """Do the work of one tick."""
        try:
            await self._quota.keep_alive()
        except QuotaUnavailable as error:
            log.warning("quota.delayed", error=str(error))
        except Exception:  # noqa: BLE001 - a tick that fails must not end the next ones
            log.exception("quota.broken")
