"""Replicas that are killed, stopped or lost, as processes with one PostgreSQL database."""

import asyncio
import signal
import time
from contextlib import aclosing, suppress

import httpx2
import pytest
import sqlalchemy as sa

from service.core.replicas.slots import LEASE_SECONDS
from tests.core.replicas.test_slots import age_slot
from tests.fakes.behaviour import Behaviour
from tests.fakes.provider import ProviderFake
from tests.faults.cluster import Cluster, start_answer, wait_members, wait_membership
from tests.postgres import PostgresServer, hanging
from tests.process import ServiceProcess
from tests.sse import events

pytestmark = pytest.mark.slow


async def test_a_killed_replica_leaves_one_row_for_each_call(
    cluster: Cluster, fake: ProviderFake
) -> None:
    """Its answers get 503 at the other replica until it has started again, never 404."""
    first, second = await cluster.start("a"), await cluster.start("b")
    await wait_members(first, 2)
    fake.default = Behaviour(endless=True, gap=0.01)
    ids = [await start_answer(service, str(n)) for n in range(3) for service in (first, second)]
    for call in await fake.wait_calls(6):
        await fake.wait_chunks(call, 3)
    reading = asyncio.create_task(second.client.get(f"/ai/answers/{ids[0]}/events", timeout=20))
    first.signal(signal.SIGKILL)
    await first.wait()
    await asyncio.gather(reading, return_exceptions=True)
    away = [(await second.client.get(f"/ai/answers/{n}")).status_code for n in ids[::2]]
    await age_slot(cluster.database, 0, LEASE_SECONDS)
    expired = await second.client.delete(f"/ai/answers/{ids[0]}")
    restarted = await cluster.start("a")
    await wait_members(second, 2)
    returned = [(await second.client.get(f"/ai/answers/{n}")).json() for n in ids[::2]]
    for answer_id in ids[1::2]:
        await restarted.client.delete(f"/ai/answers/{answer_id}")
    await fake.wait_idle()
    async with asyncio.timeout(20):
        while len(rows := await cluster.read_rows()) < 6:
            await asyncio.sleep(0.05)

    assert away == [503] * 3
    assert (expired.status_code, expired.json()["code"]) == (503, "owner_unavailable")
    assert [answer["status"] for answer in returned] == ["interrupted"] * 3
    assert sorted(row.id for row in rows) == sorted(ids)
    assert sorted(row.status for row in rows) == ["interrupted"] * 3 + ["stopped"] * 3
    assert len(fake.calls) == 6


async def test_answers_of_a_lost_disk_become_rows(cluster: Cluster, fake: ProviderFake) -> None:
    """The leader writes them when the replica has not been seen for a while."""
    first, second = await cluster.start("a"), await cluster.start("b")
    await wait_members(first, 2)
    fake.default = Behaviour(endless=True, gap=0.01)
    answer_id = await start_answer(second)
    query = sa.text("SELECT count(*) FROM open_answers")
    async with asyncio.timeout(20):
        stored = 0
        while not stored:
            await asyncio.sleep(0.1)
            async with cluster.database.read_session() as session:
                stored = (await session.execute(query)).scalar_one()
    second.signal(signal.SIGKILL)
    await second.wait()
    cluster.lose_disk("b")
    await age_slot(cluster.database, 1, 31)
    async with asyncio.timeout(20):
        while (reply := await first.client.get(f"/ai/answers/{answer_id}")).status_code == 503:
            await asyncio.sleep(0.1)

    assert reply.json()["status"] == "interrupted"
    assert reply.json()["usage_source"] == "unknown"


async def test_a_leader_that_was_stopped_does_not_lead(cluster: Cluster) -> None:
    """Another replica has taken over; when the first one continues, it follows."""
    first, second = await cluster.start("a"), await cluster.start("b")
    await wait_members(second, 2)
    await wait_membership(first, leader=True, term=1)
    first.signal(signal.SIGSTOP)
    await age_slot(cluster.database, 0, LEASE_SECONDS)
    await wait_membership(second, leader=True, term=2)
    first.signal(signal.SIGCONT)
    await wait_membership(first, leader=False, lease=True, replicas=2)
    await wait_membership(second, leader=True, term=2)


async def is_stopping(service: ServiceProcess) -> bool:
    """Whether a replica reports that it ends; it may also close the connection of a request."""
    with suppress(httpx2.RemoteProtocolError):
        return (await service.client.get("/health/ready")).status_code == 503
    return False


async def test_a_stopping_replica_is_read_through_another_one(
    cluster: Cluster, fake: ProviderFake
) -> None:
    """Its peers can reach it until its answers have ended."""
    first = await cluster.start("a", KOTAE_SHUTDOWN_GRACE_SECONDS=20)
    second = await cluster.start("b")
    await wait_members(second, 2)
    hold = asyncio.Event()
    fake.next(Behaviour(hold=hold, hold_after=3))
    answer_id = await start_answer(first)
    await fake.wait_chunks((await fake.wait_calls(1))[0], 3)
    first.signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        while not await is_stopping(first):
            await asyncio.sleep(0.05)
    async with (
        second.client.stream("GET", f"/ai/answers/{answer_id}/events") as response,
        aclosing(events(response)) as received,
    ):
        await anext(received)
        hold.set()
        names = [event.name async for event in received]
    status = await first.wait()
    row = await second.client.get(f"/ai/answers/{answer_id}")

    assert names[-1] == "done"
    assert status == 0
    assert row.json()["status"] == "completed"


async def test_replicas_with_different_time_zones_agree(cluster: Cluster) -> None:
    """Times of rows are those of their ids, leases are valid, and answers are found."""
    first = await cluster.start("a", TZ="Asia/Tokyo")
    second = await cluster.start("b", TZ="America/Los_Angeles")
    await wait_members(first, 2)
    await wait_members(second, 2)
    ids = [await start_answer(service) for service in (first, second)]
    replies = [
        await service.client.get(f"/ai/answers/{answer_id}/events")
        for answer_id, service in zip(ids, (second, first), strict=True)
    ]
    async with asyncio.timeout(20):
        while len(rows := await cluster.read_rows()) < 2:
            await asyncio.sleep(0.05)

    assert all(reply.content.count(b"event: done") == 1 for reply in replies)
    for row in rows:
        assert int(row.created_at.timestamp() * 1000) == int(row.id.replace("-", "")[:12], 16)


async def test_replicas_without_a_lease_answer(
    cluster: Cluster, fake: ProviderFake, postgres: PostgresServer
) -> None:
    """While PostgreSQL hangs, longer than leases last, no answer waits; later one leads again."""
    services = [await cluster.start(name) for name in "ab"]
    for service in services:
        await wait_members(service, 2)
    statuses: list[int] = []
    with hanging(postgres):
        until = time.monotonic() + LEASE_SECONDS + 3
        while time.monotonic() < until:
            body = {"prompt": f"question {len(statuses)}", "grounded": False}
            async with asyncio.timeout(5):
                for service in services:
                    reply = await service.client.post("/ai/test", json=body)
                    statuses.append(reply.status_code)
    async with asyncio.timeout(60):
        while len(await cluster.read_rows()) < len(statuses):
            await asyncio.sleep(0.2)
    members = []
    for service in services:
        await wait_membership(service, lease=True, replicas=2)
        members.append((await service.client.get("/health/ready")).json()["membership"])

    assert set(statuses) == {200}
    assert len(statuses) > 10
    assert sorted(member["leader"] for member in members) == [False, True]
