"""Back-fill of vectors: embeds texts that have none, while searches rank by words.

The worker runs again when the index has changed. Failed calls are retried with exponential backoff.
"""

import asyncio
from contextlib import aclosing
from enum import StrEnum

import msgspec

from service.core.errors import KotaeError, retry_delay
from service.core.search.embeddings import EmbeddingStore
from service.core.telemetry import log
from service.workers.background import BackgroundTask

POLL_SECONDS = 0.5
RETRY_SECONDS, RETRY_SECONDS_MAX = 1, 60  # after the first failed call; limit of the backoff


class EmbeddingState(StrEnum):
    """The state of the back-fill."""

    RUNNING = "running"  # some texts have no vector
    DONE = "done"  # all texts have a vector
    DELAYED = "delayed"  # the last call failed and will be retried
    FAILED = "failed"  # stopped by an unexpected error until the next start


class EmbeddingStatistics(msgspec.Struct, frozen=True):
    """`texts`: distinct texts of chunks, counted for each owner. `done`: those with a vector.

    `failures`: consecutive.
    """

    state: EmbeddingState
    texts: int
    done: int
    failures: int


class EmbeddingWorker:
    """Runs as one task that does not end by itself."""

    def __init__(self, vectors: EmbeddingStore) -> None:
        self._task = BackgroundTask("embedding", self._run)
        self._vectors = vectors
        self._state = EmbeddingState.RUNNING
        self._texts = self._done = self._failures = 0
        self._version = -1  # of the index at the last complete pass

    def start(self) -> None:
        """See `BackgroundWorker.start`."""
        self._task.start()

    async def stop(self) -> None:
        """See `BackgroundWorker.stop`."""
        await self._task.stop()

    def degraded(self) -> bool:
        """Return whether it makes no progress."""
        return self._state in {EmbeddingState.DELAYED, EmbeddingState.FAILED}

    def statistics(self) -> EmbeddingStatistics:
        """An immutable snapshot of the counters."""
        return EmbeddingStatistics(
            state=self._state, texts=self._texts, done=self._done, failures=self._failures
        )

    async def _run(self) -> None:
        try:
            while True:
                if await self._try_pass():
                    await asyncio.sleep(POLL_SECONDS)
        except Exception:  # noqa: BLE001 - searches continue by words
            self._state = EmbeddingState.FAILED
            log.exception("vectors.failed")

    async def _try_pass(self) -> bool:
        """Run one pass. Returns False after a failure and its backoff."""
        try:
            await self._run_pass()
        except KotaeError as error:
            self._state = EmbeddingState.DELAYED
            self._failures += 1
            log.warning(
                "vectors.delayed", code=error.code, failures=self._failures, error=str(error)
            )
            await asyncio.sleep(
                retry_delay(
                    self._failures, first_seconds=RETRY_SECONDS, seconds_max=RETRY_SECONDS_MAX
                )
            )
            return False
        self._failures = 0
        return True

    async def _run_pass(self) -> None:
        version = await self._vectors.read_version()
        if version == self._version and self._state is EmbeddingState.DONE:
            return
        progress = await self._vectors.read_progress()
        self._texts = sum(scope.texts for scope in progress)
        self._done = sum(scope.done for scope in progress)
        self._state = EmbeddingState.RUNNING
        async with aclosing(self._vectors.list_missing(progress)) as batches:
            async for texts in batches:
                await self._vectors.embed_texts(texts)
                self._done += len(texts)
                self._failures = 0
        await self._vectors.publish_vectors()
        self._version, self._state = version, EmbeddingState.DONE
