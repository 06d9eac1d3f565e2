"""Background tasks: start, stop, and repeated ticks."""

import asyncio
from functools import partial

from service.core.errors import DatabaseUnavailable
from service.workers.background import FAILURES_MAX, BackgroundTask, PeriodicTask


async def wait_forever() -> None:
    """Wait until the task is cancelled."""
    await asyncio.Event().wait()


async def test_a_stop_cancels_the_task() -> None:
    """A stopped task is cancelled, not ended; a second stop does nothing."""
    task = BackgroundTask("test", wait_forever)
    task.start()
    async with asyncio.timeout(5):
        await task.stop()
        await task.stop()

    assert not task.has_ended
    assert "test" not in {running.get_name() for running in asyncio.all_tasks()}


async def test_a_stop_before_the_start_does_nothing() -> None:
    """A task that was never started can be stopped and waited for."""
    task = BackgroundTask("test", wait_forever)
    async with asyncio.timeout(5):
        await task.stop()
        await task.wait_ended()

    assert not task.has_ended


async def test_a_wait_ends_with_the_task() -> None:
    """`wait_ended` returns when the task has ended, and `has_ended` is True."""
    released = asyncio.Event()

    async def wait_released() -> None:
        await released.wait()

    task = BackgroundTask("test", wait_released)
    task.start()
    waiting = asyncio.create_task(task.wait_ended())
    await asyncio.sleep(0)
    released.set()
    async with asyncio.timeout(5):
        await waiting

    assert task.has_ended


async def test_a_failed_tick_does_not_end_the_next_ones() -> None:
    """After a failed tick the next one follows; a successful one resets the failures."""
    errors = [DatabaseUnavailable("locked"), RuntimeError("broken")]
    succeeded = asyncio.Event()

    async def tick() -> None:
        if errors:
            raise errors.pop()
        succeeded.set()

    task = PeriodicTask("test", tick, 0)
    task.start()
    async with asyncio.timeout(5):
        await succeeded.wait()
    await task.stop()

    assert (task.ticks >= 3, task.failures, task.degraded) == (True, 0, False)


async def test_many_failures_in_a_row_are_degraded() -> None:
    """Up to `FAILURES_MAX` failed ticks are not reported, one more is."""
    degraded: list[bool] = []
    reached = asyncio.Event()

    async def tick() -> None:
        degraded.append(task.degraded)
        if len(degraded) > FAILURES_MAX + 1:
            reached.set()
        raise DatabaseUnavailable("locked")

    task = PeriodicTask("test", tick, 0)
    task.start()
    async with asyncio.timeout(5):
        await reached.wait()
    await task.stop()

    assert degraded[: FAILURES_MAX + 2] == [False] * (FAILURES_MAX + 1) + [True]


async def test_a_stop_lets_a_tick_end() -> None:
    """With a grace period the tick in progress ends, and none follows; without it is cancelled."""
    for grace_seconds, expected in ((5.0, ["begun", "ended"]), (0.0, ["begun"]), (0.01, ["begun"])):
        events, begun, released = list[str](), asyncio.Event(), asyncio.Event()
        tick = partial(record_tick, events, begun, released)
        task = PeriodicTask("test", tick, 0)
        task.start()
        async with asyncio.timeout(5):
            await begun.wait()
            stopping = asyncio.create_task(task.stop(grace_seconds))
            if grace_seconds == 5.0:
                await asyncio.sleep(0)
                released.set()
            await stopping
        assert events == expected


async def record_tick(events: list[str], begun: asyncio.Event, released: asyncio.Event) -> None:
    """A tick that waits to be released."""
    events.append("begun")
    begun.set()
    await released.wait()
    events.append("ended")
