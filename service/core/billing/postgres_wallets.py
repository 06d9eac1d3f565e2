"""Holds of wallets in PostgreSQL, which all replicas share.

One function of the database locks the wallet, sums the holds, and adds one. Unlike holds of quotas
they wait for the disk, because nothing could restore them after a crash; those that arrive while a
statement runs are the next one. The writer removes them in the transaction that has the debits
(`remove_holds`). Holds that never get a row, such as those of a replica that died before its answer
was recorded, expire. Wallets are locked in the order of their users, here and in the writer.

Two connections: one for holds, one for releases.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from service.core.billing.ledger import read_balance
from service.core.billing.wallets import create_refusal
from service.core.database.engine import Database, Session
from service.core.errors import DatabaseUnavailable
from service.core.lazy import LazyModule
from service.core.ports import Funds

if TYPE_CHECKING:
    from service.core.database import postgres_connection
else:
    postgres_connection = LazyModule("service.core.database.postgres_connection")

SECONDS = 2.0  # maximum duration of an operation, with connecting
_SETTINGS = {"lock_timeout": "2s", "jit": "off"}
_HOLD = (
    "SELECT jsonb_agg(kotae_wallet_hold(hold, holder, amount, $4))"
    " FROM unnest($1::text[], $2::text[], $3::bigint[]) AS holds (hold, holder, amount)"
)
BATCH_MAX = 200
_RELEASE = "DELETE FROM wallet_holds WHERE name = ANY($1::text[])"
_REMOVE = sa.text("DELETE FROM wallet_holds WHERE name = ANY(:names)")
_HELD = sa.text(
    "SELECT coalesce(sum(amount), 0) FROM wallet_holds"
    " WHERE user_id = :user_id AND expires_at > clock_timestamp()"
)


async def remove_holds(session: Session, names: Sequence[str]) -> None:
    """Remove the holds of answers in the transaction of their rows and debits."""
    await session.execute(_REMOVE, {"names": list(names)})


class _Request(msgspec.Struct, frozen=True, eq=False):
    """A hold that waits for its reply: whether it is held, the balance, and the other holds."""

    name: str
    user_id: str
    nano_usd: int
    reply: asyncio.Future[tuple[bool, int, int]]


class PostgresWallets:
    """See `Wallets`. `ttl_seconds`: after which a hold without a row expires."""

    def __init__(
        self, url: str, database: Database, *, ttl_seconds: float, seconds: float = SECONDS
    ) -> None:
        self._database, self._ttl_seconds = database, ttl_seconds
        connections = (
            postgres_connection.StatementConnection(
                url, _SETTINGS, seconds=seconds, health=database.health
            )
            for _ in range(2)
        )
        self._holding, self._releasing = connections
        self._requests: list[_Request] = []
        self._released: list[str] = []
        self._hold_task: asyncio.Task[None] | None = None
        self._release_task: asyncio.Task[None] | None = None

    async def hold(self, name: str, user_id: str, nano_usd: int) -> None:
        """See `Wallets.hold`. A first hold without a reply may exist: release it."""
        reply: asyncio.Future[tuple[bool, int, int]] = asyncio.get_running_loop().create_future()
        self._requests.append(_Request(name, user_id, nano_usd, reply))
        if self._hold_task is None or self._hold_task.done():
            self._hold_task = asyncio.create_task(self._send_requests(), name="wallet holds")
        is_held, balance, others = await reply
        if not is_held:
            raise create_refusal(nano_usd, Funds(balance, others))

    def release(self, name: str) -> None:
        """See `Wallets.release`. It is sent in the background; what cannot be sent expires."""
        self._released.append(name)
        if self._release_task is None or self._release_task.done():
            self._release_task = asyncio.create_task(self._send_releases(), name="wallet releases")

    def remove_written(self, names: Iterable[str]) -> None:
        """Nothing: the transaction of the rows has removed the holds."""

    async def read_funds(self, user_id: str) -> Funds:
        """See `Wallets.read_funds`."""
        async with self._database.read_session() as session:
            balance = await read_balance(session, user_id)
            held = (await session.execute(_HELD, {"user_id": user_id})).scalar_one()
        return Funds(balance, int(held))

    async def close(self) -> None:
        """Send the last releases, and close the connections. Idempotent."""
        for task in (self._hold_task, self._release_task):
            if task is not None:
                await task
        await self._holding.close()
        await self._releasing.close()

    async def _send_requests(self) -> None:
        while self._requests:
            batch, self._requests = self._requests[:BATCH_MAX], self._requests[BATCH_MAX:]
            batch.sort(key=lambda request: request.user_id)
            try:
                replies = await self._send_batch(batch)
            except Exception as error:  # noqa: BLE001 - the callers raise it
                for request in batch:
                    if not request.reply.done():
                        request.reply.set_exception(error)
                continue
            for request, reply in zip(batch, replies, strict=True):
                if not request.reply.done():
                    request.reply.set_result(reply)
                elif reply[0]:  # the caller has gone
                    self.release(request.name)

    async def _send_batch(self, batch: Sequence[_Request]) -> list[tuple[bool, int, int]]:
        names = [request.name for request in batch]
        users = [request.user_id for request in batch]
        amounts = [request.nano_usd for request in batch]
        values = (names, users, amounts, self._ttl_seconds)
        result = await self._holding.fetch_value(_HOLD, *values)
        replies = msgspec.json.decode(result, type=list[tuple[int, int, int]])
        return [(bool(is_held), balance, others) for is_held, balance, others in replies]

    async def _send_releases(self) -> None:
        while self._released:
            names, self._released = self._released, []
            with suppress(DatabaseUnavailable):
                await self._releasing.fetch_value(_RELEASE, names)
