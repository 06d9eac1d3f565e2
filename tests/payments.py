"""Payments for tests: payers, paid sessions at the fake, and their webhooks in the inbox."""

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from service.core.billing.checkout import Checkout, CheckoutRequest, TopUpOptions
from service.core.billing.inbox import parse_event
from service.core.billing.ledger import LedgerEntry, list_entries, read_balance
from service.core.billing.payers import begin_request, end_request
from service.core.billing.stripe import StripeConnection
from service.core.billing.webhooks import receive_event
from service.core.database.engine import Database
from tests.billing import Clock
from tests.fakes.stripe import StripeFake

CENT = 10_000_000
PUBLIC_URL = "https://kotae.example/app"


def build_checkout(database: Database, connection: StripeConnection, **options: Any) -> Checkout:
    """A service for top-ups of 5 to 10,000 USD."""
    names = {name for name in options if name in TopUpOptions.__struct_fields__}
    values: dict[str, Any] = {
        "public_url": PUBLIC_URL,
        "usd_min": Decimal(5),
        "usd_max": Decimal(10_000),
    }
    top_ups = TopUpOptions(**values | {name: options.pop(name) for name in names})
    return Checkout(database, connection, top_ups, **options)


async def create_session(
    database: Database, connection: StripeConnection, user_id: str, cents: int, **options: Any
) -> str:
    """Create a session of this amount, and the payer if necessary; return its id."""
    payer = await begin_request(database, user_id)
    customer_id = payer.stripe_customer_id
    if customer_id is None:
        customer_id = await connection.create_customer(user_id, payer.request_key)
        await end_request(database, payer, customer_id)
    values: dict[str, Any] = {
        "product": "Prepaid credit",
        "success_url": "https://kotae.example/a",
        "cancel_url": "https://kotae.example/b",
        "has_tax": True,
        "has_invoice": False,
    }
    request = CheckoutRequest(
        user_id=user_id, customer_id=customer_id, cents=cents, **values | options
    )
    return (await connection.create_checkout(request)).session_id


async def receive(database: Database, events: Iterable[dict[str, Any]], clock: Clock) -> None:
    """Store events in the inbox, as the webhook does."""
    for event in events:
        await receive_event(database, parse_event(json.dumps(event).encode()), clock.now)


async def receive_all(database: Database, fake: StripeFake, clock: Clock) -> None:
    """Store all events of the fake."""
    await receive(database, fake.payments.events, clock)


async def read_ledger(database: Database, user_id: str) -> list[LedgerEntry]:
    """The entries of a user, oldest first."""
    async with database.read_session() as session:
        return (await list_entries(session, user_id, limit=1000))[::-1]


async def read_cents(database: Database, user_id: str) -> dict[str, float]:
    """The amounts of the entries of a user in cents, by cause."""
    entries = await read_ledger(database, user_id)
    return {entry.cause: entry.amount_nano_usd / CENT for entry in entries}


async def read_user_balance(database: Database, user_id: str) -> int:
    """The balance of a user in nano-dollars."""
    async with database.read_session() as session:
        return await read_balance(session, user_id)
