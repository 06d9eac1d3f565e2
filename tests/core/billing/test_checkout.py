"""Top-ups: one customer for each user, bounded calls, and clear errors."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from service.core.billing.checkout import (
    CACHE_SECONDS,
    SESSIONS_MAX,
    SESSIONS_SECONDS,
    Checkout,
)
from service.core.billing.stripe import StripeConnection
from service.core.database.engine import Database
from service.core.errors import (
    AmountInvalid,
    NotFound,
    Overloaded,
    StripeRefused,
    StripeUnavailable,
)
from tests.billing import Clock
from tests.fakes.stripe import BUSY, CUT, ERROR, ERROR_AFTERWARDS, KEY, LOST, Reply, StripeFake
from tests.payments import PUBLIC_URL, build_checkout

pytestmark = pytest.mark.every_database
FIVE = Decimal(5)


@pytest.fixture
async def fake() -> AsyncIterator[StripeFake]:
    """Stripe."""
    async with StripeFake() as fake:
        yield fake


@pytest.fixture
async def connection(fake: StripeFake) -> AsyncIterator[StripeConnection]:
    """A client of the fake."""
    connection = StripeConnection(KEY, base_url=fake.url, seconds=5)
    yield connection
    await connection.aclose()


@pytest.fixture
def checkout(database: Database, connection: StripeConnection) -> Checkout:
    """A service for top-ups."""
    return build_checkout(database, connection)


async def test_a_session_is_created_as_documented(
    database: Database, fake: StripeFake, connection: Any
) -> None:
    """It names user and purpose, in dollars only, and returns to the public URL."""
    checkout = build_checkout(database, connection, has_tax=True, has_invoices=True)
    created = await checkout.create_session("alice", Decimal("12.34"))
    assert created.url == f"{fake.url}/pay/{created.session_id}"
    ((_, _, fields),) = [call for call in fake.payments.calls if "checkout" in call[1]]
    (customer,) = fake.payments.list_objects("cus_")
    assert fields == {
        "mode": "payment",
        "submit_type": "pay",
        "customer": customer["id"],
        "client_reference_id": "alice",
        "line_items[0][quantity]": "1",
        "line_items[0][price_data][currency]": "usd",
        "line_items[0][price_data][unit_amount]": "1234",
        "line_items[0][price_data][tax_behavior]": "exclusive",
        "line_items[0][price_data][product_data][name]": "Prepaid credit of $12.34",
        "metadata[kotae_purpose]": "top_up",
        "metadata[kotae_user]": "alice",
        "payment_intent_data[metadata][kotae_purpose]": "top_up",
        "payment_intent_data[metadata][kotae_user]": "alice",
        "adaptive_pricing[enabled]": "false",
        "automatic_tax[enabled]": "true",
        "customer_update[address]": "auto",
        "invoice_creation[enabled]": "true",
        "success_url": f"{PUBLIC_URL}/account/billing?payment=success",
        "cancel_url": f"{PUBLIC_URL}/account/billing?payment=cancelled",
    }
    assert customer["metadata"] == {"kotae_user": "alice"}


@pytest.mark.parametrize("usd", ["4.99", "10000.01", "5.001", "0", "-5"])
async def test_amounts_out_of_bounds_are_refused(
    checkout: Checkout, fake: StripeFake, usd: str
) -> None:
    """Without a call to Stripe."""
    with pytest.raises(AmountInvalid, match="between 5 and 10000 USD"):
        await checkout.create_session("alice", Decimal(usd))
    assert fake.payments.calls == []


async def test_parallel_requests_create_one_customer(
    database: Database, fake: StripeFake, connection: Any
) -> None:
    """Requests of several processes use the same idempotency key."""
    services = [build_checkout(database, connection) for _ in range(3)]
    await asyncio.gather(*(service.create_session("alice", FIVE) for service in services * 3))
    assert len(fake.payments.list_objects("cus_")) == 1
    assert len(fake.payments.list_objects("cs_")) == 9


@pytest.mark.parametrize("reply", [LOST, CUT, BUSY, Reply(401), Reply(409)])
async def test_a_request_after_a_failure_creates_one_customer(
    checkout: Checkout, fake: StripeFake, reply: Reply
) -> None:
    """Also if the first response was lost after the customer was created."""
    fake.payments.replies.append(reply)
    if reply.status != 409:  # which is repeated at once
        with pytest.raises((StripeUnavailable, StripeRefused)):
            await checkout.create_session("alice", FIVE)
    await checkout.create_session("alice", FIVE)
    assert len(fake.payments.list_objects("cus_")) == 1


async def test_an_error_that_stripe_replays_is_left_behind(
    checkout: Checkout, fake: StripeFake
) -> None:
    """After an error under a key, the next request uses another one."""
    fake.payments.replies.append(ERROR_AFTERWARDS)
    with pytest.raises(StripeUnavailable):
        await checkout.create_session("alice", FIVE)
    first = fake.payments.list_objects("cus_")
    await checkout.create_session("alice", FIVE)
    (session,) = fake.payments.list_objects("cs_")
    assert session["customer"] not in {customer["id"] for customer in first}


@pytest.mark.parametrize(
    ("reply", "error", "seconds"),
    [
        (BUSY, StripeUnavailable, 7),
        (CUT, StripeUnavailable, 5),
        (ERROR, StripeUnavailable, 5),
        (Reply(401), StripeRefused, None),
        (Reply(400), StripeRefused, None),
    ],
)
async def test_failures_have_a_stable_code(
    checkout: Checkout, fake: StripeFake, reply: Reply, error: Any, seconds: int | None
) -> None:
    """The user learns whether to retry, but not what Stripe says."""
    await checkout.create_session("alice", FIVE)
    fake.payments.replies.append(reply)
    with pytest.raises(error, match="nothing was charged") as caught:
        await checkout.create_session("alice", FIVE)
    assert caught.value.retry_after_seconds == seconds
    assert "fake" not in str(caught.value)


async def test_a_slow_response_ends_the_request(
    database: Database, fake: StripeFake, connection: Any
) -> None:
    """After its deadline, the request is refused and its place is free."""
    fake.payments.release = asyncio.Event()
    checkout = build_checkout(database, connection, seconds=0.05)
    with pytest.raises(StripeUnavailable, match="in time"):
        await checkout.create_session("alice", FIVE)
    fake.payments.release.set()
    checkout = build_checkout(database, connection)
    await checkout.create_session("alice", FIVE)


async def test_sessions_of_a_user_are_limited(
    database: Database, fake: StripeFake, connection: Any
) -> None:
    """An hour later there are more, and other users are not affected."""
    clock = Clock()
    checkout = build_checkout(database, connection, monotonic=clock.read_seconds)
    for _ in range(SESSIONS_MAX):
        await checkout.create_session("alice", FIVE)
    with pytest.raises(Overloaded) as caught:
        await checkout.create_session("alice", FIVE)
    assert caught.value.retry_after_seconds == SESSIONS_SECONDS
    await checkout.create_session("bob", FIVE)
    clock.now = clock.now.replace(hour=clock.now.hour + 2)
    await checkout.create_session("alice", FIVE)


async def test_requests_in_progress_are_limited(
    database: Database, fake: StripeFake, connection: Any
) -> None:
    """A user has a share of the calls in progress."""
    checkout = build_checkout(database, connection, user_share=1 / 16)
    fake.payments.release = asyncio.Event()
    first = asyncio.create_task(checkout.create_session("alice", FIVE))
    await fake.payments.wait_calls(1)
    with pytest.raises(Overloaded):
        await checkout.create_session("alice", FIVE)
    fake.payments.release.set()
    await first


async def test_reading_invoices_does_not_prevent_paying(
    database: Database, fake: StripeFake, connection: Any
) -> None:
    """While Stripe is slow, invoices have a limit of their own."""
    checkout = build_checkout(database, connection, user_share=1 / 16)
    await checkout.create_session("alice", FIVE)
    fake.payments.release = asyncio.Event()
    reading = asyncio.create_task(checkout.list_invoices("alice"))
    await fake.payments.wait_calls(3)
    with pytest.raises(Overloaded):
        await checkout.list_invoices("alice")
    paying = asyncio.create_task(checkout.create_session("alice", FIVE))
    await fake.payments.wait_calls(4)
    fake.payments.release.set()
    await asyncio.gather(reading, paying)


async def test_the_portal_needs_a_payer(checkout: Checkout, fake: StripeFake) -> None:
    """Who never paid has nothing there."""
    with pytest.raises(NotFound, match="no payments yet"):
        await checkout.create_portal("alice")
    await checkout.create_session("alice", FIVE)
    assert await checkout.create_portal("alice") == f"{fake.url}/portal"
    (portal,) = fake.payments.list_objects("bps_")
    assert portal["return_url"] == f"{PUBLIC_URL}/account/billing"


async def test_invoices_are_cached_for_a_minute(
    database: Database, fake: StripeFake, connection: Any
) -> None:
    """Of the user's own customer only."""
    clock = Clock()
    checkout = build_checkout(database, connection, monotonic=clock.read_seconds)
    assert await checkout.list_invoices("alice") is None
    await checkout.create_session("alice", FIVE)
    await checkout.create_session("bob", FIVE)
    for user_id in ("alice", "bob"):
        (customer,) = (
            item
            for item in fake.payments.list_objects("cus_")
            if item["metadata"]["kotae_user"] == user_id
        )
        fake.payments.add_invoice(customer["id"], 500)
        invoices = await checkout.list_invoices(user_id)
        assert invoices is not None
        assert [invoice.total for invoice in invoices] == [500]
        fake.payments.add_invoice(customer["id"], 600)
        assert await checkout.list_invoices(user_id) == invoices
    clock.now = clock.now.replace(minute=int(CACHE_SECONDS) // 60 + 1)
    assert len(await checkout.list_invoices("alice") or []) == 2


async def test_slow_invoices_are_given_up(
    database: Database, fake: StripeFake, connection: Any
) -> None:
    """The page of the user does not wait for them."""
    checkout = build_checkout(database, connection, invoices_seconds=0.05)
    await checkout.create_session("alice", FIVE)
    fake.payments.release = asyncio.Event()
    with pytest.raises(StripeUnavailable):
        await checkout.list_invoices("alice")
    fake.payments.release.set()
