"""The record queue of one process: a bounded queue in memory, backed by the journal.

`add_intent` reserves space for the outcome, in memory and in the journal, so `add_outcome` never
waits, rejects or drops. The writer is fed from memory; only recovery reads the journal.
"""

import asyncio

from service.core.accounting.journal import Journal
from service.core.fair_share import SharedLimit
from service.core.ports import QueueStatistics
from service.core.records import EndedAttempt, Intent, Outcome


class JournaledQueue:
    """See `RecordQueue`. `capacity` bounds open answers plus uncommitted outcomes."""

    def __init__(self, capacity: int, journal: Journal, user_share: float = 1.0) -> None:
        self._capacity = capacity
        self._records = SharedLimit(capacity, "answers that wait for the database", user_share)
        self._journal = journal
        self._queue: asyncio.Queue[Outcome] = asyncio.Queue(capacity)
        self._open: dict[str, Intent] = {}  # in the order of their start
        self._finished = 0
        self._committed = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def add_intent(self, intent: Intent) -> None:
        """See `RecordQueue.add_intent`."""
        self._records.take(intent.user_id)
        try:
            self._journal.append_intent(intent)
        except BaseException:
            self._records.release(intent.user_id)
            raise
        self._open[intent.id] = intent

    def add_attempt(self, record: EndedAttempt) -> None:
        """See `RecordQueue.add_attempt`."""
        self._journal.append_attempt(record)

    def add_outcome(self, outcome: Outcome) -> None:
        """See `RecordQueue.add_outcome`. A second outcome of one answer is a bug: KeyError."""
        del self._open[outcome.intent.id]
        self._journal.append_outcome(outcome)
        self._finished += 1
        self._queue.put_nowait(outcome)

    def list_open(self) -> list[Intent]:
        """See `RecordQueue.list_open`."""
        return list(self._open.values())

    async def take_batch(self, count_max: int) -> list[Outcome]:
        """See `RecordQueue.take_batch`."""
        outcomes = [await self._queue.get()]
        while len(outcomes) < count_max and not self._queue.empty():
            outcomes.append(self._queue.get_nowait())
        return outcomes

    def mark_committed(self, outcomes: list[Outcome]) -> None:
        """See `RecordQueue.mark_committed`."""
        self._journal.release([outcome.intent.id for outcome in outcomes])
        self._committed += len(outcomes)
        for outcome in outcomes:
            self._records.release(outcome.intent.user_id)
        for at, waiter in self._waiters:
            if at <= self._committed and not waiter.done():
                waiter.set_result(None)

    async def wait_synced(self) -> None:
        """See `RecordQueue.wait_synced`."""
        if self._journal.synchronous:
            loop, synced = asyncio.get_running_loop(), asyncio.Event()

            def set_synced() -> None:
                loop.call_soon_threadsafe(synced.set)

            self._journal.add_synced_callback(set_synced)
            await synced.wait()

    async def wait_committed(self) -> None:
        """See `RecordQueue.wait_committed`."""
        waiter = (self._finished, asyncio.get_running_loop().create_future())
        if self._committed >= self._finished:
            return
        self._waiters.append(waiter)
        try:
            await waiter[1]
        finally:
            self._waiters.remove(waiter)

    def statistics(self) -> QueueStatistics:
        """See `RecordQueue.statistics`."""
        return QueueStatistics(
            open=len(self._open), waiting=self._finished - self._committed, capacity=self._capacity
        )
