"""One task that works beside the requests: what the workers have in common that run from a start to a stop."""

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress

import msgspec

from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable
from service.core.search import fts5_merge
from service.core.telemetry import log

FAILURES_MAX = 10  # ticks in a row that may fail before it is worth saying


class Background(ABC):
    """A `Worker` that runs `_run` between `start` and `stop`. `name` is what health and a stack of tasks call it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        """Leave what is not done to the next start. Idempotent."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def wait_done(self) -> None:
        """Wait until it has ended, however that was."""
        if self._task:
            await asyncio.wait([self._task])

    @abstractmethod
    def degraded(self) -> bool:
        """See `Worker.degraded`."""

    @abstractmethod
    def statistics(self) -> msgspec.Struct:
        """See `Worker.statistics`."""

    @abstractmethod
    async def _run(self) -> None: ...


class Periodic(Background):
    """One that looks at something now and then. What fails is tried again at the next tick."""

    def __init__(self, name: str, tick_seconds: float) -> None:
        super().__init__(name)
        self._tick_seconds = tick_seconds
        self._ticks = self._failures = 0  # failures: in a row

    def degraded(self) -> bool:
        """Whether it has failed for long, or the task has died."""
        return self._failures > FAILURES_MAX or (self._task is not None and self._task.done())

    @abstractmethod
    async def tick(self) -> None:
        """One look. Raises `DatabaseUnavailable`."""

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._tick_seconds)
            self._ticks += 1
            try:
                await self.tick()
            except DatabaseUnavailable as error:
                self._failures += 1
                log.warning(f"{self.name}.delayed", failures=self._failures, error=str(error))
            except Exception:  # noqa: BLE001 - a tick that breaks must not end the next ones
                self._failures += 1
                log.exception(f"{self.name}.broken")
            else:
                self._failures = 0


class Resting(Periodic):
    """One that does something about each version of the index, once nothing was added or deleted from one tick to the next."""

    def __init__(self, name: str, tick_seconds: float, database: Database) -> None:
        super().__init__(name, tick_seconds)
        self._database = database
        self._seen = self._done = (
            0  # versions of the index: at the last tick, and the last one about which it was done
        )

    @abstractmethod
    async def work(self) -> None:
        """Do it. Raises `DatabaseUnavailable`."""

    async def tick(self) -> None:
        """Look at the index; work if it rests. Raises `DatabaseUnavailable`."""
        version = await fts5_merge.read_version(self._database)
        if version == self._seen != self._done:
            await self.work()
            self._done = version
        self._seen = version
