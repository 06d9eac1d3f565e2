"""Payments of top-ups at Stripe, and the ledger entries that follow from them.

Entries are derived from the current objects of a payment and not from events, which Stripe sends
repeatedly, late and in any order. Each entry has a cause of its own, so that it is added once.
"""

from collections.abc import Collection, Iterable, Iterator
from enum import StrEnum

import msgspec

from service.core.billing.ledger import EntryKind, NewEntry

CURRENCY = "usd"
CENT_NANO_USD = 10_000_000
PURPOSE, USER = "kotae_purpose", "kotae_user"  # names of metadata
TOP_UP = "top_up"  # the purpose that Kotae gives to its payments


class ObjectKind(StrEnum):
    """The objects of Stripe that lead to a payment."""

    SESSION = "session"  # of Checkout
    REFUND = "refund"
    CHARGE = "charge"
    DISPUTE = "dispute"


# The types of events that are processed, and what they are about.
PAYMENT_EVENTS = {
    "checkout.session.completed": ObjectKind.SESSION,
    "checkout.session.async_payment_succeeded": ObjectKind.SESSION,
    "refund.created": ObjectKind.REFUND,
    "refund.updated": ObjectKind.REFUND,
    "refund.failed": ObjectKind.REFUND,
    "charge.refunded": ObjectKind.CHARGE,
    "charge.dispute.funds_withdrawn": ObjectKind.DISPUTE,
    "charge.dispute.funds_reinstated": ObjectKind.DISPUTE,
}


class PaymentInvalid(Exception):
    """A payment that cannot be credited as it is: a person must look at it."""


class TotalDetails(msgspec.Struct, frozen=True):
    """Parts of the amount of a session, in cents."""

    amount_tax: int = 0


class CheckoutSession(msgspec.Struct, frozen=True, kw_only=True):
    """A session of Checkout. Amounts in the smallest unit of the currency."""

    id: str
    payment_status: str
    currency: str | None = None
    amount_total: int | None = None
    total_details: TotalDetails | None = None


class Refund(msgspec.Struct, frozen=True, kw_only=True):
    """A refund of a payment or of a part of it, with its tax."""

    id: str
    amount: int
    currency: str
    status: str | None = None


class BalanceTransaction(msgspec.Struct, frozen=True):
    """A movement of the account's own balance, in the currency of the account."""

    amount: int
    currency: str


class Dispute(msgspec.Struct, frozen=True, kw_only=True):
    """A dispute. Its transactions: negative when money is withdrawn, positive when it is back."""

    id: str
    amount: int
    currency: str
    balance_transactions: list[BalanceTransaction] = []


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A PaymentIntent with everything that belongs to it, as it is now."""

    id: str
    customer: str | None
    metadata: dict[str, str]
    sessions: list[CheckoutSession]
    refunds: list[Refund]
    disputes: list[Dispute]

    @property
    def is_top_up(self) -> bool:
        """Whether Kotae has created the payment; others of the same account are not ours."""
        return self.metadata.get(PURPOSE) == TOP_UP


def list_causes(payment: Payment) -> list[str]:
    """The causes of all entries that a payment can have."""
    return [
        f"payment:{payment.id}",
        *(f"refund:{refund.id}{end}" for refund in payment.refunds for end in ("", ":failed")),
        *(
            f"dispute:{dispute.id}:{end}"
            for dispute in payment.disputes
            for end in ("withdrawn", "reinstated")
        ),
    ]


def derive_entries(payment: Payment, user_id: str, recorded: Collection[str]) -> list[NewEntry]:
    """The entries of a payment; none before it is paid.

    `recorded`: the causes in the ledger. They only decide whether a refund that has failed must be
    reversed: if it never succeeded, there is nothing to reverse. Raises `PaymentInvalid`.
    """
    paid = [session for session in payment.sessions if session.payment_status == "paid"]
    if not payment.sessions:
        raise PaymentInvalid(f"{payment.id} has no session of Checkout")
    if not paid:
        return []
    total, credit = _compute_credit(payment, paid[0])
    values = [
        (EntryKind.TOP_UP, f"payment:{payment.id}", credit * CENT_NANO_USD),
        *_list_refunds(payment.refunds, total, credit, recorded),
        *_list_disputes(payment.disputes, total, credit),
    ]
    return [
        NewEntry(user_id=user_id, kind=kind, amount_nano_usd=amount, cause=cause)
        for kind, cause, amount in values
        if amount
    ]


def _compute_credit(payment: Payment, session: CheckoutSession) -> tuple[int, int]:
    """The amount that was paid, and the part of it without tax, in cents."""
    currencies = {
        session.currency,
        *(refund.currency for refund in payment.refunds),
        *(dispute.currency for dispute in payment.disputes),
    }
    if currencies != {CURRENCY}:
        names = ", ".join(sorted(str(currency) for currency in currencies))
        raise PaymentInvalid(f"{payment.id} is in {names}: only payments in usd are credited")
    total = session.amount_total or 0
    tax = session.total_details.amount_tax if session.total_details else 0
    if not 0 <= tax <= total:
        raise PaymentInvalid(f"{payment.id} has an amount of {total} with a tax of {tax} cents")
    return total, total - tax


def _list_refunds(
    refunds: Iterable[Refund], total: int, credit: int, recorded: Collection[str]
) -> Iterator[tuple[EntryKind, str, int]]:
    for refund in refunds:
        cause = f"refund:{refund.id}"
        amount = compute_share(refund.amount, total, credit)
        if refund.status == "succeeded":
            yield EntryKind.REFUND, cause, -amount
        elif refund.status in ("failed", "canceled") and cause in recorded:
            yield EntryKind.REFUND, f"{cause}:failed", amount


def _list_disputes(
    disputes: Iterable[Dispute], total: int, credit: int
) -> Iterator[tuple[EntryKind, str, int]]:
    for dispute in disputes:
        movements = dispute.balance_transactions
        if any(movement.amount < 0 for movement in movements):
            amount = compute_share(dispute.amount, total, credit)
            yield EntryKind.DISPUTE, f"dispute:{dispute.id}:withdrawn", -amount
        returned = [movement for movement in movements if movement.amount > 0]
        if returned:
            cents = dispute.amount
            # In another currency the part is unknown, because the exchange rate has changed.
            if all(movement.currency == CURRENCY for movement in returned):
                cents = min(cents, sum(movement.amount for movement in returned))
            amount = compute_share(cents, total, credit)
            yield EntryKind.DISPUTE, f"dispute:{dispute.id}:reinstated", amount


def compute_share(cents: int, total: int, credit: int) -> int:
    """The part of an amount without its share of tax, in nano-dollars, rounded down.

    All parts together are never more than the credit, whatever their order.
    """
    return min(cents, total) * CENT_NANO_USD * credit // total if total else 0
