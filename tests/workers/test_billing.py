"""Billing: every hour is billed once, whatever fails."""

import random
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from service.core.auth.principals import BOOTSTRAP
from service.core.billing import inbox
from service.core.billing.customers import disconnect_customer
from service.core.billing.inbox import ReceivedEvent, store_event
from service.core.billing.meter_events import (
    AGE_SECONDS,
    DUE_SECONDS,
    REPEAT_SECONDS,
    begin_attempts,
    list_due,
)
from service.core.billing.review import Decision, resolve_event
from service.core.database.engine import Database
from service.core.pricing import Usage
from service.core.records import Status, UsageSource
from service.core.telemetry import Metrics
from tests.billing import (
    HOUR,
    START,
    Clock,
    connect,
    list_events,
    running_worker,
    sum_rows,
    use,
)
from tests.fakes.stripe import (
    BUSY,
    CUT,
    ERROR,
    ERROR_AFTERWARDS,
    LOST,
    Reply,
    StripeFake,
)
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.every_database

DUE = HOUR + timedelta(seconds=DUE_SECONDS)
REPORT = "v1.billing.meter.error_report_triggered"


@pytest.fixture
def clock() -> Clock:
    """The time of the service and of Stripe."""
    return Clock()


@pytest.fixture
async def fake(clock: Clock) -> AsyncIterator[StripeFake]:
    """Stripe."""
    async with StripeFake(clock) as fake:
        yield fake


async def list_states(database: Database) -> list[str]:
    """The states of all events."""
    return sorted(event.state for event in await list_events(database))


async def test_an_hour_is_billed_after_its_end(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """Nothing is sent before the hour is due; then its known cost is, once."""
    await connect(database)
    await use(database, 1500, START + timedelta(minutes=5))
    await use(database, 250, START + timedelta(minutes=50))
    await use(database, None, START + timedelta(minutes=51))
    async with running_worker(database, fake, clock) as worker:
        clock.now += DUE - timedelta(seconds=1)
        await worker.run_once()
        assert fake.requests == []
        for _ in range(3):
            clock.now += timedelta(minutes=2)
            await worker.run_once()
    assert [(event.customer, str(event.value)) for event in fake.accepted] == [
        ("cus_local", "1.75")
    ]
    assert fake.sum_nano_usd() == await sum_rows(database)
    assert await list_states(database) == ["delivered"]


async def test_late_usage_is_the_next_number(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """Usage that becomes known later is a further event; the first one does not change."""
    await connect(database)
    await use(database, 1500, START + timedelta(minutes=5))
    async with running_worker(database, fake, clock) as worker:
        clock.now += DUE
        await worker.run_once()
        await use(database, 100, START + timedelta(minutes=6))
        clock.now += timedelta(days=3)
        await worker.run_once()
    assert [int(event.value * 1000) for event in fake.accepted] == [1500, 100]
    assert len(fake.count_identifiers()) == 2
    assert fake.sum_nano_usd() == await sum_rows(database)


async def test_a_lower_usage_is_a_negative_difference(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """An estimate that is replaced by a lower cost is corrected."""
    await connect(database)
    intent = build_intent(at=START + timedelta(minutes=1))
    estimate = build_outcome(
        intent,
        status=Status.CLIENT_GONE,
        usage_source=UsageSource.ESTIMATED,
        usage=Usage(prompt_tokens=1, completion_tokens=1),
        cost_nano_usd=900,
    )
    await write(database, [estimate])
    async with running_worker(database, fake, clock) as worker:
        clock.now += DUE
        await worker.run_once()
        await write(database, [build_outcome(intent, cost_nano_usd=400)])
        clock.now += timedelta(minutes=2)
        await worker.run_once()
    assert [int(event.value * 1000) for event in fake.accepted] == [900, -500]


async def test_only_usage_of_the_connection_is_billed(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """Usage before its beginning and after its end is not billed, to the millisecond."""
    start = START + timedelta(minutes=20, milliseconds=5)
    await connect(database, at=start)
    await use(database, 1, START + timedelta(minutes=19))
    await use(database, 2, start - timedelta(milliseconds=1))
    await use(database, 4, start)
    end = START + 2 * HOUR + timedelta(minutes=30)
    await use(database, 8, START + HOUR + timedelta(minutes=30))
    await use(database, 16, end - timedelta(milliseconds=1))
    await use(database, 32, end)
    await use(database, 64, end + HOUR)
    await disconnect_customer(database, BOOTSTRAP, "local", at=end)
    async with running_worker(database, fake, clock) as worker:
        clock.now = START + timedelta(hours=9)
        await worker.run_once()
    assert sorted(int(event.value * 1000) for event in fake.accepted) == [4, 8, 16]


@pytest.mark.parametrize("reply", [LOST, CUT, ERROR, ERROR_AFTERWARDS, Reply(409)])
async def test_uncertain_results_are_repeated_with_the_same_identifier(
    database: Database, fake: StripeFake, clock: Clock, reply: Reply
) -> None:
    """A known identifier counts as delivered; the value is the same at every attempt."""
    await connect(database)
    await use(database, 1500, START)
    fake.replies.extend([reply] * 2)
    async with running_worker(database, fake, clock) as worker:
        clock.now += DUE
        for _ in range(4):
            await worker.run_once()
            await use(database, 1, START)  # becomes another event
            clock.now += timedelta(minutes=40)
    first = [request for request in fake.requests if request["identifier"].endswith("-1")]
    assert len(first) >= 3
    assert {request["payload[value]"] for request in first} == {"1.5"}
    assert set(fake.count_identifiers().values()) == {1}
    assert len(fake.sum_nano_usd()) == 1


@pytest.mark.parametrize("reply", [LOST, CUT])
async def test_no_event_is_repeated_after_its_identifier_is_forgotten(
    database: Database, fake: StripeFake, clock: Clock, reply: Reply
) -> None:
    """After an outage beyond the window the event goes to review, and is not sent again."""
    metrics = Metrics()
    await connect(database)
    await use(database, 1500, START)
    fake.replies.append(reply)
    async with running_worker(database, fake, clock, metrics=metrics) as worker:
        clock.now += DUE
        await worker.run_once()
        clock.now += timedelta(seconds=REPEAT_SECONDS)
        for _ in range(3):
            await worker.run_once()
            clock.now += timedelta(hours=3)
    assert len(fake.requests) == 1
    assert await list_states(database) == ["review"]
    value = metrics.registry.get_sample_value("kotae_meter_events", {"state": "review"})
    assert value == 1


async def test_an_outage_of_hours_loses_and_doubles_nothing(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """While Stripe is away for 20 hours events wait; then each is accepted once."""
    await connect(database)
    fake.is_away = True
    async with running_worker(database, fake, clock) as worker:
        for n in range(20):
            await use(database, 1000 + n, clock.now)
            clock.now += HOUR
            await worker.run_once()
        assert fake.accepted == []
        fake.is_away = False
        for _ in range(3):
            clock.now += HOUR
            await worker.run_once()
    assert fake.sum_nano_usd() == await sum_rows(database)
    assert set(fake.count_identifiers().values()) == {1}


async def test_a_rate_limit_pauses_all_events(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """After a 429 nothing is sent for the time of `Retry-After`; it does not begin the window."""
    for user_id in "abcdefgh":
        await connect(database, user_id)
        await use(database, 10, START, user_id)
    fake.replies.extend([Reply(429, headers={"retry-after": "600"})] * 5)
    async with running_worker(database, fake, clock) as worker:
        clock.now += DUE
        await worker.run_once()
        requests = len(fake.requests)
        clock.now += timedelta(seconds=590)
        await worker.run_once()
        assert len(fake.requests) == requests == 5
        clock.now += timedelta(days=3)
        await worker.run_once()
    assert fake.sum_nano_usd() == await sum_rows(database)


async def test_rejected_events_are_reviewed(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """An event that Stripe rejects goes to review with the reason; others are sent."""
    for user_id in "ab":
        await connect(database, user_id)
        await use(database, 10, START, user_id)
    fake.replies.append(Reply(400))
    async with running_worker(database, fake, clock) as worker:
        clock.now += DUE
        await worker.run_once()
    assert await list_states(database) == ["delivered", "review"]
    (event,) = [event for event in await list_events(database) if event.state == "review"]
    assert event.error is not None
    assert event.error.startswith("400")


async def test_usage_older_than_35_days_is_reviewed(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """After a pause of the service beyond 35 days nothing is lost, and nothing too old is sent."""
    await connect(database)
    await use(database, 10, START)
    await use(database, 20, START + 40 * HOUR)
    clock.now = START + timedelta(seconds=AGE_SECONDS) + HOUR
    async with running_worker(database, fake, clock) as worker:
        await worker.run_once()
    assert await list_states(database) == ["delivered", "review"]
    assert [int(event.value * 1000) for event in fake.accepted] == [20]


async def test_an_error_report_moves_its_events_to_review(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """The events that a report names are reviewed; sent again, they have new identifiers."""
    for user_id in "ab":
        await connect(database, user_id)
        await use(database, 10, START, user_id)
    async with running_worker(database, fake, clock) as worker:
        clock.now += DUE
        await worker.run_once()
        failed = fake.accepted[0].identifier
        fake.report_errors("evt_1", [failed, "unknown"], count=3)
        for _ in range(2):
            await store_event(database, ReceivedEvent("evt_1", REPORT), clock.now)
            await worker.run_once()
        assert await list_states(database) == ["delivered", "review"]
        await resolve_event(database, BOOTSTRAP, failed, Decision.SEND, clock.now)
        await store_event(database, ReceivedEvent("evt_1", REPORT), clock.now)
        clock.now += timedelta(minutes=2)
        await worker.run_once()
    assert await list_states(database) == ["delivered", "delivered", "replaced"]
    assert fake.accepted[-1].identifier == failed[:-1] + "2"


async def test_a_report_that_cannot_be_fetched_is_processed_later(
    database: Database, fake: StripeFake, clock: Clock
) -> None:
    """While Stripe does not return the event it stays in the inbox."""
    await store_event(database, ReceivedEvent("evt_1", REPORT), clock.now)
    async with running_worker(database, fake, clock) as worker:
        await worker.run_once()
        async with database.read_session() as session:
            assert await inbox.list_due(session, clock.now, 10) == []
        fake.report_errors("evt_1", [])
        clock.now += timedelta(minutes=1)
        await worker.run_once()
        clock.now += timedelta(days=1)
        async with database.read_session() as session:
            assert await inbox.list_due(session, clock.now, 10) == []
            assert await inbox.count_failed(session) == 0


@pytest.mark.parametrize("seed", range(6))
async def test_any_order_of_usage_failures_and_restarts_bills_once(
    database: Database, clock: Clock, seed: int
) -> None:
    """Rows, late usage, corrections, evaluations, failures and restarts in any order.

    In the end the delivered sum is that of the rows, by customer and hour, and no identifier was
    accepted twice.
    """
    choose = random.Random(seed)
    users = ("a", "b", "c")
    for user_id in users:
        await connect(database, user_id)
    estimates = []
    async with StripeFake(clock) as fake:
        for _ in range(12):
            async with running_worker(database, fake, clock) as worker:
                for _ in range(choose.randrange(1, 6)):
                    passed = (clock.now - START).total_seconds()
                    at = START + timedelta(seconds=choose.randrange(int(passed) + 1))
                    user_id = choose.choice(users)
                    match choose.randrange(5):
                        case 0:
                            await use(database, choose.randrange(10_000_000), at, user_id)
                        case 1:
                            intent = build_intent(at=at, user_id=user_id)
                            outcome = build_outcome(
                                intent,
                                status=Status.CLIENT_GONE,
                                usage_source=UsageSource.ESTIMATED,
                                cost_nano_usd=choose.randrange(1000),
                            )
                            await write(database, [outcome])
                            estimates.append(intent)
                        case 2 if estimates:
                            cost = choose.randrange(1000)
                            intent = estimates.pop()
                            await write(database, [build_outcome(intent, cost_nano_usd=cost)])
                        case 3:
                            fake.replies.append(
                                choose.choice([LOST, CUT, ERROR, ERROR_AFTERWARDS, BUSY])
                            )
                        case _:
                            clock.now += timedelta(seconds=choose.randrange(4000))
                            await worker.run_once()
        fake.replies.clear()
        async with running_worker(database, fake, clock) as worker:
            for _ in range(4):
                clock.now += HOUR
                await worker.run_once()
    assert fake.sum_nano_usd() == await sum_rows(database)
    assert set(fake.count_identifiers().values()) == {1}
    assert set(await list_states(database)) == {"delivered"}


@pytest.mark.parametrize("step", ["begin_attempts", "send_meter_event", "record_attempt"])
async def test_a_worker_that_dies_at_any_step_bills_once(
    database: Database, fake: StripeFake, clock: Clock, step: str
) -> None:
    """Another worker that starts at any step of the first one delivers the rest once."""
    for user_id in "abc":
        await connect(database, user_id)
        await use(database, 10, START, user_id)
    clock.now += DUE
    async with running_worker(database, fake, clock) as worker:
        await worker.evaluate_hours()
        async with database.read_session() as session:
            due = await list_due(session, clock.now, 10)
        if step != "begin_attempts":
            events = await begin_attempts(database, [item.event.id for item in due], clock.now)
            if step == "record_attempt":
                for event in events:
                    assert await worker._send(event, due[0].stripe_customer_id) is None
    async with running_worker(database, fake, clock) as worker:
        await worker.run_once()
    assert len(fake.accepted) == 3
    assert await list_states(database) == ["delivered"] * 3
