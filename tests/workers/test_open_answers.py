"""Long answers in the database, and the rows of answers whose journal is lost."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from service.core.accounting import conversations
from service.core.accounting import log as request_log
from service.core.accounting.journal import Journal
from service.core.accounting.queue import JournaledQueue
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.records import Intent, Status
from service.core.replicas import open_answers
from service.core.replicas.slots import REUSE_SECONDS, ReplicaState, SlotLease
from service.workers.open_answers import LostAnswersRecovery, OpenAnswersKeeper
from tests.core.replicas.test_slots import age_slot
from tests.postgres import PostgresServer, temporary_database
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.slow


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A database of PostgreSQL."""
    async with temporary_database(postgres) as database:
        yield database


@pytest.fixture
def queue(tmp_path: Path) -> JournaledQueue:
    """A queue whose journal is not written."""
    return JournaledQueue(100, Journal(tmp_path, None, sync_ms=50, bytes_max=2**20))


async def wait_nothing() -> None:
    """Nothing is to be recovered."""


async def list_stored(database: Database, slot: int) -> list[Intent]:
    """The intents of a slot."""
    async with database.read_session() as session:
        return await open_answers.list_open(session, slot, "~")


def build_old_intent() -> Intent:
    """An intent of an answer that has been running for a minute."""
    at = utc_now() - timedelta(seconds=60)
    return build_intent(at=at)


async def test_long_answers_are_stored_until_their_rows_are_written(
    database: Database, queue: JournaledQueue
) -> None:
    """Answers that have just begun are not stored."""
    lease = SlotLease(database, "a")
    await lease.acquire()
    keeper = OpenAnswersKeeper(database, queue, lease, wait_nothing)
    await keeper.run_checks()
    long, short = build_old_intent(), build_intent()
    for intent in (long, short):
        queue.add_intent(intent)
    await keeper.run_checks()
    stored = await list_stored(database, 0)
    queue.add_outcome(build_outcome(long))
    queue.mark_committed(await queue.take_batch(1))
    await keeper.run_checks()

    assert stored == [long]
    assert await list_stored(database, 0) == []
    assert keeper.statistics().stored == 0


async def test_a_restart_without_its_journal_writes_rows(
    database: Database, queue: JournaledQueue
) -> None:
    """What an earlier process has left, and is in no row, becomes `interrupted`."""
    written, lost = build_old_intent(), build_old_intent()
    await write(database, [build_outcome(written)])
    async with database.transaction() as session:
        await open_answers.store_open(session, 0, [written, lost])
    lease = SlotLease(database, "a")
    await lease.acquire()
    keeper = OpenAnswersKeeper(database, queue, lease, wait_nothing)
    await keeper.run_checks()
    async with database.read_session() as session:
        outcomes = [await request_log.find_outcome(session, i.id) for i in (written, lost)]

    assert [outcome and outcome.status for outcome in outcomes] == [
        Status.COMPLETED,
        Status.INTERRUPTED,
    ]
    assert await list_stored(database, 0) == []


async def test_the_answers_of_a_lost_replica_become_rows(database: Database) -> None:
    """When its journal returns, its records replace them."""
    lease, intent = SlotLease(database, "a"), build_old_intent()
    await lease.acquire()
    async with database.transaction() as session:
        await open_answers.store_open(session, 0, [intent])
    recovery = LostAnswersRecovery(database, lost_seconds=60)
    await recovery.run_checks()
    early = recovery.statistics().interrupted
    await age_slot(database, 0, 61)
    await recovery.run_checks()
    async with database.read_session() as session:
        interrupted = await request_log.find_outcome(session, intent.id)
    await write(database, [build_outcome(intent)])
    async with database.read_session() as session:
        returned = await request_log.find_outcome(session, intent.id)

    assert (early, recovery.statistics().interrupted) == (0, 1)
    assert interrupted
    assert (interrupted.status, interrupted.usage_source) == (Status.INTERRUPTED, "unknown")
    assert returned
    assert returned.status is Status.COMPLETED
    assert (await lease.list_replicas())[0].state is ReplicaState.LOST


async def test_old_slots_are_removed_once_a_day(database: Database) -> None:
    """A check without lost replicas writes nothing."""
    query = sa.text("SELECT slot FROM replicas ORDER BY slot")
    recovery, remaining = LostAnswersRecovery(database, lost_seconds=60), []
    leases = [SlotLease(database, name) for name in "abc"]
    for lease in leases:
        await lease.acquire()
    for lease in leases[1:]:
        await lease.release()
        await age_slot(database, lease.slot, REUSE_SECONDS + 1)
        await recovery.run_checks()
        async with database.read_session() as session:
            remaining.append(list((await session.execute(query)).scalars()))

    assert remaining == [[0, 2], [0, 2]]


async def test_erased_texts_stay_erased_when_a_journal_returns(database: Database) -> None:
    """The returned record changes the numbers of the row, but not its texts."""
    lease, intent = SlotLease(database, "a"), build_old_intent()
    intent = msgspec.structs.replace(intent, conversation_id=intent.id)
    await lease.acquire()
    async with database.transaction() as session:
        await open_answers.store_open(session, 0, [intent])
    await age_slot(database, 0, 61)
    await LostAnswersRecovery(database, lost_seconds=60).run_checks()
    async with database.transaction() as session:
        await conversations.erase_rows(session, intent.id)
    await write(database, [build_outcome(intent)])
    async with database.read_session() as session:
        outcome = await request_log.find_outcome(session, intent.id)

    assert outcome
    assert (outcome.status, outcome.response, outcome.intent.prompt) == (Status.COMPLETED, "", "")
    assert outcome.usage
    assert outcome.usage.completion_tokens == 5
