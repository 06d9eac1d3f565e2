"""Re-indexing after the start: replaces the chunks of documents that were indexed by other rules.

A document records the rules that determined its chunks (`library.index_name`): tokenizer,
dictionary version, chunk length. If an update or a setting has changed them, its chunks are
replaced, one document per transaction, so that a search sees either the old or the new ones. Until
then its words may differ from those of queries; the grams are the same under all rules, so most
matches remain.
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
    """The state of the pass."""

    RUNNING = "running"  # some documents are outdated
    DONE = "done"  # all documents are current
    FAILED = "failed"  # stopped by an unexpected error until the next start


class ReindexingStatistics(msgspec.Struct, frozen=True):
    """`documents`: number of outdated documents at the start. `done`: those re-indexed since."""

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
        """Return whether it stopped before its end."""
        return self._state is ReindexingState.FAILED

    def statistics(self) -> ReindexingStatistics:
        """An immutable snapshot of the counters."""
        return ReindexingStatistics(state=self._state, documents=self._documents, done=self._done)

    async def _run(self) -> None:
        try:
            outdated = await self._retry_while_unavailable(
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
                await self._retry_while_unavailable(work)
                self._done += 1
        except Exception:  # noqa: BLE001 - searches continue with the old chunks
            self._state = ReindexingState.FAILED
            log.exception("index.failed")
            return
        self._state = ReindexingState.DONE
        if self._done:
            log.info("index.renewed", documents=self._done)

    async def _retry_while_unavailable(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run the work, retrying while the database is unavailable."""
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
