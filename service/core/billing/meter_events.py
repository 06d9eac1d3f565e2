"""Meter events: the usage of a customer in an hour as differences, and their outbox.

An event is derived from the rollups, which are committed with the rows: its value is the known cost
of the hour minus the values of the earlier events of the hour, so it may be negative. It is stored
before its first attempt and never changes. Its identifier is customer, hour and number; the unique
key makes evaluations idempotent, also two at once: both would add the same number. Usage that
becomes known later is the next number.

    pending ──► delivered            Stripe has accepted it, or knows its identifier
        └─────► review               it is not sent again without a decision
    review ───► billed | replaced    decided: nothing is sent | sent under a new identifier

Stripe remembers an identifier for 24 hours. A repetition after that would be billed again, so an
event whose first attempt has an unknown result is not sent after `REPEAT_SECONDS`. Stripe refuses
events that are older than 35 days (`AGE_SECONDS`). Both go to review, as do events that Stripe
rejects, at once or later in an error report.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.billing.customers import count_connections, list_connections
from service.core.billing.usage import (
    HOUR,
    NOTHING,
    CustomerHour,
    HourUsage,
    find_hour,
    list_parts,
    read_usage,
)
from service.core.database.constructs import is_listed, sum_exactly
from service.core.database.engine import Database, ReadSession, Session
from service.core.database.outboxes import ERROR_CHARACTERS_MAX, count_rows, select_due
from service.core.database.tables import billing_customers, billing_events
from service.core.database.upserts import insert_new
from service.core.pricing import format_usd

DUE_SECONDS = 900  # after the end of an hour: most answers that began in it have ended
REPEAT_SECONDS = 23 * 3600.0  # an hour less than Stripe remembers identifiers
AGE_SECONDS = (35 * 24 - 1) * 3600.0  # an hour less than Stripe accepts
EVENTS_PAGE_MAX = 200
_INSERTED_MAX = 50  # rows of a statement: building a larger one would block the event loop
_NANO_PER_UNIT = 1000  # the unit of the meter is a millionth of a dollar


class EventState(StrEnum):
    """What became of an event."""

    PENDING = "pending"  # to be sent
    DELIVERED = "delivered"  # accepted by Stripe
    REVIEW = "review"  # an admin must decide
    BILLED = "billed"  # decided: Stripe has it, or it is not to be billed
    REPLACED = "replaced"  # decided: another event has its value


class MeterEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A row. `id`: the identifier. `first_attempt_at`: of the first one with an unknown result."""

    id: str
    customer_id: str
    hour: datetime
    number: int
    value_nano_usd: int
    created_at: datetime
    state: EventState
    attempts: int = 0
    first_attempt_at: datetime | None = None
    next_at: datetime | None = None
    ended_at: datetime | None = None
    error: str | None = None


class EventObject(msgspec.Struct, frozen=True, kw_only=True):
    """An event in the API. `usd`: its value."""

    id: str
    user_id: str
    stripe_customer_id: str
    hour: datetime
    number: int
    usd: str
    state: str
    created_at: datetime
    attempts: int
    next_at: datetime | None
    ended_at: datetime | None
    error: str | None


class DueEvent(msgspec.Struct, frozen=True):
    """An event to be sent, and to which customer at Stripe."""

    event: MeterEvent
    stripe_customer_id: str


def format_identifier(customer_id: str, hour: datetime, number: int) -> str:
    """The identifier of an event: at most 100 characters, of which Stripe permits so many."""
    return f"{customer_id}-{hour:%Y%m%d%H}-{number}"


def format_value(nano_usd: int) -> str:
    """The value of an event: millionths of a dollar, as a decimal with up to three digits.

    Stripe accepts twelve. Nano-dollars would need large integers, dollars more digits.
    """
    units, rest = divmod(abs(nano_usd), _NANO_PER_UNIT)
    text = f"{units}.{rest:03d}".rstrip("0").rstrip(".") if rest else str(units)
    return f"-{text}" if nano_usd < 0 else text


def parse_value(value: Decimal) -> int:
    """The nano-dollars of a value of the meter."""
    return round(value * _NANO_PER_UNIT)


def compute_timestamp(event: MeterEvent) -> int:
    """The time of the usage, in seconds: the last one of its hour."""
    return int((event.hour + HOUR).timestamp()) - 1


def find_obstacle(event: MeterEvent, at: datetime) -> str | None:
    """Why an event must not be sent at a time; None: it may."""
    first = event.first_attempt_at
    if first is not None and (at - first).total_seconds() >= REPEAT_SECONDS:
        return "no confirmed delivery within the time in which Stripe recognizes a repetition"
    if (at - event.hour).total_seconds() >= AGE_SECONDS:
        return "older than 35 days, which Stripe does not accept"
    return None


def find_due_end(at: datetime) -> datetime:
    """The end of the last hour that is due at a time."""
    return find_hour(at - timedelta(seconds=DUE_SECONDS))


async def create_missing_events(
    database: Database, since: datetime, at: datetime
) -> list[MeterEvent]:
    """See `create_events`, for all hours since a time. Raises `DatabaseUnavailable`."""
    async with database.read_session() as session:
        count = await count_connections(session)
    if not count:
        return []
    events: list[MeterEvent] = []
    for start, end in list_parts(find_hour(since), find_due_end(at), count):
        events += await create_events(database, start, end, at)
    return events


async def create_events(
    database: Database, since: datetime, until: datetime, at: datetime
) -> list[MeterEvent]:
    """Create the events that the hours of an interval lack, and return the new ones. Idempotent.

    Hours that are not due yet are left out. Raises `DatabaseUnavailable`.
    """
    since, until = find_hour(since), min(find_hour(until), find_due_end(at))
    async with database.read_session() as session:
        customers = await list_connections(session, since, until)
        if not customers:
            return []
        usage = await read_usage(session, customers, since, until)
        sums = await _read_sums(session, [customer.id for customer in customers], since, until)
    events = list(derive_events(usage, sums, at))
    if not events:
        return []
    async with database.transaction() as session:
        new: set[str] = set()
        for start in range(0, len(events), _INSERTED_MAX):
            rows = map(msgspec.structs.asdict, events[start : start + _INSERTED_MAX])
            new |= await insert_new(session, billing_events, list(rows))
    return [event for event in events if event.id in new]


EventSums = Mapping[CustomerHour, tuple[int, int]]
"""The highest number and the sum of the values, by customer and hour."""


async def _read_sums(
    session: ReadSession, customer_ids: list[str], since: datetime, until: datetime
) -> EventSums:
    columns = billing_events.c
    value = sa.case((columns.state == EventState.REPLACED, 0), else_=columns.value_nano_usd)
    query = (
        sa.select(
            columns.customer_id, columns.hour, sa.func.max(columns.number), sum_exactly(value)
        )
        .where(
            columns.hour >= since,
            columns.hour < until,
            is_listed(columns.customer_id, customer_ids),
        )
        .group_by(columns.customer_id, columns.hour)
    )
    return {
        (customer_id, hour): (number, total)
        for customer_id, hour, number, total in await session.execute(query)
    }


def derive_events(
    usage: Mapping[CustomerHour, HourUsage], sums: EventSums, at: datetime
) -> Iterable[MeterEvent]:
    """The differences between the usage and the events of each hour."""
    for key in sorted(usage.keys() | sums.keys()):
        number, total = sums.get(key, (0, 0))
        difference = usage.get(key, NOTHING).nano_usd - total
        if difference:
            yield build_event(*key, number + 1, difference, at)


def build_event(
    customer_id: str, hour: datetime, number: int, value_nano_usd: int, at: datetime
) -> MeterEvent:
    """A new event: to be sent now, or to be reviewed if it is too old."""
    event = MeterEvent(
        id=format_identifier(customer_id, hour, number),
        customer_id=customer_id,
        hour=hour,
        number=number,
        value_nano_usd=value_nano_usd,
        created_at=at,
        state=EventState.PENDING,
        next_at=at,
    )
    obstacle = find_obstacle(event, at)
    if obstacle is None:
        return event
    return msgspec.structs.replace(event, state=EventState.REVIEW, next_at=None, error=obstacle)


async def list_due(session: ReadSession, at: datetime, count_max: int) -> list[DueEvent]:
    """The events whose next attempt is due, the longest due first."""
    query = (
        select_due(billing_events, at, count_max)
        .add_columns(billing_customers.c.stripe_customer_id)
        .join(billing_customers, billing_customers.c.id == billing_events.c.customer_id)
    )
    return [
        DueEvent(_read_event(row), row["stripe_customer_id"])
        for row in (await session.execute(query)).mappings()
    ]


async def begin_attempts(
    database: Database, event_ids: Collection[str], at: datetime
) -> list[MeterEvent]:
    """Record that events are about to be sent, and return them. Raises `DatabaseUnavailable`.

    Committed before anything is sent: after a crash the time of the first attempt is known.
    """
    columns = billing_events.c
    async with database.transaction() as session:
        begun = await session.execute(
            sa.update(billing_events)
            .where(is_listed(columns.id, list(event_ids)), columns.state == EventState.PENDING)
            .values(
                attempts=columns.attempts + 1,
                first_attempt_at=sa.func.coalesce(
                    columns.first_attempt_at, sa.literal(at, columns.first_attempt_at.type)
                ),
            )
            .returning(*columns)
        )
        return [_read_event(row) for row in begun.mappings()]


async def record_attempt(
    database: Database,
    event: MeterEvent,
    state: EventState,
    at: datetime,
    *,
    next_at: datetime | None = None,
    error: str | None = None,
    forget: bool = False,
) -> None:
    """Record the result of an attempt, or why there is none. Raises `DatabaseUnavailable`.

    `forget`: it was the first one, and Stripe has certainly not processed it, so the next one is
    the first again.
    """
    values: dict[str, Any] = {
        "state": state,
        "next_at": next_at if state is EventState.PENDING else None,
        "ended_at": None if state is EventState.PENDING else at,
        "error": error[:ERROR_CHARACTERS_MAX] if error else None,
    }
    if forget:
        values["first_attempt_at"] = None
    is_pending = billing_events.c.state == EventState.PENDING
    async with database.transaction() as session:
        await session.execute(
            sa.update(billing_events)
            .where(billing_events.c.id == event.id, is_pending)
            .values(values)
        )


async def review_events(
    session: Session, identifiers: Collection[str], error: str, at: datetime
) -> list[str]:
    """Move events that Stripe has reported as failed to review; return those that were moved."""
    columns = billing_events.c
    is_open = columns.state.in_([EventState.PENDING, EventState.DELIVERED])
    moved = await session.execute(
        sa.update(billing_events)
        .where(is_listed(columns.id, list(identifiers)), is_open)
        .values(
            state=EventState.REVIEW, next_at=None, ended_at=at, error=error[:ERROR_CHARACTERS_MAX]
        )
        .returning(columns.id)
    )
    return sorted(moved.scalars())


async def count_states(session: ReadSession) -> dict[EventState, int]:
    """The number of events that wait to be sent, and of those to be reviewed."""
    states = (EventState.PENDING, EventState.REVIEW)
    counts = await count_rows(session, billing_events, states)
    return {state: counts[state] for state in states}


async def list_events(
    session: ReadSession,
    *,
    state: EventState | None = None,
    user_id: str | None = None,
    event_id: str | None = None,
) -> list[EventObject]:
    """Events, the latest hours first, at most `EVENTS_PAGE_MAX`; optionally of a state or user."""
    columns, customers = billing_events.c, billing_customers.c
    query = (
        sa.select(billing_events, customers.user_id, customers.stripe_customer_id)
        .join(billing_customers, customers.id == columns.customer_id)
        .order_by(columns.hour.desc(), columns.id.desc())
        .limit(EVENTS_PAGE_MAX)
    )
    for column, value in (
        (columns.state, state),
        (customers.user_id, user_id),
        (columns.id, event_id),
    ):
        if value is not None:
            query = query.where(column == value)
    rows = (await session.execute(query)).mappings()
    return [_describe(row) for row in rows]


def _describe(row: Mapping[Any, Any]) -> EventObject:
    values = {name: row[name] for name in EventObject.__struct_fields__ if name != "usd"}
    return EventObject(**values, usd=format_usd(row["value_nano_usd"]))


def _read_event(row: Mapping[Any, Any]) -> MeterEvent:
    return msgspec.convert({name: row[name] for name in MeterEvent.__struct_fields__}, MeterEvent)
