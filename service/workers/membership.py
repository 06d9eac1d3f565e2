"""Membership: renews the slot of this replica, knows the others, and runs the tasks of the leader.

The table of replicas is read every second, also while the lease cannot be renewed. If another
process has taken the slot, this one must not answer any longer: `on_lost` ends it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec

from service.core.errors import DatabaseUnavailable
from service.core.replicas.leader import Leadership
from service.core.replicas.slots import RENEW_SECONDS, Replica, SlotLease, SlotLost
from service.core.telemetry import log
from service.workers.background import BackgroundWorker, PeriodicTask

TICK_SECONDS = 1.0


class MembershipStatistics(msgspec.Struct, frozen=True):
    """`lease`: whether the slot is leased. `term`: of the leadership of this replica."""

    slot: int
    lease: bool
    leader: bool
    term: int | None
    replicas: int


class Membership:
    """The periodic task. `open` comes before `start`."""

    def __init__(
        self,
        lease: SlotLease,
        leadership: Leadership,
        on_lost: Callable[[], None],
        *,
        renew_seconds: float = RENEW_SECONDS,
    ) -> None:
        self._lease, self.leadership, self._on_lost = lease, leadership, on_lost
        self._renew_seconds = renew_seconds
        self._task = PeriodicTask("membership", self.run_checks, TICK_SECONDS)
        self._renew_at = 0.0  # monotonic
        self._leader_tasks: list[BackgroundWorker] = []
        self._leading = False  # the tasks are running
        self.replicas: Mapping[int, Replica] = {}

    async def open(self) -> None:
        """Lease a slot, and find out who leads. Raises `SettingsInvalid`, `DatabaseUnavailable`."""
        await self._lease.acquire()
        self._renew_at = time.monotonic() + self._renew_seconds
        self.replicas = await self._lease.list_replicas()
        await self.leadership.campaign()

    def start(self) -> None:
        """See `BackgroundWorker.start`."""
        self._task.start()

    async def stop(self) -> None:
        """See `BackgroundWorker.stop`. The lease is kept until it expires or is released."""
        await self._task.stop()

    def run_leader_tasks(self, tasks: Sequence[BackgroundWorker]) -> None:
        """Run these tasks while this replica leads, from now on."""
        self._leader_tasks = list(tasks)
        self._start_tasks()

    async def stop_leader_tasks(self) -> None:
        """Stop the tasks of the leader, and let another replica lead. Idempotent."""
        await self._stop_tasks()
        self._leader_tasks = []
        with suppress(DatabaseUnavailable):  # the lease expires
            await self.leadership.resign()

    def degraded(self) -> bool:
        """Whether the lease is lost, or checks keep failing."""
        return self._task.degraded or not self._lease.is_held

    def statistics(self) -> MembershipStatistics:
        """An immutable snapshot of the counters."""
        return MembershipStatistics(
            slot=self._lease.slot,
            lease=self._lease.is_held,
            leader=self.leadership.is_leader,
            term=self.leadership.term,
            replicas=sum(replica.is_alive for replica in self.replicas.values()),
        )

    async def run_checks(self) -> None:
        """Do the work of one tick. Raises `DatabaseUnavailable`."""
        try:
            if time.monotonic() >= self._renew_at:
                await self._lease.renew()
                self._renew_at = time.monotonic() + self._renew_seconds
            self.replicas = await self._lease.list_replicas()
            await self.leadership.campaign()
        except SlotLost as error:
            log.error("replica.superseded", error=str(error))
            self._on_lost()
        finally:
            if self.leadership.is_leader:
                self._start_tasks()
            else:
                await self._stop_tasks()

    def _start_tasks(self) -> None:
        if self.leadership.is_leader and self._leader_tasks and not self._leading:
            log.info("leader.elected", slot=self._lease.slot, term=self.leadership.term)
            self._leading = True
            for task in self._leader_tasks:
                task.start()

    async def _stop_tasks(self) -> None:
        if self._leading:
            self._leading = False
            for task in self._leader_tasks:
                await task.stop()
