"""Costs as rows of FOCUS."""

from datetime import UTC, datetime

from service.core.accounting.analytics import Bucket, GroupResult
from service.core.accounting.focus import FOCUS_COLUMNS, list_focus_rows

DAY = Bucket(datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))


def build_result(answers: int, unpriced: int, unknown: int) -> GroupResult:
    """A result of one day."""
    values = {
        "user_id": "ann",
        "key_id": None,
        "model": "m",
        "endpoint": "/ai/test",
        "answers": answers,
        "total_tokens": 70,
        "cost": "0.5",
        "unpriced_answers": unpriced,
        "unknown_answers": unknown,
    }
    return GroupResult(DAY, values)


def test_known_costs_are_one_row_within_the_billing_period() -> None:
    """A day of the last month of a year is in a period that ends in the next year."""
    (row,) = list_focus_rows([build_result(3, 0, 0)])

    assert set(row) == set(FOCUS_COLUMNS)
    assert (row["BilledCost"], row["ConsumedQuantity"], row["x_Answers"]) == ("0.5", 70, 3)
    assert row["BillingPeriodStart"] == datetime(2026, 12, 1, tzinfo=UTC)
    assert row["BillingPeriodEnd"] == datetime(2027, 1, 1, tzinfo=UTC)
    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"]) == (DAY.start, DAY.end)
    assert row["Tags"] == '{"user_id":"ann","model":"m","endpoint":"/ai/test"}'


def test_missing_costs_are_rows_of_their_own() -> None:
    """Answers without a price and answers with unknown usage have no cost, rather than 0."""
    rows = list(list_focus_rows([build_result(6, 2, 3)]))

    assert [(row["x_CostStatus"], row["x_Answers"], row["BilledCost"]) for row in rows] == [
        ("known", 1, "0.5"),
        ("unknown", 3, None),
        ("unpriced", 2, None),
    ]


def test_costs_without_answers_are_exported() -> None:
    """Calls of a route cost at the model that was called; the answers are those of the route."""
    (row,) = list_focus_rows([build_result(0, 0, 0)])

    assert (row["x_CostStatus"], row["x_Answers"], row["BilledCost"]) == ("known", 0, "0.5")
