"""Partitions: replicas that do not reach each other, PostgreSQL or Redis."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.core.replicas.slots import LEASE_SECONDS
from tests.access import bearer, create_key
from tests.conftest import http_client
from tests.fakes.behaviour import Behaviour
from tests.fakes.provider import ProviderFake
from tests.faults.cluster import (
    Cluster,
    Network,
    count_by_minute,
    route_peer,
    start_answer,
    wait_members,
    wait_membership,
)
from tests.postgres import PostgresServer
from tests.process import ServiceProcess
from tests.proxies import find_free_port
from tests.redis import running_redis

pytestmark = pytest.mark.slow
ROOT_SECRET = "root-secret-of-the-tests-with-32-characters"
BODY = {"prompt": "Why?", "grounded": False}
BOUND_SECONDS = 25  # twice the time in which a replica has to give a sign of life, and a margin


@pytest.fixture
async def network(postgres: PostgresServer) -> AsyncIterator[Network]:
    """A network that can be cut; requested before `cluster`, it outlives the replicas."""
    async with Network.to_postgres(postgres) as network:
        yield network


async def test_a_replica_that_is_cut_off_from_the_database_answers_but_does_not_lead(
    network: Network, cluster: Cluster, fake: ProviderFake
) -> None:
    """Another one takes over; afterwards all rows are there, once, and one replica leads."""
    first = await cluster.start("a", KOTAE_DATABASE_URL=network.build_url(cluster.database._url))
    second = await cluster.start("b")
    await wait_members(second, 2)
    await wait_membership(first, leader=True)
    statuses: list[int] = []
    with network.cut_off():
        until = time.monotonic() + LEASE_SECONDS + 3
        while time.monotonic() < until:
            body = {"prompt": f"question {len(statuses)}", "grounded": False}
            async with asyncio.timeout(5):
                reply = await first.client.post("/ai/test", json=body)
            statuses.append(reply.status_code)
        await wait_membership(second, leader=True)
    await wait_membership(first, leader=False, lease=True, replicas=2)
    async with asyncio.timeout(60):
        while len(await cluster.read_rows()) < len(statuses):
            await asyncio.sleep(0.2)
    rows = await cluster.read_rows()
    members = [
        (await service.client.get("/health/ready")).json()["membership"]
        for service in (first, second)
    ]

    assert set(statuses) == {200}
    assert len(statuses) > 10
    assert len(rows) == len({row.prompt for row in rows}) == len(fake.calls) == len(statuses)
    assert [member["leader"] for member in members] == [False, True]


async def test_replicas_that_do_not_reach_each_other_keep_nobody_waiting(
    cluster: Cluster, fake: ProviderFake
) -> None:
    """Requests about answers of the other get 503, lists what is written; then all work again."""
    port = find_free_port()
    async with Network.to_port(port) as network:
        await route_peer(cluster.database, 0, network.port)
        first = await cluster.start("a", KOTAE_PEER_ADDRESS=f"127.0.0.1:{port}")
        second = await cluster.start("b")
        await wait_members(second, 2)
        hold = asyncio.Event()
        fake.default = Behaviour(hold=hold, hold_after=3)
        key = {"Idempotency-Key": "order-1"}
        owned = asyncio.create_task(first.client.post("/ai/test", json=BODY, headers=key))
        answer_id = await start_answer(first)
        await fake.wait_calls(2)
        path = f"/ai/answers/{answer_id}"
        cut: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", path, {}),
            ("GET", f"{path}/events", {}),
            ("DELETE", path, {}),
            ("POST", "/ai/test", {"json": BODY, "headers": key}),
            ("GET", "/ai/logs", {}),
            ("GET", "/ai/conversations", {}),
        ]

        async def request_all() -> list[tuple[int, str]]:
            async with asyncio.timeout(BOUND_SECONDS):
                replies = await asyncio.gather(
                    *(second.client.request(*one[:2], **one[2]) for one in cut)
                )
            return [(reply.status_code, reply.json().get("code", "")) for reply in replies]

        assert (await second.client.get(path)).status_code == 202
        with network.cut_off():
            during = await request_all()
            own = await second.client.post("/ai/answers", json=BODY)
        hold.set()
        again = await second.client.post("/ai/test", json=BODY, headers=key)
        await fake.wait_idle()
        later = [(await second.client.get(one)).status_code for one in (path, f"{path}/events")]
        original = await owned

    assert during == [(503, "owner_unavailable")] * 4 + [(200, "")] * 2
    assert own.status_code == 202
    assert again.json()["id"] == original.json()["id"]
    assert later == [200, 200]
    assert len(fake.calls) == 3


@pytest.mark.parametrize("replies", [True, False], ids=["both ways", "replies only"])
async def test_a_replica_that_is_cut_off_from_redis_admits_nothing(
    cluster: Cluster, fake: ProviderFake, replies: bool
) -> None:
    """Limits are exact through the partition; what was held in it is released or counted."""
    limit = 12
    with running_redis() as redis:
        async with Network.to_port(redis.port) as network:
            settings = {
                "KOTAE_AUTH": "keys",
                "KOTAE_SECRET": ROOT_SECRET,
                "KOTAE_REDIS_SECONDS": 2,
            }
            urls = [f"redis://127.0.0.1:{port}/0" for port in (network.port, redis.port)]
            services = [
                await cluster.start(name, KOTAE_REDIS_URL=url, **settings)
                for name, url in zip("ab", urls, strict=True)
            ]
            key = await create_key(cluster.database, "u")
            body = {"limits": {"requests_per_minute": limit}}
            async with http_client(services[0].url, headers=bearer(ROOT_SECRET)) as admin:
                (await admin.put("/ai/users/u/quota", json=body)).raise_for_status()

            async def ask(service: ServiceProcess) -> int:
                reply = await service.client.post("/ai/test", json=BODY, headers=bearer(key))
                return reply.status_code

            async def ask_until(service: ServiceProcess, status: int) -> None:
                async with asyncio.timeout(30):
                    while await ask(service) != status:
                        await asyncio.sleep(0.1)

            for service in services:
                await ask_until(service, 200)
            before = len(fake.calls)
            with network.cut_off(requests=replies):
                async with asyncio.timeout(20):
                    during = await asyncio.gather(*(ask(services[0]) for _ in range(4)))
                others = [await ask(services[1]) for _ in range(4)]
            called = len(fake.calls)
            for service in services:
                await ask_until(service, 429)
            async with asyncio.timeout(20):
                while len(rows := await cluster.read_rows()) < len(fake.calls):
                    await asyncio.sleep(0.1)

    assert Counter(during) == {503: 4}
    assert Counter(others) == {200: 4}
    assert called - before == 4
    assert max(count_by_minute(rows).values()) == limit
