"""Receiving events of Stripe: their signatures, and which types are processed."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from service.core.billing.inbox import ERROR_REPORTS, ReceivedEvent, parse_event, store_event
from service.core.billing.payments import PAYMENT_EVENTS
from service.core.database.engine import Database
from service.core.errors import InvalidRequest, SignatureInvalid
from service.core.lazy import LazyModule

if TYPE_CHECKING:
    from service.core.billing import stripe
else:
    stripe = LazyModule("service.core.billing.stripe")


_THIN_PREFIX = "v1."  # of the types of thin events about objects of the API v1


class WebhookResult(StrEnum):
    """What was done with an event."""

    STORED = "stored"
    REPEATED = "repeated"  # it is in the inbox already
    IGNORED = "ignored"  # its type is not used


def verify_event(payload: bytes, signature: str, secrets: Sequence[str]) -> ReceivedEvent:
    """The event in a signed body. Raises `SignatureInvalid` and `InvalidRequest`.

    `secrets`: of all endpoints at Stripe. An endpoint has either thin or complete events.
    """
    *others, last = secrets
    for secret in others:
        try:
            stripe.verify_signature(payload, signature, secret)
        except SignatureInvalid:
            continue
        return parse_event(payload)
    stripe.verify_signature(payload, signature, last)
    return parse_event(payload)


async def receive_event(database: Database, event: ReceivedEvent, at: datetime) -> WebhookResult:
    """Store an event, if it is of use.

    Raises `InvalidRequest` if it does not name its object, and `DatabaseUnavailable`.
    """
    payment_type = event.type.removeprefix(_THIN_PREFIX)
    if payment_type in PAYMENT_EVENTS:
        if event.object_id is None:
            raise InvalidRequest("the event does not name its object")
        event = msgspec.structs.replace(event, type=payment_type)
    elif event.type not in ERROR_REPORTS:
        return WebhookResult.IGNORED
    is_new = await store_event(database, event, at)
    return WebhookResult.STORED if is_new else WebhookResult.REPEATED
