"""Retries: waits grow, and have a maximum."""

from hypothesis import given
from hypothesis import strategies as st

from service.core.retries import retry_delay


@given(st.integers(1, 10_000))
def test_a_delay_doubles_up_to_its_maximum(failures: int) -> None:
    """Each delay is within 50 % of its step, and none is longer than the maximum."""
    delay = retry_delay(failures, first_seconds=0.1, seconds_max=5)
    step = 0.1 * 2 ** min(failures - 1, 20)

    assert min(0.5 * step, 5) <= delay <= min(1.5 * step, 5)
