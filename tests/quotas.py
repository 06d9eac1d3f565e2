"""Quotas of the tests: a clock, and quotas of replicas on PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from service.core.database.engine import Database
from service.core.lazy import LazyModule
from service.core.quota.postgres import PostgresQuotaStore
from service.core.quota.shared import SharedQuota
from tests.postgres import PostgresServer, temporary_database

if TYPE_CHECKING:
    from service.core.quota import redis
else:
    redis = LazyModule("service.core.quota.redis")

NOON = datetime(2027, 3, 31, 12, 0, 5, tzinfo=UTC).timestamp()
TTL_SECONDS = 300
SECONDS = 10  # of an operation: the machine may be busy


class Clock:
    """The time of day and the monotonic time, set by the test."""

    def __init__(self, at: float = NOON) -> None:
        self.now = at
        self.monotonic = 1_000.0

    def __call__(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        """Let time pass, without a jump."""
        self.now += seconds
        self.monotonic += seconds


@asynccontextmanager
async def running_quota(
    url: str,
    clock: Clock,
    *,
    slot: int = 0,
    ttl_seconds: float = TTL_SECONDS,
    seconds: float = SECONDS,
) -> AsyncIterator[SharedQuota]:
    """The quota of one replica."""
    store = PostgresQuotaStore(url, slot=slot, ttl_seconds=ttl_seconds, seconds=seconds)
    quota = SharedQuota(store, seconds=seconds, clock=clock, monotonic=lambda: clock.monotonic)
    await quota.start()
    try:
        yield quota
    finally:
        await quota.stop()


@asynccontextmanager
async def running_redis_quota(
    redis_url: str, url: str, clock: Clock, *, slot: int = 0, seconds: float = SECONDS
) -> AsyncIterator[SharedQuota]:
    """The quota of one replica in Redis."""
    store = redis.RedisQuotaStore(
        redis_url, url, slot=slot, ttl_seconds=TTL_SECONDS, seconds=seconds
    )
    quota = SharedQuota(store, seconds=seconds, clock=clock, monotonic=lambda: clock.monotonic)
    await quota.start()
    try:
        yield quota
    finally:
        await quota.stop()


@asynccontextmanager
async def open_redis_quota(
    redis_url: str, server: PostgresServer, clock: Clock
) -> AsyncIterator[tuple[SharedQuota, Database]]:
    """A quota in Redis, and the database with the log."""
    async with (
        temporary_database(server) as database,
        running_redis_quota(redis_url, database._url, clock) as quota,
    ):
        yield quota, database


@asynccontextmanager
async def open_postgres_quota(
    server: PostgresServer, clock: Clock
) -> AsyncIterator[tuple[SharedQuota, Database]]:
    """A quota, and the database with the log."""
    async with (
        temporary_database(server) as database,
        running_quota(database._url, clock) as quota,
    ):
        yield quota, database
