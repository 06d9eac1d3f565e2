"""Replay lookup: ended answers from their log rows, by id or by idempotency key.

A row may not be written yet: by this process, whose queue is awaited, or by the previous one, whose
journal is being recovered. A lookup waits for both before it reports that there is no row. Lookups
of an answer of another replica are relayed to it (`api/relaying.py`); lists ask all replicas.
"""

import asyncio
from collections.abc import Awaitable, Callable

from service.core.accounting import log as request_log
from service.core.answering.streams import Stream, replay_stream
from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable
from service.core.ports import PeerRequest, Peers, RecordQueue
from service.core.records import Outcome

RECOVERY_SECONDS = 5  # maximum wait for the rows of an earlier process
_WRITTEN = PeerRequest(method="GET", target="/peer/written", headers={})
COMMIT_SECONDS = 2  # maximum wait for the row of an answer that has just ended


class ReplayLookup:
    """See the module. `wait_recovered` waits for the rows of earlier processes.

    A lookup waits for it for up to `recovery_seconds`.
    """

    def __init__(
        self,
        database: Database,
        queue: RecordQueue,
        wait_recovered: Callable[[], Awaitable[object]] | None,
        *,
        peers: Peers | None = None,
        recovery_seconds: float = RECOVERY_SECONDS,
    ) -> None:
        self._peers = peers
        self._database, self._queue = database, queue
        self._wait_recovered, self._recovery_seconds = wait_recovered, recovery_seconds

    async def find_by_id(self, answer_id: str) -> Stream | None:
        """Return the stream of an ended answer. Raises `DatabaseUnavailable`."""
        if (outcome := await self._read_outcome(answer_id)) is None:
            await self.wait_written()
            outcome = await self._read_outcome(answer_id)
        return replay_stream(outcome) if outcome else None

    async def wait_all_written(self) -> None:
        """Wait for the rows of all answers of all replicas that have ended.

        Raises `DatabaseUnavailable` and `OwnerUnavailable`.
        """
        await self.wait_written()
        await self.wait_others_written()

    async def wait_others_written(self) -> None:
        """Wait for the rows of other replicas that respond. Raises `OwnerUnavailable`."""
        if self._peers is not None:
            await self._peers.ask_all(_WRITTEN)

    async def wait_written(self) -> None:
        """Wait for the rows of this replica's answers that have ended.

        Raises `DatabaseUnavailable`, at once while nothing can be written.
        """
        self._database.health.require_available()
        await self._require_recovered()
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                await self._queue.wait_committed()
        except TimeoutError as error:
            raise DatabaseUnavailable("the rows of recent answers are not written yet") from error

    async def find_by_key(self, user_id: str, idempotency_key: str) -> Outcome | None:
        """Return the outcome of a user's request with this key. Raises `DatabaseUnavailable`."""
        await self._require_recovered()
        async with self._database.read_session() as session:
            return await request_log.find_by_key(session, user_id, idempotency_key)

    async def _read_outcome(self, answer_id: str) -> Outcome | None:
        async with self._database.read_session() as session:
            return await request_log.find_outcome(session, answer_id)

    async def _require_recovered(self) -> None:
        if self._wait_recovered:
            try:
                async with asyncio.timeout(self._recovery_seconds):
                    await self._wait_recovered()
            except TimeoutError as error:
                raise DatabaseUnavailable(
                    "the rows of an earlier process are still being written"
                ) from error
