"""Receiving events of Stripe."""

import pytest

from service.core.billing.inbox import ReceivedEvent
from service.core.billing.webhooks import WebhookResult, receive_event, verify_event
from service.core.database.engine import Database
from service.core.errors import SignatureInvalid
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
