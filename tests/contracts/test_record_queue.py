"""Contract of `RecordQueue`, for every implementation."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.core.accounting.journal import Journal
from service.core.accounting.queue import JournaledQueue
from service.core.errors import Overloaded
from service.core.ports import RecordQueue
from tests.records import build_ended_attempt, build_intent, build_outcome

CAPACITY = 3


@pytest.fixture(params=["spool", "disk", "synchronous"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RecordQueue]:
    """The local queue with its journal on a spool, on the disk, and synced at each record."""
    spool = None if request.param == "disk" else tmp_path / "spool"
    journal = Journal(
        tmp_path / "journal",
        spool,
        sync_ms=0 if request.param == "synchronous" else 5,
        bytes_max=2**25,
    )
    journal.start()
    yield JournaledQueue(CAPACITY, journal)
    journal.stop(5)


async def test_outcomes_are_returned_in_order(queue: RecordQueue) -> None:
    """Outcomes are returned oldest first, up to the requested number."""
    intents = [build_intent() for _ in range(3)]
    for record in intents:
        queue.add_intent(record)
    for record in intents:
        queue.add_outcome(build_outcome(record))

    assert [record.intent for record in await queue.take_batch(2)] == intents[:2]
    assert [record.intent for record in await queue.take_batch(2)] == intents[2:]


async def test_an_accepted_intent_reserves_its_outcome(queue: RecordQueue) -> None:
    """`begin` refuses at the capacity; `finish` never does."""
    intents = [build_intent() for _ in range(CAPACITY)]
    for record in intents:
        queue.add_intent(record)
    with pytest.raises(Overloaded):
        queue.add_intent(build_intent())

    for record in intents:
        queue.add_outcome(build_outcome(record))

    with pytest.raises(Overloaded):
        queue.add_intent(build_intent())
    assert queue.statistics().waiting == CAPACITY


async def test_only_commits_free_capacity(queue: RecordQueue) -> None:
    """Records count against the capacity until they are committed."""
    intents = [build_intent() for _ in range(CAPACITY)]
    for record in intents:
        queue.add_intent(record)
        queue.add_outcome(build_outcome(record))
    batch = await queue.take_batch(CAPACITY)
    with pytest.raises(Overloaded):
        queue.add_intent(build_intent())

    queue.mark_committed(batch)

    queue.add_intent(build_intent())
    assert queue.statistics().waiting == 0


async def test_an_answer_ends_once(queue: RecordQueue) -> None:
    """A second outcome for one answer is an error."""
    begun = build_intent()
    queue.add_intent(begun)
    queue.add_outcome(build_outcome(begun))

    with pytest.raises(KeyError):
        queue.add_outcome(build_outcome(begun))


async def test_wait_committed_waits_for_ended_answers(queue: RecordQueue) -> None:
    """It returns when everything that ended before the call is committed, and not earlier."""
    begun = build_intent()
    queue.add_intent(begun)
    queue.add_outcome(build_outcome(begun))
    waiting = asyncio.create_task(queue.wait_committed())
    batch = await queue.take_batch(1)
    await asyncio.sleep(0)
    assert not waiting.done()

    queue.mark_committed(batch)

    await asyncio.wait_for(waiting, 1)


async def test_wait_synced_returns(queue: RecordQueue) -> None:
    """Waiting for the disk ends, with and without unsynced records."""
    queue.add_intent(build_intent())

    await asyncio.wait_for(queue.wait_synced(), 5)


async def test_records_of_one_user_leave_room_for_others(tmp_path: Path) -> None:
    """While the database is unavailable, one user cannot fill the queue."""
    journal = Journal(tmp_path / "journal", None, sync_ms=5, bytes_max=2**25)
    journal.start()
    queue = JournaledQueue(4, journal, user_share=0.5)
    own = [build_intent(user_id="a") for _ in range(3)]
    queue.add_intent(own[0])
    queue.add_intent(own[1])
    with pytest.raises(Overloaded, match="you have 2 "):
        queue.add_intent(own[2])
    queue.add_intent(build_intent(user_id="b"))
    queue.add_outcome(build_outcome(own[0]))
    queue.mark_committed(await queue.take_batch(1))
    queue.add_intent(own[2])

    assert queue.statistics().open == 3
    journal.stop(5)


async def test_an_attempt_of_an_open_answer_is_never_rejected(queue: RecordQueue) -> None:
    """Attempts are accepted at the capacity, and are not outcomes."""
    intents = [build_intent() for _ in range(CAPACITY)]
    for record in intents:
        queue.add_intent(record)
    for _ in range(3):
        queue.add_attempt(build_ended_attempt(intents[0]))
    queue.add_outcome(build_outcome(intents[0]))

    assert len(await queue.take_batch(10)) == 1
    assert queue.statistics().open == CAPACITY - 1
