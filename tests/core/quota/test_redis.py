"""Quotas of several replicas in Redis: never more than the limit, whatever Redis loses."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.errors import QuotaExceeded, QuotaUnavailable, SettingsInvalid
from service.core.lazy import LazyModule
from service.core.quota.shared import LEASE_SECONDS, SharedQuota
from tests.core.quota.test_postgres import REPLICAS, ROOM, SUBJECTS, TRIES, hold_many, read_held
from tests.faults.cluster import Network
from tests.postgres import PostgresServer, temporary_database
from tests.quotas import Clock, running_redis_quota
from tests.records import build_intent, build_outcome
from tests.redis import RedisServer, running_redis
from tests.rows import write

if TYPE_CHECKING:
    from service.core.quota import redis
else:
    redis = LazyModule("service.core.quota.redis")

pytestmark = pytest.mark.slow


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """The database of the log."""
    async with temporary_database(postgres) as database:
        yield database


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis server for one test."""
    with running_redis() as server:
        yield server


async def open_replicas(
    stack: AsyncExitStack, server: RedisServer, database: Database, seconds: float = 10
) -> list[SharedQuota]:
    """The quotas of some replicas, with the time of this machine."""
    clock = Clock(time.time())
    return [
        await stack.enter_async_context(
            running_redis_quota(server.url, database._url, clock, slot=slot, seconds=seconds)
        )
        for slot in range(REPLICAS)
    ]


async def reopen(quotas: list[SharedQuota]) -> None:
    """Wait until all replicas have registered their holds again."""
    async with asyncio.timeout(LEASE_SECONDS):  # afterwards it would open in any case
        while True:
            for quota in quotas:
                with suppress(QuotaUnavailable):
                    await quota.keep_alive()
            if all(quota.statistics().available for quota in quotas):
                return


async def test_parallel_holds_of_replicas_are_exact(
    database: Database, server: RedisServer
) -> None:
    """Of 500 parallel holds over three replicas with room for 100, exactly 100 succeed."""
    async with AsyncExitStack() as stack:
        quotas = await open_replicas(stack, server, database)
        await quotas[0].refresh(SUBJECTS)
        admitted = await hold_many(quotas, "a", TRIES)

        assert len(admitted) == await read_held(quotas[0]) == ROOM


@pytest.mark.parametrize("loss", ["FLUSHALL", "restart"])
async def test_a_lost_memory_admits_nothing_new(
    database: Database, server: RedisServer, loss: str
) -> None:
    """Redis is closed until all replicas have registered; written usage comes from the log."""
    async with AsyncExitStack() as stack:
        quotas = await open_replicas(stack, server, database)
        intent = build_intent(user_id="alice")
        await quotas[0].hold(intent.id, SUBJECTS, tokens=15, nano_usd=None)
        await write(database, [build_outcome(intent)])
        quotas[0].remove_written([intent.id])
        assert len(await hold_many(quotas, "a", 45)) == 45
        if loss == "FLUSHALL":
            server.run("FLUSHALL")
        else:
            server.stop()
            server.start()
        results = await asyncio.gather(
            *(quota.hold("b", SUBJECTS, tokens=1, nano_usd=None) for quota in quotas),
            return_exceptions=True,
        )
        await reopen(quotas)
        admitted = await hold_many(quotas, "c", TRIES)
        held = await read_held(quotas[0])

        assert all(isinstance(result, QuotaUnavailable | None) for result in results)
        again = sum(result is None for result in results)
        assert 15 + 45 + again + len(admitted) == ROOM
        assert held == ROOM - 15


async def test_a_copy_that_takes_over_admits_nothing_new(
    database: Database, server: RedisServer
) -> None:
    """A replica of Redis that misses the latest holds has another run: it is closed at first."""
    with running_redis() as copy:
        ports = [server.port]
        connect = partial(asyncio.open_connection, "127.0.0.1")
        async with Network(lambda: connect(ports[-1])) as network, AsyncExitStack() as stack:
            through = RedisServer(server.program, server.folder, network.port)
            quotas = await open_replicas(stack, through, database)
            assert len(await hold_many(quotas, "a", 20)) == 20
            copy.run("REPLICAOF", "127.0.0.1", str(server.port))
            while "master_link_status:up" not in copy.run("INFO", "replication"):
                await asyncio.sleep(0.05)
            copy.run("REPLICAOF", "NO", "ONE")
            assert len(await hold_many(quotas, "b", 40)) == 40
            server.stop()
            ports.append(copy.port)
            results = await asyncio.gather(
                *(quota.hold("c", SUBJECTS, tokens=1, nano_usd=None) for quota in quotas),
                return_exceptions=True,
            )
            await reopen(quotas)
            admitted = await hold_many(quotas, "d", TRIES)
            held = await read_held(quotas[0])

        assert {type(result) for result in results} == {QuotaUnavailable}
        assert 20 + 40 + len(admitted) == held == ROOM


async def test_a_server_that_hangs_never_admits_too_much(
    database: Database, server: RedisServer
) -> None:
    """Holds whose replies were missing are released; the sum is never more than the limit."""
    async with AsyncExitStack() as stack:
        quotas = await open_replicas(stack, server, database, seconds=2)
        await quotas[0].refresh(SUBJECTS)
        server.pause()
        results = await asyncio.gather(
            *(
                quotas[n % REPLICAS].hold(f"a{n}", SUBJECTS, tokens=1, nano_usd=None)
                for n in range(200)
            ),
            return_exceptions=True,
        )
        begun = time.monotonic()
        with pytest.raises(QuotaUnavailable):
            await quotas[0].hold("at once", SUBJECTS, tokens=1, nano_usd=None)
        elapsed = time.monotonic() - begun
        server.resume()
        await reopen(quotas)
        admitted = await hold_many(quotas, "b", TRIES)

        assert {type(result) for result in results} == {QuotaUnavailable}
        assert elapsed < 0.5
        assert len(admitted) <= ROOM
        assert await read_held(quotas[0]) <= ROOM
        assert len(admitted) + len(await hold_many(quotas, "c", TRIES)) == ROOM


async def test_written_usage_is_delivered_once(database: Database, server: RedisServer) -> None:
    """Charges of rows that another process writes arrive, however often they are sent."""
    async with AsyncExitStack() as stack:
        first, second, _ = await open_replicas(stack, server, database)
        intents = [build_intent(user_id="alice") for _ in range(3)]
        for intent in intents:
            await first.hold(intent.id, SUBJECTS, tokens=20, nano_usd=None)
        await write(database, [build_outcome(intent) for intent in intents])
        stores = [quota._store for quota in (first, second)]
        await asyncio.gather(*(store.deliver() for store in stores))  # type: ignore[attr-defined]
        await read_held(first)
        async with database.read_session() as session:
            waiting = await session.execute(sa.text("SELECT count(*) FROM quota_outbox"))

        assert first.get_usage("user:alice")["tokens_per_month"] == (45, 0)
        assert waiting.scalar_one() == 0


async def test_known_accounts_are_served_without_postgresql(
    postgres: PostgresServer, server: RedisServer
) -> None:
    """Users whose account is in Redis go on while the database is away."""
    async with temporary_database(postgres) as database, AsyncExitStack() as stack:
        (quota, *_) = await open_replicas(stack, server, database)
        await quota.hold("a", SUBJECTS, tokens=1, nano_usd=None)
        name = database._url.partition("@/")[2].partition("?")[0]
        await postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await postgres.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        await quota.keep_alive()
        await quota.hold("b", SUBJECTS, tokens=ROOM - 1, nano_usd=None)
        with pytest.raises(QuotaExceeded):
            await quota.hold("c", SUBJECTS, tokens=1, nano_usd=None)
        await postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


async def test_a_server_that_evicts_keys_is_refused(
    database: Database, server: RedisServer
) -> None:
    """Evicted accounts would be limits that are forgotten."""
    server.run("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    store = redis.RedisQuotaStore(server.url, database._url, slot=0, ttl_seconds=60, seconds=10)
    with pytest.raises(SettingsInvalid, match="noeviction"):
        await store.require_noeviction()
    await store.close()
