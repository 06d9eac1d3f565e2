"""Adding the entries of a payment to the ledger, together with the end of the event about it."""

from datetime import datetime

import sqlalchemy as sa

from service.core.billing.inbox import InboxEvent, end_event
from service.core.billing.ledger import NewEntry, add_entries
from service.core.billing.payers import find_user
from service.core.billing.payments import (
    USER,
    Payment,
    PaymentInvalid,
    derive_entries,
    list_causes,
)
from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import ledger_entries


async def process_payment(
    database: Database, event: InboxEvent, payment: Payment | None, at: datetime
) -> list[NewEntry]:
    """Add the entries that are missing and end the event, in one transaction; return them.

    None and payments that Kotae has not created have no entries. Raises `PaymentInvalid`, and
    then changes nothing, and `DatabaseUnavailable`.
    """
    async with database.transaction() as session:
        added = []
        if payment is not None and payment.is_top_up:
            added = await add_payment(session, payment, at)
        await end_event(session, event, at)
    return added


async def add_payment(session: Session, payment: Payment, at: datetime) -> list[NewEntry]:
    """Add the entries of a payment that are missing; return them. Raises `PaymentInvalid`."""
    user_id = await _require_user(session, payment)
    columns = ledger_entries.c
    query = sa.select(columns.cause).where(columns.cause.in_(list_causes(payment)))
    recorded = set((await session.execute(query)).scalars())
    return await add_entries(session, derive_entries(payment, user_id, recorded), at)


async def _require_user(session: ReadSession, payment: Payment) -> str:
    """The user who pays as the customer of a payment.

    Metadata alone do not suffice: another installation may use the same account of Stripe.
    """
    customer, named = payment.customer, payment.metadata.get(USER)
    user_id = None if customer is None else await find_user(session, customer)
    if user_id is None:
        raise PaymentInvalid(
            f"{payment.id} was paid by {customer}, as whom no user pays here: kotae billing assign"
        )
    if user_id != named:
        raise PaymentInvalid(f"{payment.id} names another user than the one who pays as {customer}")
    return user_id
