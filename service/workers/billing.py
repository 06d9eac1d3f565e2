"""Bills usage: creates meter events, sends those that are due, and processes the inbox.

Events about payments in the inbox are credited to the ledger.

One process does it: with PostgreSQL, the leader. Before anything is sent, the attempt is committed,
in a transaction in which a former leader fails. If the process dies before the result is committed,
the event is sent again with the same identifier, which Stripe then refuses as known.

The hours of the last `RECENT_DAYS` are evaluated every minute, those of the last `LATE_DAYS` every
hour, for usage that becomes known late, and at the start all hours since the first connection. The
sums are read at most for the share `LOAD_MAX` of the time.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any, Protocol

import msgspec

from service.core.billing import inbox
from service.core.billing.crediting import process_payment
from service.core.billing.customers import find_first_start
from service.core.billing.failures import FailureKind, StripeFailed
from service.core.billing.inbox import ERROR_REPORTS, InboxEvent
from service.core.billing.meter_events import (
    DueEvent,
    EventState,
    MeterEvent,
    begin_attempts,
    compute_timestamp,
    count_states,
    create_missing_events,
    find_obstacle,
    format_value,
    list_due,
    record_attempt,
)
from service.core.billing.payments import PAYMENT_EVENTS, ObjectKind, Payment, PaymentInvalid
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.errors import retry_delay
from service.core.pricing import format_usd
from service.core.telemetry import Metrics, log
from service.workers.background import PeriodicWorker

CHECK_SECONDS = 2.0
EVALUATION_SECONDS = 60.0
LOAD_MAX = 0.05
RECENT_DAYS = 2
COMPLETE_SECONDS = 3600.0
LATE_DAYS = 36  # Stripe accepts events up to 35 days; older ones are created for review
AT_ONCE_MAX = 5  # calls in progress
DUE_MAX = 50  # events in a tick
RETRY_SECONDS, RETRY_SECONDS_MAX = 5.0, 1800.0
GRACE_SECONDS = 3.0  # of a tick in progress at shutdown


class StripeApi(Protocol):
    """The calls to Stripe, see `core.billing.stripe`."""

    async def send_meter_event(
        self, identifier: str, *, meter: str, customer_id: str, value: str, timestamp: int
    ) -> None:
        """Send a meter event once. Raises `StripeFailed`."""

    async def fetch_event(self, event_id: str) -> Mapping[str, Any]:
        """The complete event of a notification. Raises `StripeFailed`."""

    async def fetch_payment(self, kind: ObjectKind, object_id: str) -> Payment | None:
        """The payment to which an object belongs, as it is now. Raises `StripeFailed`."""


class BillingStatistics(msgspec.Struct, frozen=True):
    """`delivered`: events since the start. `failures`: failed ticks in a row."""

    delivered: int
    failures: int


class BillingWorker(PeriodicWorker):
    """Sends the usage of customers to the meter with this event name; None: to none."""

    def __init__(
        self,
        database: Database,
        stripe: StripeApi,
        meter: str | None,
        metrics: Metrics,
        *,
        seconds: float = CHECK_SECONDS,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("billing", self.run_once, seconds, grace_seconds=GRACE_SECONDS)
        self._database, self._stripe, self._meter = database, stripe, meter
        self._metrics, self._clock, self._monotonic = metrics, clock, monotonic
        self._delivered, self._general_failures = 0, 0
        self._next_evaluation = self._next_complete = 0.0
        self._has_evaluated_all = False
        self._paused_until: datetime | None = None

    def statistics(self) -> BillingStatistics:
        """An immutable snapshot of the counters."""
        return BillingStatistics(self._delivered, self._task.failures)

    async def run_once(self) -> None:
        """Do what is due. Raises `DatabaseUnavailable`."""
        await self.process_inbox()
        if self._meter is None:
            return
        if self._monotonic() >= self._next_evaluation:
            begun = self._monotonic()
            await self.evaluate_hours()
            ended = self._monotonic()
            self._next_evaluation = ended + max(EVALUATION_SECONDS, (ended - begun) / LOAD_MAX)
        await self.send_due()
        async with self._database.read_session() as session:
            counts = await count_states(session)
        for state, count in counts.items():
            self._metrics.meter_events.labels(state.value).set(count)

    async def evaluate_hours(self) -> None:
        """Create the events that are due. Raises `DatabaseUnavailable`."""
        at = self._clock()
        is_complete = self._monotonic() >= self._next_complete
        since = at - timedelta(days=LATE_DAYS if is_complete else RECENT_DAYS)
        if not self._has_evaluated_all:
            async with self._database.read_session() as session:
                first = await find_first_start(session)
            since = min(since, first or since)
        for event in await create_missing_events(self._database, since, at):
            log.info("meter_event.created", event_id=event.id, state=event.state.value)
            if event.state is EventState.REVIEW:
                _log_review(event.id, event.error)
        self._has_evaluated_all = True
        if is_complete:
            self._next_complete = self._monotonic() + COMPLETE_SECONDS

    async def send_due(self) -> None:
        """Make an attempt for each event that is due, for some at once.

        Raises `DatabaseUnavailable`.
        """
        at = self._clock()
        if self._paused_until is not None and at < self._paused_until:
            return
        self._paused_until = None
        async with self._database.read_session() as session:
            due = await list_due(session, at, DUE_MAX)
        sendable = []
        for item in due:
            if obstacle := find_obstacle(item.event, at):
                await self._end_in_review(item.event, obstacle)
            else:
                sendable.append(item)
        for start in range(0, len(sendable), AT_ONCE_MAX):
            if self._paused_until is None:
                await self._send_together(sendable[start : start + AT_ONCE_MAX])

    async def _send_together(self, due: list[DueEvent]) -> None:
        at = self._clock()
        customers = {item.event.id: item.stripe_customer_id for item in due}
        events = await begin_attempts(self._database, customers, at)
        results = await asyncio.gather(
            *(self._send(event, customers[event.id]) for event in events)
        )
        for event, failure in zip(events, results, strict=True):
            await self._record(event, failure, is_first=event.first_attempt_at == at)

    async def _send(self, event: MeterEvent, stripe_customer_id: str) -> StripeFailed | None:
        try:
            await self._stripe.send_meter_event(
                event.id,
                meter=self._meter or "",
                customer_id=stripe_customer_id,
                value=format_value(event.value_nano_usd),
                timestamp=compute_timestamp(event),
            )
        except StripeFailed as failure:
            return failure
        return None

    async def _record(
        self, event: MeterEvent, failure: StripeFailed | None, *, is_first: bool
    ) -> None:
        if failure is None or failure.kind is FailureKind.KNOWN:
            await self._record_state(event, EventState.DELIVERED)
            self._delivered, self._general_failures = self._delivered + 1, 0
            log.info("meter_event.delivered", event_id=event.id, repeated=failure is not None)
            return
        if failure.kind is FailureKind.REJECTED:
            await self._end_in_review(event, str(failure))
            return
        at, failures = self._clock(), event.attempts
        if failure.is_general:
            self._general_failures += 1
            failures = self._general_failures
        delay = retry_delay(failures, first_seconds=RETRY_SECONDS, seconds_max=RETRY_SECONDS_MAX)
        next_at = at + timedelta(seconds=max(delay, failure.retry_after_seconds))
        if failure.is_general:
            self._paused_until = max(next_at, self._paused_until or next_at)
        forget = is_first and failure.kind is FailureKind.REFUSED
        await self._record_state(
            event, EventState.PENDING, next_at=next_at, error=str(failure), forget=forget
        )
        log.warning("meter_event.delayed", event_id=event.id, error=str(failure))

    async def _end_in_review(self, event: MeterEvent, error: str) -> None:
        await self._record_state(event, EventState.REVIEW, error=error)
        _log_review(event.id, error)

    async def _record_state(self, event: MeterEvent, state: EventState, **values: Any) -> None:
        await record_attempt(self._database, event, state, self._clock(), **values)
        self._metrics.meter_event_attempts.labels(state.value).inc()

    async def process_inbox(self) -> None:
        """Process the events of Stripe that are due. Raises `DatabaseUnavailable`.

        One after the other, because an older state of a payment must not be recorded after a newer
        one. An outage of Stripe ends the tick, so that it delays the meter events once.
        """
        async with self._database.read_session() as session:
            events = await inbox.list_due(session, self._clock(), DUE_MAX)
        for event in events:
            try:
                if event.type in ERROR_REPORTS:
                    await self._process_report(event)
                else:
                    await self._process_payment(event)
            except StripeFailed as failure:
                is_rejected = failure.kind is FailureKind.REJECTED
                # An object that is not known yet may be known later.
                is_final = is_rejected and failure.status != HTTPStatus.NOT_FOUND
                await self._delay(event, str(failure), is_final=is_final)
                if not is_rejected:
                    return
            except PaymentInvalid as error:
                await self._delay(event, str(error), is_final=True)

    async def _delay(self, event: InboxEvent, error: str, *, is_final: bool) -> None:
        if await inbox.delay_event(self._database, event, error, self._clock(), is_final=is_final):
            log.error(
                "stripe_event.failed", event_id=event.id, object_id=event.object_id, error=error
            )
        else:
            log.warning("stripe_event.delayed", event_id=event.id, error=error)

    async def _process_payment(self, event: InboxEvent) -> None:
        kind = PAYMENT_EVENTS[event.type]
        payment = await self._stripe.fetch_payment(kind, event.object_id or "")
        added = await process_payment(self._database, event, payment, self._clock())
        for entry in added:
            log.info(
                "ledger_entry.added",
                user_id=entry.user_id,
                kind=entry.kind.value,
                cause=entry.cause,
                usd=format_usd(entry.amount_nano_usd),
            )

    async def _process_report(self, event: InboxEvent) -> None:
        errors = inbox.read_errors(await self._stripe.fetch_event(event.id))
        moved = await inbox.process_errors(self._database, event, errors, self._clock())
        for identifier in moved:
            _log_review(identifier, errors.detail)
        if errors.unnamed:
            log.error(
                "meter_events.failed_unnamed",
                event_id=event.id,
                count=errors.unnamed,
                remedy="Stripe does not name them: compare `kotae billing status` with its meter",
            )


def _log_review(event_id: str, error: str | None) -> None:
    log.error(
        "meter_event.in_review", event_id=event_id, error=error, remedy="kotae billing review"
    )
