"""Quota in PostgreSQL: accounts and holds that all replicas share.

The functions of the database (`alembic/postgresql`) do the arithmetic, one statement per batch of
operations. A hold does not wait for the disk (`synchronous_commit=off`) nor for the writers of the
log. The writer settles: `settle_rows` runs in the transaction of the rows, so a row, its totals,
its charge and the end of its hold are one commit. Usage is charged to the accounts that exist,
whether the answer had a hold or not; an account is created from the totals of the log at its first
hold. Therefore the used amounts always equal the sums of the rows.

A crash of PostgreSQL may lose the holds of the last moments. It also empties a table that is not
logged, by which every replica notices it (`SharedQuota`).

Two connections: one for batches, one for everything else, so that waiting for a writer, which
creating accounts does, delays no hold of others.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from service.core.database.engine import Session
from service.core.database.health import DatabaseHealth
from service.core.encoding import compute_first_id, to_json
from service.core.errors import DatabaseUnavailable, QuotaUnavailable
from service.core.lazy import LazyModule
from service.core.quota.shared import (
    LEASE_SECONDS,
    AccountState,
    Generation,
    Operation,
    Reply,
    StoredHold,
)
from service.core.quota.windows import MINUTE, Starts

if TYPE_CHECKING:
    from service.core.database import postgres_connection
else:
    postgres_connection = LazyModule("service.core.database.postgres_connection")

SECONDS = 1.0  # maximum duration of an operation, with connecting
_SETTINGS = {"synchronous_commit": "off", "lock_timeout": "1s", "jit": "off"}
_SETTLE = sa.text(
    "SELECT kotae_quota_settle(names, charges), kotae_quota_post(names, charges) FROM (SELECT"
    " CAST(:names AS text[]) AS names, CAST(CAST(:charges AS text) AS jsonb) AS charges) AS batch"
)

Charges = Mapping[tuple[str, Starts], Sequence[int]]
"""(requests, tokens, nano-dollars) by subject and windows."""


async def settle_rows(session: Session, names: Sequence[str], charges: Charges) -> None:
    """Charge accounts, and remove the holds of these answers, in the transaction of their rows."""
    listed = [
        {"subject": subject, "starts": starts, "requests": amounts[0], "tokens": amounts[1],
         "cost": amounts[2]}
        for (subject, starts), amounts in charges.items()
    ]  # fmt: skip
    await session.execute(_SETTLE, {"names": list(names), "charges": to_json(listed).decode()})


class PostgresQuotaStore:
    """See `QuotaStore`. `slot`: the number of this replica; `ttl_seconds`: of a hold.

    `seconds`: the maximum duration of a call.
    """

    def __init__(
        self,
        url: str,
        *,
        slot: int,
        ttl_seconds: float,
        seconds: float = SECONDS,
        health: DatabaseHealth | None = None,
    ) -> None:
        self._slot, self._ttl_seconds = slot, ttl_seconds
        connections = (
            postgres_connection.StatementConnection(url, _SETTINGS, seconds=seconds, health=health)
            for _ in range(2)
        )
        self._batches, self._others = connections

    async def apply(
        self, generation: int, operations: Sequence[Operation]
    ) -> tuple[Sequence[Reply], Mapping[str, AccountState]] | None:
        """See `QuotaStore.apply`."""
        result = await _fetch(
            self._batches,
            "SELECT kotae_quota_apply($1, $2, $3, $4)",
            generation,
            self._slot,
            self._ttl_seconds,
            to_json(operations).decode(),
        )
        if result is None:
            return None
        replies, accounts = msgspec.json.decode(result, type=tuple[list[list[Any]], dict[str, Any]])
        return [Reply(*reply) for reply in replies], accounts

    async def load(self, subjects: Sequence[str], starts: Starts) -> None:
        """See `QuotaStore.load`."""
        minute = (starts[MINUTE], starts[MINUTE] + 60)
        first_id, end_id = (compute_first_id(datetime.fromtimestamp(at, UTC)) for at in minute)
        await _fetch(
            self._others,
            "SELECT kotae_quota_load($1, $2, $3, $4)",
            subjects,
            starts,
            first_id,
            end_id,
        )

    async def register(self, holds: Sequence[StoredHold]) -> Generation:
        """See `QuotaStore.register`."""
        listed = [
            {"name": hold.name, "subjects": hold.subjects, "starts": hold.starts,
             "tokens": hold.tokens, "cost": hold.cost}
            for hold in holds
        ]  # fmt: skip
        # Redis is no longer used: nobody delivers charges to it.
        await _fetch(
            self._others, "WITH epoch AS (DELETE FROM quota_epoch) DELETE FROM quota_outbox"
        )
        result = await _fetch(
            self._others,
            "SELECT kotae_quota_register($1, $2, $3 * interval '1 second', $4)",
            self._slot,
            self._ttl_seconds,
            LEASE_SECONDS,
            to_json(listed).decode(),
        )
        number, is_open = msgspec.json.decode(result)
        return Generation(number, is_open)

    async def keep_alive(self, generation: int, prolonged: Sequence[str]) -> bool:
        """See `QuotaStore.keep_alive`."""
        result: bool = await _fetch(
            self._others,
            "SELECT kotae_quota_keep($1, $2, $3, $4)",
            generation,
            self._slot,
            self._ttl_seconds,
            prolonged,
        )
        return result

    async def expire(self, count_max: int) -> int:
        """See `QuotaStore.expire`."""
        result: int = await _fetch(self._others, "SELECT kotae_quota_expire($1)", count_max)
        return result

    def notify_written(self) -> None:
        """Nothing: the transaction of the rows has charged them."""

    async def close(self) -> None:
        """See `QuotaStore.close`."""
        with suppress(QuotaUnavailable):
            await _fetch(self._others, "DELETE FROM quota_replicas WHERE slot = $1", self._slot)
        await self._batches.close()
        await self._others.close()


async def _fetch(
    connection: "postgres_connection.StatementConnection", statement: str, *values: Any
) -> Any:
    try:
        return await connection.fetch_value(statement, *values)
    except DatabaseUnavailable as error:
        raise QuotaUnavailable(str(error)) from error
