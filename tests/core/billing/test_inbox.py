"""The inbox: events of Stripe are stored once, and processed once."""

from datetime import timedelta

import msgspec
import pytest
import sqlalchemy as sa

from service.core.auth.principals import BOOTSTRAP
from service.core.billing.inbox import (
    KEPT_DAYS,
    InboxEvent,
    InboxState,
    ReceivedEvent,
    ReportedErrors,
    count_failed,
    delay_event,
    list_due,
    list_received,
    parse_event,
    process_errors,
    read_errors,
    retry_event,
    store_event,
)
from service.core.database.engine import Database
from service.core.database.outboxes import ATTEMPTS_MAX
from service.core.database.tables import audit_log
from service.core.errors import InvalidRequest, NotFound
from tests.billing import START
from tests.fakes.stripe import StripeFake

pytestmark = pytest.mark.every_database
EVENT = ReceivedEvent("evt_1", "v1.billing.meter.no_meter_found")


async def list_all(database: Database, days: int = 1) -> list[InboxEvent]:
    """The events that are due within some days."""
    async with database.read_session() as session:
        return await list_due(session, START + timedelta(days=days), 10)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"\xff", b'{"id": 1, "type": "x"}', b'{"id": "", "type": "x"}']
)
def test_other_bodies_are_refused(body: bytes) -> None:
    """A body without id and type is not an event."""
    with pytest.raises(InvalidRequest):
        parse_event(body)


def test_unknown_fields_are_ignored() -> None:
    """Events have many more fields."""
    assert parse_event(b'{"id": "evt_1", "type": "x", "data": {}}') == ReceivedEvent("evt_1", "x")


async def test_an_event_is_stored_once(database: Database) -> None:
    """A repeated one changes nothing, also after it was processed."""
    assert await store_event(database, EVENT, START)
    assert not await store_event(database, EVENT, START)
    (event,) = await list_all(database)
    await process_errors(database, event, ReportedErrors([], "x", 0), START)
    assert not await store_event(database, EVENT, START)
    assert await list_all(database) == []


async def test_processed_events_are_removed_later(database: Database) -> None:
    """They are kept longer than Stripe repeats them."""
    await store_event(database, EVENT, START)
    (event,) = await list_all(database)
    for days in (0, KEPT_DAYS + 1):
        at = START + timedelta(days=days)
        await process_errors(database, event, ReportedErrors([], "x", 0), at)
    assert await store_event(database, EVENT, START)


async def test_an_event_is_given_up_after_many_attempts(database: Database) -> None:
    """It is delayed more and more, and then counted as failed."""
    await store_event(database, EVENT, START)
    for n in range(ATTEMPTS_MAX):
        (event,) = await list_all(database)
        assert event.attempts == n
        await delay_event(database, event, "500", START)
    assert await list_all(database, days=9) == []
    async with database.read_session() as session:
        assert await count_failed(session) == 1


async def test_a_failed_event_is_processed_again(database: Database) -> None:
    """A retry makes it due with new attempts, and is recorded; a processed event stays."""
    await store_event(database, EVENT, START)
    (event,) = await list_all(database)
    await delay_event(database, msgspec.structs.replace(event, attempts=ATTEMPTS_MAX), "x", START)
    async with database.read_session() as session:
        (failed,) = await list_received(session, state=InboxState.FAILED)
        assert await list_received(session, state=InboxState.PENDING) == []
    await retry_event(database, BOOTSTRAP, failed.id, START)
    (event,) = await list_all(database, days=0)
    assert (event.attempts, event.error) == (0, "x")
    await process_errors(database, event, ReportedErrors([], "x", 0), START)
    with pytest.raises(NotFound):
        await retry_event(database, BOOTSTRAP, failed.id, START)
    async with database.read_session() as session:
        entries = (await session.execute(sa.select(audit_log.c.action))).scalars().all()
    assert entries == ["stripe_event.retried"]


def test_an_error_report_is_read() -> None:
    """It has identifiers, a message, and the number of errors that it does not name."""
    fake = StripeFake()
    fake.report_errors("evt_1", ["a", "b"], count=5)
    errors = read_errors(fake.events["evt_1"])
    assert errors == ReportedErrors(["a", "b"], "No customer", 3)


@pytest.mark.parametrize("event", [{}, {"data": None}, {"data": {"reason": {"error_types": [{}]}}}])
def test_absent_parts_of_a_report_are_empty(event: dict[str, object]) -> None:
    """A report without data names nothing."""
    assert read_errors(event).identifiers == []
