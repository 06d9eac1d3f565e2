"""The membership of a replica: its lease, the others, and the tasks of the leader."""

from collections.abc import AsyncIterator

import pytest

from service.core.database.engine import Database
from service.core.replicas.leader import Leadership
from service.core.replicas.slots import SlotLease
from service.workers.membership import Membership, MembershipStatistics
from tests.postgres import PostgresServer, temporary_database

pytestmark = pytest.mark.slow


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A database of PostgreSQL."""
    async with temporary_database(postgres) as database:
        yield database


class TaskOfLeader:
    """A task that does nothing; `running` says whether it was started."""

    def __init__(self) -> None:
        self.running = False

    def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False

    def degraded(self) -> bool:
        return False

    def statistics(self) -> MembershipStatistics:
        raise NotImplementedError


async def join(database: Database, name: str) -> tuple[Membership, TaskOfLeader, list[None]]:
    """A member with a task of the leader, and the calls of `on_lost`."""
    lease, calls, task = SlotLease(database, name), list[None](), TaskOfLeader()
    member = Membership(
        lease,
        Leadership(database, lease),
        lambda: calls.append(None),
        renew_seconds=0,
    )
    await member.open()
    member.run_leader_tasks([task])
    return member, task, calls


async def test_the_tasks_of_the_leader_run_on_one_replica(database: Database) -> None:
    """They move to another replica when the leader stops them."""
    first, first_task, _ = await join(database, "a")
    second, second_task, _ = await join(database, "b")
    before = (first_task.running, second_task.running)
    await first.stop_leader_tasks()
    await second.run_checks()

    assert before == (True, False)
    assert (first_task.running, second_task.running) == (False, True)
    assert second.statistics() == MembershipStatistics(
        slot=1, lease=True, leader=True, term=2, replicas=2
    )


async def test_a_replica_without_its_slot_ends(database: Database) -> None:
    """`on_lost` is called, and the tasks of the leader stop."""
    member, task, calls = await join(database, "a")
    await SlotLease(database, "a").acquire()
    await member.run_checks()

    assert calls == [None]
    assert not task.running
    assert member.degraded()


async def test_members_see_each_other(database: Database) -> None:
    """The table is read at every tick."""
    first, _, _ = await join(database, "a")
    await join(database, "b")
    await first.run_checks()

    assert sorted(first.replicas) == [0, 1]
