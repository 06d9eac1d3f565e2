"""Holds of wallets in one process: the balance is in the database, holds are in memory.

A hold remains in memory until the transaction of its row, which contains the debit, is committed.
The balance is read without a lock, so a debit may be committed, and its hold removed, before the
balance that was read is compared: then the removed amount is subtracted, too. An amount may
therefore be counted twice for a moment, but is never missing.

The rows of earlier processes must be written first: until then their debits are in the journal
only. Callers wait for that up to `wait_seconds`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from service.core.billing.ledger import read_balance
from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable, OutOfCredit
from service.core.ports import Funds
from service.core.pricing import format_usd

WAIT_SECONDS = 5.0  # for the rows of earlier processes
READS_MAX = 3  # of a balance, while debits are committed meanwhile


class _CreditHold(msgspec.Struct, frozen=True):
    user_id: str
    nano_usd: int


class _Reading(msgspec.Struct, eq=False):
    """A balance that is being read. `removed`: the holds that were removed meanwhile."""

    removed: int = 0


class LocalWallets:
    """See `Wallets`. `wait_recovered` waits for the rows of earlier processes."""

    def __init__(
        self,
        database: Database,
        wait_recovered: Callable[[], Awaitable[None]],
        *,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._database, self._wait_recovered = database, wait_recovered
        self._wait_seconds = wait_seconds
        self._is_recovered = False
        self._holds: dict[str, _CreditHold] = {}
        self._held: dict[str, int] = {}  # sums by user
        self._readings: dict[str, list[_Reading]] = {}  # by user

    async def hold(self, name: str, user_id: str, nano_usd: int) -> None:
        """See `Wallets.hold`."""
        for _ in range(READS_MAX):
            funds, removed = await self._read(user_id)
            held = self._holds.get(name)
            others = funds.held + removed - (held.nano_usd if held else 0)
            if funds.balance - others >= nano_usd:
                self._set_hold(name, _CreditHold(user_id, nano_usd))
                return
            if not removed:
                break
        raise create_refusal(nano_usd, Funds(funds.balance, others))

    def release(self, name: str) -> None:
        """See `Wallets.release`."""
        if (hold := self._holds.pop(name, None)) is not None:
            self._change_held(hold.user_id, -hold.nano_usd)

    def remove_written(self, names: Iterable[str]) -> None:
        """See `Wallets.remove_written`."""
        for name in names:
            if (hold := self._holds.pop(name, None)) is not None:
                self._change_held(hold.user_id, -hold.nano_usd)
                for reading in self._readings.get(hold.user_id, ()):
                    reading.removed += hold.nano_usd

    async def read_funds(self, user_id: str) -> Funds:
        """See `Wallets.read_funds`."""
        funds, removed = await self._read(user_id)
        return Funds(funds.balance, funds.held + removed)

    async def _read(self, user_id: str) -> tuple[Funds, int]:
        """The funds, and the holds that were removed while the balance was read."""
        await self._wait_ready()
        reading = _Reading()
        readings = self._readings.setdefault(user_id, [])
        readings.append(reading)
        try:
            async with self._database.read_session() as session:
                balance = await read_balance(session, user_id)
        finally:
            readings.remove(reading)
            if not readings:
                del self._readings[user_id]
        return Funds(balance, self._held.get(user_id, 0)), reading.removed

    async def _wait_ready(self) -> None:
        if self._is_recovered:
            return
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._wait_recovered()
        except TimeoutError as error:
            raise DatabaseUnavailable("earlier answers have not been debited yet") from error
        self._is_recovered = True

    def _set_hold(self, name: str, hold: _CreditHold) -> None:
        previous = self._holds.get(name)
        self._holds[name] = hold
        self._change_held(hold.user_id, hold.nano_usd - (previous.nano_usd if previous else 0))

    def _change_held(self, user_id: str, nano_usd: int) -> None:
        held = self._held.get(user_id, 0) + nano_usd
        if held:
            self._held[user_id] = held
        else:
            self._held.pop(user_id, None)


def create_refusal(nano_usd: int, others: Funds) -> OutOfCredit:
    """The error of a hold that exceeds the funds. `others`: with the holds of other answers."""
    available = max(others.balance - others.held, 0)
    held = f" ({format_usd(others.held)} USD are held for other answers)" if others.held else ""
    return OutOfCredit(
        f"the request may cost up to {format_usd(nano_usd)} USD, and the wallet has "
        f"{format_usd(available)} USD{held}: top up, or send a smaller max_tokens",
        extra={"needed": format_usd(nano_usd), "available": format_usd(available)},
    )
