"""Ids and timestamps."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from service.core.encoding import new_id, now


@given(st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2100, 1, 1)), st.integers(1, 10**6))  # noqa: DTZ001
def test_ids_sort_by_time(at: datetime, milliseconds: int) -> None:
    """An answer that begins later has the greater id."""
    at = at.replace(tzinfo=UTC)

    assert new_id(at) < new_id(at + timedelta(milliseconds=milliseconds))


def test_now_has_the_precision_of_an_id() -> None:
    """created_at is cut to the millisecond that its id carries."""
    assert now().microsecond % 1000 == 0
