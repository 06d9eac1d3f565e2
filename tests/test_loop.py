"""Retrieval computes beside the event loop, not on it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.core import documents
from service.core.db import Database
from service.core.retrieval import Retrieval
from service.core.settings import Settings

SETTINGS = Settings(_env_file=None)
TICK = 0.002
SEARCHES = 50


@asynccontextmanager
async def gaps() -> AsyncIterator[list[float]]:
    """How much later than asked a timer fires, as every stream on the loop would feel it."""
    late: list[float] = []

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK)
            late.append(time.perf_counter() - began - TICK)

    task = asyncio.create_task(tick())
    yield late
    task.cancel()
    await asyncio.wait([task])


def quantile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[int(len(values) * share)]


def spin(until: list[bool]) -> None:
    """What an ordinary computing thread does to the loop: the measure of what this machine makes of one."""
    while not until:
        sum(range(500))


async def test_searches_and_an_upload_leave_the_loop_to_the_streams(database: Database) -> None:
    """While a large text is stored and searches run, the loop is late no more than beside a thread that merely computes."""
    text = "\n\n".join(
        f"第{n}章。灯台の管理人は毎朝レンズを{n}回磨き、嵐の夜には鐘を鳴らします。The keeper rings bell {n}." for n in range(4000)
    )
    await documents.store(database, SETTINGS, [documents.Given("", text[:50_000], "utf-8")], user_id="u")
    retrieval = Retrieval(database, SETTINGS)
    done: list[bool] = []
    thread = asyncio.create_task(asyncio.to_thread(spin, done))
    async with gaps() as beside_a_thread:
        await asyncio.sleep(1)
    done.append(True)
    await thread

    async with gaps() as beside_retrieval:
        storing = asyncio.create_task(documents.store(database, SETTINGS, [documents.Given("", text, "utf-8")], user_id="u"))
        for n in range(SEARCHES):
            await retrieval.search(f"灯台の管理人は{n}回磨きますか", user_id="u", limit=5)
        (document,) = await storing
    assert document.created
    assert quantile(beside_retrieval, 0.95) <= quantile(beside_a_thread, 0.95) * 3 + 0.01
