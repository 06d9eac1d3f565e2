"""Intents of long answers in the database."""

import pytest

from service.core.database.engine import Database
from service.core.replicas import open_answers
from service.core.replicas.slots import ReplicaState, SlotLease
from tests.core.replicas.test_slots import age_slot
from tests.records import build_intent

pytestmark = pytest.mark.slow


async def test_intents_are_stored_unchanged_until_they_are_removed(database: Database) -> None:
    """Storing is idempotent; intents of other slots and later ones are not returned."""
    intents = [build_intent(prompt=f"{n}\0\ud7ff日本") for n in range(3)]
    async with database.transaction() as session:
        await open_answers.store_open(session, 7, intents)
        await open_answers.store_open(session, 7, intents[:1])
        await open_answers.store_open(session, 8, [build_intent()])
        await open_answers.remove_open(session, [intents[0].id])
        stored = await open_answers.list_open(session, 7, "~")
        earlier = await open_answers.list_open(session, 7, min(i.id for i in intents))

    assert stored == sorted(intents[1:], key=lambda intent: intent.id)
    assert earlier == []


async def test_a_replica_that_is_not_seen_is_lost(database: Database) -> None:
    """One that has left is not lost, and one that returns serves again."""
    leases = [SlotLease(database, name) for name in "abc"]
    for lease in leases:
        await lease.acquire()
        await age_slot(database, lease.slot, 100)
    await leases[1].release()
    async with database.transaction() as session:
        lost = await open_answers.list_lost_slots(session, 60)
        recent = await open_answers.list_lost_slots(session, 200)
        for slot in (0, 2):
            await open_answers.mark_lost(session, slot, 60)
    await leases[2].renew()
    replicas = await leases[0].list_replicas()

    assert (sorted(lost), recent) == ([0, 2], [])
    assert [replicas[slot].state for slot in range(3)] == [
        ReplicaState.LOST,
        ReplicaState.LEFT,
        ReplicaState.SERVING,
    ]
