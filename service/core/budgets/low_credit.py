"""Low credit: wallets whose balance is below the amount of an alert.

There is one alert for each credit that is used: its key is the ledger entry of the latest credit,
so that the next one follows after a top-up. Wallets without any credit have none.
"""

from datetime import datetime

import msgspec
import sqlalchemy as sa

from service.core.database.engine import ReadSession
from service.core.database.tables import budget_alerts, ledger_entries, wallets
from service.core.pricing import format_usd

EVENT_TYPE = "wallet.credit_low"
WALLETS_MAX = 500  # of one evaluation; the others follow in the next one


class LowWallet(msgspec.Struct, frozen=True, kw_only=True):
    """A wallet, and its latest credit. Amounts in nano-dollars."""

    user_id: str
    balance_nano_usd: int
    credit_id: str
    credited_at: datetime


async def list_low_wallets(
    session: ReadSession, amount_nano_usd: int, since: datetime
) -> list[LowWallet]:
    """The wallets below the amount whose latest credit is not older than `since` and has no alert.

    Alerts of older credits may have been deleted.
    """
    entries = ledger_entries.c
    query = (
        sa.select(
            wallets.c.user_id, wallets.c.balance_nano_usd, wallets.c.credit_id, entries.created_at
        )
        .join(ledger_entries, entries.id == wallets.c.credit_id)
        .where(
            wallets.c.balance_nano_usd < amount_nano_usd,
            entries.created_at >= since,
            ~sa.exists().where(budget_alerts.c.budget_id == wallets.c.credit_id),
        )
        .order_by(wallets.c.user_id)
        .limit(WALLETS_MAX)
    )
    return [
        LowWallet(user_id=user_id, balance_nano_usd=balance, credit_id=id_, credited_at=at)
        for user_id, balance, id_, at in await session.execute(query)
    ]


def describe_wallet(wallet: LowWallet, amount_nano_usd: int) -> dict[str, object]:
    """What the receiver of an alert is told."""
    return {
        "user_id": wallet.user_id,
        "balance_usd": format_usd(wallet.balance_nano_usd),
        "amount_usd": format_usd(amount_nano_usd),
        "credited_at": wallet.credited_at,
    }
