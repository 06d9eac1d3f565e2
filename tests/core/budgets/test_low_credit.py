"""Low credit: one alert for each credit of a wallet that is used up to an amount."""

import msgspec
import pytest

from service.core.billing.ledger import (
    EntryKind,
    NewEntry,
    add_entries,
    list_entries,
    rebuild_wallets,
)
from service.core.budgets.outbox import KEPT_DAYS, Alert, create_alerts
from service.core.database.engine import Database
from service.core.encoding import utc_now
from tests.wallets import add_funds

pytestmark = pytest.mark.every_database

AMOUNT = 100


async def create(database: Database) -> list[Alert]:
    """Evaluate, and return the new alerts."""
    return await create_alerts(database, utc_now(), deliver=False, credit_nano_usd=AMOUNT)


async def debit(database: Database, nano_usd: int, cause: str) -> None:
    """Debit an answer, or correct its debit if the amount is positive."""
    entry = NewEntry(
        user_id="alice", kind=EntryKind.DEBIT, amount_nano_usd=nano_usd, cause=f"answer:{cause}"
    )
    async with database.transaction() as session:
        await add_entries(session, [entry], utc_now())


async def test_there_is_one_alert_for_each_credit(database: Database) -> None:
    """Debits below the amount add none until the next credit, which may be too small as well."""
    await add_funds(database, 500)
    counts = [len(await create(database))]
    for number, nano_usd in enumerate((-400, -1, -2, 1)):
        await debit(database, nano_usd, str(number))
        counts.append(len(await create(database)))
    await add_funds(database, 1, cause="payment:pi_2")
    counts.append(len(await create(database)))
    await add_funds(database, 500, cause="payment:pi_3")
    counts.append(len(await create(database)))
    assert counts == [0, 0, 1, 0, 0, 1, 0]


async def test_rebuilt_wallets_have_their_latest_credit(database: Database) -> None:
    """A debit that was corrected is none."""
    await add_funds(database, 1)
    await add_funds(database, 2, cause="payment:pi_2")
    await debit(database, -3, "1")
    await debit(database, 1, "2")
    [alert] = await create(database)
    await rebuild_wallets(database)
    assert await create(database) == []
    async with database.read_session() as session:
        *_, credit = await list_entries(session, "alice", limit=3)
    assert alert.budget_id == credit.id


async def test_the_body_has_user_and_balance(database: Database) -> None:
    """Amounts are decimal strings."""
    await add_funds(database, 99)
    [alert] = await create(database)
    body = msgspec.json.decode(alert.body)
    assert body["type"] == "wallet.credit_low"
    data = body["data"]
    assert (data["user_id"], data["alert_id"]) == ("alice", alert.id)
    assert (data["balance_usd"], data["amount_usd"]) == ("0.000000099", "0.0000001")


async def test_without_an_amount_there_are_no_alerts(database: Database) -> None:
    """Credit is evaluated only if that is enabled."""
    await add_funds(database, 1)
    assert await create_alerts(database, utc_now(), deliver=False) == []


async def test_credits_without_alerts_that_are_kept_have_none(database: Database) -> None:
    """An alert of an old credit may have been deleted, and must not be created again."""
    await add_funds(database, 1)
    later = utc_now().replace(year=utc_now().year + KEPT_DAYS // 365 + 1)
    assert await create_alerts(database, later, deliver=False, credit_nano_usd=AMOUNT) == []
