"""Slots: leasing, renewing and reusing them."""

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.errors import SettingsInvalid
from service.core.replicas.slots import (
    LEASE_SECONDS,
    ReplicaState,
    SlotLease,
    SlotLost,
    read_name,
    remove_old_slots,
)

pytestmark = pytest.mark.slow


async def age_slot(database: Database, slot: int, seconds: float) -> None:
    """Make a slot as old as if its replica had not been seen for this time."""
    change = sa.text(
        "UPDATE replicas SET seen_at = seen_at - make_interval(secs => :s) WHERE slot = :slot"
    )
    async with database.transaction() as session:
        await session.execute(change, {"s": seconds, "slot": slot})


async def test_replicas_have_different_slots(database: Database) -> None:
    """Replicas that start at the same time get different slots, and see each other."""
    leases = [SlotLease(database, f"name {n}", f"10.0.0.{n}:8100") for n in range(5)]
    await asyncio.gather(*(lease.acquire() for lease in leases))
    replicas = await leases[0].list_replicas()

    assert sorted(lease.slot for lease in leases) == list(range(5))
    assert {slot: replica.address for slot, replica in replicas.items()} == {
        lease.slot: lease.address for lease in leases
    }
    assert all(replica.is_alive for replica in replicas.values())


async def test_a_data_directory_keeps_its_slot(database: Database) -> None:
    """A restart has the same slot at once, whether the process was killed or has left."""
    first = SlotLease(database, "a")
    await first.acquire()
    await SlotLease(database, "b").acquire()
    killed = SlotLease(database, "a")
    await killed.acquire()
    await killed.release()
    left = (await first.list_replicas())[0]
    again = SlotLease(database, "a")

    assert await again.acquire() == killed.slot == first.slot == 0
    assert (left.state, left.is_alive) == (ReplicaState.LEFT, False)


async def test_a_lease_expires_for_others_and_for_its_holder(database: Database) -> None:
    """Both use a time of their own; a renewal extends the lease."""
    now = 100.0
    lease = SlotLease(database, "a", monotonic=lambda: now)
    await lease.acquire()
    await age_slot(database, 0, LEASE_SECONDS + 1)
    expired = (await lease.list_replicas())[0].is_alive
    now += LEASE_SECONDS + 1
    held = lease.is_held
    await lease.renew()

    assert (expired, held) == (False, False)
    assert lease.is_held
    assert (await lease.list_replicas())[0].is_alive


async def test_a_copied_data_directory_takes_the_slot(database: Database) -> None:
    """The process that had the slot learns of it when it renews its lease."""
    lease, copied = SlotLease(database, "a"), SlotLease(database, "a")
    await lease.acquire()
    await copied.acquire()

    with pytest.raises(SlotLost):
        await lease.renew()
    assert not lease.is_held
    await copied.renew()


async def test_a_slot_is_reused_after_a_day(database: Database) -> None:
    """Only if its replica has left or is lost."""
    leases = [SlotLease(database, name, slots=2) for name in "abc"]
    await leases[0].acquire()
    await leases[1].acquire()
    await leases[1].release()
    async with database.transaction() as session:
        await remove_old_slots(session)
    with pytest.raises(SettingsInvalid, match="slots"):
        await leases[2].acquire()
    for slot in (0, 1):
        await age_slot(database, slot, 86_401)
    async with database.transaction() as session:
        await remove_old_slots(session)

    assert await leases[2].acquire() == 1


def test_a_data_directory_has_one_name(tmp_path: Path) -> None:
    """The name is created once, and differs between directories."""
    names = [read_name(tmp_path / folder) for folder in ("a", "a", "b")]

    assert names[0] == names[1] != names[2]
