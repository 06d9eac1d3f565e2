"""One task that works beside the requests: what the workers have in common that run from a start to a stop."""

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress

import msgspec


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
