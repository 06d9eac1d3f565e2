"""Reconciliation with Stripe: every difference of an hour has its cause."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from service.core.auth.principals import BOOTSTRAP
from service.core.billing import reconciliation
from service.core.billing.customers import disconnect_customer
from service.core.billing.failures import StripeFailed
from service.core.billing.meter_events import EventState, MeterEvent
from service.core.billing.reconciliation import (
    BillingReconciliation,
    Cause,
    HourAmounts,
    RecentReconciliation,
    compare_hour,
    find_deviations,
    reconcile_stripe,
)
from service.core.billing.review import Decision, resolve_event
from service.core.billing.stripe import READS_MAX, StripeConnection
from service.core.billing.usage import HourUsage
from service.core.database.engine import Database
from service.core.database.tables import rollups
from service.core.errors import InvalidRequest, StripeUnavailable
from tests.billing import HOUR, START, Clock, connect, list_events, running_worker, use
from tests.fakes.stripe import BUSY, ERROR, KEY, METER, Accepted, Reply, StripeFake

pytestmark = pytest.mark.every_database
DUE = START + timedelta(hours=1, minutes=15)


@pytest.fixture
def clock() -> Clock:
    """A clock for the worker and Stripe."""
    return Clock()


@pytest.fixture
async def fake(clock: Clock) -> AsyncIterator[StripeFake]:
    """Stripe."""
    async with StripeFake(clock) as fake:
        yield fake


async def reconcile(
    database: Database, fake: StripeFake, clock: Clock, **options: Any
) -> BillingReconciliation:
    """Compare the hours since the start."""
    stripe = StripeConnection(KEY, base_url=fake.url, seconds=5, retry_seconds=0.001)
    try:
        return await reconcile_stripe(database, stripe, METER, START, clock.now, **options)
    finally:
        await stripe.aclose()


async def bill(database: Database, fake: StripeFake, clock: Clock, at: Any = DUE) -> None:
    """Let the worker create and send events at a time."""
    clock.now = at
    async with running_worker(database, fake, clock) as worker:
        await worker.run_once()


def list_causes(report: BillingReconciliation) -> list[tuple[Cause, str, bool]]:
    """The differences: cause, amount, and whether it explains it."""
    return [(item.cause, item.usd, item.is_explained) for item in report.differences]


async def test_delivered_hours_agree(database: Database, fake: StripeFake, clock: Clock) -> None:
    """What is delivered is what Stripe has; answers of unknown cost are counted beside it."""
    await connect(database)
    await connect(database, "b")
    for n in range(3):
        await use(database, 1500 + n, START + n * HOUR)
        await use(database, 7, START + n * HOUR, "b")
    await use(database, None, START)
    await bill(database, fake, clock, DUE + 2 * HOUR)
    report = await reconcile(database, fake, clock)
    assert list_causes(report) == []
    assert (report.customers, report.hours, report.unpriced) == (2, 6, 1)
    assert report.usage_usd == report.stripe_usd == "0.000004524"


async def test_pages_are_followed(database: Database, fake: StripeFake, clock: Clock) -> None:
    """Sums on further pages of a list are read."""
    fake.page_max = 2
    fake.meters = [(f"mtr_{n}", "other", "active", "sum") for n in range(3)] + fake.meters
    await connect(database)
    for n in range(5):
        await use(database, 1500, START + n * HOUR)
    await bill(database, fake, clock, DUE + 4 * HOUR)
    report = await reconcile(database, fake, clock)
    assert list_causes(report) == []
    assert report.stripe_usd == "0.0000075"


async def test_undelivered_events_explain_a_difference(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """An event that waits, or is in review, is a line with its amount."""
    await connect(database)
    await use(database, 1500, START)
    await use(database, 2500, START + HOUR)
    fake.replies.extend([ERROR, Reply(400)])
    await bill(database, fake, clock, DUE + HOUR)
    report = await reconcile(database, fake, clock)
    causes = {cause for cause, _, is_explained in list_causes(report) if is_explained}
    assert causes == {Cause.PENDING, Cause.REVIEW}
    assert (report.explained, report.unexplained) == (2, 0)


async def test_a_lost_response_is_recognized(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """An event that Stripe has, but has not confirmed, is no missing amount."""
    await connect(database)
    await use(database, 1500, START)
    fake.replies.append(Reply(0, processed=True))
    await bill(database, fake, clock)
    report = await reconcile(database, fake, clock)
    assert list_causes(report) == [(Cause.PENDING, "0", True)]
    assert "Stripe has it" in report.differences[0].detail


async def test_a_delivery_that_stripe_lacks_is_unexplained_after_an_hour(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """Stripe adds events up later; after an hour the difference is to be investigated."""
    await connect(database)
    await use(database, 1500, START)
    await bill(database, fake, clock)
    fake.dropped = {event.identifier for event in fake.accepted}
    assert list_causes(await reconcile(database, fake, clock)) == [
        (Cause.RECENT, "0.0000015", True)
    ]
    clock.now += HOUR
    report = await reconcile(database, fake, clock)
    assert list_causes(report) == [(Cause.LACKING, "0.0000015", False)]
    assert next(iter(fake.dropped)) in report.differences[0].detail


async def test_what_was_not_sent_is_an_excess(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """Usage that somebody else sent for a customer is unexplained, also in an hour without any."""
    await connect(database)
    await use(database, 1500, START)
    await bill(database, fake, clock, DUE + HOUR)
    second = int((START + HOUR).timestamp())
    other = fake.accepted[0].value
    fake.accepted.append(Accepted("other", "cus_local", other * 3, second, clock.now))
    report = await reconcile(database, fake, clock)
    assert list_causes(report) == [(Cause.EXCESS, "-0.0000045", False)]
    assert report.differences[0].hour == START + HOUR


async def test_usage_without_an_event_is_explained_for_a_while(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """A service that does not run leaves an unexplained difference."""
    await connect(database)
    await use(database, 1500, START)
    clock.now = DUE
    assert list_causes(await reconcile(database, fake, clock)) == [(Cause.OPEN, "0.0000015", True)]
    clock.now = DUE + 2 * HOUR
    assert list_causes(await reconcile(database, fake, clock)) == [(Cause.OPEN, "0.0000015", False)]


async def test_rows_without_rollups_are_reported(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """A difference between rows and rollups is unexplained."""
    await connect(database)
    await use(database, 1500, START)
    await bill(database, fake, clock)
    async with database.transaction() as session:
        await session.execute(sa.update(rollups).values(cost_nano_usd=1000))
    report = await reconcile(database, fake, clock)
    assert (Cause.ROLLUPS, "0.0000005", False) in list_causes(report)


async def test_an_unknown_customer_is_reported(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """A customer that Stripe does not have is a cause; others are compared."""
    await connect(database)
    await connect(database, "b")
    await use(database, 1500, START)
    await use(database, 7, START, "b")
    await bill(database, fake, clock)
    fake.absent_customers.add("cus_local")
    assert list_causes(await reconcile(database, fake, clock)) == [
        (Cause.NO_CUSTOMER, "0.0000015", False)
    ]


async def test_a_decision_explains_what_stripe_lacks(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """An event that is not billed by a decision is explained; one that is replaced is not."""
    await connect(database)
    await use(database, 1500, START)
    await use(database, 2500, START + HOUR)
    fake.replies.extend([Reply(400), Reply(400)])
    await bill(database, fake, clock, DUE + HOUR)
    events = await list_events(database)
    for event, decision in zip(events, (Decision.BILLED, Decision.SEND), strict=True):
        await resolve_event(database, BOOTSTRAP, event.id, decision, clock.now)
    await bill(database, fake, clock, DUE + HOUR + timedelta(minutes=1))
    assert list_causes(await reconcile(database, fake, clock)) == [
        (Cause.DECIDED, "0.0000025", True)
    ]


async def test_connections_of_a_customer_are_added_up(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """A user who is connected again within an hour is one customer at Stripe."""
    await connect(database)
    await use(database, 1500, START + timedelta(minutes=1))
    end = START + timedelta(minutes=10)
    await disconnect_customer(database, BOOTSTRAP, "local", at=end)
    await use(database, 99, START + timedelta(minutes=15))
    await connect(database, at=START + timedelta(minutes=20))
    await use(database, 700, START + timedelta(minutes=30))
    await bill(database, fake, clock)
    report = await reconcile(database, fake, clock)
    assert list_causes(report) == []
    assert report.stripe_usd == "0.0000022"


async def test_rate_limits_and_errors_are_waited_for(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """Reads are repeated a few times, and then fail."""
    await connect(database)
    await use(database, 1500, START)
    await bill(database, fake, clock)
    busy = Reply(BUSY.status, headers={"retry-after": "0.01"})
    fake.read_replies.extend([busy] * (READS_MAX - 1))
    assert list_causes(await reconcile(database, fake, clock)) == []
    fake.read_replies.extend([busy] * READS_MAX)
    with pytest.raises(StripeFailed, match="429"):
        await reconcile(database, fake, clock)


@pytest.mark.parametrize("meters", [[], [("m", METER, "active", "count")]])
async def test_an_unsuitable_meter_fails(
    database: Database, fake: StripeFake, clock: Clock, meters: list[Any]
) -> None:
    """There must be an active meter that adds up values."""
    fake.meters = meters
    await connect(database)
    clock.now = DUE
    with pytest.raises(StripeFailed, match=r"no active meter|no sum"):
        await reconcile(database, fake, clock)


async def test_the_number_of_customers_and_calls_is_bounded(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """A part of the customers is compared; an interval that is too long is refused at once."""
    for user_id in "abc":
        await connect(database, user_id)
    clock.now = DUE
    report = await reconcile(database, fake, clock, customers_max=2)
    assert (report.customers, report.customers_total) == (2, 3)
    clock.now = START + HOUR * 100 * reconciliation.CALLS_MAX
    with pytest.raises(InvalidRequest, match="later start"):
        await reconcile(database, fake, clock)


async def test_nothing_is_read_without_customers(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """Without customers there are no calls."""
    fake.meters = []
    clock.now = DUE
    assert (await reconcile(database, fake, clock)).hours == 0


def build_events(values: list[int], state: EventState) -> list[MeterEvent]:
    """Events of an hour with these values."""
    return [
        MeterEvent(
            id=f"{state}-{n}", customer_id="c", hour=START, number=n, value_nano_usd=value,
            created_at=START, state=state, ended_at=START,
        )
        for n, value in enumerate(values)
    ]  # fmt: skip


VALUES = st.lists(st.integers(-1000, 1000).filter(bool), max_size=4)


@given(VALUES, VALUES, st.data())
def test_deviations_explain_the_sum(
    delivered: list[int], others: list[int], data: st.DataObject
) -> None:
    """Whatever part of the events Stripe has, some combination explains it."""
    events = build_events(delivered, EventState.DELIVERED)
    waiting = build_events(others, EventState.PENDING)
    flags = st.lists(st.booleans(), min_size=8, max_size=8)
    present = [
        event
        for event, is_there in zip([*events, *waiting], data.draw(flags), strict=False)
        if is_there
    ]
    total = sum(event.value_nano_usd for event in present)
    surplus = total - sum(delivered)
    deviations = find_deviations(events, waiting, surplus)
    assert deviations is not None
    effect = sum(
        -event.value_nano_usd if event in events else event.value_nano_usd for event in deviations
    )
    assert effect == surplus


@given(VALUES, VALUES, VALUES, st.integers(-3000, 3000), st.integers(0, 5000))
def test_the_differences_of_an_hour_add_up(
    delivered: list[int], pending: list[int], review: list[int], total: int, usage: int
) -> None:
    """The amounts of the lines are the usage of the hour minus what Stripe has."""
    events = [
        *build_events(delivered, EventState.DELIVERED),
        *build_events(pending, EventState.PENDING),
        *build_events(review, EventState.REVIEW),
    ]
    hour = HourUsage(usage, 0)
    lines = list(compare_hour(HourAmounts(hour, hour, events), total, START + 9 * HOUR))
    assert sum(nano_usd for _, nano_usd, _ in lines) == usage - total


async def test_a_report_is_text(database: Database, fake: StripeFake, clock: Clock) -> None:
    """Each difference is a line with customer, hour, amount and cause."""
    await connect(database)
    await use(database, 1500, START)
    clock.now = DUE + 2 * HOUR
    lines = (await reconcile(database, fake, clock)).to_text().split("\n")
    assert lines[-1].startswith("cus_local 2026-03-10T12:00Z $0.0000015 open (unexplained): no")


async def test_one_comparison_runs_at_a_time(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """Requests at once share a result, which is kept for a while; a slow Stripe ends them."""
    await connect(database)
    await use(database, 1500, START)
    clock.now = DUE
    stripe = StripeConnection(KEY, base_url=fake.url, seconds=5, retry_seconds=0.001)
    recent = RecentReconciliation(database, stripe, METER, clock=clock)
    first, *others = await asyncio.gather(*(recent.read() for _ in range(3)))
    assert all(other is first for other in others)
    clock.now += timedelta(seconds=reconciliation.CACHE_SECONDS)
    assert await recent.read() is not first
    hurried = RecentReconciliation(database, stripe, METER, clock=clock, seconds=0)
    with pytest.raises(StripeUnavailable):
        await hurried.read()
    await stripe.aclose()
