"""Reconciliation of the ledger with Stripe: payments, refunds and disputes of each user, by cause.

What the ledger must have follows from the current objects at Stripe, by the rules that credit them.
An entry that is missing is explained while an event about it waits in the inbox. Stripe is asked
again for the payment of an entry that is not among the payments of the period.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Protocol

import msgspec
import sqlalchemy as sa

from service.core.billing.failures import ABSENT, StripeFailed
from service.core.billing.inbox import InboxState
from service.core.billing.ledger import EntryKind
from service.core.billing.payers import list_payers
from service.core.billing.payments import (
    ObjectKind,
    Payment,
    PaymentInvalid,
    derive_entries,
    list_causes,
)
from service.core.database.constructs import is_listed
from service.core.database.engine import Database, ReadSession
from service.core.database.tables import billing_inbox, ledger_entries
from service.core.errors import InvalidRequest
from service.core.pricing import format_usd

PAYMENTS_MAX = 100_000  # of one comparison
DIFFERENCES_MAX = 1000  # that are described; the others are counted
_KINDS = (EntryKind.TOP_UP, EntryKind.REFUND, EntryKind.DISPUTE)
_OBJECTS = {"refund": ObjectKind.REFUND, "dispute": ObjectKind.DISPUTE}


class PaymentCause(StrEnum):
    """Why an entry differs."""

    WAITING = "waiting"  # its event is in the inbox, to be processed
    FAILED = "failed"  # its event could not be processed
    MISSING = "missing"  # there is no event about it
    AMOUNT = "amount"  # the ledger has another amount
    UNKNOWN = "unknown"  # Stripe has nothing with this cause
    INVALID = "invalid"  # a payment that cannot be credited


class PaymentReader(Protocol):
    """Reads of Stripe, see `core.billing.stripe`. They raise `StripeFailed`."""

    def list_payment_ids(self, customer_id: str, since: datetime) -> AsyncIterator[str]:
        """The payments of a customer since a time."""

    async def read_payment(self, payment_id: str) -> Payment:
        """A payment as it is now."""

    async def fetch_payment(self, kind: ObjectKind, object_id: str) -> Payment | None:
        """The payment to which an object belongs, or None."""


class PaymentReconciliation(msgspec.Struct):
    """The result: numbers, and a line for each difference."""

    payments: int = 0
    entries: int = 0
    explained: int = 0
    unexplained: int = 0
    lines: list[str] = msgspec.field(default_factory=list)

    def add(self, user_id: str, subject: str, cause: PaymentCause, detail: str) -> None:
        """Count a difference, and describe it up to the limit."""
        is_explained = cause is PaymentCause.WAITING
        self.explained += is_explained
        self.unexplained += not is_explained
        if len(self.lines) < DIFFERENCES_MAX:
            mark = "" if is_explained else " (unexplained)"
            self.lines.append(f"{user_id} {subject} {cause}{mark}: {detail}")

    def to_text(self) -> str:
        """A summary, followed by the lines."""
        count = self.explained + self.unexplained
        lines = [
            f"Payments   {self.payments:,} at Stripe, {self.entries:,} entries of the ledger",
            f"different  {count:,}, {self.unexplained:,} unexplained",
            *self.lines,
        ]
        omitted = count - len(self.lines)
        return "\n".join([*lines, f"… and {omitted:,} more"] if omitted else lines)


async def reconcile_payments(
    database: Database, stripe: PaymentReader, since: datetime
) -> PaymentReconciliation:
    """Compare the payments and entries since a time with each other.

    Raises `InvalidRequest` for too many payments, `StripeFailed` and `DatabaseUnavailable`.
    """
    report = PaymentReconciliation()
    async with database.read_session() as session:
        payers = await list_payers(session)
    for payer in payers:
        if payer.stripe_customer_id is not None:
            customer_id = payer.stripe_customer_id
            await _reconcile_payer(database, stripe, payer.user_id, customer_id, since, report)
    return report


async def _reconcile_payer(
    database: Database,
    stripe: PaymentReader,
    user_id: str,
    customer_id: str,
    since: datetime,
    report: PaymentReconciliation,
) -> None:
    payments: dict[str, Payment] = {}
    async for payment_id in stripe.list_payment_ids(customer_id, since):
        payment = await stripe.read_payment(payment_id)
        if payment.is_top_up:
            payments[payment_id] = payment
        report.payments += 1
        if report.payments > PAYMENTS_MAX:
            raise InvalidRequest(f"more than {PAYMENTS_MAX:,} payments: use a later start")
    async with database.read_session() as session:
        recorded = await _read_entries(session, user_id, since)
    report.entries += len(recorded)
    expected = {cause for payment in payments.values() for cause in list_causes(payment)}
    for cause in sorted(recorded.keys() - expected):
        owner = await _find_payment(stripe, cause)
        if owner is None or not owner.is_top_up or owner.customer != customer_id:
            detail = f"${format_usd(recorded[cause])} in the ledger, nothing at Stripe"
            report.add(user_id, cause, PaymentCause.UNKNOWN, detail)
        else:
            payments[owner.id] = owner
    for payment in payments.values():
        async with database.read_session() as session:
            await _compare_payment(session, user_id, payment, report)


async def _read_entries(session: ReadSession, user_id: str, since: datetime) -> dict[str, int]:
    """The amounts of entries that follow from payments, by cause."""
    columns = ledger_entries.c
    query = sa.select(columns.cause, columns.amount_nano_usd).where(
        columns.user_id == user_id, columns.created_at >= since, columns.kind.in_(_KINDS)
    )
    return {row.cause: row.amount_nano_usd for row in await session.execute(query)}


async def _find_payment(stripe: PaymentReader, cause: str) -> Payment | None:
    """The payment of the cause of an entry."""
    kind, _, rest = cause.partition(":")
    object_id = rest.partition(":")[0]
    try:
        if kind in _OBJECTS:
            return await stripe.fetch_payment(_OBJECTS[kind], object_id)
        return await stripe.read_payment(object_id)
    except StripeFailed as failure:
        if failure.code == ABSENT:
            return None
        raise


async def _compare_payment(
    session: ReadSession, user_id: str, payment: Payment, report: PaymentReconciliation
) -> None:
    causes = list_causes(payment)
    columns = ledger_entries.c
    query = sa.select(columns.cause, columns.amount_nano_usd).where(
        columns.user_id == user_id, is_listed(columns.cause, causes)
    )
    recorded = {row.cause: row.amount_nano_usd for row in await session.execute(query)}
    try:
        derived = derive_entries(payment, user_id, recorded.keys())
    except PaymentInvalid as error:
        report.add(user_id, f"payment:{payment.id}", PaymentCause.INVALID, str(error))
        return
    expected = {entry.cause: entry.amount_nano_usd for entry in derived}
    for cause in causes:
        amount, entry = expected.get(cause), recorded.get(cause)
        if amount == entry:
            continue
        if amount is None:
            # A refund that failed later keeps its entry, which another one reverses.
            if f"{cause}:failed" in expected or cause.endswith(":failed"):
                continue
            detail = f"${format_usd(entry or 0)} in the ledger, nothing at Stripe"
            report.add(user_id, cause, PaymentCause.UNKNOWN, detail)
        elif entry is None:
            why, detail = await _find_reason(session, payment, cause)
            report.add(user_id, cause, why, f"${format_usd(amount)} at Stripe; {detail}")
        else:
            detail = f"${format_usd(amount)} at Stripe, ${format_usd(entry)} in the ledger"
            report.add(user_id, cause, PaymentCause.AMOUNT, detail)


async def _find_reason(
    session: ReadSession, payment: Payment, cause: str
) -> tuple[PaymentCause, str]:
    """Why an entry is missing: what became of the events about its object."""
    object_ids = [item.id for item in payment.sessions]
    if not cause.startswith("payment:"):
        object_ids = [cause.split(":")[1]]
    states = await _read_states(session, object_ids)
    if InboxState.PENDING in states:
        return PaymentCause.WAITING, "an event about it waits in the inbox"
    if InboxState.FAILED in states:
        return PaymentCause.FAILED, "its event failed: kotae billing inbox --state failed"
    return PaymentCause.MISSING, "no event about it was received"


async def _read_states(session: ReadSession, object_ids: Sequence[str]) -> set[str]:
    columns = billing_inbox.c
    query = sa.select(columns.state).where(is_listed(columns.object_id, list(object_ids)))
    return set((await session.execute(query)).scalars())
