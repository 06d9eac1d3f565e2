"""Background workers: what fails is repeated, and a stop is idempotent."""

import asyncio
from collections.abc import Callable

import msgspec

from service.core.errors import DatabaseUnavailable
from service.workers.background import FAILURES_MAX, Periodic


class Ticks(msgspec.Struct, frozen=True):
    """How often the worker ticked, and failed in a row."""

    ticks: int
    failures: int


class Worker(Periodic):
    """Raises what it is given, at each tick."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__("worker", 0.001)
        self.error = error

    async def tick(self) -> None:
        """Fail or not."""
        if self.error:
            raise self.error

    def statistics(self) -> Ticks:
        """See `Worker.statistics`."""
        return Ticks(self._ticks, self._failures)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_failures_in_a_row_degrade_until_a_tick_succeeds() -> None:
    """A database that is away and any other exception count alike, and neither ends the worker."""
    worker = Worker(DatabaseUnavailable("away"))
    worker.start()
    await until(lambda: worker.statistics().failures == FAILURES_MAX // 2)
    worker.error = RuntimeError("broken")
    degraded_before = worker.degraded()
    await until(lambda: worker.statistics().failures > FAILURES_MAX)
    degraded = worker.degraded()
    worker.error = None
    await until(lambda: worker.statistics().failures == 0)
    degraded_after = worker.degraded()
    await worker.stop()

    assert (degraded_before, degraded, degraded_after) == (False, True, False)


async def test_a_worker_that_died_is_degraded() -> None:
    """A task that ended by itself does no work any more."""
    worker = Worker(asyncio.CancelledError())
    worker.start()
    await worker.wait_done()

    assert worker.degraded()


async def test_stop_is_idempotent() -> None:
    """A worker can be stopped before it was started, and twice."""
    worker = Worker()
    await worker.stop()
    worker.start()
    await worker.stop()
    await worker.stop()
    await worker.wait_done()

    assert not worker.degraded()
