"""Open answers of this replica in the database, and those of lost replicas.

See `core/replicas/open_answers.py`. Every replica keeps its own; the leader turns those of lost
replicas into rows, and once a day removes slots that have been free for as long.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import msgspec

from service.core.accounting import log as request_log
from service.core.accounting.outcomes import build_interrupted
from service.core.database.engine import Database
from service.core.encoding import compute_first_id, utc_now
from service.core.ports import RecordQueue
from service.core.replicas import open_answers
from service.core.replicas.slots import SlotLease, remove_old_slots
from service.core.telemetry import log
from service.workers.background import PeriodicWorker

TICK_SECONDS = 1.0
OPEN_SECONDS = 2.0  # after which an answer is stored
LOST_TICK_SECONDS = 5.0
CLEANUP_SECONDS = 86_400
_NO_BOUND = "~"  # after every id


class OpenAnswersStatistics(msgspec.Struct, frozen=True):
    """`stored`: answers of this replica. `interrupted`: rows of answers without a journal."""

    stored: int
    interrupted: int


class OpenAnswersKeeper(PeriodicWorker):
    """Stores the long answers of this replica; removes those that are written.

    `wait_recovered`: waits for the rows of the journal. What an earlier process with the slot has
    left then is not in the journal.
    """

    def __init__(
        self,
        database: Database,
        queue: RecordQueue,
        lease: SlotLease,
        wait_recovered: Callable[[], Awaitable[None]],
        *,
        open_seconds: float = OPEN_SECONDS,
    ) -> None:
        self._database, self._queue, self._lease = database, queue, lease
        self._wait_recovered, self._open_seconds = wait_recovered, open_seconds
        super().__init__("open_answers", self.run_checks, TICK_SECONDS)
        self._stored: set[str] = set()
        self._interrupted: int | None = None  # None: what was left is not recovered yet

    def statistics(self) -> OpenAnswersStatistics:
        """An immutable snapshot of the counters."""
        return OpenAnswersStatistics(stored=len(self._stored), interrupted=self._interrupted or 0)

    async def run_checks(self) -> None:
        """Do the work of one tick. Raises `DatabaseUnavailable`."""
        if self._interrupted is None:
            await self._wait_recovered()
            self._interrupted = await interrupt_open(
                self._database, self._lease.slot, compute_first_id(self._lease.since)
            )
        intents = self._queue.list_open()
        latest = utc_now() - timedelta(seconds=self._open_seconds)
        new = [
            intent
            for intent in intents
            if intent.created_at <= latest and intent.id not in self._stored
        ]
        ended = self._stored - {intent.id for intent in intents}
        if ended:
            await self._queue.wait_committed()
        if new or ended:
            async with self._database.transaction() as session:
                await open_answers.store_open(session, self._lease.slot, new)
                await open_answers.remove_open(session, sorted(ended))
            self._stored |= {intent.id for intent in new}
            self._stored -= ended


class LostAnswersRecovery(PeriodicWorker):
    """The task of the leader for replicas that are not seen for `lost_seconds`.

    `database`: with the fence of the leader.
    """

    def __init__(self, database: Database, lost_seconds: float) -> None:
        self._database, self._lost_seconds = database, lost_seconds
        super().__init__("lost_answers", self.run_checks, LOST_TICK_SECONDS)
        self._interrupted = 0
        self._cleanup_at = 0.0  # monotonic, of the next time

    def statistics(self) -> OpenAnswersStatistics:
        """An immutable snapshot of the counters."""
        return OpenAnswersStatistics(stored=0, interrupted=self._interrupted)

    async def run_checks(self) -> None:
        """Do the work of one tick. Raises `DatabaseUnavailable`."""
        async with self._database.read_session() as session:
            slots = await open_answers.list_lost_slots(session, self._lost_seconds)
        if time.monotonic() >= self._cleanup_at:
            async with self._database.transaction() as session:
                await remove_old_slots(session)  # not that of the leader, which has a lease
            self._cleanup_at = time.monotonic() + CLEANUP_SECONDS
        for slot in slots:
            self._interrupted += await interrupt_open(self._database, slot, _NO_BOUND)
            async with self._database.transaction() as session:
                await open_answers.mark_lost(session, slot, self._lost_seconds)
            log.warning("replica.lost", slot=slot)


async def interrupt_open(database: Database, slot: int, before: str) -> int:
    """Turn the open answers of a slot into rows, and return the number of new ones.

    Rows that exist are not changed. Raises `DatabaseUnavailable`.
    """
    rows = 0
    while True:
        async with database.transaction() as session:
            intents = await open_answers.list_open(session, slot, before)
            rows += await request_log.apply_outcomes(
                session, [build_interrupted(intent) for intent in intents]
            )
            await open_answers.remove_open(session, [intent.id for intent in intents])
        if len(intents) < open_answers.BATCH_INTENTS:
            return rows
