"""Alerts: exactly one for each budget, window and threshold."""

import random
from datetime import datetime, timedelta

import msgspec
import pytest

from service.core.auth.principals import BOOTSTRAP
from service.core.budgets import outbox, store
from service.core.budgets.budget import Period
from service.core.budgets.outbox import Alert, AlertState, create_alerts
from service.core.database.engine import Database
from service.core.database.outboxes import ATTEMPTS_MAX
from service.core.database.tables import budget_alerts
from service.core.database.upserts import insert_new
from service.core.encoding import utc_now
from service.core.errors import NotFound
from service.core.pricing import Usage
from service.core.records import Status, UsageSource
from tests.budgets import create_budget
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.every_database


async def spend(database: Database, nano_usd: int, at: datetime | None = None) -> None:
    """Write a row with this cost."""
    await write(database, [build_outcome(build_intent(at=at), cost_nano_usd=nano_usd)])


async def list_thresholds(database: Database) -> list[int]:
    """The thresholds of all alerts, in ascending order."""
    async with database.read_session() as session:
        return sorted(alert.threshold for alert in await outbox.list_alerts(session))


async def create_alert(database: Database) -> Alert:
    """An alert that is to be delivered."""
    await create_budget(database, thresholds=[100])
    await spend(database, 1000)
    (alert,) = await create_alerts(database, utc_now(), deliver=True)
    return alert


async def test_a_threshold_is_reported_once(database: Database) -> None:
    """Evaluations after further spend report further thresholds only."""
    await create_budget(database)
    reported = []
    for nano_usd in (499, 1, 299, 0, 5000):
        await spend(database, nano_usd)
        alerts = await create_alerts(database, utc_now(), deliver=False)
        reported.append([alert.threshold for alert in alerts])
    assert reported == [[], [50], [], [], [80, 100]]


async def test_the_body_has_budget_spend_and_window(database: Database) -> None:
    """The receiver gets all that it needs, with amounts as decimal strings."""
    alert = await create_alert(database)
    body = msgspec.json.decode(alert.body)
    assert body["type"] == "budget.threshold_reached"
    data = body["data"]
    assert (data["alert_id"], data["budget"], data["subject"]) == (alert.id, "all", "all")
    assert (data["threshold"], data["percent"]) == (100, 100)
    assert (data["amount_usd"], data["spent_usd"]) == ("0.000001", "0.000001")


@pytest.mark.parametrize("seed", range(4))
async def test_any_order_of_records_gives_one_alert_each(database: Database, seed: int) -> None:
    """Estimates that are replaced, repeated records and evaluations in between double nothing."""
    choose = random.Random(seed)
    await create_budget(database, thresholds=[10, 50, 80, 100, 101])
    records = []
    for _ in range(10):
        intent = build_intent()
        estimate = build_outcome(
            intent,
            status=Status.CLIENT_GONE,
            usage_source=UsageSource.ESTIMATED,
            usage=Usage(prompt_tokens=1, completion_tokens=1),
            cost_nano_usd=50,
        )
        records += [estimate, *[build_outcome(intent, cost_nano_usd=100)] * 2]
    choose.shuffle(records)
    created: list[int] = []
    for record in records:
        await write(database, [record])
        alerts = await create_alerts(database, utc_now(), deliver=True)
        created += [alert.threshold for alert in alerts]
    assert sorted(created) == await list_thresholds(database) == [10, 50, 80, 100]


async def test_an_evaluation_that_is_repeated_creates_nothing(database: Database) -> None:
    """Two evaluations of one state, such as of two leaders, insert an alert once."""
    await create_budget(database)
    await spend(database, 1000)
    async with database.read_session() as session:
        first = await outbox._derive_alerts(session, utc_now(), deliver=True)
    assert len(await create_alerts(database, utc_now(), deliver=True)) == 3
    async with database.transaction() as session:
        rows = list(map(msgspec.structs.asdict, first))
        inserted = await insert_new(session, budget_alerts, rows)
    assert inserted == set()


async def test_late_usage_of_the_last_window_is_reported(database: Database) -> None:
    """A window is evaluated for a day after its end, and then no longer."""
    now = utc_now()
    await create_budget(database, period=Period.DAY, thresholds=[100])
    later = now + timedelta(days=1)
    await spend(database, 1000, now)
    (alert,) = await create_alerts(database, later, deliver=False)
    assert alert.window_start.date() == now.date()
    await create_budget(database, name="other", period=Period.DAY)
    assert not await create_alerts(database, now + timedelta(days=3), deliver=False)


async def test_windows_before_the_budget_are_not_reported(database: Database) -> None:
    """A budget has no alert for a window that ended before it was created."""
    now = utc_now()
    await spend(database, 1000, now - timedelta(days=1))
    await create_budget(database, period=Period.DAY)
    assert not await create_alerts(database, now, deliver=False)


async def test_a_new_amount_reports_what_is_reached(database: Database) -> None:
    """After a lower amount, further thresholds are reached; reported ones stay reported."""
    budget = await create_budget(database)
    await spend(database, 500)
    await create_alerts(database, utc_now(), deliver=False)
    await store.change_budget(database, BOOTSTRAP, budget.id, amount_nano_usd=600)
    alerts = await create_alerts(database, utc_now(), deliver=False)
    assert [alert.threshold for alert in alerts] == [80]


async def test_alerts_without_a_receiver_are_unsent(database: Database) -> None:
    """They are listed, and never due."""
    await create_budget(database)
    await spend(database, 1000)
    alerts = await create_alerts(database, utc_now(), deliver=False)
    assert {alert.state for alert in alerts} == {AlertState.UNSENT}
    async with database.read_session() as session:
        assert not await outbox.list_due(session, utc_now(), 10)
    with pytest.raises(NotFound):
        await outbox.retry_alert(database, alerts[0].id, utc_now())


async def test_a_confirmed_alert_is_never_due_again(database: Database) -> None:
    """A confirmation is final, also for a delivery that fails afterwards."""
    alert, now = await create_alert(database), utc_now()
    assert await outbox.record_delivery(database, alert, now, error=None) == AlertState.DELIVERED
    await outbox.record_delivery(database, alert, now, error="late")
    async with database.read_session() as session:
        (stored,) = await outbox.list_alerts(session)
        assert not await outbox.list_due(session, now + timedelta(days=9), 10)
    assert (stored.state, stored.attempts, stored.error) == (AlertState.DELIVERED, 1, None)


async def test_a_failed_delivery_is_due_later(database: Database) -> None:
    """It is repeated after a growing delay, with the same body."""
    alert, now = await create_alert(database), utc_now()
    await outbox.record_delivery(database, alert, now, error="500")
    async with database.read_session() as session:
        assert not await outbox.list_due(session, now + timedelta(seconds=2), 10)
        (due,) = await outbox.list_due(session, now + timedelta(seconds=8), 10)
    assert (due.id, due.body, due.attempts, due.error) == (alert.id, alert.body, 1, "500")


async def test_attempts_end_and_can_be_requested_again(database: Database) -> None:
    """After the last attempt an alert is failed, until it is retried."""
    alert, now = await create_alert(database), utc_now()
    last = msgspec.structs.replace(alert, attempts=ATTEMPTS_MAX - 1)
    assert await outbox.record_delivery(database, last, now, error="no") == AlertState.FAILED
    async with database.read_session() as session:
        assert not await outbox.list_due(session, now + timedelta(days=9), 10)
        assert await outbox.list_alerts(session, state=AlertState.FAILED)
    await outbox.retry_alert(database, alert.id, now)
    async with database.read_session() as session:
        (due,) = await outbox.list_due(session, now, 10)
    assert (due.id, due.attempts) == (alert.id, 0)


async def test_a_receiver_may_end_the_attempts(database: Database) -> None:
    """An attempt that is final is not repeated."""
    alert = await create_alert(database)
    state = await outbox.record_delivery(database, alert, utc_now(), error="410", is_final=True)
    assert state == AlertState.FAILED


async def test_a_deleted_budget_keeps_its_alerts(database: Database) -> None:
    """An alert that is to be delivered is delivered although its budget is gone."""
    alert = await create_alert(database)
    await store.delete_budget(database, BOOTSTRAP, alert.budget_id)
    async with database.read_session() as session:
        assert [due.id for due in await outbox.list_due(session, utc_now(), 10)] == [alert.id]
