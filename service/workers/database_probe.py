"""Probes of the database: a statement per second on a connection of its own.

Only the probe decides that the database does not respond. A slow statement does not, and neither
does one lost connection: a failed probe is repeated at once on a new connection.
"""

import msgspec

from service.core.database.health import DatabaseHealth
from service.core.database.postgres_connection import StatementConnection
from service.core.errors import DatabaseUnavailable
from service.workers.background import PeriodicWorker

TICK_SECONDS = 1.0
TRIES = 2


class ProbeStatistics(msgspec.Struct, frozen=True):
    """`available`: whether the database responds. `outages`: how often it has stopped to."""

    available: bool
    outages: int


class DatabaseProbe(PeriodicWorker):
    """The periodic task. `seconds`: maximum wait for a reply, of which two must be missing."""

    def __init__(self, health: DatabaseHealth, url: str, *, seconds: float) -> None:
        self._health = health
        self._connection = StatementConnection(url, {}, seconds=seconds)
        self._outages = 0
        super().__init__("database_probe", self.run_checks, TICK_SECONDS)

    async def stop(self) -> None:
        """Stop, and close the connection. Idempotent."""
        await super().stop()
        await self._connection.close()

    def degraded(self) -> bool:
        """Whether the database does not respond, or the task has ended."""
        return not self._health.is_available or super().degraded()

    def statistics(self) -> ProbeStatistics:
        """An immutable snapshot of the counters."""
        return ProbeStatistics(available=self._health.is_available, outages=self._outages)

    async def run_checks(self) -> None:
        """Do the work of one tick."""
        reason = ""
        for _ in range(TRIES):
            try:
                await self._connection.fetch_value("SELECT 1")
            except DatabaseUnavailable as error:
                reason = error.detail
            else:
                self._health.mark_available()
                return
        self._outages += self._health.is_available
        self._health.mark_unavailable(reason)
