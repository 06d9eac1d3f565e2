"""The leader: taking over, and the fence of a leader that was stopped."""

import pytest

from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable
from service.core.replicas.leader import Leadership
from service.core.replicas.slots import LEASE_SECONDS, SlotLease
from tests.core.replicas.test_slots import age_slot

pytestmark = pytest.mark.slow


async def join(database: Database, name: str) -> Leadership:
    """Lease a slot, and find out who leads."""
    lease = SlotLease(database, name)
    await lease.acquire()
    leadership = Leadership(database, lease)
    await leadership.campaign()
    return leadership


async def test_one_replica_leads(database: Database) -> None:
    """The first one, until it resigns; then the next one that asks."""
    first, second = await join(database, "a"), await join(database, "b")
    before = (first.is_leader, second.is_leader)
    await first.resign()
    await second.campaign()
    await first.campaign()

    assert before == (True, False)
    assert (first.is_leader, second.is_leader) == (False, True)
    assert second.term == 2


async def test_a_leader_whose_lease_has_expired_is_replaced_and_fenced(database: Database) -> None:
    """It cannot write any more, although it did not notice the take-over."""
    stopped = await join(database, "a")
    work = database.with_fence(stopped.fence)
    async with work.transaction() as session:
        await session.exec_driver_sql("INSERT INTO plans VALUES ('first', '{}')")
    await age_slot(database, 0, LEASE_SECONDS + 1)
    other = await join(database, "b")
    believed = stopped.is_leader
    with pytest.raises(DatabaseUnavailable, match="another replica"):
        async with work.transaction() as session:
            await session.exec_driver_sql("INSERT INTO plans VALUES ('second', '{}')")
    async with database.read_session() as session:
        plans = (await session.exec_driver_sql("SELECT name FROM plans")).scalars().all()

    assert believed
    assert other.is_leader
    assert not stopped.is_leader
    assert plans == ["first"]


async def test_a_leader_without_a_lease_does_not_lead(database: Database) -> None:
    """Its own clock ends the leadership, also while the database is away."""
    now = 0.0
    lease = SlotLease(database, "a", monotonic=lambda: now)
    await lease.acquire()
    leadership = Leadership(database, lease)
    await leadership.campaign()
    before = leadership.is_leader
    now = LEASE_SECONDS + 1

    assert (before, leadership.is_leader) == (True, False)
