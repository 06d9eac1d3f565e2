"""Reconciliation with Stripe: the usage of customers by hour, in four places.

    rows of the log = rollups = meter events = what the meter at Stripe has added up

Each difference has a cause. Some causes explain it: an event that is not delivered yet, one in
review, a decision not to bill, a delivery that Stripe has not added up yet. The others are to be
investigated. Stripe tells sums only, so an event is said to be there or not if the sum of the hour
can be explained by that. Answers of unknown cost are counted separately: nothing of them is billed.

Stripe is read before the database: what is delivered meanwhile is a recent delivery, not an excess.
Customers are compared in groups, so that memory does not grow with their number.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import chain, combinations, islice
from typing import Protocol

import msgspec
import sqlalchemy as sa

from service.core.billing.customers import Customer, list_connections
from service.core.billing.failures import FailureKind, StripeFailed
from service.core.billing.meter_events import EventState, MeterEvent, find_due_end, parse_value
from service.core.billing.usage import HOUR, NOTHING, HourUsage, find_hour, list_parts, read_usage
from service.core.database.constructs import is_listed
from service.core.database.engine import Database, ReadSession
from service.core.database.tables import billing_events
from service.core.encoding import convert_row, utc_now
from service.core.errors import InvalidRequest, StripeRefused, StripeUnavailable
from service.core.pricing import format_usd
from service.core.telemetry import log

LATE_SECONDS = 3600.0  # after a delivery, in which Stripe may not have added it up
OPEN_SECONDS = 7200.0  # after an hour, in which its event may not have been created
DIFFERENCES_MAX = 1000  # that are described; the others are counted
CALLS_MAX = 50_000  # pages of Stripe
AT_ONCE_MAX = 4  # calls in progress
GROUP = 50  # customers compared together
RECENT_HOURS, RECENT_CUSTOMERS_MAX, RECENT_SECONDS_MAX = 24, 200, 25.0  # for admins
CACHE_SECONDS = 300.0
_PAGE_HOURS = 100
_COMBINATIONS_MAX = 2000


class Cause(StrEnum):
    """Why amounts differ."""

    PENDING = "pending"  # an event is to be sent
    REVIEW = "review"  # an event waits for a decision
    DECIDED = "decided"  # an event is not to be billed, by a decision
    RECENT = "recent"  # delivered a short time ago, and not added up by Stripe yet
    OPEN = "open"  # there is no event yet
    LACKING = "lacking"  # delivered, but not added up: Stripe may have reported an error
    EXCESS = "excess"  # Stripe has more, or less, than events explain
    ROLLUPS = "rollups"  # rows and rollups differ
    NO_CUSTOMER = "no_customer"  # Stripe has no such customer


_EXPLAINED = frozenset({Cause.PENDING, Cause.REVIEW, Cause.DECIDED, Cause.RECENT})


class BillingDifference(msgspec.Struct, frozen=True, kw_only=True):
    """A difference. `usd`: what is missing at Stripe, or in the rollups; negative: too much."""

    stripe_customer_id: str
    hour: datetime
    cause: Cause
    usd: str
    is_explained: bool
    detail: str

    def to_text(self) -> str:
        """The difference in a line."""
        return (
            f"{self.stripe_customer_id} {self.hour:%Y-%m-%dT%H:%MZ} ${self.usd}"
            f" {self.cause}{'' if self.is_explained else ' (unexplained)'}: {self.detail}"
        )


class BillingReconciliation(msgspec.Struct, kw_only=True):
    """The result. `unpriced`: answers of unknown cost. `customers` of `customers_total`."""

    at: datetime
    since: datetime
    until: datetime
    customers_total: int
    customers: int = 0
    hours: int = 0
    usage_usd: str = "0"
    stripe_usd: str = "0"
    unpriced: int = 0
    explained: int = 0
    unexplained: int = 0
    differences: list[BillingDifference] = msgspec.field(default_factory=list)

    def add(self, difference: BillingDifference) -> None:
        """Count a difference, and keep it up to the limit."""
        if difference.is_explained:
            self.explained += 1
        else:
            self.unexplained += 1
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(difference)

    def to_text(self) -> str:
        """A summary, followed by a line for each difference."""
        lines = [
            f"Stripe, {self.since:%Y-%m-%dT%H:%MZ} to {self.until:%Y-%m-%dT%H:%MZ}",
            f"customers  {self.customers:,} of {self.customers_total:,}",
            f"hours      {self.hours:,} with usage",
            f"usage      ${self.usage_usd}",
            f"at Stripe  ${self.stripe_usd}",
            f"unknown    {self.unpriced:,} answers of unknown cost, which are not billed",
            f"different  {self.explained + self.unexplained:,}, {self.unexplained:,} unexplained",
            *(difference.to_text() for difference in self.differences),
        ]
        omitted = self.explained + self.unexplained - len(self.differences)
        return "\n".join([*lines, f"… and {omitted:,} more"] if omitted else lines)


class MeterReader(Protocol):
    """Reads of Stripe, see `core.billing.stripe`."""

    async def find_meter(self, event_name: str) -> str:
        """The id of a meter. Raises `StripeFailed`."""

    async def sum_hours(
        self, meter_id: str, customer_id: str, since: datetime, until: datetime
    ) -> dict[datetime, Decimal] | None:
        """What it has added up; None: there is no such customer. Raises `StripeFailed`."""


class HourAmounts(msgspec.Struct):
    """What is compared: the usage of a customer in an hour in the rows and rollups, and events."""

    rows: HourUsage = NOTHING
    rollups: HourUsage = NOTHING
    events: list[MeterEvent] = msgspec.field(default_factory=list)


Amounts = dict[tuple[str, datetime], HourAmounts]
"""By customer at Stripe and hour."""


async def reconcile_stripe(
    database: Database,
    stripe: MeterReader,
    meter: str,
    since: datetime,
    at: datetime,
    *,
    customers_max: int | None = None,
) -> BillingReconciliation:
    """Compare the hours from `since` on that are due. `meter`: its event name.

    At most `customers_max` customers, by id. Raises `InvalidRequest` if that needs too many calls,
    `StripeFailed` and `DatabaseUnavailable`.
    """
    since, until = find_hour(since), find_due_end(at)
    async with database.read_session() as session:
        connections = await list_connections(session, since, until) if since < until else []
    by_customer: dict[str, list[Customer]] = {}
    for connection in connections:
        by_customer.setdefault(connection.stripe_customer_id, []).append(connection)
    selected = sorted(by_customer)[:customers_max]
    pages = -(-(until - since) // (HOUR * _PAGE_HOURS))
    if len(selected) * pages > CALLS_MAX:
        raise InvalidRequest(f"{len(selected)} customers need too many calls: use a later start")
    report = BillingReconciliation(
        at=at, since=since, until=until, customers_total=len(by_customer)
    )
    if not selected:
        return report
    meter_id = await stripe.find_meter(meter)
    totals: Counter[str] = Counter()
    for first in range(0, len(selected), GROUP):
        group = selected[first : first + GROUP]
        sums = await _read_sums(stripe, meter_id, group, since, until)
        members = list(chain.from_iterable(by_customer[customer_id] for customer_id in group))
        amounts = await _read_amounts(database, members, since, until)
        _compare(report, amounts, sums, totals, at)
        report.customers += len(group)
    report.usage_usd = format_usd(totals["usage"])
    report.stripe_usd = format_usd(totals["stripe"])
    return report


class RecentReconciliation:
    """The comparison of the last hours for admins: one at a time, and cached for a while."""

    def __init__(
        self,
        database: Database,
        stripe: MeterReader,
        meter: str,
        *,
        clock: Callable[[], datetime] = utc_now,
        seconds: float = RECENT_SECONDS_MAX,
    ) -> None:
        self._database, self._stripe, self._meter = database, stripe, meter
        self._clock, self._seconds = clock, seconds
        self._turn = asyncio.Lock()
        self._result: BillingReconciliation | None = None

    async def read(self) -> BillingReconciliation:
        """The last result, or a new one after `CACHE_SECONDS`.

        Raises `StripeUnavailable` if it takes too long, also in the queue, `StripeRefused` and
        `DatabaseUnavailable`.
        """
        try:
            async with asyncio.timeout(self._seconds), self._turn:
                at, result = self._clock(), self._result
                if result is None or (at - result.at).total_seconds() >= CACHE_SECONDS:
                    since = at - timedelta(hours=RECENT_HOURS)
                    result = self._result = await reconcile_stripe(
                        self._database,
                        self._stripe,
                        self._meter,
                        since,
                        at,
                        customers_max=RECENT_CUSTOMERS_MAX,
                    )
                return result
        except TimeoutError as error:
            raise StripeUnavailable("Stripe could not be read in time") from error
        except StripeFailed as failure:
            log.warning("reconciliation.failed", error=str(failure))
            if failure.kind is FailureKind.UNCERTAIN:
                raise StripeUnavailable("Stripe could not be read") from failure
            raise StripeRefused("Stripe refused to be read; the log says why") from failure


async def _read_sums(
    stripe: MeterReader,
    meter_id: str,
    customer_ids: Sequence[str],
    since: datetime,
    until: datetime,
) -> dict[str, dict[datetime, int] | None]:
    """What Stripe has by customer and hour, in nano-dollars."""
    turns = asyncio.Semaphore(AT_ONCE_MAX)

    async def read(customer_id: str) -> dict[datetime, int] | None:
        async with turns:
            sums = await stripe.sum_hours(meter_id, customer_id, since, until)
        if sums is None:
            return None
        return {hour: parse_value(value) for hour, value in sums.items() if value}

    try:
        async with asyncio.TaskGroup() as group:
            tasks = {item: group.create_task(read(item)) for item in customer_ids}
    except* StripeFailed as failures:
        raise failures.exceptions[0] from None
    return {customer_id: task.result() for customer_id, task in tasks.items()}


async def _read_amounts(
    database: Database, connections: Sequence[Customer], since: datetime, until: datetime
) -> Amounts:
    """Rows, rollups and events of connections by customer and hour, each part in a snapshot."""
    owners = {customer.id: customer.stripe_customer_id for customer in connections}
    amounts: Amounts = {}
    for start, end in list_parts(since, until, len(connections)):
        async with database.read_session() as session:
            rollups = await read_usage(session, connections, start, end)
            rows = await read_usage(session, connections, start, end, from_rows=True)
            events = await _read_events(session, list(owners), start, end)
        for (connection_id, hour), usage in rollups.items():
            entry = amounts.setdefault((owners[connection_id], hour), HourAmounts())
            entry.rollups = _add(entry.rollups, usage)
        for (connection_id, hour), usage in rows.items():
            entry = amounts.setdefault((owners[connection_id], hour), HourAmounts())
            entry.rows = _add(entry.rows, usage)
        for event in events:
            key = owners[event.customer_id], event.hour
            amounts.setdefault(key, HourAmounts()).events.append(event)
    return amounts


def _add(first: HourUsage, second: HourUsage) -> HourUsage:
    return HourUsage(first.nano_usd + second.nano_usd, first.unpriced + second.unpriced)


async def _read_events(
    session: ReadSession, connection_ids: list[str], since: datetime, until: datetime
) -> list[MeterEvent]:
    """The events of hours, without those that another one has replaced."""
    columns = billing_events.c
    query = (
        sa.select(billing_events)
        .where(columns.hour >= since, columns.hour < until)
        .where(is_listed(columns.customer_id, connection_ids))
        .where(columns.state != EventState.REPLACED)
        .order_by(columns.id)
    )
    rows = (await session.execute(query)).mappings()
    return [convert_row(row, MeterEvent) for row in rows]


def _compare(
    report: BillingReconciliation,
    amounts: Amounts,
    sums: Mapping[str, Mapping[datetime, int] | None],
    totals: Counter[str],
    at: datetime,
) -> None:
    """Add the differences of some customers to a report."""
    keys = {(customer_id, hour) for customer_id, hours in sums.items() for hour in hours or ()}
    for customer_id, hour in sorted(keys | amounts.keys()):
        entry = amounts.get((customer_id, hour), HourAmounts())
        of_customer = sums[customer_id]
        total = None if of_customer is None else of_customer.get(hour, 0)
        report.hours += 1
        report.unpriced += entry.rows.unpriced
        totals["usage"] += entry.rows.nano_usd
        totals["stripe"] += total or 0
        for cause, nano_usd, detail in compare_hour(entry, total, at):
            is_open = cause is Cause.OPEN and (at - hour - HOUR).total_seconds() < OPEN_SECONDS
            report.add(
                BillingDifference(
                    stripe_customer_id=customer_id,
                    hour=hour,
                    cause=cause,
                    usd=format_usd(nano_usd),
                    is_explained=cause in _EXPLAINED or is_open,
                    detail=detail,
                )
            )


def compare_hour(
    amounts: HourAmounts, total: int | None, at: datetime
) -> Iterator[tuple[Cause, int, str]]:
    """The differences of an hour: cause, what is missing in nano-dollars, and words.

    `total`: what Stripe has; None: it has no such customer.
    """
    rows, rollups = amounts.rows, amounts.rollups
    if rows != rollups:
        detail = (
            f"rows ${format_usd(rows.nano_usd)} and {rows.unpriced} of unknown cost, rollups"
            f" ${format_usd(rollups.nano_usd)} and {rollups.unpriced}: kotae audit --rebuild"
        )
        yield Cause.ROLLUPS, rows.nano_usd - rollups.nano_usd, detail
    planned = sum(event.value_nano_usd for event in amounts.events)
    if missing := rollups.nano_usd - planned:
        detail = "no meter event; a running service creates it within an hour"
        yield Cause.OPEN, missing, detail
    if total is None:
        if planned:
            yield Cause.NO_CUSTOMER, planned, "Stripe has no customer with this id"
        return
    delivered = [event for event in amounts.events if event.state is EventState.DELIVERED]
    others = [event for event in amounts.events if event.state is not EventState.DELIVERED]
    surplus = total - sum(event.value_nano_usd for event in delivered)
    deviations = find_deviations(delivered, others, surplus)
    for event in others:
        is_present = event in (deviations or ())
        if event.state is not EventState.BILLED or not is_present:
            yield _describe_event(event, is_present=is_present)
    if deviations is None:
        detail = f"Stripe has ${format_usd(total)}, and no combination of events has this sum"
        yield Cause.EXCESS, -surplus, detail
        return
    for event in delivered:
        if event in deviations:
            yield _describe_lacking(event, at)


def find_deviations(
    delivered: Sequence[MeterEvent], others: Sequence[MeterEvent], surplus: int
) -> Collection[MeterEvent] | None:
    """The fewest events that explain what Stripe has beyond the delivered ones; None: none do.

    Delivered events may be lacking there, and others may have arrived. At most `_COMBINATIONS_MAX`
    combinations are tried.
    """
    effects = [(event, -event.value_nano_usd) for event in delivered]
    effects += [(event, event.value_nano_usd) for event in others]
    tried = chain.from_iterable(combinations(effects, size) for size in range(len(effects) + 1))
    for combination in islice(tried, _COMBINATIONS_MAX):
        if sum(effect for _, effect in combination) == surplus:
            return [event for event, _ in combination]
    return None


def _describe_event(event: MeterEvent, *, is_present: bool) -> tuple[Cause, int, str]:
    cause, detail = {
        EventState.PENDING: (Cause.PENDING, event.error or "to be sent"),
        EventState.REVIEW: (Cause.REVIEW, event.error or "waits for a decision"),
        EventState.BILLED: (Cause.DECIDED, "by a decision, not to be billed"),
    }[event.state]
    if is_present:
        return cause, 0, f"event {event.id}: {detail}; Stripe has it"
    return cause, event.value_nano_usd, f"event {event.id}: {detail}"


def _describe_lacking(event: MeterEvent, at: datetime) -> tuple[Cause, int, str]:
    late = timedelta(seconds=LATE_SECONDS)
    if event.ended_at is not None and at - event.ended_at < late:
        detail = "delivered within the last hour; Stripe adds it up later"
        return Cause.RECENT, event.value_nano_usd, f"event {event.id}: {detail}"
    detail = "delivered, but Stripe has not added it up; see its error reports"
    return Cause.LACKING, event.value_nano_usd, f"event {event.id}: {detail}"
