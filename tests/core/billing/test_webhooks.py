"""Receiving events of Stripe."""

import pytest

from service.core.billing.inbox import ReceivedEvent, list_due, parse_event
from service.core.billing.webhooks import WebhookResult, receive_event, verify_event
from service.core.database.engine import Database
from service.core.errors import InvalidRequest, SignatureInvalid
from tests.billing import START
from tests.fakes.stripe import SECRET, sign

pytestmark = pytest.mark.every_database


def test_an_event_is_read_after_its_signature() -> None:
    """A body that is not signed is not even parsed."""
    body = b'{"id": "evt_1", "type": "x"}'
    assert verify_event(body, sign(body), [SECRET]) == ReceivedEvent("evt_1", "x")
    with pytest.raises(SignatureInvalid):
        verify_event(b"not JSON", "", [SECRET])


async def test_events_are_stored_repeated_or_ignored(database: Database) -> None:
    """Only events that are processed are stored."""
    used = ReceivedEvent("evt_1", "v1.billing.meter.error_report_triggered")
    results = [await receive_event(database, used, START) for _ in range(2)]
    unused = ReceivedEvent("evt_2", "invoice.paid")
    results.append(await receive_event(database, unused, START))
    assert results == [WebhookResult.STORED, WebhookResult.REPEATED, WebhookResult.IGNORED]


def test_any_of_several_secrets_may_have_signed() -> None:
    """Thin and complete events come from different endpoints."""
    body = b'{"id": "evt_1", "type": "x"}'
    for secret in ("whsec_a", "whsec_b"):
        assert verify_event(body, sign(body, secret), ["whsec_a", "whsec_b"]).id == "evt_1"
    with pytest.raises(SignatureInvalid):
        verify_event(body, sign(body, "whsec_c"), ["whsec_a", "whsec_b"])


async def test_thin_and_complete_events_of_payments_are_stored_alike(database: Database) -> None:
    """Under one type, with the id of their object."""
    bodies = (
        b'{"id": "evt_1", "type": "refund.created", "data": {"object": {"id": "re_1"}}}',
        b'{"id": "evt_2", "type": "v1.refund.created", "related_object": {"id": "re_1"}}',
    )
    for body in bodies:
        await receive_event(database, parse_event(body), START)
    async with database.read_session() as session:
        events = await list_due(session, START, 9)
    assert [(event.type, event.object_id) for event in events] == [("refund.created", "re_1")] * 2


async def test_an_event_of_a_payment_names_its_object(database: Database) -> None:
    """Without it, the event cannot be processed."""
    for body in (
        b'{"id": "evt_1", "type": "refund.created"}',
        b'{"id": "evt_1", "type": "refund.created", "data": {"object": {}}}',
    ):
        with pytest.raises(InvalidRequest):
            await receive_event(database, parse_event(body), START)
