"""The client of Stripe; the only module that imports its library. An optional extra.

The library never repeats a call (`max_network_retries=0`): the outbox decides about that, because
a repetition after the time in which Stripe remembers an identifier would bill twice. For the same
reason meter events have no idempotency key of ours: Stripe replays the response of a key, also an
error. Customers have one (`core.billing.payers`), because nothing else makes them unique.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
import stripe

from service.core.billing.checkout import CheckoutRequest, CreatedSession, Invoice
from service.core.billing.failures import ABSENT, FailureKind, StripeFailed
from service.core.billing.payments import (
    CURRENCY,
    PURPOSE,
    TOP_UP,
    USER,
    CheckoutSession,
    Dispute,
    ObjectKind,
    Payment,
    Refund,
)
from service.core.errors import SignatureInvalid, retry_delay
from service.core.redaction import redact_secrets

ATTEMPT_SECONDS = 30.0
TOLERANCE_SECONDS = 300  # age of a signature
RETRY_AFTER_SECONDS_MAX = 3600.0
PAGE_MAX, PAGES_MAX = 100, 100  # objects of a page, pages of a list
READS_MAX = 5  # attempts to read a page
RETRY_SECONDS, RETRY_SECONDS_MAX = 0.5, 30.0  # delay after the first failed read, maximum delay
T = TypeVar("T")
_CONFIGURATION = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class StripeConnection:
    """Calls to one account. `base_url`: of another server than Stripe's, for tests."""

    def __init__(
        self,
        key: str,
        *,
        base_url: str | None = None,
        seconds: float = ATTEMPT_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._seconds, self._retry_seconds = seconds, retry_seconds
        self._http = stripe.HTTPXClient(timeout=seconds)
        self._client = stripe.StripeClient(
            key,
            base_addresses={"api": base_url, "meter_events": base_url} if base_url else None,
            max_network_retries=0,
            http_client=self._http,
        )

    async def send_meter_event(
        self, identifier: str, *, meter: str, customer_id: str, value: str, timestamp: int
    ) -> None:
        """Send a meter event once. `timestamp` in seconds. Raises `StripeFailed`."""
        await self._call(
            self._client.v1.billing.meter_events.create_async(
                {
                    "event_name": meter,
                    "identifier": identifier,
                    "payload": {"stripe_customer_id": customer_id, "value": value},
                    "timestamp": timestamp,
                }
            )
        )

    async def fetch_event(self, event_id: str) -> Mapping[str, Any]:
        """The complete event of a notification (a thin event). Raises `StripeFailed`."""
        event = await self._call(self._client.v2.core.events.retrieve_async(event_id))
        values: Mapping[str, Any] = event.to_dict()
        return values

    async def find_meter(self, event_name: str) -> str:
        """The id of the active meter with this event name. Raises `StripeFailed`."""
        async for meter in self._list_pages(self._client.v1.billing.meters.list_async, {}):
            if meter.event_name == event_name and meter.status == "active":
                if meter.default_aggregation.formula == "sum":
                    return str(meter.id)
                raise StripeFailed(f"meter {meter.id} is no sum", FailureKind.REJECTED)
        raise StripeFailed(f"no active meter for {event_name}", FailureKind.REJECTED)

    async def sum_hours(
        self, meter_id: str, customer_id: str, since: datetime, until: datetime
    ) -> dict[datetime, Decimal] | None:
        """What a meter has added up for a customer by hour, in its unit; absent: nothing.

        `since` and `until` are starts of hours. None: there is no such customer. Raises
        `StripeFailed`.
        """
        list_page = partial(self._client.v1.billing.meters.event_summaries.list_async, meter_id)
        values = {
            "customer": customer_id,
            "start_time": int(since.timestamp()),
            "end_time": int(until.timestamp()),
            "value_grouping_window": "hour",
        }
        sums: dict[datetime, Decimal] = {}
        try:
            async for summary in self._list_pages(list_page, values):
                start = datetime.fromtimestamp(summary.start_time, UTC)
                sums[start] = Decimal(str(summary.aggregated_value))
        except StripeFailed as failure:
            if failure.code == ABSENT:
                return None
            raise
        return sums

    async def _list_pages(
        self, list_page: Callable[[Any], Awaitable[Any]], values: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        """The objects of a list, at most `PAGES_MAX` pages; reads are repeated after failures."""
        cursor: dict[str, str] = {}
        for _ in range(PAGES_MAX):
            page = await self._read(partial(list_page, {**values, "limit": PAGE_MAX, **cursor}))
            for item in page.data:
                yield item
            if not page.has_more or not page.data:
                return
            cursor = {"starting_after": page.data[-1].id}
        raise StripeFailed(f"a list has more than {PAGES_MAX} pages", FailureKind.REJECTED)

    async def _read(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Call something that changes nothing, up to `READS_MAX` times."""
        failures = 0
        while True:
            try:
                return await self._call(call())
            except StripeFailed as failed:
                failure, failures = failed, failures + 1
                is_rejected = failure.kind is FailureKind.REJECTED
                if is_rejected or failure.status in _CONFIGURATION or failures == READS_MAX:
                    raise
            delay = retry_delay(
                failures, first_seconds=self._retry_seconds, seconds_max=RETRY_SECONDS_MAX
            )
            await asyncio.sleep(max(delay, min(failure.retry_after_seconds, RETRY_SECONDS_MAX)))

    async def create_customer(self, user_id: str, idempotency_key: str) -> str:
        """Create a customer, once for a key; return its id. Raises `StripeFailed`."""
        customer = await self._call(
            self._client.v1.customers.create_async(
                {"description": user_id, "metadata": {USER: user_id}},
                {"idempotency_key": idempotency_key},
            )
        )
        return customer.id

    async def create_checkout(self, request: CheckoutRequest) -> CreatedSession:
        """Create a session of Checkout for a top-up. Raises `StripeFailed`."""
        metadata = {PURPOSE: TOP_UP, USER: request.user_id}
        parameters: stripe.params.checkout.SessionCreateParams = {
            "mode": "payment",
            "submit_type": "pay",
            "customer": request.customer_id,
            "client_reference_id": request.user_id,
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": CURRENCY,
                        "unit_amount": request.cents,
                        "tax_behavior": "exclusive",
                        "product_data": {"name": request.product},
                    },
                }
            ],
            "metadata": metadata,
            "payment_intent_data": {"metadata": metadata},
            "adaptive_pricing": {"enabled": False},  # so that the currency is that of the wallet
            "automatic_tax": {"enabled": request.has_tax},
            "invoice_creation": {"enabled": request.has_invoice},
            "success_url": request.success_url,
            "cancel_url": request.cancel_url,
        }
        if request.has_tax:
            parameters["customer_update"] = {"address": "auto"}  # it determines the tax
        session = await self._call(self._client.v1.checkout.sessions.create_async(parameters))
        return CreatedSession(url=session.url or "", session_id=session.id)

    async def create_portal(self, customer_id: str, return_url: str) -> str:
        """Create a session of the customer portal; return its URL. Raises `StripeFailed`."""
        session = await self._call(
            self._client.v1.billing_portal.sessions.create_async(
                {"customer": customer_id, "return_url": return_url}
            )
        )
        return session.url

    async def list_invoices(self, customer_id: str, count: int) -> list[Invoice]:
        """The latest invoices of a customer. Raises `StripeFailed`."""
        page = await self._call(
            self._client.v1.invoices.list_async({"customer": customer_id, "limit": count})
        )
        return _convert(page.data, list[Invoice])

    async def fetch_payment(self, kind: ObjectKind, object_id: str) -> Payment | None:
        """The payment to which an object belongs, as it is now, if there is one.

        Of payments that are no top-ups only id, customer and metadata are fetched. Raises
        `StripeFailed`.
        """
        v1 = self._client.v1
        calls: dict[ObjectKind, Callable[[str], Awaitable[Any]]] = {
            ObjectKind.SESSION: v1.checkout.sessions.retrieve_async,
            ObjectKind.REFUND: v1.refunds.retrieve_async,
            ObjectKind.CHARGE: v1.charges.retrieve_async,
            ObjectKind.DISPUTE: v1.disputes.retrieve_async,
        }
        payment_id = _get_id((await self._call(calls[kind](object_id))).payment_intent)
        return None if payment_id is None else await self._fetch_intent(payment_id)

    async def list_payment_ids(self, customer_id: str, since: datetime) -> AsyncIterator[str]:
        """The payments of a customer since a time. Raises `StripeFailed`."""
        values = {"customer": customer_id, "created": {"gte": int(since.timestamp())}}
        async for intent in self._list_pages(self._client.v1.payment_intents.list_async, values):
            yield intent.id

    async def read_payment(self, payment_id: str) -> Payment:
        """A payment as it is now; repeated after failures. Raises `StripeFailed`."""
        payment: Payment = await self._read(partial(self._fetch_intent, payment_id))
        return payment

    async def _fetch_intent(self, payment_id: str) -> Payment:
        v1 = self._client.v1
        intent = await self._call(v1.payment_intents.retrieve_async(payment_id))
        payment = Payment(
            id=intent.id,
            customer=_get_id(intent.customer),
            metadata=intent.metadata.to_dict() if intent.metadata else {},
            sessions=[],
            refunds=[],
            disputes=[],
        )
        if not payment.is_top_up:
            return payment
        sessions = await self._call(
            v1.checkout.sessions.list_async({"payment_intent": payment_id, "limit": PAGE_MAX})
        )
        refunds = await self._call(
            v1.refunds.list_async({"payment_intent": payment_id, "limit": PAGE_MAX})
        )
        disputes = await self._call(
            v1.disputes.list_async({"payment_intent": payment_id, "limit": PAGE_MAX})
        )
        if sessions.has_more or refunds.has_more or disputes.has_more:
            raise StripeFailed(
                f"{payment_id} has more than {PAGE_MAX} refunds", FailureKind.REJECTED
            )
        return msgspec.structs.replace(
            payment,
            sessions=_convert(sessions.data, list[CheckoutSession]),
            refunds=_convert(refunds.data, list[Refund]),
            disputes=_convert(disputes.data, list[Dispute]),
        )

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._seconds):
                return await call
        except (stripe.StripeError, TimeoutError) as error:
            raise translate_error(error) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]  # of the library


def _get_id(reference: Any) -> str | None:
    """The id of an object that a response names or contains."""
    value: str | None = getattr(reference, "id", reference)
    return value


def _convert(objects: Sequence[stripe.StripeObject], kind: type[T]) -> T:
    try:
        return msgspec.convert([item.to_dict() for item in objects], kind)
    except msgspec.ValidationError as error:
        raise StripeFailed(f"unexpected object: {error}", FailureKind.REJECTED) from error


def translate_error(error: stripe.StripeError | TimeoutError) -> StripeFailed:
    """What an error means for a repetition. `stripe-should-retry` overrides what the status says.

    See https://docs.stripe.com/error-low-level.
    """
    if not isinstance(error, stripe.StripeError):
        return StripeFailed("no response in time", FailureKind.UNCERTAIN)
    status, headers = error.http_status, _lower_names(error.headers)
    detail = redact_secrets(f"{status or 'no response'}: {error.user_message or error}")
    kind = _classify(error, status)
    is_general = status in _CONFIGURATION or status == HTTPStatus.TOO_MANY_REQUESTS
    should_retry = headers.get("stripe-should-retry")
    if kind is FailureKind.REJECTED and should_retry == "true":
        kind = FailureKind.REFUSED
    elif kind is not FailureKind.KNOWN and should_retry == "false" and status not in _CONFIGURATION:
        kind, is_general = FailureKind.REJECTED, False
    return StripeFailed(
        detail,
        kind,
        retry_after_seconds=_read_seconds(headers.get("retry-after")),
        is_general=is_general,
        code=error.code,
        status=status,
    )


def _classify(error: stripe.StripeError, status: int | None) -> FailureKind:
    if isinstance(error, stripe.APIConnectionError) or status is None:
        return FailureKind.UNCERTAIN
    message = str(error).lower()
    if status == HTTPStatus.BAD_REQUEST and "already exists with identifier" in message:
        return FailureKind.KNOWN
    if status in _CONFIGURATION or status == HTTPStatus.TOO_MANY_REQUESTS:
        return FailureKind.REFUSED
    is_client_error = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    if is_client_error and status != HTTPStatus.CONFLICT:
        return FailureKind.REJECTED
    return FailureKind.UNCERTAIN


def _lower_names(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {name.lower(): value for name, value in (headers or {}).items()}


def _read_seconds(text: str | None) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS_MAX) if math.isfinite(seconds) else 0.0


def verify_signature(payload: bytes, signature: str, secret: str) -> None:
    """Verify the header `Stripe-Signature` of a raw body. Raises `SignatureInvalid`."""
    try:
        stripe.WebhookSignature.verify_header(
            payload.decode(), signature, secret, tolerance=TOLERANCE_SECONDS
        )
    except (stripe.SignatureVerificationError, ValueError) as error:
        raise SignatureInvalid("the signature is missing, wrong or too old") from error
