"""The entries of payments: amounts without tax, one cause for each movement of money."""

from typing import Any

import pytest

from service.core.billing.ledger import EntryKind, NewEntry
from service.core.billing.payments import (
    BalanceTransaction,
    CheckoutSession,
    Dispute,
    Payment,
    PaymentInvalid,
    Refund,
    TotalDetails,
    compute_share,
    derive_entries,
    list_causes,
)

CENT = 10_000_000


def build_session(**values: Any) -> CheckoutSession:
    """A session of 11 USD, of which 1 is tax."""
    fields: dict[str, Any] = {
        "id": "cs_1",
        "payment_status": "paid",
        "currency": "usd",
        "amount_total": 1100,
        "total_details": TotalDetails(100),
    }
    return CheckoutSession(**fields | values)


def build_payment(**values: Any) -> Payment:
    """A payment of alice."""
    fields: dict[str, Any] = {
        "id": "pi_1",
        "customer": "cus_1",
        "metadata": {"kotae_purpose": "top_up", "kotae_user": "alice"},
        "sessions": [build_session()],
        "refunds": [],
        "disputes": [],
    }
    return Payment(**fields | values)


def build_refund(amount: int, status: str = "succeeded", id_: str = "re_1") -> Refund:
    """A refund."""
    return Refund(id=id_, amount=amount, currency="usd", status=status)


def build_dispute(*movements: int, currency: str = "usd", amount: int = 1100) -> Dispute:
    """A dispute with these movements."""
    transactions = [BalanceTransaction(movement, currency) for movement in movements]
    return Dispute(id="dp_1", amount=amount, currency="usd", balance_transactions=transactions)


def derive(payment: Payment, recorded: set[str] | None = None) -> dict[str, int]:
    """The amounts in cents by cause."""
    entries = derive_entries(payment, "alice", recorded or set())
    return {entry.cause: entry.amount_nano_usd // CENT for entry in entries}


def test_a_payment_is_credited_without_tax() -> None:
    """The tax belongs to the state, not to the wallet."""
    assert derive_entries(build_payment(), "alice", set()) == [
        NewEntry(
            user_id="alice",
            kind=EntryKind.TOP_UP,
            amount_nano_usd=1000 * CENT,
            cause="payment:pi_1",
        )
    ]


@pytest.mark.parametrize("status", ["unpaid", "no_payment_required"])
def test_only_paid_sessions_are_credited(status: str) -> None:
    """A completed session may be paid later."""
    assert derive(build_payment(sessions=[build_session(payment_status=status)])) == {}


def test_a_payment_of_nothing_has_no_entry() -> None:
    """An entry of 0 would say nothing."""
    session = build_session(amount_total=0, total_details=None)
    assert derive(build_payment(sessions=[session])) == {}


@pytest.mark.parametrize(
    ("values", "detail"),
    [
        ({"sessions": []}, "no session"),
        ({"sessions": [build_session(currency="jpy")]}, "jpy: only payments in usd"),
        ({"refunds": [Refund(id="re_1", amount=1, currency="eur")]}, "eur, usd"),
        ({"sessions": [build_session(amount_total=50)]}, "50 with a tax of 100"),
    ],
)
def test_payments_that_need_a_person_are_refused(values: Any, detail: str) -> None:
    """Other currencies and impossible amounts are not credited."""
    with pytest.raises(PaymentInvalid, match=detail):
        derive_entries(build_payment(**values), "alice", set())


def test_a_refund_takes_its_part_without_tax() -> None:
    """Half of the payment is half of the credit."""
    payment = build_payment(refunds=[build_refund(550)])
    assert derive(payment) == {"payment:pi_1": 1000, "refund:re_1": -500}


@pytest.mark.parametrize("status", ["pending", "requires_action", "failed", "canceled", None])
def test_only_succeeded_refunds_are_taken(status: Any) -> None:
    """A refund that never succeeded has no entries."""
    assert derive(build_payment(refunds=[build_refund(550, status)])) == {"payment:pi_1": 1000}


@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_a_refund_that_fails_later_is_reversed(status: str) -> None:
    """If its entry exists, the amount comes back under another cause."""
    payment = build_payment(refunds=[build_refund(550, status)])
    assert derive(payment, {"refund:re_1"})["refund:re_1:failed"] == 500


def test_a_dispute_takes_and_returns_money() -> None:
    """Each movement has its cause, whatever the currency of the account."""
    taken, returned = "dispute:dp_1:withdrawn", "dispute:dp_1:reinstated"
    assert taken not in derive(build_payment(disputes=[build_dispute()]))
    assert derive(build_payment(disputes=[build_dispute(-1100)]))[taken] == -1000
    for currency in ("usd", "eur"):
        dispute = build_dispute(-1100, 1100, currency=currency)
        amounts = derive(build_payment(disputes=[dispute]))
        assert (amounts[taken], amounts[returned]) == (-1000, 1000)


def test_a_part_of_a_dispute_is_returned() -> None:
    """Only what is reinstated comes back."""
    amounts = derive(build_payment(disputes=[build_dispute(-1100, 550)]))
    assert amounts["dispute:dp_1:reinstated"] == 500


def test_parts_are_never_more_than_the_credit() -> None:
    """Rounded down, refunds of all cents of a payment are at most its credit."""
    parts = [compute_share(cents, 1099, 1000) for cents in (1, 333, 333, 432)]
    assert 1000 * CENT - len(parts) < sum(parts) <= 1000 * CENT
    assert compute_share(1099, 1099, 1000) == compute_share(5000, 1099, 1000) == 1000 * CENT


def test_all_causes_are_listed() -> None:
    """The causes that the ledger is searched for are those of the entries."""
    payment = build_payment(refunds=[build_refund(1)], disputes=[build_dispute(-1, 1)])
    assert set(derive(payment)) <= set(list_causes(payment))
