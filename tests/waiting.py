"""Waiting for a condition of the service in this process."""

import asyncio
from collections.abc import Callable

WAIT_SECONDS = 10


async def wait_until(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    """Wait until the condition is true. Raises `TimeoutError`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)
