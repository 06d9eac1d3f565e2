"""Windows and thresholds of budgets."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.budgets.budget import Period, compute_percent, compute_window
from tests.budgets import build_budget

TIMES = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - `timezones` adds it


@given(at=TIMES, period=st.sampled_from(Period))
def test_windows_follow_each_other(at: datetime, period: Period) -> None:
    """A time is in its window, and the end of a window is the start of the next one."""
    window = compute_window(period, at)
    assert window.start <= at < window.end
    assert compute_window(period, window.end).start == window.end
    assert compute_window(period, window.end - timedelta(microseconds=1)) == window


def test_a_month_is_one_of_the_calendar() -> None:
    """A window of a month begins on its first day in UTC."""
    window = compute_window(Period.MONTH, datetime(2028, 2, 29, 23, 59, tzinfo=UTC))
    assert (window.start, window.end) == (
        datetime(2028, 2, 1, tzinfo=UTC),
        datetime(2028, 3, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("nano_usd", "reached"),
    [(499, []), (500, [50]), (799, [50]), (800, [50, 80]), (9000, [50, 80, 100])],
)
def test_a_threshold_is_reached_exactly(nano_usd: int, reached: list[int]) -> None:
    """A threshold is reached by its share of the amount, to the nano-dollar."""
    assert build_budget().list_reached(nano_usd) == reached


@given(nano_usd=st.integers(0, 10**18), amount=st.integers(1, 10**15))
def test_percentages_agree_with_thresholds(nano_usd: int, amount: int) -> None:
    """The rounded percentage reaches the same thresholds as the exact spend."""
    budget = build_budget(amount_nano_usd=amount)
    percent = compute_percent(nano_usd, amount)
    assert budget.list_reached(nano_usd) == [at for at in (50, 80, 100) if percent >= at]


def test_the_limit_is_that_of_the_period() -> None:
    """A budget per day limits the cost of a day, one per month that of a month."""
    assert build_budget().limits.cost_nano_usd_per_day == 1000
    assert build_budget(period=Period.MONTH).limits.cost_nano_usd_per_month == 1000
