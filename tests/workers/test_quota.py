"""Signs of life in the shared store of quotas."""

import asyncio

from service.core.quota.shared import Generation, SharedQuota
from service.workers.quota import QuotaUpkeep
from tests.core.quota.test_shared import StoreFake, hold


async def test_an_unavailable_store_degrades_the_service_until_it_is_back() -> None:
    """The replica starts without the store, and registers when it answers."""
    store = StoreFake()
    store.reachable = False
    quota = SharedQuota(store, seconds=5)
    upkeep = QuotaUpkeep(quota, tick_seconds=0.001)
    await upkeep.open()
    upkeep.start()
    degraded = upkeep.degraded()
    store.reachable = True
    async with asyncio.timeout(10):
        while upkeep.degraded():
            await asyncio.sleep(0)
    await hold(quota, "a")
    await upkeep.stop()

    assert degraded
    assert store.generation == Generation(1, open=True)
    assert upkeep.statistics().holds == 1
