"""Meter events: differences, identifiers and values."""

import asyncio
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.billing.meter_events import (
    AGE_SECONDS,
    REPEAT_SECONDS,
    EventState,
    MeterEvent,
    begin_attempts,
    build_event,
    compute_timestamp,
    count_states,
    create_events,
    find_due_end,
    find_obstacle,
    format_identifier,
    format_value,
    list_due,
    record_attempt,
    review_events,
)
from service.core.database.engine import Database
from tests.billing import HOUR, START, connect, list_events, use

pytestmark = pytest.mark.every_database
DUE = START + timedelta(hours=1, minutes=15)


async def create(database: Database) -> MeterEvent:
    """An event of one hour."""
    await connect(database)
    await use(database, 1500, START)
    (event,) = await create_events(database, START, DUE, DUE)
    return event


@given(st.integers(-(10**18), 10**18))
def test_values_are_exact(nano_usd: int) -> None:
    """The decimal in millionths of a dollar is the amount, with at most three digits."""
    text = format_value(nano_usd)
    whole, _, part = text.removeprefix("-").partition(".")
    assert int(whole) * 1000 + int(part.ljust(3, "0")) == abs(nano_usd)
    assert text.startswith("-") is (nano_usd < 0)
    assert len(part) <= 3
    assert not part.endswith("0")


def test_identifiers_are_unique_and_short() -> None:
    """An identifier has customer, hour and number, in at most 100 characters."""
    event = build_event("c" * 36, START, 10**9, 1, START)
    assert event.id == format_identifier("c" * 36, START, 10**9)
    assert len(event.id) <= 100
    assert event.id.endswith("-2026031012-1000000000")


def test_the_time_of_an_event_is_in_its_hour() -> None:
    """It is the last second, which the subscription of a new customer precedes."""
    event = build_event("c", START, 1, 1, START)
    assert compute_timestamp(event) == int((START + HOUR).timestamp()) - 1


@pytest.mark.parametrize(
    ("at", "hours"), [(DUE - timedelta(milliseconds=1), 0), (DUE, 1), (DUE + HOUR, 2)]
)
def test_hours_are_due_a_quarter_after_their_end(at: object, hours: int) -> None:
    """An hour is due when its answers have ended."""
    assert find_due_end(at) == START + hours * HOUR  # type: ignore[arg-type]


def test_obstacles_are_time_windows() -> None:
    """An event may be sent within 23 hours of its first attempt, and before it is too old."""
    second = timedelta(seconds=1)
    first = build_event("c", START, 1, 1, START)
    attempted = MeterEvent(
        id="i", customer_id="c", hour=START, number=1, value_nano_usd=1, created_at=START,
        state=EventState.PENDING, first_attempt_at=DUE,
    )  # fmt: skip
    end = DUE + timedelta(seconds=REPEAT_SECONDS)
    assert find_obstacle(attempted, end - second) is None
    assert find_obstacle(attempted, end) is not None
    too_old = START + timedelta(seconds=AGE_SECONDS)
    assert find_obstacle(first, too_old - second) is None
    assert find_obstacle(first, too_old) is not None
    assert build_event("c", START, 1, 1, too_old).state is EventState.REVIEW


async def test_evaluations_are_idempotent(database: Database) -> None:
    """Several evaluations, also at once, create one event."""
    await connect(database)
    await use(database, 1500, START)
    created = await asyncio.gather(*(create_events(database, START, DUE, DUE) for _ in range(4)))
    assert sum(len(events) for events in created) == 1
    assert await create_events(database, START, DUE, DUE) == []
    assert [event.usd for event in await list_events(database)] == ["0.0000015"]


async def test_the_first_attempt_is_recorded_before_it(database: Database) -> None:
    """Its time stays until the event ends; the value does not change."""
    event = await create(database)
    (begun,) = await begin_attempts(database, [event.id], DUE)
    (again,) = await begin_attempts(database, [event.id], DUE + HOUR)
    assert (begun.first_attempt_at, again.first_attempt_at) == (DUE, DUE)
    assert (again.attempts, again.value_nano_usd) == (2, 1500)


async def test_a_refused_first_attempt_is_forgotten(database: Database) -> None:
    """The window begins with the first attempt that Stripe may have processed."""
    event = await create(database)
    (begun,) = await begin_attempts(database, [event.id], DUE)
    await record_attempt(
        database, begun, EventState.PENDING, DUE, next_at=DUE, error="429", forget=True
    )
    (again,) = await begin_attempts(database, [event.id], DUE + HOUR)
    assert (again.first_attempt_at, again.attempts) == (DUE + HOUR, 2)


async def test_only_pending_events_are_sent_and_changed(database: Database) -> None:
    """A result that comes after a decision changes nothing."""
    event = await create(database)
    await record_attempt(database, event, EventState.DELIVERED, DUE)
    assert await begin_attempts(database, [event.id], DUE) == []
    await record_attempt(database, event, EventState.REVIEW, DUE, error="late")
    async with database.read_session() as session:
        assert await list_due(session, DUE + HOUR, 10) == []
        assert set((await count_states(session)).values()) == {0}
    assert [event.state for event in await list_events(database)] == ["delivered"]


async def test_reported_events_go_to_review(database: Database) -> None:
    """Delivered events can be reported; the second report changes nothing."""
    event = await create(database)
    await record_attempt(database, event, EventState.DELIVERED, DUE)
    for expected in ([event.id], []):
        async with database.transaction() as session:
            assert await review_events(session, [event.id, "x"], "no meter", DUE) == expected
    (listed,) = await list_events(database, state=EventState.REVIEW, user_id="local")
    assert (listed.error, listed.stripe_customer_id) == ("no meter", "cus_local")
    assert await list_events(database, user_id="other") == []
