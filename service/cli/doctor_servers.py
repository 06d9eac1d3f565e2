"""The checks of `kotae doctor` that need PostgreSQL or Redis."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from service.core.errors import DatabaseUnavailable, QuotaUnavailable, SettingsInvalid
from service.core.lazy import LazyModule
from service.core.settings import Settings

if TYPE_CHECKING:
    from service.core.database import postgres_connection, postgres_lock
    from service.core.quota import redis
else:
    postgres_connection = LazyModule("service.core.database.postgres_connection")
    postgres_lock = LazyModule("service.core.database.postgres_lock")
    redis = LazyModule("service.core.quota.redis")

Check = tuple[bool, str, str]
"""Whether it is good, what was found, and the remedy."""

SECONDS = 5.0  # maximum duration of a statement or command
SKEW_SECONDS = 5.0  # beyond it, requests between replicas come close to being refused
VERSION_MIN = 140_000
OTHER_CONNECTIONS = 6  # see `KOTAE_DATABASE_POOL`
# A journal is deleted after the commit of its rows, which must therefore survive a crash.
_DURABLE = ("fsync", "full_page_writes", "synchronous_commit")
_READ_SERVER = """
SELECT current_setting('server_version') AS version,
    current_setting('server_version_num')::int AS number,
    current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int AS connections,
    current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    extract(epoch FROM clock_timestamp())::float8 AS clock, pg_is_in_recovery() AS standby
"""
_READ_EPOCH = "SELECT n, run, open FROM quota_epoch"


async def check_postgres(settings: Settings) -> list[Check]:
    """Check the settings of the PostgreSQL server, and whether a pooler is in front of it."""
    connection = postgres_connection.StatementConnection(settings.database, {}, seconds=SECONDS)
    try:
        began = time.time()
        server = await connection.fetch_row(_READ_SERVER)
        skew = server["clock"] - (began + time.time()) / 2
    except DatabaseUnavailable as error:
        return [(False, f"postgresql: {error.detail}", "check KOTAE_DATABASE_URL and the server")]
    finally:
        await connection.close()
    checks = [*_check_server(settings, server), _check_skew(skew)]
    try:
        await postgres_lock.detect_pooler(settings.database)
    except SettingsInvalid as error:
        checks.append((False, f"pooler: {error.detail}", "connect directly"))
    return checks


def _check_server(settings: Settings, server: Mapping[str, Any]) -> list[Check]:
    needed = 2 * settings.database_pool + OTHER_CONNECTIONS
    unsafe = [name for name in _DURABLE if server[name] == "off"]
    replicas = server["connections"] // needed
    capacity = f"enough for {replicas} replicas with up to {needed} each"
    return [
        (
            server["number"] >= VERSION_MIN and not server["standby"],
            f"postgresql {server['version']}" + (", a standby" if server["standby"] else ""),
            "use the primary server, of version 14 or later",
        ),
        (
            replicas > 0,
            f"postgresql connections: {server['connections']}, {capacity}",
            "raise max_connections, or lower KOTAE_DATABASE_POOL",
        ),
        (
            not unsafe,
            "postgresql durability: " + (f"{', '.join(unsafe)} off" if unsafe else "on"),
            "turn it on: otherwise a crash of the server loses rows",
        ),
        (
            bool(settings.secret_keys),
            "KOTAE_SECRET_KEY: " + ("set" if settings.secret_keys else "missing"),
            "set it, the same for all replicas: `openssl rand -hex 32`",
        ),
    ]


def _check_skew(seconds: float) -> Check:
    return (
        abs(seconds) < SKEW_SECONDS,
        f"clock: {abs(seconds):.1f} s from that of postgresql",
        "synchronize the clocks of all machines (NTP)",
    )


async def check_redis(settings: Settings, url: str) -> list[Check]:
    """Check the Redis server, and that its memory is the one that replicas use."""
    try:
        state = await redis.read_state(url, settings.redis_seconds)
    except QuotaUnavailable as error:
        return [(False, f"redis: {error.detail}", "check KOTAE_REDIS_URL and the server")]
    return [
        (state.major >= redis.MAJOR_MIN, f"redis {state.version}", "use version 7 or later"),
        (
            state.policy == "noeviction",
            f"redis maxmemory-policy: {state.policy}",
            "set `maxmemory-policy noeviction`: others remove quotas",
        ),
        (
            True,
            "redis persistence: "
            + ("append-only file" if state.persistent else "none")
            + ", after each restart the replicas register their holds again",
            "",
        ),
        (True, f"redis functions: {'loaded' if state.loaded else 'loaded by the next start'}", ""),
        await _check_epoch(settings, state),
    ]


async def _check_epoch(settings: Settings, state: "redis.RedisState") -> Check:
    connection = postgres_connection.StatementConnection(settings.database, {}, seconds=SECONDS)
    try:
        row = await connection.fetch_row(_READ_EPOCH)
    except DatabaseUnavailable as error:
        return (False, f"redis epoch: {error.detail}", "check KOTAE_DATABASE_URL and the server")
    finally:
        await connection.close()
    if row is None:
        return (True, "redis epoch: none, no replica has used Redis yet", "")
    good = row["open"] and (row["run"], row["n"]) == (state.run, state.epoch)
    text = f"redis epoch: {row['n']}, " + ("open" if good else "closed, limited users get 503")
    return (good, text, "wait until all replicas have registered; at least one must be running")
