"""Replicas whose clocks differ. Their processes get the time from `libfaketime`."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from service.core.encoding import read_id_time, utc_now
from tests.access import bearer, create_key
from tests.conftest import http_client
from tests.fakes.behaviour import Behaviour
from tests.fakes.provider import ProviderFake
from tests.faults.cluster import Cluster, count_by_minute, start_answer, wait_membership
from tests.process import ServiceProcess

pytestmark = pytest.mark.slow
ROOT_SECRET = "root-secret-of-the-tests-with-32-characters"


def shift_clock(seconds: int) -> dict[str, Any]:
    """The environment of a process whose time of day is ahead by some seconds."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        reason = "not run: libfaketime is absent (apt-get install libfaketime)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return {
        "LD_PRELOAD": library,
        "FAKETIME": f"{seconds:+}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": 1,
    }


async def start_skewed(cluster: Cluster, *seconds: int, **settings: Any) -> list[ServiceProcess]:
    """Start replicas with these clocks, which see each other."""
    services = [
        await cluster.start(f"r{number}", **shift_clock(skew), **settings)
        for number, skew in enumerate(seconds)
    ]
    for number, service in enumerate(services):
        service.client.headers.update(bearer(ROOT_SECRET))
        await wait_membership(service, replicas=len(services), lease=True, leader=number == 0)
    return services


async def test_clocks_that_differ_by_seconds_do_not_matter(
    cluster: Cluster, fake: ProviderFake
) -> None:
    """Answers, tickets and stops work at the other replica; leases have the time of PostgreSQL."""
    services = await start_skewed(cluster, 5, -5)
    hold = asyncio.Event()
    fake.default = Behaviour(hold=hold, hold_after=3)
    body = {"prompt": "Why?", "grounded": False}
    started = [(await one.client.post("/ai/answers", json=body)).json() for one in services]
    reading = [
        asyncio.create_task(other.client.get(answer["events_url"]))
        for answer, other in zip(started, reversed(services), strict=True)
    ]
    await fake.wait_calls(2)
    hold.set()
    events = [(await task).content for task in reading]
    fake.default = Behaviour(endless=True, gap=0.01)
    endless = await start_answer(services[0])
    stopped = await services[1].client.delete(f"/ai/answers/{endless}")
    await fake.wait_idle()
    times = [read_id_time(answer["id"]) for answer in started]

    assert [data.count(b"event: done") for data in events] == [1, 1]
    assert stopped.status_code == 204
    assert times[0]
    assert times[1]
    assert 8 < (times[0] - times[1]).total_seconds() < 60, "the clocks differed"
    assert abs((times[0] - utc_now()).total_seconds()) < 60


async def test_limits_are_exact_in_each_minute_of_any_clock(
    cluster: Cluster, fake: ProviderFake
) -> None:
    """Around the turn of a minute, replicas are in different ones, and neither has too many."""
    limit = 6
    services = await start_skewed(cluster, 20, -20, KOTAE_AUTH="keys", KOTAE_SECRET=ROOT_SECRET)
    key = await create_key(cluster.database, "u")
    body = {"limits": {"requests_per_minute": limit}}
    async with http_client(services[0].url, headers=bearer(ROOT_SECRET)) as admin:
        (await admin.put("/ai/users/u/quota", json=body)).raise_for_status()

    async def ask(service: ServiceProcess) -> int:
        question = {"prompt": "Why?", "grounded": False}
        reply = await service.client.post("/ai/test", json=question, headers=bearer(key))
        return reply.status_code

    statuses: list[int] = []
    async with asyncio.timeout(30):
        while set(statuses[-4:]) != {429}:
            statuses += await asyncio.gather(*(ask(one) for one in services * 4))
        while len(rows := await cluster.read_rows()) < len(fake.calls):
            await asyncio.sleep(0.1)

    assert set(statuses) <= {200, 429, 503}
    assert max(count_by_minute(rows).values()) == limit


async def test_a_clock_that_is_minutes_off_makes_owners_unavailable(
    cluster: Cluster, fake: ProviderFake
) -> None:
    """Signatures are refused, so running answers get 503 at once; both answer, and one leads."""
    services = await start_skewed(cluster, 0, 120)
    hold = asyncio.Event()
    fake.default = Behaviour(hold=hold, hold_after=3)
    answer_id = await start_answer(services[0])
    path = f"/ai/answers/{answer_id}"
    async with asyncio.timeout(5):
        refused = await services[1].client.get(path)
    hold.set()
    await fake.wait_idle()
    async with asyncio.timeout(20):
        while (await services[1].client.get(path)).status_code != 200:
            await asyncio.sleep(0.1)
    own = await services[1].client.post("/ai/test", json={"prompt": "Why?", "grounded": False})

    assert (refused.status_code, refused.json()["code"]) == (503, "owner_unavailable")
    assert own.status_code == 200
