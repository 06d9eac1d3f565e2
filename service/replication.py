"""Makes a process one of the replicas of a PostgreSQL database, and opens what they share."""

import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import anyio

from service.core.accounting.queue import JournaledQueue
from service.core.billing.postgres_wallets import PostgresWallets
from service.core.billing.wallets import LocalWallets
from service.core.database.engine import Database
from service.core.database.health import DatabaseHealth
from service.core.errors import DatabaseUnavailable, SettingsInvalid
from service.core.lazy import LazyModule
from service.core.ports import Wallets, Worker
from service.core.quota.postgres import SECONDS as QUOTA_SECONDS
from service.core.quota.postgres import PostgresQuotaStore
from service.core.quota.shared import SharedQuota
from service.core.replicas.claims import PostgresClaims
from service.core.replicas.leader import Leadership
from service.core.replicas.peers import HttpPeers
from service.core.replicas.slots import SlotLease, read_name
from service.core.settings import Settings
from service.http_server.connections import HttpLimits
from service.http_server.listener import Listener
from service.workers.background import BackgroundWorker, start_worker
from service.workers.membership import Membership
from service.workers.open_answers import LostAnswersRecovery
from service.workers.quota import QuotaUpkeep

if TYPE_CHECKING:
    from service.core.database import postgres_lock
    from service.core.quota import redis
    from service.workers import database_probe
    from service.workers import postgres as postgres_upkeep
else:
    postgres_lock = LazyModule("service.core.database.postgres_lock")
    redis = LazyModule("service.core.quota.redis")
    postgres_upkeep = LazyModule("service.workers.postgres")
    database_probe = LazyModule("service.workers.database_probe")

HOLD_SECONDS = 30  # lifetime of a quota hold after the deadline of its answer
# Lifetime of a hold of a wallet after that deadline: rows may wait in the journal of a replica, or
# until the replica is declared lost.
CREDIT_HOLD_SECONDS = 3600
PEER_SECONDS = 1  # maximum wait at shutdown for requests of other replicas
# Connections of other replicas: one for each stream that is read through one.
PEER_LIMITS = HttpLimits(connections_max=4_000, url_bytes_max=65_536, head_bytes_max=131_072)


@dataclass
class JoinedReplica:
    """What makes this process one of the replicas of a PostgreSQL database."""

    lease: SlotLease
    membership: Membership
    leader_database: Database
    peers: HttpPeers
    listener: Listener | None
    queue: JournaledQueue | None = None

    async def leave(self) -> None:
        """Give up the lease if all rows are written; otherwise it expires."""
        statistics = self.queue.statistics() if self.queue else None
        if statistics is not None and statistics.open + statistics.waiting == 0:
            with suppress(DatabaseUnavailable):
                await self.lease.release()


async def join_replicas(
    settings: Settings, database: Database, workers: dict[str, Worker], stack: AsyncExitStack
) -> JoinedReplica:
    """Lock a PostgreSQL database, start its upkeep and probes, and lease a slot."""
    if not settings.secret_keys:
        raise SettingsInvalid(
            "KOTAE_SECRET_KEY is required with PostgreSQL, the same for all replicas: generate it "
            "with `openssl rand -hex 32`"
        )
    end_process = partial(signal.raise_signal, signal.SIGTERM)
    address = f"http://{settings.host}:{settings.port}" if settings.port else ""
    lock = postgres_lock.ServiceLock(
        settings.database, address, shared=settings.peer_address is not None
    )
    listener = (
        Listener(settings.peer_address, PEER_LIMITS) if settings.peer_address is not None else None
    )
    if listener is not None:
        stack.push_async_callback(listener.close, PEER_SECONDS)
    lease = SlotLease(
        database,
        await anyio.to_thread.run_sync(read_name, settings.data_dir),
        listener.address if listener else "",
    )
    leadership = Leadership(database, lease)
    upkeep = postgres_upkeep.PostgresUpkeep(
        database, lock, end_process, leads=lambda: leadership.is_leader
    )
    stack.push_async_callback(lock.close)
    await upkeep.open()
    start_worker("upkeep", upkeep, workers, stack)
    probe = database_probe.DatabaseProbe(
        database.health, settings.database, seconds=settings.database_probe_seconds
    )
    start_worker("database_probe", probe, workers, stack)
    member = Membership(lease, leadership, end_process)
    await member.open()
    peers = HttpPeers(
        lease.slot,
        settings.secret_keys,
        lambda: member.replicas,
        patient_seconds=settings.answer_seconds_max + HOLD_SECONDS,
    )
    stack.push_async_callback(peers.aclose)
    replica = JoinedReplica(lease, member, database.with_fence(leadership.fence), peers, listener)
    stack.push_async_callback(replica.leave)
    start_worker("membership", replica.membership, workers, stack)
    return replica


async def start_singleton_tasks(
    settings: Settings,
    replica: JoinedReplica | None,
    workers: dict[str, Worker],
    stack: AsyncExitStack,
) -> None:
    """Start what one process does: with PostgreSQL, the leader."""
    tasks = [
        cast("BackgroundWorker", workers[name])
        for name in (
            "reindexing",
            "merging",
            "embedding",
            "retention",
            "budgets",
            "webhooks",
            "billing",
        )
        if name in workers
    ]
    if replica is None:
        for task in tasks:
            task.start()
            stack.push_async_callback(task.stop)
        return
    lost = LostAnswersRecovery(replica.leader_database, settings.lost_seconds)
    workers["lost_answers"] = lost
    replica.membership.run_leader_tasks([*tasks, lost])
    stack.push_async_callback(replica.membership.stop_leader_tasks)


async def start_shared_quota(
    settings: Settings,
    health: DatabaseHealth,
    slot: int,
    workers: dict[str, Worker],
    stack: AsyncExitStack,
) -> SharedQuota:
    """Register this replica in the quotas of all replicas, in Redis or PostgreSQL."""
    ttl_seconds = settings.answer_seconds_max + HOLD_SECONDS
    if settings.redis_url:
        quota = SharedQuota(
            await _open_redis(settings, settings.redis_url, health, slot, ttl_seconds),
            seconds=settings.redis_seconds,
        )
    else:
        store = PostgresQuotaStore(
            settings.database, slot=slot, ttl_seconds=ttl_seconds, health=health
        )
        quota = SharedQuota(store, seconds=QUOTA_SECONDS)
    upkeep = QuotaUpkeep(quota)
    stack.push_async_callback(upkeep.stop)
    await upkeep.open()
    start_worker("quota", upkeep, workers, stack)
    return quota


async def _open_redis(
    settings: Settings, url: str, health: DatabaseHealth, slot: int, ttl_seconds: float
) -> "redis.RedisQuotaStore":
    """The store in Redis. Raises `SettingsInvalid`."""
    try:
        store = redis.RedisQuotaStore(
            url,
            settings.database,
            slot=slot,
            ttl_seconds=ttl_seconds,
            seconds=settings.redis_seconds,
            health=health,
        )
    except ImportError as error:
        raise SettingsInvalid(
            "KOTAE_REDIS_URL needs a client: pip install 'kotae[redis]'"
        ) from error
    await store.require_noeviction()
    return store


def open_wallets(
    settings: Settings,
    database: Database,
    wait_recovered: Callable[[], Awaitable[None]],
    stack: AsyncExitStack,
) -> Wallets:
    """The holds of wallets: with PostgreSQL those of all replicas."""
    if database.dialect != "postgresql":
        return LocalWallets(database, wait_recovered)
    ttl_seconds = settings.answer_seconds_max + CREDIT_HOLD_SECONDS
    wallets = PostgresWallets(settings.database, database, ttl_seconds=ttl_seconds)
    stack.push_async_callback(wallets.close)
    return wallets


def open_claims(
    settings: Settings, database: Database, stack: AsyncExitStack
) -> PostgresClaims | None:
    """The idempotency keys of all replicas; None: there is one process."""
    if database.dialect != "postgresql":
        return None
    claims = PostgresClaims(settings.database, health=database.health)
    stack.push_async_callback(claims.close)
    return claims
