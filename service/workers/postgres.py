"""Upkeep of a PostgreSQL database: the lock of the service, and the partitions of the log.

The lock is checked every `CHECK_SECONDS`, and acquired again after its connection was lost, for
example because PostgreSQL was restarted. If another process was faster, this one must not answer
any longer: `on_lost` ends it. Partitions are created, and old claims of idempotency keys removed,
at the start and once a day by the leader.
"""

import time
from collections.abc import Callable

import msgspec

from service.core.database.engine import Database
from service.core.database.partitions import count_default_rows, create_partitions
from service.core.database.postgres_lock import ServiceLock
from service.core.encoding import utc_now
from service.core.errors import DatabaseUnavailable, SettingsInvalid
from service.core.replicas.claims import remove_old_claims
from service.core.telemetry import log
from service.workers.background import PeriodicTask

CHECK_SECONDS = 5.0
PARTITION_SECONDS = 86_400
PARTITION_RETRY_SECONDS = 600  # after a failure; partitions are created months ahead


class UpkeepStatistics(msgspec.Struct, frozen=True):
    """`failures`: failed checks in a row. `unpartitioned`: rows of months without a partition."""

    failures: int
    partitions_created: int
    unpartitioned: int


class PostgresUpkeep:
    """The periodic task. `open` comes before `start`."""

    def __init__(
        self,
        database: Database,
        lock: ServiceLock,
        on_lost: Callable[[], None],
        check_seconds: float = CHECK_SECONDS,
        *,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._database, self._lock, self._on_lost = database, lock, on_lost
        self._leads = leads
        self._task = PeriodicTask("upkeep", self.run_checks, check_seconds)
        self._partitions_at = 0.0  # monotonic, of the next time
        self._created = self._unpartitioned = 0

    async def open(self) -> None:
        """Acquire the lock, and create the partitions. Raises `SettingsInvalid`.

        Raises `DatabaseUnavailable`.
        """
        await self._lock.acquire()
        await self._keep_partitions()

    def start(self) -> None:
        """See `BackgroundWorker.start`."""
        self._task.start()

    async def stop(self) -> None:
        """Stop, and release the lock. Idempotent."""
        await self._task.stop()
        await self._lock.close()

    def degraded(self) -> bool:
        """Whether checks keep failing, or rows are in no partition."""
        return self._task.degraded or self._unpartitioned > 0

    def statistics(self) -> UpkeepStatistics:
        """An immutable snapshot of the counters."""
        return UpkeepStatistics(
            failures=self._task.failures,
            partitions_created=self._created,
            unpartitioned=self._unpartitioned,
        )

    async def run_checks(self) -> None:
        """Do the work of one tick. Raises `DatabaseUnavailable`."""
        try:
            await self._lock.keep()
        except SettingsInvalid as error:
            log.error("service.superseded", error=str(error))
            self._on_lost()
            return
        if time.monotonic() >= self._partitions_at and self._leads():
            await self._keep_partitions()

    async def _keep_partitions(self) -> None:
        """Create missing partitions. A failure is logged: the default partition takes the rows."""
        try:
            async with self._database.transaction() as session:
                names = await create_partitions(session, utc_now())
                await remove_old_claims(session)
            async with self._database.read_session() as session:
                self._unpartitioned = await count_default_rows(session)
        except DatabaseUnavailable as error:
            log.warning("partitions.delayed", error=str(error))
            self._partitions_at = time.monotonic() + PARTITION_RETRY_SECONDS
            return
        self._partitions_at = time.monotonic() + PARTITION_SECONDS
        self._created += len(names)
        if names:
            log.info("partitions.created", names=names)
