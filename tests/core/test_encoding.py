"""Ids: UUIDv7s that sort by time, and their time."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.encoding import (
    compute_first_id,
    create_id,
    read_id_time,
    read_slot,
    sanitize_text,
    utc_now,
)

TIMES = st.datetimes(
    min_value=datetime(1970, 1, 1),  # noqa: DTZ001 - the strategy takes naive times
    max_value=datetime(2100, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)


@given(TIMES, st.integers(1, 10**6))
def test_ids_sort_by_time(at: datetime, milliseconds: int) -> None:
    """An answer that starts later has the greater id."""
    assert create_id(at) < create_id(at + timedelta(milliseconds=milliseconds))


@given(TIMES, st.integers(0, 65_535))
def test_an_id_contains_the_slot_of_its_replica(at: datetime, slot: int) -> None:
    """It is still a UUIDv7 of that time, and unique."""
    at = at.replace(microsecond=at.microsecond // 1000 * 1000)
    ids = {create_id(at, slot) for _ in range(10)}

    assert {read_slot(text) for text in ids} == {slot}
    assert {read_id_time(text) for text in ids} == {at}
    assert len(ids) == 10


def test_now_has_the_precision_of_an_id() -> None:
    """created_at is truncated to the millisecond of its id."""
    assert utc_now().microsecond % 1000 == 0


@given(TIMES)
def test_the_time_of_an_id_is_read_back(at: datetime) -> None:
    """The time of an id is exact to the millisecond in every year."""
    at = at.replace(microsecond=at.microsecond // 1000 * 1000)

    assert read_id_time(create_id(at)) == at


@given(TIMES, st.integers(1, 10**6))
def test_a_first_id_separates_moments(at: datetime, milliseconds: int) -> None:
    """The first id of a millisecond is a bound between earlier and later ids."""
    bound = compute_first_id(at)

    assert bound <= create_id(at)
    assert (
        at.timestamp() < milliseconds
        or create_id(at - timedelta(milliseconds=milliseconds)) < bound
    )


@pytest.mark.parametrize(
    "at", [datetime.min.replace(tzinfo=UTC), datetime(1969, 12, 31, tzinfo=UTC)]
)
def test_before_1970_there_are_no_ids(at: datetime) -> None:
    """The first id of a time before 1970 is below all ids."""
    assert compute_first_id(at) < create_id(datetime(1970, 1, 1, tzinfo=UTC))


def test_no_id_is_above_the_last_moment() -> None:
    """The first id of datetime.max is above all ids."""
    assert compute_first_id(datetime.max.replace(tzinfo=UTC)) > create_id(utc_now())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zzz",
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",  # version 1
        "01A2095B-6360-75D3-BF35-48878F818B4D",
        "01a2095b636075d3bf3548878f818b4d",
        "{01a2095b-6360-75d3-bf35-48878f818b4d}",
        "urn:uuid:01a2095b-6360-75d3-bf35-48878f818b4d",
        "ffffffff-ffff-7fff-bfff-ffffffffffff",  # beyond the year 9999
    ],
)
def test_any_other_text_has_no_time(text: str) -> None:
    """Only a canonical UUIDv7 is an id."""
    assert read_id_time(text) is None


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("plain", "plain"),
        ("返品🙂", "返品🙂"),
        ("a\0b\0", "a\ufffdb\ufffd"),
        ("\ud800返\0品\udc00", "\ufffd返\ufffd品\ufffd"),
    ],
)
def test_texts_can_be_stored(text: str, stored: str) -> None:
    """NUL and lone surrogates become U+FFFD, one for one; other text is unchanged."""
    assert sanitize_text(text) == stored
