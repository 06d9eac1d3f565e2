"""Decisions about events in review, and the state of billing."""

from datetime import timedelta

import pytest

from service.core.audit_log import AuditFilter, list_entries
from service.core.auth.principals import BOOTSTRAP
from service.core.billing.inbox import ReceivedEvent, store_event
from service.core.billing.meter_events import (
    AGE_SECONDS,
    EventState,
    MeterEvent,
    create_events,
    record_attempt,
)
from service.core.billing.review import Decision, read_status, resolve_event
from service.core.database.engine import Database
from service.core.errors import InvalidRequest, NotFound
from tests.billing import START, connect, list_events, use

pytestmark = pytest.mark.every_database
DUE = START + timedelta(hours=1, minutes=15)


async def create_reviewed(database: Database) -> MeterEvent:
    """An event in review."""
    await connect(database)
    await use(database, 1500, START)
    (event,) = await create_events(database, START, DUE, DUE)
    await record_attempt(database, event, EventState.REVIEW, DUE, error="400")
    return event


async def test_an_event_is_marked_as_billed(database: Database) -> None:
    """Nothing is sent, and no difference is created for the hour."""
    event = await create_reviewed(database)
    resolved = await resolve_event(database, BOOTSTRAP, event.id, Decision.BILLED, DUE)
    assert (resolved.id, resolved.state) == (event.id, "billed")
    assert await create_events(database, START, DUE, DUE) == []


async def test_an_event_is_replaced(database: Database) -> None:
    """The same value gets a new identifier; the sum of the hour stays the same."""
    event = await create_reviewed(database)
    resolved = await resolve_event(database, BOOTSTRAP, event.id, Decision.SEND, DUE)
    assert (resolved.id, resolved.state, resolved.usd) == (
        event.id[:-1] + "2",
        "pending",
        "0.0000015",
    )
    assert await create_events(database, START, DUE, DUE) == []
    assert [item.state for item in await list_events(database)] == ["pending", "replaced"]


async def test_an_event_is_resolved_once(database: Database) -> None:
    """A second decision, and one about another event, is refused; the first is recorded."""
    event = await create_reviewed(database)
    await resolve_event(database, BOOTSTRAP, event.id, Decision.SEND, DUE)
    for event_id in (event.id, "unknown"):
        with pytest.raises(NotFound):
            await resolve_event(database, BOOTSTRAP, event_id, Decision.SEND, DUE)
    async with database.read_session() as session:
        page = await list_entries(session, AuditFilter(action=("meter_event.resolved",)), limit=10)
    (entry,) = page.items
    assert entry.detail == {"decision": "send", "usd": "0.0000015"}


async def test_what_is_too_old_cannot_be_sent(database: Database) -> None:
    """It can only be marked as billed."""
    event = await create_reviewed(database)
    at = START + timedelta(seconds=AGE_SECONDS)
    with pytest.raises(InvalidRequest, match="35 days"):
        await resolve_event(database, BOOTSTRAP, event.id, Decision.SEND, at)
    resolved = await resolve_event(database, BOOTSTRAP, event.id, Decision.BILLED, at)
    assert resolved.state == "billed"


async def test_the_status_compares_usage_and_events(database: Database) -> None:
    """The states of all amounts add up to the usage, with unknown costs beside it."""
    event = await create_reviewed(database)
    await resolve_event(database, BOOTSTRAP, event.id, Decision.SEND, DUE)
    await use(database, 500, START + timedelta(minutes=1))
    await use(database, None, START + timedelta(minutes=2))
    await store_event(database, ReceivedEvent("evt_1", "x"), DUE)
    async with database.read_session() as session:
        status = await read_status(session, DUE)
    (customer,) = status.customers
    assert (customer.user_id, customer.usage_usd, customer.unpriced) == ("local", "0.000002", 1)
    assert (customer.pending_usd, customer.open_usd) == ("0.0000015", "0.0000005")
    assert (customer.delivered_usd, customer.review_usd, customer.billed_usd) == ("0", "0", "0")
    assert (status.until, status.failed_webhooks) == (START + timedelta(hours=1), 0)
