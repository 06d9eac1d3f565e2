"""Wallets for tests: prepaid users with funds, and what they hold and owe."""

from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP
from service.core.billing.ledger import EntryKind, NewEntry, add_entries, read_balance
from service.core.database.engine import Database
from service.core.database.tables import ledger_entries
from service.core.encoding import utc_now
from service.core.ports import QuotaLimits

MARKUP = Decimal("1.25")


async def make_prepaid(
    database: Database, user_id: str = "alice", markup: Decimal | None = MARKUP
) -> None:
    """Give a user a prepaid plan."""
    await store.put_plan(database, BOOTSTRAP, "prepaid", QuotaLimits(), prepaid=True, markup=markup)
    await store.put_user(database, BOOTSTRAP, user_id, plan="prepaid", limits=None)


async def add_funds(
    database: Database, nano_usd: int, user_id: str = "alice", cause: str = "payment:pi_1"
) -> None:
    """Add an amount, or take one."""
    entry = NewEntry(user_id=user_id, kind=EntryKind.TOP_UP, amount_nano_usd=nano_usd, cause=cause)
    async with database.transaction() as session:
        await add_entries(session, [entry], utc_now())


async def get_balance(database: Database, user_id: str = "alice") -> int:
    """The cached balance."""
    async with database.read_session() as session:
        return await read_balance(session, user_id)


async def read_debits(database: Database, user_id: str = "alice") -> dict[str, int]:
    """The amounts of the debits of a user by their cause."""
    columns = ledger_entries.c
    query = sa.select(columns.cause, columns.amount_nano_usd).where(
        columns.user_id == user_id, columns.kind == EntryKind.DEBIT
    )
    async with database.read_session() as session:
        rows: list[Any] = list(await session.execute(query))
    return {row.cause: row.amount_nano_usd for row in rows}
