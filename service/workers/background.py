"""Tasks that run beside the requests. A worker owns one and starts and stops it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, Protocol

from service.core.errors import DatabaseUnavailable
from service.core.ports import Worker
from service.core.telemetry import log

FAILURES_MAX = 10  # failed ticks in a row, beyond which a worker is degraded


class BackgroundWorker(Worker, Protocol):
    """A worker with a task of its own."""

    def start(self) -> None:
        """Start the task."""

    async def stop(self) -> None:
        """Stop the task; the next start does what is left. Idempotent."""


class BackgroundTask:
    """A task that runs `run` between `start` and `stop`."""

    def __init__(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._name, self._run = name, run
        self._task: asyncio.Task[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the task has ended without being stopped."""
        return self._task is not None and self._task.done()

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Cancel the task and wait for its end. Idempotent."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def wait_ended(self) -> None:
        """Wait until the task has ended, for whatever reason."""
        if self._task:
            await asyncio.wait([self._task])


class PeriodicTask:
    """A task that calls `tick` at an interval. A tick that fails is repeated at the next one."""

    def __init__(
        self, name: str, tick: Callable[[], Awaitable[None]], interval_seconds: float
    ) -> None:
        self._name, self._tick, self._interval_seconds = name, tick, interval_seconds
        self._task = BackgroundTask(name, self._run)
        self._is_ticking = self._is_stopping = False
        self.ticks = 0  # begun
        self.failures = 0  # in a row

    @property
    def degraded(self) -> bool:
        """Whether more than `FAILURES_MAX` ticks in a row have failed, or the task has ended."""
        return self.failures > FAILURES_MAX or self._task.has_ended

    def start(self) -> None:
        """Start the task; the first tick is one interval away."""
        self._is_stopping = False
        self._task.start()

    async def stop(self, grace_seconds: float = 0) -> None:
        """Cancel the task and wait for its end. Idempotent.

        A tick in progress may end within `grace_seconds`: cancelling a statement of SQLite leaves
        its thread behind.
        """
        self._is_stopping = True
        if self._is_ticking and grace_seconds:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self._task.wait_ended()
        await self._task.stop()

    async def _run(self) -> None:
        while not self._is_stopping:
            await asyncio.sleep(self._interval_seconds)
            await self._run_tick()

    async def _run_tick(self) -> None:
        self.ticks += 1
        self._is_ticking = True
        try:
            await self._tick()
        except DatabaseUnavailable as error:
            self.failures += 1
            log.warning(f"{self._name}.delayed", failures=self.failures, error=str(error))
        except Exception:  # noqa: BLE001 - a tick that fails must not end the next ones
            self.failures += 1
            log.exception(f"{self._name}.broken")
        else:
            self.failures = 0
        finally:
            self._is_ticking = False


class PeriodicWorker:
    """A worker whose only task calls `tick` at an interval. See `BackgroundWorker`.

    `grace_seconds`: how long `stop` waits for a tick in progress.
    """

    def __init__(
        self,
        name: str,
        tick: Callable[[], Awaitable[None]],
        interval_seconds: float,
        *,
        grace_seconds: float = 0,
    ) -> None:
        self._task = PeriodicTask(name, tick, interval_seconds)
        self._grace_seconds = grace_seconds

    def start(self) -> None:
        """See `BackgroundWorker.start`."""
        self._task.start()

    async def stop(self) -> None:
        """See `BackgroundWorker.stop`."""
        await self._task.stop(self._grace_seconds)

    def degraded(self) -> bool:
        """Whether ticks keep failing."""
        return self._task.degraded


def start_worker(
    name: str, worker: BackgroundWorker, workers: dict[str, Worker], stack: AsyncExitStack
) -> None:
    """Start a worker that health reports by this name; the stack stops it."""
    worker.start()
    workers[name] = worker
    stack.push_async_callback(worker.stop)
