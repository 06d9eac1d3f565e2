"""Receiving events of Stripe: their signatures, and which types are processed."""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from service.core.billing.inbox import ERROR_REPORTS, ReceivedEvent, parse_event, store_event
from service.core.database.engine import Database
from service.core.lazy import LazyModule

if TYPE_CHECKING:
    from service.core.billing import stripe
else:
    stripe = LazyModule("service.core.billing.stripe")


class WebhookResult(StrEnum):
    """What was done with an event."""

    STORED = "stored"
    REPEATED = "repeated"  # it is in the inbox already
    IGNORED = "ignored"  # its type is not used


def verify_event(payload: bytes, signature: str, secret: str) -> ReceivedEvent:
    """The event in a signed body. Raises `SignatureInvalid` and `InvalidRequest`."""
    stripe.verify_signature(payload, signature, secret)
    return parse_event(payload)


async def receive_event(database: Database, event: ReceivedEvent, at: datetime) -> WebhookResult:
    """Store an event, if it is of use. Raises `DatabaseUnavailable`."""
    if event.type not in ERROR_REPORTS:
        return WebhookResult.IGNORED
    is_new = await store_event(database, event, at)
    return WebhookResult.STORED if is_new else WebhookResult.REPEATED
