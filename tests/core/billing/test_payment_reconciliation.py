"""Reconciliation of the ledger with payments, refunds and disputes at Stripe."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from service.core.billing.ledger import EntryKind, NewEntry, add_entries
from service.core.billing.payment_reconciliation import (
    PaymentReconciliation,
    reconcile_payments,
)
from service.core.billing.stripe import StripeConnection
from service.core.database.engine import Database
from tests.billing import START, Clock, running_worker
from tests.fakes.stripe import KEY, StripeFake
from tests.payments import CENT, create_session, receive_all

pytestmark = pytest.mark.every_database


@pytest.fixture
def clock() -> Clock:
    """The time of the service and of Stripe."""
    return Clock()


@pytest.fixture
async def fake(clock: Clock) -> AsyncIterator[StripeFake]:
    """Stripe."""
    async with StripeFake(clock) as fake:
        yield fake


@pytest.fixture
async def connection(fake: StripeFake) -> AsyncIterator[StripeConnection]:
    """A client of the fake."""
    connection = StripeConnection(KEY, base_url=fake.url, seconds=5, retry_seconds=0.001)
    yield connection
    await connection.aclose()


async def process(database: Database, fake: StripeFake, clock: Clock) -> None:
    """Receive all events, and process them."""
    await receive_all(database, fake, clock)
    async with running_worker(database, fake, clock) as worker:
        for _ in range(5):
            await worker.process_inbox()


async def reconcile(database: Database, connection: Any) -> PaymentReconciliation:
    """Compare since the start."""
    return await reconcile_payments(database, connection, START - timedelta(hours=1))


async def test_credited_payments_agree(
    database: Database, fake: StripeFake, clock: Clock, connection: StripeConnection
) -> None:
    """Payments, refunds that fail or not, and disputes agree when all events are processed."""
    fake.payments.tax_percent = 10
    for user_id in "ab":
        session = await create_session(database, connection, user_id, 5000)
        payment = fake.payments.pay(session)
        refund = fake.payments.refund(payment, 700)
        fake.payments.refund(payment, 100)
        dispute = fake.payments.withdraw(payment, 300)
        await process(database, fake, clock)
        fake.payments.change_refund(refund, "failed")
        fake.payments.reinstate(dispute)
        await process(database, fake, clock)
    report = await reconcile(database, connection)
    assert (report.lines, report.payments, report.entries) == ([], 2, 12)


async def test_missing_entries_have_a_reason(
    database: Database, fake: StripeFake, clock: Clock, connection: StripeConnection
) -> None:
    """An entry is missing without an event, and explained while the event waits."""
    session = await create_session(database, connection, "a", 5000)
    payment = fake.payments.pay(session)
    (line,) = (await reconcile(database, connection)).lines
    assert line.startswith(f"a payment:{payment} missing (unexplained): $50 at Stripe")
    await receive_all(database, fake, clock)
    report = await reconcile(database, connection)
    assert (report.explained, report.unexplained) == (1, 0)
    await process(database, fake, clock)
    assert (await reconcile(database, connection)).lines == []


async def test_entries_that_stripe_does_not_know_are_reported(
    database: Database, fake: StripeFake, clock: Clock, connection: StripeConnection
) -> None:
    """Another amount, and payments, refunds and disputes that do not exist, are differences."""
    session = await create_session(database, connection, "a", 5000)
    payment = fake.payments.pay(session)
    causes = {
        f"payment:{payment}": EntryKind.TOP_UP,
        "payment:pi_none": EntryKind.TOP_UP,
        "refund:re_none": EntryKind.REFUND,
        "dispute:dp_none:withdrawn": EntryKind.DISPUTE,
    }
    entries = [
        NewEntry(user_id="a", kind=kind, amount_nano_usd=CENT, cause=cause)
        for cause, kind in causes.items()
    ]
    async with database.transaction() as transaction:
        await add_entries(transaction, entries, clock.now)
    lines = (await reconcile(database, connection)).lines
    assert len(lines) == 4
    assert f"a payment:{payment} amount (unexplained): $50 at Stripe, $0.01 in the ledger" in lines
    assert sum("unknown (unexplained): $0.01 in the ledger, nothing" in line for line in lines) == 3


async def test_entries_of_earlier_payments_are_compared(
    database: Database, fake: StripeFake, clock: Clock, connection: StripeConnection
) -> None:
    """The refund of a payment before the period is found through the payment."""
    session = await create_session(database, connection, "a", 5000)
    payment = fake.payments.pay(session)
    await process(database, fake, clock)
    clock.now += timedelta(days=40)
    fake.payments.refund(payment, 700)
    await process(database, fake, clock)
    report = await reconcile_payments(database, connection, clock.now - timedelta(days=1))
    assert (report.lines, report.payments, report.entries) == ([], 0, 1)
