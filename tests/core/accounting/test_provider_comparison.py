"""Comparison with a provider's account: tokens, costs, and the causes of differences."""

import pytest

from service.core.accounting.provider_comparison import (
    COST_TOLERANCE_NANO_USD,
    LoggedUsage,
    UsagePair,
    describe_differences,
)
from service.core.accounting.provider_export import ProviderUsage

DAY, NEXT_DAY = "2026-03-01", "2026-03-02"


def describe(**pairs: UsagePair) -> list[str]:
    """The lines of pairs of the first day, by model."""
    return list(describe_differences({(DAY, model): pair for model, pair in pairs.items()}))


def test_equal_usage_is_no_difference() -> None:
    """Costs may differ by the rounding of the provider, or be unreported."""
    for nano_usd in (None, 500, 500 + COST_TOLERANCE_NANO_USD):
        pair = UsagePair(LoggedUsage(20, 10, 500), ProviderUsage(20, 10, nano_usd))
        assert not pair.differs
        assert describe(m=pair) == []


@pytest.mark.parametrize(
    ("logged", "reported", "cause"),
    [
        (LoggedUsage(20, 10, unknown=1), ProviderUsage(25, 12), "usage that is unknown here"),
        (LoggedUsage(20, 10, estimated=1), ProviderUsage(19, 12), "usage that is estimated here"),
        (LoggedUsage(20, 10), ProviderUsage(25, 12), "calls from elsewhere with this account"),
        (LoggedUsage(20, 10), ProviderUsage(), "calls with another account, or not reported yet"),
    ],
)
def test_tokens_have_a_cause(logged: LoggedUsage, reported: ProviderUsage, cause: str) -> None:
    """The most likely cause follows from the counts of both sides."""
    (line,) = describe(m=UsagePair(logged, reported))
    assert line.startswith(f"{DAY} m: 20 prompt and 10 completion tokens here")
    assert line.endswith(f"; {cause}")


def test_opposite_days_are_a_boundary() -> None:
    """What a day has too much and the next one lacks are calls at midnight."""
    pairs = {
        (DAY, "m"): UsagePair(LoggedUsage(20, 10), ProviderUsage(15, 8)),
        (NEXT_DAY, "m"): UsagePair(LoggedUsage(20, 10), ProviderUsage(25, 12)),
    }
    first, second = describe_differences(pairs)
    assert f"{NEXT_DAY} has the opposite difference" in first
    assert f"{DAY} has the opposite difference" in second


def test_opposite_models_are_names() -> None:
    """What a model lacks and another one has is another name of it."""
    lines = describe(
        m=UsagePair(LoggedUsage(20, 10), ProviderUsage()),
        latest=UsagePair(LoggedUsage(), ProviderUsage(20, 10)),
    )
    assert lines[0].endswith("m has the opposite difference: another name of the model")
    assert lines[1].endswith("latest has the opposite difference: another name of the model")


@pytest.mark.parametrize(
    ("logged", "reported", "expected"),
    [
        (
            LoggedUsage(20, 10, 0, unpriced=2),
            ProviderUsage(20, 10, 5000),
            "$0 here, $0.000005 reported; 2 answers of unknown cost",
        ),
        (
            LoggedUsage(20, 10, 9000),
            ProviderUsage(20, 10, 5000),
            "$0.000009 here, $0.000005 reported; the prices differ",
        ),
        (
            LoggedUsage(),
            ProviderUsage(0, 0, 5000),
            "$0 here, $0.000005 reported; no answers are charged under this name here",
        ),
        (
            LoggedUsage(20, 10, 9000),
            ProviderUsage(25, 10, 5000),
            "calls from elsewhere with this account; $0.000009 here, $0.000005 reported",
        ),
    ],
)
def test_costs_have_a_cause(logged: LoggedUsage, reported: ProviderUsage, expected: str) -> None:
    """A cost that differs is named, with its cause if the tokens are equal."""
    (line,) = describe(m=UsagePair(logged, reported))
    assert line.endswith(expected)
