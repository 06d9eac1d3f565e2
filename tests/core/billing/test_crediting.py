"""Crediting: payments, refunds and disputes are in the ledger once, in any order of events."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.auth.principals import BOOTSTRAP
from service.core.billing import inbox
from service.core.billing.payers import assign_payer
from service.core.billing.stripe import StripeConnection
from service.core.database.engine import Database
from service.core.database.outboxes import retry_row
from service.core.database.tables import billing_inbox
from service.workers.billing import BillingWorker
from tests.billing import Clock, running_worker
from tests.fakes.stripe import BUSY, CUT, ERROR, KEY, Reply, StripeFake
from tests.fakes.stripe_payments import build_thin
from tests.payments import (
    create_session,
    read_cents,
    read_ledger,
    read_user_balance,
    receive,
    receive_all,
)
from tests.schema import migrated_database

pytestmark = pytest.mark.every_database


@pytest.fixture
def clock() -> Clock:
    """The time of the service and of Stripe."""
    return Clock()


@pytest.fixture
async def fake(clock: Clock) -> AsyncIterator[StripeFake]:
    """Stripe, with a tax of 10 %."""
    async with StripeFake(clock) as fake:
        fake.payments.tax_percent = 10
        yield fake


@pytest.fixture
async def connection(fake: StripeFake) -> AsyncIterator[StripeConnection]:
    """A client of the fake."""
    connection = StripeConnection(KEY, base_url=fake.url, seconds=5)
    yield connection
    await connection.aclose()


@pytest.fixture
async def worker(
    database: Database, fake: StripeFake, clock: Clock
) -> AsyncIterator[BillingWorker]:
    """A worker that is not started."""
    async with running_worker(database, fake, clock) as worker:
        yield worker


async def list_failed(database: Database) -> list[str | None]:
    """The errors of the events that were given up."""
    async with database.read_session() as session:
        rows = (await session.execute(billing_inbox.select())).mappings()
        return [row["error"] for row in rows if row["state"] == "failed"]


async def test_a_payment_is_credited_once(
    database: Database, fake: StripeFake, clock: Clock, connection: Any, worker: BillingWorker
) -> None:
    """Reported by repeated, thin and complete events of two endpoints, it has one entry."""
    session_id = await create_session(database, connection, "alice", 1000)
    payment = fake.payments.pay(session_id, asynchronous=True)
    fake.payments.settle(session_id)
    events = [*fake.payments.events, *map(build_thin, fake.payments.events)]
    for _ in range(2):
        await receive(database, events, clock)
        await worker.process_inbox()
    assert await read_cents(database, "alice") == {f"payment:{payment}": 1000}
    assert await list_failed(database) == []


async def test_a_payment_is_credited_when_it_is_paid(
    database: Database, fake: StripeFake, clock: Clock, connection: Any, worker: BillingWorker
) -> None:
    """A completed session of an asynchronous payment credits nothing yet."""
    session_id = await create_session(database, connection, "alice", 1000)
    fake.payments.pay(session_id, asynchronous=True)
    await receive_all(database, fake, clock)
    await worker.process_inbox()
    assert await read_cents(database, "alice") == {}
    fake.payments.settle(session_id)
    await receive_all(database, fake, clock)
    await worker.process_inbox()
    assert await read_user_balance(database, "alice") == fake.payments.sum_nano_usd("alice") > 0


async def test_a_refund_that_arrives_first_brings_its_payment(
    database: Database, fake: StripeFake, clock: Clock, connection: Any, worker: BillingWorker
) -> None:
    """All entries of a payment follow from any of its events."""
    payment = fake.payments.pay(await create_session(database, connection, "alice", 1000))
    refund = fake.payments.refund(payment, 550)
    await receive(database, fake.payments.events[-1:], clock)  # charge.refunded
    await worker.process_inbox()
    expected = {f"payment:{payment}": 1000, f"refund:{refund}": -500}
    assert await read_cents(database, "alice") == expected
    await receive_all(database, fake, clock)
    await worker.process_inbox()
    assert await read_cents(database, "alice") == expected


async def test_a_failed_refund_is_reversed(
    database: Database, fake: StripeFake, clock: Clock, connection: Any, worker: BillingWorker
) -> None:
    """A stale event of the success changes nothing afterwards."""
    payment = fake.payments.pay(await create_session(database, connection, "alice", 1000))
    refund = fake.payments.refund(payment, 1100)
    await receive_all(database, fake, clock)
    await worker.process_inbox()
    assert await read_user_balance(database, "alice") == 0
    fake.payments.change_refund(refund, "failed")
    await receive_all(database, fake, clock)
    await receive(database, [build_thin(event) for event in fake.payments.events], clock)
    await worker.process_inbox()
    assert (await read_cents(database, "alice"))[f"refund:{refund}:failed"] == 1000
    assert await read_user_balance(database, "alice") == fake.payments.sum_nano_usd("alice")


async def test_disputes_take_and_return_money(
    database: Database, fake: StripeFake, clock: Clock, connection: Any, worker: BillingWorker
) -> None:
    """The balance is below zero if the money was refunded before."""
    payment = fake.payments.pay(await create_session(database, connection, "alice", 1000))
    fake.payments.refund(payment, 1100)
    dispute = fake.payments.withdraw(payment, 1100)
    await receive_all(database, fake, clock)
    await worker.process_inbox()
    assert await read_user_balance(database, "alice") == fake.payments.sum_nano_usd("alice") < 0
    fake.payments.reinstate(dispute, 550)
    await receive_all(database, fake, clock)
    await worker.process_inbox()
    assert (await read_cents(database, "alice"))[f"dispute:{dispute}:reinstated"] == 500


async def test_a_payment_of_an_unknown_customer_waits_for_a_person(
    database: Database, fake: StripeFake, clock: Clock, connection: Any, worker: BillingWorker
) -> None:
    """It has failed with the reason, delays no others, and is credited once it is assigned."""
    customer = await connection.create_customer("alice", "x")
    session = await create_session(database, connection, "bob", 1000)
    fake.payments.objects[session] |= {
        "customer": customer,
        "_payment_metadata": {"kotae_purpose": "top_up", "kotae_user": "alice"},
    }
    fake.payments.pay(session)
    fake.payments.pay(await create_session(database, connection, "bob", 1000))
    await receive_all(database, fake, clock)
    await worker.process_inbox()
    (error,) = await list_failed(database)
    assert error
    assert "as whom no user pays here: kotae billing assign" in error
    assert len(await read_ledger(database, "bob")) == 1
    await assign_payer(database, BOOTSTRAP, "alice", customer)
    async with database.transaction() as transaction:
        await retry_row(transaction, billing_inbox, "evt_1", clock.now)
    await worker.process_inbox()
    assert len(await read_ledger(database, "alice")) == 1


async def test_a_payment_that_names_another_user_is_not_credited(
    database: Database, fake: StripeFake, clock: Clock, connection: Any, worker: BillingWorker
) -> None:
    """The customer and the metadata must agree."""
    session = await create_session(database, connection, "alice", 1000)
    fake.payments.objects[session]["_payment_metadata"]["kotae_user"] = "bob"
    fake.payments.pay(session)
    await receive_all(database, fake, clock)
    await worker.process_inbox()
    (error,) = await list_failed(database)
    assert error
    assert "names another user" in error


async def test_other_payments_of_the_account_are_not_ours(
    database: Database, fake: StripeFake, clock: Clock, connection: Any, worker: BillingWorker
) -> None:
    """A payment without the mark of Kotae, or without a PaymentIntent, has no entries."""
    session = await create_session(database, connection, "alice", 1000)
    fake.payments.objects[session]["_payment_metadata"] = {}
    fake.payments.pay(session)
    subscription = await create_session(database, connection, "alice", 1000)
    await receive_all(database, fake, clock)
    event = fake.payments.events[0] | {"id": "evt_x", "data": {"object": {"id": subscription}}}
    await receive(database, [event], clock)
    await worker.process_inbox()
    assert await read_ledger(database, "alice") == []
    assert await list_failed(database) == []


@pytest.mark.parametrize("reply", [BUSY, CUT, ERROR, Reply(401), Reply(404)])
async def test_a_failed_call_delays_the_event(
    database: Database,
    fake: StripeFake,
    clock: Clock,
    connection: Any,
    worker: BillingWorker,
    reply: Reply,
) -> None:
    """Nothing is credited in part; a later attempt credits it."""
    fake.payments.pay(await create_session(database, connection, "alice", 1000))
    await receive_all(database, fake, clock)
    fake.payments.replies.append(reply)
    await worker.process_inbox()
    assert await read_ledger(database, "alice") == []
    clock.now += timedelta(minutes=1)
    await worker.process_inbox()
    assert len(await read_ledger(database, "alice")) == 1


async def test_a_rejected_call_needs_a_person(
    database: Database, fake: StripeFake, clock: Clock, connection: Any, worker: BillingWorker
) -> None:
    """A repetition would be rejected as well; the next event is processed nevertheless."""
    for _ in range(2):
        fake.payments.pay(await create_session(database, connection, "alice", 1000))
    await receive_all(database, fake, clock)
    fake.payments.replies.append(Reply(400))
    await worker.process_inbox()
    assert await list_failed(database) == ["400: The fake refuses this"]
    assert len(await read_ledger(database, "alice")) == 1


async def test_an_outage_of_stripe_ends_the_tick(
    database: Database, fake: StripeFake, clock: Clock, connection: Any, worker: BillingWorker
) -> None:
    """The other events are not attempted, so that they do not wait for timeouts one by one."""
    for _ in range(3):
        fake.payments.pay(await create_session(database, connection, "alice", 1000))
    await receive_all(database, fake, clock)
    fake.is_away = True
    await worker.process_inbox()
    async with database.read_session() as session:
        assert len(await inbox.list_due(session, clock.now, 9)) == 2


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "pay",
                "pay",
                "later",
                "settle",
                "refund",
                "end",
                "withdraw",
                "reinstate",
                "deliver",
                "process",
            ]
        ),
        st.integers(0, 1000),
        st.integers(1, 100),
        st.booleans(),
    ),
    max_size=25,
)


@pytest.mark.slow
@pytest.mark.sqlite
@pytest.mark.timeout(300)
@settings(max_examples=50)
@given(ACTIONS, st.randoms(use_true_random=False))
def test_the_ledger_is_what_stripe_says(actions: Any, choose: Any) -> None:
    """Any number and order of payments, refunds, disputes and their events, thin or complete."""
    _check(actions, choose)


@pytest.mark.nightly
@pytest.mark.sqlite
@pytest.mark.timeout(1800)
@settings(max_examples=1000)
@given(ACTIONS, st.randoms(use_true_random=False))
def test_the_ledger_is_what_stripe_says_often(actions: Any, choose: Any) -> None:
    """The same with many more examples."""
    _check(actions, choose)


def _check(actions: Any, choose: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kotae.db"
        shutil.copy(migrated_database(), file)
        asyncio.run(_play(file, actions, choose))


async def _play(file: Path, actions: Any, choose: Any) -> None:
    database, clock = Database(f"sqlite+aiosqlite:///{file}"), Clock()
    async with StripeFake(clock) as fake, running_worker(database, fake, clock) as worker:
        payments = fake.payments
        payments.tax_percent = 19
        connection = StripeConnection(KEY, base_url=fake.url, seconds=5)
        for name, number, share, flag in actions:
            if name in ("pay", "later"):
                user_id = "alice" if flag else "bob"
                session_id = await create_session(database, connection, user_id, 500 + number)
                payments.pay(session_id, asynchronous=name == "later")
            elif name == "deliver" and payments.events:
                event = payments.events[number % len(payments.events)]
                await receive(database, [build_thin(event) if flag else event], clock)
            elif name == "process":
                await worker.process_inbox()
            else:
                _act(fake, name, number, share, flag=flag)
        await connection.aclose()
        rest = payments.events * 2
        choose.shuffle(rest)
        for event in rest:
            await receive(database, [event], clock)
            if choose.random() < 0.3:
                await worker.process_inbox()
        while await _count_due(database, clock):
            await worker.process_inbox()
        for user_id in ("alice", "bob"):
            assert await read_user_balance(database, user_id) == payments.sum_nano_usd(user_id)
        assert await list_failed(database) == []
    await database.close()


def _act(fake: StripeFake, name: str, number: int, share: int, *, flag: bool) -> None:
    """Do something with one of the payments, refunds or disputes, if it is possible."""
    payments = fake.payments
    prefix = {"settle": "cs_", "end": "re_", "reinstate": "dp_"}.get(name, "cs_")
    objects = payments.list_objects(prefix)
    if not objects:
        return
    item = objects[number % len(objects)]
    if name == "settle" and item["payment_status"] == "unpaid":
        payments.settle(item["id"])
    elif name == "end" and item["status"] != "failed":
        payments.change_refund(item["id"], "succeeded" if flag else "failed")
    elif name == "reinstate" and len(item["balance_transactions"]) == 1:
        payments.reinstate(item["id"], item["amount"] * share // 100 or 1)
    elif name in ("refund", "withdraw") and item["payment_status"] == "paid":
        cents = item["amount_total"] * share // 100
        if name == "withdraw":
            payments.withdraw(item["payment_intent"], cents)
            return
        refunds = payments.list_objects("re_", payment_intent=item["payment_intent"])
        refunded = sum(refund["amount"] for refund in refunds if refund["status"] != "failed")
        if 0 < cents <= item["amount_total"] - refunded:
            payments.refund(item["payment_intent"], cents, "succeeded" if flag else "pending")


async def _count_due(database: Database, clock: Clock) -> int:
    async with database.read_session() as session:
        return len(await inbox.list_due(session, clock.now, 1))
