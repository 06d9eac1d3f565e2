"""Replicas, PostgreSQL and Redis are killed at random moments under load."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from random import Random

import httpx2
import pytest
import sqlalchemy as sa

from tests.access import bearer, create_key
from tests.conftest import http_client
from tests.fakes.behaviour import Behaviour
from tests.fakes.provider import ProviderFake
from tests.faults.cluster import Cluster, count_by_minute
from tests.postgres import PostgresServer, running_server, temporary_database
from tests.process import ServiceProcess, kotae
from tests.redis import RedisServer, running_redis

pytestmark = pytest.mark.slow
ROOT_SECRET = "root-secret-of-the-tests-with-32-characters"
LIMIT = 30  # requests per minute of one of the users
REPLICAS = "abc"


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test."""
    with running_server() as server:
        yield server


class Attack:
    """Kills a replica, PostgreSQL or Redis, and starts it again. `store`: of the quotas."""

    def __init__(
        self, cluster: Cluster, server: PostgresServer, redis: RedisServer | None, random: Random
    ) -> None:
        self._cluster, self._server, self._redis, self._random = cluster, server, redis, random
        self.services: dict[str, ServiceProcess] = {}

    async def start(self, name: str) -> None:
        """Start a replica."""
        settings = {"KOTAE_REDIS_URL": self._redis.url} if self._redis else {}
        self.services[name] = await self._cluster.start(
            name,
            KOTAE_AUTH="keys",
            KOTAE_SECRET=ROOT_SECRET,
            **settings,
        )

    async def kill(self) -> None:
        """Kill something, and wait until it runs again."""
        victims = [*REPLICAS, *REPLICAS, "PostgreSQL", *(["Redis"] if self._redis else [])]
        victim = self._random.choice(victims)
        if victim == "PostgreSQL":
            await asyncio.to_thread(self._server.stop)
            await asyncio.to_thread(self._server.start)
        elif victim == "Redis" and self._redis:
            self._redis.stop()
            await asyncio.to_thread(self._redis.start)
        else:
            self.services[victim].signal(signal.SIGKILL)
            await self.services[victim].wait()
            await self.start(victim)


class Callers:
    """Callers who ask any replica, each prompt once. `acknowledged`: tokens by answer."""

    def __init__(self, attack: Attack, random: Random) -> None:
        self._attack, self._random = attack, random
        self.acknowledged: dict[str, int] = {}
        self.refused = 0
        self.stopping = asyncio.Event()

    async def ask(self, name: str, key: str) -> None:
        """Ask until the end."""
        number = 0
        while not self.stopping.is_set():
            service = self._attack.services[self._random.choice(REPLICAS)]
            body = {"prompt": f"{name} question {number}", "grounded": False}
            number += 1
            with suppress(httpx2.HTTPError):
                reply = await service.client.post(
                    "/ai/test", json=body, headers=bearer(key), timeout=30
                )
                self.refused += reply.status_code == 429
                if reply.status_code == 200:
                    answer = reply.json()
                    self.acknowledged[answer["id"]] = answer["total_tokens"]
                    continue
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("store", ["PostgreSQL", "Redis"])
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(10, marks=pytest.mark.timeout(360)),
        pytest.param(200, marks=[pytest.mark.nightly, pytest.mark.timeout(4000)]),
    ],
)
async def test_kills_under_load_lose_and_double_nothing(
    server: PostgresServer, fake: ProviderFake, tmp_path: Path, store: str, kills: int
) -> None:
    """Every call has one row, every acknowledged answer its usage, and no limit is exceeded."""
    random = Random(7)
    fake.default = Behaviour(gap=0.01)
    redis = running_redis() if store == "Redis" else nullcontext()
    async with temporary_database(server) as database:
        with redis as redis_server:
            async with Cluster(database, fake, tmp_path) as cluster:
                attack = Attack(cluster, server, redis_server, random)
                for name in REPLICAS:
                    await attack.start(name)
                keys = {
                    user: (await create_key(database, user)).key for user in ("free", "limited")
                }
                body = {"limits": {"requests_per_minute": LIMIT}}
                url = attack.services["a"].url
                async with http_client(url, headers=bearer(ROOT_SECRET)) as admin:
                    (await admin.put("/ai/users/limited/quota", json=body)).raise_for_status()
                callers = Callers(attack, random)
                asking = [
                    asyncio.create_task(callers.ask(f"{user} {number}", str(key)))
                    for user, key in keys.items()
                    for number in range(4)
                ]
                for _ in range(kills):
                    await asyncio.sleep(random.uniform(0.2, 1))
                    await attack.kill()
                callers.stopping.set()
                await asyncio.gather(*asking)
                await fake.wait_idle()
                calls = {call.prompt for call in fake.calls}
                async with asyncio.timeout(60):
                    rows = await cluster.read_rows()
                    while not calls <= {row.prompt for row in rows}:
                        await asyncio.sleep(0.1)
                        rows = await cluster.read_rows()
                audit = await kotae(
                    "audit", data_dir=tmp_path / "a", KOTAE_DATABASE_URL=database._url
                )
        query = sa.text("SELECT id, prompt_tokens + completion_tokens AS total FROM request_logs")
        async with database.read_session() as session:
            totals = {row.id: row.total for row in await session.execute(query)}

    limited = count_by_minute([row for row in rows if row.prompt.startswith("limited")])
    assert "all agrees" in audit[1], audit
    assert len(calls) == len(fake.calls)
    assert len(rows) == len({row.prompt for row in rows})
    # Killed before the call, or, on a busy machine, given up by the caller.
    assert {row.usage_source for row in rows if row.prompt not in calls} <= {"unknown", "none"}
    assert callers.acknowledged.items() <= totals.items()
    assert len(callers.acknowledged) > 10
    assert max(limited.values()) <= LIMIT
    assert callers.refused > 0
