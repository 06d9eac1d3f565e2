"""Quota in Redis or Valkey: a hold takes a tenth of the server's time that PostgreSQL needs.

The functions of `kotae.lua` do the arithmetic, one call per batch of operations. Redis keeps only
what limits need; usage comes from the log in PostgreSQL. An account is loaded from there at its
first hold. What is committed later is delivered: the transaction of the rows adds its charges to
`quota_outbox`, and any replica sends them to Redis in their order and removes them. Redis applies
each once, and skips those that an account contained when it was loaded.

*Redis may lose its memory*, by a restart, `FLUSHALL` or a failover. Its memory belongs to one run
of one server and has an *epoch*, whose number is in PostgreSQL. Another run, or no epoch, begins a
new one, whose keys are new: it admits nothing until every replica that was alive has registered its
holds again. Each new connection compares the run.

Eviction would remove accounts silently, so the service does not start unless the policy is
`noeviction`. The numbers of Lua are exact up to 2^53, which is also the largest limit: nine million
dollars.

Failure policy: closed, see `SharedQuota`. While PostgreSQL is away, accounts that are in Redis are
served; charges wait.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from service.core.database.health import DatabaseHealth
from service.core.database.postgres_connection import StatementConnection
from service.core.encoding import compute_first_id
from service.core.errors import DatabaseUnavailable, QuotaUnavailable, SettingsInvalid
from service.core.quota.shared import (
    LEASE_SECONDS,
    AccountState,
    Generation,
    Operation,
    Reply,
    StoredHold,
)
from service.core.quota.windows import MINUTE, Starts
from service.core.telemetry import log

LIBRARY = Path(__file__).with_name("kotae.lua")
TAG = "{kotae}"  # the prefix of all keys
EXACT_MAX = 2**53 - 1
CONNECTIONS = 4
DATABASE_SECONDS = 5.0  # maximum duration of a statement in PostgreSQL
DELIVERED_MAX = 200  # charges at once
DELIVERY_SECONDS = 0.05  # after a commit, so that the charges of several are delivered together
MAJOR_MIN = 7  # functions
_DECODER = msgspec.msgpack.Decoder()


class RedisState(msgspec.Struct, frozen=True):
    """What `kotae doctor` prints about a server. `epoch`: -1 without one."""

    version: str
    major: int
    run: str
    policy: str
    persistent: bool
    loaded: bool
    epoch: int


async def read_state(url: str, seconds: float) -> RedisState:
    """Read the state of a server. Raises `QuotaUnavailable`."""
    try:
        async with (
            asyncio.timeout(seconds),
            Redis.from_url(
                url, socket_timeout=seconds, socket_connect_timeout=seconds,
                retry=Retry(NoBackoff(), 0),
            ) as client,
        ):  # fmt: skip
            info = await client.info()
            loaded, epoch = True, -1
            try:
                reply: Any = await client.fcall("kotae1_state", 1, TAG, info["run_id"])
                epoch = int(reply[0])
            except ResponseError:
                loaded = False
    except (RedisError, OSError) as error:
        raise QuotaUnavailable(f"Redis reported: {error or 'no response in time'}") from error
    return RedisState(
        version=info["redis_version"],
        major=int(info["redis_version"].partition(".")[0]),
        run=info["run_id"],
        policy=info.get("maxmemory_policy", "noeviction"),
        persistent=bool(info.get("aof_enabled")),
        loaded=loaded,
        epoch=epoch,
    )


class RedisQuotaStore:
    """See `QuotaStore`. `slot`: the number of this replica; `ttl_seconds`: of a hold.

    `seconds`: the maximum duration of a call.
    """

    def __init__(
        self,
        redis_url: str,
        database_url: str,
        *,
        slot: int,
        ttl_seconds: float,
        seconds: float,
        health: DatabaseHealth | None = None,
    ) -> None:
        self._slot, self._ttl = slot, int(ttl_seconds * 1000)
        self._seconds = seconds
        self._run: str | None = None  # of the server, as the newest connection has seen it
        pool = BlockingConnectionPool.from_url(
            redis_url,
            max_connections=CONNECTIONS,
            timeout=seconds,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=self._enter_connection,
        )
        self._redis = Redis.from_pool(pool)
        self._database = StatementConnection(
            database_url, {}, seconds=DATABASE_SECONDS, health=health
        )
        self._epoch = -1
        self._delivery: asyncio.Task[None] | None = None

    async def require_noeviction(self) -> None:
        """Raise `SettingsInvalid` if Redis may evict keys. An unreachable one is not checked."""
        with suppress(QuotaUnavailable):
            memory = await self._call(lambda: self._redis.info("memory"))
            policy = memory.get("maxmemory_policy", "noeviction")
            if policy != "noeviction":
                raise SettingsInvalid(
                    f"KOTAE_REDIS_URL: maxmemory-policy is {policy}, which removes quotas: set "
                    "`maxmemory-policy noeviction`"
                )

    async def apply(
        self, generation: int, operations: Sequence[Operation]
    ) -> tuple[Sequence[Reply], Mapping[str, AccountState]] | None:
        """See `QuotaStore.apply`."""
        listed = [
            (
                operation.kind,
                operation.name,
                operation.subjects,
                [None if limit is None else min(limit, EXACT_MAX) for limit in operation.limits],
                operation.starts,
                operation.tokens,
                operation.cost,
            )
            for operation in operations
        ]
        result = await self._call_function("apply", generation, self._ttl, _pack(listed))
        if result is None:
            return None
        replies = [_DECODER.decode(packed) for packed in result[0]]
        return (
            [Reply(reply[0], dict(reply[1]) if len(reply) > 1 else {}) for reply in replies],
            dict(_DECODER.decode(result[1])),
        )

    async def load(self, subjects: Sequence[str], starts: Starts) -> None:
        """See `QuotaStore.load`."""
        minute = (starts[MINUTE], starts[MINUTE] + 60)
        first_id, end_id = (compute_first_id(datetime.fromtimestamp(at, UTC)) for at in minute)
        used = await self._ask_database(
            "SELECT kotae_quota_read_used($1, $2, $3, $4)", subjects, starts, first_id, end_id
        )
        mark, windows = msgspec.json.decode(used)
        listed = [
            (name, [[part or 0 for part in window] for window in windows[name]]) for name in windows
        ]
        await self._call_function("load", self._epoch, _pack(starts), mark, _pack(listed))

    async def register(self, holds: Sequence[StoredHold]) -> Generation:
        """See `QuotaStore.register`."""
        await self._load_library()
        epoch, is_open = await self._read_state()
        if not is_open:
            epoch = (await self._enter_epoch(None, epoch)).number
            await self._call_function("begin", epoch)
        self._epoch = epoch
        listed = [(h.name, h.subjects, h.starts, h.tokens, h.cost) for h in holds]
        restored = await self._call_function("restore", epoch, self._ttl, _pack(listed))
        if not restored:
            raise QuotaUnavailable("the memory of Redis was lost again")
        if is_open:
            with suppress(QuotaUnavailable):  # PostgreSQL is away: the epoch is known
                await self._enter_epoch(self._slot, epoch)
            return Generation(epoch, open=True)
        generation = await self._enter_epoch(self._slot, epoch)
        if generation.open:
            await self._call_function("open", epoch)
        return generation

    async def keep_alive(self, generation: int, prolonged: Sequence[str]) -> bool:
        """See `QuotaStore.keep_alive`. Charges that have not been delivered yet are."""
        is_open = await self._call_function("keep", generation, self._ttl, _pack(list(prolonged)))
        with suppress(QuotaUnavailable):
            await self._ask_database(
                "UPDATE quota_replicas SET seen_at = clock_timestamp() WHERE slot = $1", self._slot
            )
        self.notify_written()
        return bool(is_open)

    async def expire(self, count_max: int) -> int:
        """See `QuotaStore.expire`."""
        return int(await self._call_function("expire", self._epoch, count_max))

    def notify_written(self) -> None:
        """See `QuotaStore.notify_written`."""
        if self._delivery is None or self._delivery.done():
            self._delivery = asyncio.create_task(self._deliver_charges(), name="quota charges")

    async def close(self) -> None:
        """See `QuotaStore.close`."""
        if self._delivery is not None:
            await asyncio.wait([self._delivery], timeout=self._seconds)
            self._delivery.cancel()
            await asyncio.wait([self._delivery])
        with suppress(QuotaUnavailable):
            await self._ask_database("DELETE FROM quota_replicas WHERE slot = $1", self._slot)
        await self._database.close()
        await self._redis.aclose()

    async def deliver(self) -> int:
        """Deliver the oldest charges, and return how many there were."""
        listed = await self._ask_database(_READ_CHARGES, DELIVERED_MAX)
        entries = msgspec.json.decode(listed)
        if not entries:
            return 0
        packed = _pack([(entry["id"], entry["names"], _list_charges(entry)) for entry in entries])
        delivered = await self._call_function("settle", self._epoch, packed)
        if delivered is None:
            raise QuotaUnavailable("the memory of Redis was lost")
        await self._ask_database("DELETE FROM quota_outbox WHERE id <= $1", int(delivered))
        return len(entries)

    async def _deliver_charges(self) -> None:
        await asyncio.sleep(DELIVERY_SECONDS)
        try:
            while await self.deliver() == DELIVERED_MAX:
                pass
        except QuotaUnavailable as error:  # repeated by the next sign of life
            log.info("charges.delayed", error=str(error))

    async def _read_state(self) -> tuple[int, bool]:
        epoch, is_open = await self._call(
            lambda: self._redis.fcall("kotae1_state", 1, TAG, self._run or "")
        )
        return int(epoch), bool(is_open)

    async def _load_library(self) -> None:
        code = LIBRARY.read_text()
        await self._call(lambda: self._redis.function_load(code, replace=True))

    async def _enter_epoch(self, slot: int | None, last_epoch: int) -> Generation:
        result = await self._ask_database(
            "SELECT kotae_quota_enter_epoch($1, $2, $3, $4 * interval '1 second')",
            slot,
            self._run,
            last_epoch,
            LEASE_SECONDS,
        )
        number, is_open = msgspec.json.decode(result)
        return Generation(number, is_open)

    async def _call_function(self, name: str, epoch: int, *arguments: Any) -> Any:
        return await self._call(
            lambda: self._redis.fcall(
                f"kotae1_{name}", 1, TAG, self._run or "", str(epoch), *arguments
            )
        )

    async def _call(self, start: Any) -> Any:
        """Run a command. Raises `QuotaUnavailable`; the command may have been executed."""
        try:
            async with asyncio.timeout(self._seconds):
                return await start()
        except ResponseError as error:
            if "Function not found" in str(error):  # a restart without persistence
                return None
            raise QuotaUnavailable(f"Redis reported: {error}") from error
        except (RedisError, OSError) as error:
            raise QuotaUnavailable(f"Redis reported: {error}") from error

    async def _ask_database(self, statement: str, *values: Any) -> Any:
        try:
            return await self._database.fetch_value(statement, *values)
        except DatabaseUnavailable as error:
            raise QuotaUnavailable(str(error)) from error

    async def _enter_connection(self, connection: AbstractConnection) -> None:
        """Compare the run of the server. Raises `RedisError` after a restart."""
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        reply: Any = await connection.read_response()
        text = reply if isinstance(reply, str) else bytes(reply).decode()
        run = text.partition("run_id:")[2].split()[0]
        before, self._run = self._run, run
        if before is not None and before != run:  # the command was made for the earlier one
            raise RedisError("the server was restarted or replaced")


def _pack(values: Any) -> bytes:
    return msgspec.msgpack.encode(values)


def _list_charges(entry: Mapping[str, Any]) -> list[list[Any]]:
    names = ("subject", "starts", "requests", "tokens", "cost")
    return [[charge[name] for name in names] for charge in entry["charges"]]


_READ_CHARGES = """
SELECT coalesce(json_agg(oldest ORDER BY id), '[]')
FROM (SELECT id, names, charges FROM quota_outbox ORDER BY id LIMIT $1) AS oldest
"""
