"""The audit of wallets: balances against the ledger, and debits against the rows of the log."""

from collections.abc import AsyncIterator
from typing import Any

import sqlalchemy as sa

from service.core.billing.ledger import DEBIT_CAUSE
from service.core.database.constructs import sum_exactly
from service.core.database.engine import ReadSession
from service.core.database.tables import ledger_entries, request_logs, wallets
from service.core.pricing import format_usd

_BATCH = 2000
_ID_CHARACTERS = 36


async def count_wallets(session: ReadSession) -> int:
    """The number of wallets."""
    query = sa.select(sa.func.count()).select_from(wallets)
    return int((await session.execute(query)).scalar_one())


async def list_balance_differences(session: ReadSession) -> AsyncIterator[str]:
    """Yield the wallets whose balance is not the sum of the user's entries."""
    entries = sa.select(
        ledger_entries.c.user_id, ledger_entries.c.amount_nano_usd, sa.literal(0).label("balance")
    )
    balances = sa.select(wallets.c.user_id, sa.literal(0), wallets.c.balance_nano_usd)
    async for user_id, total, balance in _compare(session, entries, balances):
        yield (
            f"wallet of {user_id}: {format_usd(total)} USD in the ledger,"
            f" {format_usd(balance)} in the wallet"
        )


async def count_debited_rows(session: ReadSession, low: str, high: str) -> int:
    """The number of prepaid rows with ids from `low` to before `high`."""
    query = sa.select(sa.func.count()).select_from(request_logs).where(*_filter(low, high))
    return int((await session.execute(query)).scalar_one())


async def list_debit_differences(session: ReadSession, low: str, high: str) -> AsyncIterator[str]:
    """Yield the answers with ids in an interval whose debits are not the charge of the row."""
    logs, cause = request_logs.c, ledger_entries.c.cause
    rows = sa.select(
        logs.id, sa.func.coalesce(logs.charge_nano_usd, 0), sa.literal(0).label("debited")
    ).where(*_filter(low, high))
    debits = sa.select(
        sa.func.substr(cause, len(DEBIT_CAUSE) + 1, _ID_CHARACTERS),
        sa.literal(0),
        -ledger_entries.c.amount_nano_usd,
    ).where(cause >= f"{DEBIT_CAUSE}{low}", cause < f"{DEBIT_CAUSE}{high}")
    async for answer_id, charge, debited in _compare(session, rows, debits):
        yield (
            f"answer {answer_id}: a charge of {format_usd(charge)} USD in the row,"
            f" {format_usd(debited)} debited"
        )


def _filter(low: str, high: str) -> tuple[sa.ColumnElement[bool], ...]:
    logs = request_logs.c
    return logs.id >= low, logs.id < high, logs.prepaid.is_(True)


async def _compare(
    session: ReadSession, first: sa.Select[Any], second: sa.Select[Any]
) -> AsyncIterator[tuple[str, int, int]]:
    """Yield the keys whose sums of the second and the third column differ."""
    combined = sa.union_all(first, second).subquery()
    key, left, right = combined.c
    sums = sum_exactly(left), sum_exactly(right)
    query = sa.select(key, *sums).group_by(key).having(sums[0] != sums[1]).order_by(key)
    result = await session.stream(query, execution_options={"yield_per": _BATCH})
    async for row in result:
        yield tuple(row)
