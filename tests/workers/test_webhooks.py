"""Delivery of alerts: repeated until it is confirmed, with one id for each threshold."""

from datetime import datetime, timedelta

import pytest

from service.core.budgets import outbox
from service.core.budgets.outbox import AlertState, create_alerts
from service.core.budgets.webhooks import WebhookReceiver
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.telemetry import Metrics
from service.workers.webhooks import WebhookSender
from tests.budgets import create_budget
from tests.fakes.receiver import SECRET, Failure, ReceiverFake
from tests.records import build_outcome
from tests.rows import write

pytestmark = pytest.mark.every_database


class Clock:
    """A clock that is moved by the test."""

    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> datetime:
        """The time."""
        return self.now


@pytest.fixture
async def alerts(database: Database) -> Database:
    """A database with three alerts to be delivered."""
    await create_budget(database)
    await write(database, [build_outcome()])
    assert len(await create_alerts(database, utc_now(), deliver=True)) == 3
    return database


def create_sender(
    database: Database, fake: ReceiverFake, clock: Clock, metrics: Metrics | None = None
) -> WebhookSender:
    """A sender to the fake."""
    receiver = WebhookReceiver(fake.url, SECRET, allow_private=True, attempt_seconds=0.5)
    return WebhookSender(database, receiver, metrics or Metrics(), clock=clock)


async def read_states(database: Database) -> list[AlertState]:
    """The states of all alerts."""
    async with database.read_session() as session:
        return sorted(alert.state for alert in await outbox.list_alerts(session))


async def test_alerts_are_delivered_once(alerts: Database) -> None:
    """A confirmed alert is not sent again."""
    metrics, clock = Metrics(), Clock()
    async with ReceiverFake() as fake:
        sender = create_sender(alerts, fake, clock, metrics)
        for _ in range(3):
            await sender.deliver_due()
            clock.now += timedelta(days=1)
    assert sorted(delivery.data["threshold"] for delivery in fake.deliveries) == [50, 80, 100]
    assert all(delivery.is_signed() for delivery in fake.deliveries)
    assert await read_states(alerts) == [AlertState.DELIVERED] * 3
    assert sender.statistics().delivered == 3
    name = "kotae_webhook_attempts_total"
    assert metrics.registry.get_sample_value(name, {"state": "delivered"}) == 3


async def test_lost_responses_are_repeated_with_the_same_id(alerts: Database) -> None:
    """After errors, cuts and silence each threshold has still one id, and the same body."""
    clock = Clock()
    async with ReceiverFake() as fake:
        fake.responses.extend([500, Failure.CUT, Failure.HANG, 503, 302, 429])
        sender = create_sender(alerts, fake, clock)
        for _ in range(4):
            await sender.deliver_due()
            clock.now += timedelta(minutes=5)
    assert len(fake.deliveries) == 9
    assert set(fake.count_ids().values()) == {1}
    assert len({(delivery.id, delivery.body) for delivery in fake.deliveries}) == 3
    assert await read_states(alerts) == [AlertState.DELIVERED] * 3


async def test_a_sender_that_dies_before_marking_repeats(alerts: Database) -> None:
    """A second sender that has not seen the confirmation sends the same ids."""
    clock = Clock()
    async with ReceiverFake() as fake:
        sender = create_sender(alerts, fake, clock)
        async with alerts.read_session() as session:
            due = await outbox.list_due(session, clock.now, 10)
        for alert in due:
            assert await sender._attempt(alert) is None
        await create_sender(alerts, fake, clock).deliver_due()
    assert len(fake.deliveries) == 6
    assert set(fake.count_ids().values()) == {1}


async def test_a_receiver_that_is_gone_gets_nothing_more(alerts: Database) -> None:
    """Status 410 ends the attempts; a retry begins them again."""
    clock = Clock()
    async with ReceiverFake() as fake:
        fake.responses.extend([410] * 3)
        sender = create_sender(alerts, fake, clock)
        await sender.deliver_due()
        clock.now += timedelta(days=1)
        await sender.deliver_due()
        assert await read_states(alerts) == [AlertState.FAILED] * 3
        await outbox.retry_alert(alerts, fake.deliveries[0].id, clock.now)
        await sender.deliver_due()
    assert len(fake.deliveries) == 4
    assert fake.deliveries[3].id == fake.deliveries[0].id
