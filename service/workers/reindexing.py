"""Re-indexing: what was indexed by other rules is made anew, in the background of the start, while searches go on.

A document knows what cut it and made its terms (`documents.index_name`): the tokenizer, the dictionary and its version,
the length of chunks. Where that is not what it would be today, after an update or a changed setting, its chunks are
replaced, a document at a time, each in one transaction: a search sees the old ones or the new ones. Until then its old
words meet questions cut by the new rules; the grams are the same in both, so little is lost for that while.
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import partial
from typing import TypeVar

import msgspec

from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.library import ChunkWorkers
from service.core.errors import DatabaseUnavailable, retry_delay
from service.core.settings import Settings
from service.core.telemetry import log
from service.workers.background import BackgroundTask

RETRY_SECONDS, RETRY_SECONDS_MAX = 0.1, 1  # while the database is unavailable
T = TypeVar("T")


class ReindexingState(StrEnum):
    """Where it is."""

    RUNNING = "running"  # some documents are still to be made anew
    DONE = "done"  # all are of today
    FAILED = "failed"  # it stopped at something unexpected; the next start tries again


class ReindexingStatistics(msgspec.Struct, frozen=True):
    """`documents`: how many had to be made anew. `done`: how many of them are."""

    state: ReindexingState
    documents: int
    done: int


class Reindexer:
    """One pass over the documents, at start."""

    def __init__(self, database: Database, settings: Settings, chunk_workers: ChunkWorkers) -> None:
        self._task = BackgroundTask("reindexing", self._run)
        self._database, self._settings, self._chunk_workers = database, settings, chunk_workers
        self._state = ReindexingState.RUNNING
        self._documents = self._done = 0

    def start(self) -> None:
        """See `BackgroundWorker.start`."""
        self._task.start()

    async def stop(self) -> None:
        """See `BackgroundWorker.stop`."""
        await self._task.stop()

    async def wait_done(self) -> None:
        """Wait until the pass has ended, for whatever reason."""
        await self._task.wait_ended()

    def degraded(self) -> bool:
        """Whether it stopped before its end."""
        return self._state is ReindexingState.FAILED

    def statistics(self) -> ReindexingStatistics:
        """An immutable snapshot of the counters."""
        return ReindexingStatistics(state=self._state, documents=self._documents, done=self._done)

    async def _run(self) -> None:
        try:
            outdated = await self._patiently(
                partial(library.list_outdated, self._database, self._settings)
            )
            self._documents = len(outdated)
            for document_id in outdated:
                work = partial(
                    library.reindex_document,
                    self._database,
                    self._settings,
                    self._chunk_workers,
                    document_id,
                )
                await self._patiently(work)
                self._done += 1
        except Exception:  # noqa: BLE001 - searches go on with what is there
            self._state = ReindexingState.FAILED
            log.exception("index.failed")
            return
        self._state = ReindexingState.DONE
        if self._done:
            log.info("index.renewed", documents=self._done)

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it, waiting for the database as long as it takes."""
        failures = 0
        while True:
            try:
                return await work()
            except DatabaseUnavailable as error:
                log.warning("index.delayed", error=str(error))
                failures += 1
                await asyncio.sleep(
                    retry_delay(
                        failures, first_seconds=RETRY_SECONDS, seconds_max=RETRY_SECONDS_MAX
                    )
                )
