"""The audit of wallets: what it compares, and what differs."""

from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.core.accounting.audit import DEBITS, WALLETS, AuditReport, audit_log
from service.core.billing.ledger import EntryKind, NewEntry, add_entries, rebuild_wallets
from service.core.database.engine import Database
from service.core.database.tables import request_logs, wallets
from service.core.encoding import utc_now
from service.core.pricing import ChargeTerms
from tests.records import build_intent, build_outcome
from tests.rows import write
from tests.wallets import add_funds, get_balance

pytestmark = pytest.mark.every_database

TERMS = ChargeTerms(prepaid=True, markup=Decimal(2))


async def write_charged(database: Database, charge: int | None = 3000) -> str:
    """The row of a prepaid answer; its id."""
    intent = build_intent(user_id="alice", terms=TERMS)
    await write(database, [build_outcome(intent, charge_nano_usd=charge)])
    return intent.id


async def audit(database: Database, tmp_path: Path) -> AuditReport:
    """Audit everything."""
    return await audit_log(database, tmp_path)


async def test_wallets_and_debits_agree(database: Database, tmp_path: Path) -> None:
    """Balances equal the ledger and debits the rows, also with unknown usage."""
    await add_funds(database, 10_000)
    await write_charged(database)
    await write_charged(database, None)
    await write(database, [build_outcome()])
    report = await audit(database, tmp_path)
    assert (report.details, report.compared[WALLETS], report.compared[DEBITS]) == ([], 1, 2)


async def test_a_wrong_balance_is_reported_and_rebuilt(database: Database, tmp_path: Path) -> None:
    """A balance that is not the sum of the entries differs, until it is computed again."""
    await add_funds(database, 10_000)
    await add_funds(database, 5, "bob", "grant:1")
    async with database.transaction() as session:
        await session.execute(
            sa.update(wallets).where(wallets.c.user_id == "alice").values(balance_nano_usd=7)
        )
        await session.execute(sa.delete(wallets).where(wallets.c.user_id == "bob"))
    report = await audit(database, tmp_path)
    assert report.details == [
        "wallet of alice: 0.00001 USD in the ledger, 0.000000007 in the wallet",
        "wallet of bob: 0.000000005 USD in the ledger, 0 in the wallet",
    ]
    await rebuild_wallets(database)
    assert (await audit(database, tmp_path)).agrees
    assert await get_balance(database, "bob") == 5


async def test_a_row_without_its_debit_is_reported(database: Database, tmp_path: Path) -> None:
    """A changed charge, and a debit without a row, are differences."""
    answer_id, other_id = await write_charged(database), build_intent().id
    async with database.transaction() as session:
        await session.execute(
            sa.update(request_logs)
            .where(request_logs.c.id == answer_id)
            .values(charge_nano_usd=4000)
        )
        entry = NewEntry(
            user_id="alice",
            kind=EntryKind.DEBIT,
            amount_nano_usd=-1,
            cause=f"answer:{other_id}:2",
        )
        await add_entries(session, [entry], utc_now())
    report = await audit(database, tmp_path)
    assert sorted(report.details) == sorted(
        [
            f"answer {answer_id}: a charge of 0.000004 USD in the row, 0.000003 debited",
            f"answer {other_id}: a charge of 0 USD in the row, 0.000000001 debited",
        ]
    )
