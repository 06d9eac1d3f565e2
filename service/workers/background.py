"""One task that works beside the requests: what workers have in common that leave what they do not finish to the next start."""

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress


class Background(ABC):
    """Runs `_run` between `start` and `stop`, under a name that a stack of tasks shows."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Leave what is not done to the next start. Idempotent."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def wait_done(self) -> None:
        """Wait until it has ended, however that was."""
        if self._task:
            await asyncio.wait([self._task])

    @abstractmethod
    async def _run(self) -> None: ...
