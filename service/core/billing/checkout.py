"""Top-ups through Stripe Checkout, the customer portal, and the invoices of a user.

Creating a session changes no balance: money is credited when Stripe reports the payment
(`core.billing.crediting`). All calls have a deadline, and a user has few of them at once.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from decimal import Decimal
from http import HTTPStatus
from typing import Protocol

import msgspec

from service.core.billing import payers
from service.core.billing.failures import FailureKind, StripeFailed
from service.core.database.engine import Database
from service.core.errors import (
    AmountInvalid,
    NotFound,
    Overloaded,
    StripeRefused,
    StripeUnavailable,
    retry_delay,
)
from service.core.fair_share import SharedLimit
from service.core.pricing import format_usd, to_nano_usd
from service.core.telemetry import log

CALLS_MAX = 16  # in progress, of all users
INVOICE_CALLS_MAX = 16  # the same, apart from the others: reading must not prevent paying
SESSIONS_MAX, SESSIONS_SECONDS = 20, 3600.0  # of a user
TRACKED_USERS_MAX = 10_000
CHECKOUT_SECONDS = 15.0
INVOICES_SECONDS = 3.0
INVOICES_MAX = 10  # the latest
CACHE_SECONDS, CACHED_USERS_MAX = 60.0, 1_000
IN_USE_ATTEMPTS_MAX = 6  # while another request creates the customer
IN_USE_SECONDS, IN_USE_SECONDS_MAX = 0.1, 1.0
_CENTS = 100


class CheckoutRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A top-up of this many cents, without tax."""

    user_id: str
    customer_id: str
    cents: int
    product: str
    success_url: str
    cancel_url: str
    has_tax: bool
    has_invoice: bool


class CreatedSession(msgspec.Struct, frozen=True):
    """The page at which the user pays."""

    url: str
    session_id: str


class Invoice(msgspec.Struct, frozen=True, kw_only=True):
    """An invoice at Stripe. Amounts in the smallest unit of the currency, `created` in seconds."""

    id: str
    created: int
    currency: str
    total: int
    status: str | None = None
    number: str | None = None
    hosted_invoice_url: str | None = None
    invoice_pdf: str | None = None


class CheckoutApi(Protocol):
    """The calls to Stripe, see `core.billing.stripe`. They raise `StripeFailed`."""

    async def create_customer(self, user_id: str, idempotency_key: str) -> str:
        """Create a customer, once for a key; return its id."""

    async def create_checkout(self, request: CheckoutRequest) -> CreatedSession:
        """Create a session of Checkout."""

    async def create_portal(self, customer_id: str, return_url: str) -> str:
        """Create a session of the customer portal; return its URL."""

    async def list_invoices(self, customer_id: str, count: int) -> list[Invoice]:
        """The latest invoices of a customer."""


class TopUpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of top-ups. `public_url`: of Kotae, without a slash at its end."""

    public_url: str
    usd_min: Decimal
    usd_max: Decimal
    has_tax: bool = False
    has_invoices: bool = False


class Checkout:
    """Creates sessions for users. One object per process. `options` are not changed."""

    def __init__(
        self,
        database: Database,
        stripe: CheckoutApi,
        options: TopUpOptions,
        *,
        user_share: float = 1.0,
        seconds: float = CHECKOUT_SECONDS,
        invoices_seconds: float = INVOICES_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options
        self._database, self._stripe = database, stripe
        self._seconds, self._invoices_seconds = seconds, invoices_seconds
        self._monotonic = monotonic
        self._calls = SharedLimit(CALLS_MAX, "requests to Stripe", user_share)
        self._invoice_calls = SharedLimit(INVOICE_CALLS_MAX, "requests to Stripe", user_share)
        self._sessions: OrderedDict[str, list[float]] = OrderedDict()  # times by user
        self._invoices: OrderedDict[str, tuple[float, list[Invoice]]] = OrderedDict()

    async def create_session(self, user_id: str, usd: Decimal) -> CreatedSession:
        """Create a session for a top-up in whole cents.

        Raises `AmountInvalid`, `Overloaded`, `StripeUnavailable`, `StripeRefused` and
        `DatabaseUnavailable`.
        """
        options = self.options
        if not options.usd_min <= usd <= options.usd_max or usd * _CENTS % 1:
            raise AmountInvalid(
                f"the amount must be between {options.usd_min} and {options.usd_max} USD, in whole "
                "cents"
            )
        with self._calls.hold(user_id):
            self._count_session(user_id)
            deadline = asyncio.get_running_loop().time() + self._seconds
            try:
                customer_id = await self._require_customer(user_id, deadline)
                request = CheckoutRequest(
                    user_id=user_id,
                    customer_id=customer_id,
                    cents=int(usd * _CENTS),
                    product=f"Prepaid credit of ${format_usd(to_nano_usd(usd))}",
                    success_url=f"{options.public_url}/account/billing?payment=success",
                    cancel_url=f"{options.public_url}/account/billing?payment=cancelled",
                    has_tax=options.has_tax,
                    has_invoice=options.has_invoices,
                )
                async with asyncio.timeout_at(deadline):
                    return await self._stripe.create_checkout(request)
            except (StripeFailed, TimeoutError) as error:
                raise _translate_failure(error, "checkout.failed", user_id) from error

    async def create_portal(self, user_id: str) -> str:
        """Create a session of the customer portal; return its URL.

        Raises `NotFound` for a user who never paid, and the errors of `create_session`.
        """
        customer_id = await self._find_customer(user_id)
        if customer_id is None:
            raise NotFound("there are no payments yet")
        with self._calls.hold(user_id):
            self._count_session(user_id)
            try:
                async with asyncio.timeout(self._seconds):
                    return await self._stripe.create_portal(
                        customer_id, f"{self.options.public_url}/account/billing"
                    )
            except (StripeFailed, TimeoutError) as error:
                raise _translate_failure(error, "portal.failed", user_id) from error

    async def has_customer(self, user_id: str) -> bool:
        """Whether a user has begun to pay. Raises `DatabaseUnavailable`."""
        return await self._find_customer(user_id) is not None

    async def list_invoices(self, user_id: str) -> list[Invoice] | None:
        """The latest invoices; None for a user who never paid. Cached for a minute.

        Raises `StripeUnavailable`, `StripeRefused`, `Overloaded` and `DatabaseUnavailable`.
        """
        customer_id = await self._find_customer(user_id)
        if customer_id is None:
            return None
        cached = self._invoices.get(user_id)
        if cached is not None and cached[0] > self._monotonic():
            return cached[1]
        with self._invoice_calls.hold(user_id):
            try:
                async with asyncio.timeout(self._invoices_seconds):
                    invoices = await self._stripe.list_invoices(customer_id, INVOICES_MAX)
            except (StripeFailed, TimeoutError) as error:
                raise _translate_failure(error, "invoices.failed", user_id) from error
        self._invoices[user_id] = (self._monotonic() + CACHE_SECONDS, invoices)
        if len(self._invoices) > CACHED_USERS_MAX:
            self._invoices.popitem(last=False)
        return invoices

    async def _find_customer(self, user_id: str) -> str | None:
        async with self._database.read_session() as session:
            payer = await payers.find_payer(session, user_id)
        return None if payer is None else payer.stripe_customer_id

    async def _require_customer(self, user_id: str, deadline: float) -> str:
        """The customer of a user, created if necessary.

        Only calls to Stripe end at the deadline, so that no transaction is interrupted. Raises
        `StripeFailed` and `TimeoutError`.
        """
        attempts = 0
        while True:
            payer = await payers.begin_request(self._database, user_id)
            if payer.stripe_customer_id is not None:
                return payer.stripe_customer_id
            try:
                key = f"kotae-payer-{payer.request_key}"
                async with asyncio.timeout_at(deadline):
                    customer_id = await self._stripe.create_customer(user_id, key)
            except StripeFailed as failure:
                attempts += 1
                if failure.status != HTTPStatus.CONFLICT or attempts == IN_USE_ATTEMPTS_MAX:
                    if _is_replayed(failure):
                        await payers.replace_key(self._database, payer)
                    raise
                # Another request is creating the customer under the same key.
                await asyncio.sleep(
                    retry_delay(
                        attempts, first_seconds=IN_USE_SECONDS, seconds_max=IN_USE_SECONDS_MAX
                    )
                )
            else:
                await payers.end_request(self._database, payer, customer_id)

    def _count_session(self, user_id: str) -> None:
        """Count a session of a user. Raises `Overloaded` at the limit."""
        now = self._monotonic()
        times = [at for at in self._sessions.pop(user_id, []) if at > now - SESSIONS_SECONDS]
        self._sessions[user_id] = times
        if len(times) >= SESSIONS_MAX:
            raise Overloaded(
                f"you have created {len(times)} sessions in an hour, which is the maximum",
                retry_after_seconds=max(1, int(times[0] + SESSIONS_SECONDS - now)),
            )
        times.append(now)
        if len(self._sessions) > TRACKED_USERS_MAX:
            self._sessions.popitem(last=False)


def _is_replayed(failure: StripeFailed) -> bool:
    """Whether Stripe replays this error for the same key: it began to process the request."""
    is_conflict = failure.status == HTTPStatus.CONFLICT
    return failure.status is not None and not failure.is_general and not is_conflict


def _translate_failure(
    error: StripeFailed | TimeoutError, event: str, user_id: str
) -> StripeUnavailable | StripeRefused:
    """The error for the user, without Stripe's message, which is logged for the operator."""
    log.error(event, user_id=user_id, error=str(error) or "no response in time")
    if isinstance(error, TimeoutError):
        return StripeUnavailable("Stripe did not respond in time; nothing was charged")
    is_busy = error.status == HTTPStatus.TOO_MANY_REQUESTS
    if error.kind is FailureKind.UNCERTAIN or is_busy:
        seconds = round(error.retry_after_seconds) or None
        return StripeUnavailable(
            "Stripe cannot be used at the moment; nothing was charged", retry_after_seconds=seconds
        )
    return StripeRefused("Stripe does not accept the request of this service; nothing was charged")
