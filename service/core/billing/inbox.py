"""The inbox of events from Stripe, which arrive at least once and in any order.

An event is stored before it is confirmed, under its id, so that a repeated one changes nothing. It
is processed later, by one process. Of its content only type and object are used: what is current
is fetched then. So thin notifications and complete events ("snapshots") are processed alike.

An error report names meter events that Stripe accepted and could not use later; they go to review.
Reports name a limited number of events: what is not named is logged with its count. Events about
payments are in `core.billing.crediting`.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.audit_log import Action, record_action
from service.core.auth.principals import Principal
from service.core.billing.meter_events import EVENTS_PAGE_MAX, review_events
from service.core.database.engine import Database, ReadSession, Session
from service.core.database.outboxes import count_rows, describe_failure, retry_row, select_due
from service.core.database.tables import billing_inbox
from service.core.database.upserts import insert_new
from service.core.encoding import convert_row
from service.core.errors import InvalidRequest, NotFound

ERROR_REPORTS = frozenset(
    {"v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"}
)
KEPT_DAYS = 30  # processed events; Stripe repeats one for up to three days
ID_CHARACTERS_MAX = 255


class InboxState(StrEnum):
    """What became of an event of Stripe."""

    PENDING = "pending"
    PROCESSED = "processed"
    FAILED = "failed"  # given up


class ReceivedEvent(msgspec.Struct, frozen=True):
    """The fields of an event that are needed; others are ignored.

    `object_id`: of the object that the event is about, if it names one.
    """

    id: str
    type: str
    object_id: str | None = None


class _ObjectReference(msgspec.Struct):
    id: str | None = None


class _Snapshot(msgspec.Struct):
    object: _ObjectReference | None = None


class _EventBody(msgspec.Struct):
    """An event as Stripe sends it: thin with `related_object`, a snapshot with `data`."""

    id: str
    type: str
    related_object: _ObjectReference | None = None
    data: _Snapshot | None = None


class InboxEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A row."""

    id: str
    type: str
    object_id: str | None = None
    received_at: datetime
    state: InboxState
    attempts: int = 0
    next_at: datetime | None = None
    error: str | None = None


class ReportedErrors(msgspec.Struct, frozen=True):
    """What an error report says. `unnamed`: failed events that it does not name."""

    identifiers: list[str]
    detail: str
    unnamed: int


def parse_event(payload: bytes) -> ReceivedEvent:
    """An event from its raw body. Raises `InvalidRequest`."""
    try:
        body = msgspec.json.decode(payload, type=_EventBody)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest("the body is not an event of Stripe") from error
    reference = body.related_object or (body.data and body.data.object)
    event = ReceivedEvent(body.id, body.type, reference.id if reference else None)
    if not all(map(_is_id, (event.id, event.object_id or "x"))):
        raise InvalidRequest("the body is not an event of Stripe")
    return event


def _is_id(text: str) -> bool:
    return 0 < len(text) <= ID_CHARACTERS_MAX and text.isascii() and text.isprintable()


async def store_event(database: Database, event: ReceivedEvent, at: datetime) -> bool:
    """Store an event; return whether it is new. Raises `DatabaseUnavailable`."""
    row = InboxEvent(
        id=event.id,
        type=event.type,
        object_id=event.object_id,
        received_at=at,
        state=InboxState.PENDING,
        next_at=at,
    )
    async with database.transaction() as session:
        return bool(await insert_new(session, billing_inbox, [msgspec.structs.asdict(row)]))


async def list_due(session: ReadSession, at: datetime, count_max: int) -> list[InboxEvent]:
    """The events to be processed, the longest due first."""
    query = select_due(billing_inbox, at, count_max)
    rows = (await session.execute(query)).mappings()
    return [_read_row(row) for row in rows]


async def process_errors(
    database: Database, event: InboxEvent, errors: ReportedErrors, at: datetime
) -> list[str]:
    """Move the reported events to review and end the event, in one transaction.

    Returns the identifiers that were moved. Raises `DatabaseUnavailable`.
    """
    async with database.transaction() as session:
        moved = await review_events(session, errors.identifiers, errors.detail, at)
        await end_event(session, event, at)
    return moved


async def end_event(session: Session, event: InboxEvent, at: datetime) -> None:
    """End an event that is processed in this transaction, and remove old ones."""
    columns = billing_inbox.c
    await session.execute(
        sa.update(billing_inbox)
        .where(columns.id == event.id)
        .values(state=InboxState.PROCESSED, next_at=None, error=None)
    )
    await session.execute(
        sa.delete(billing_inbox).where(
            columns.state == InboxState.PROCESSED,
            columns.received_at < at - timedelta(days=KEPT_DAYS),
        )
    )


async def delay_event(
    database: Database, event: InboxEvent, error: str, at: datetime, *, is_final: bool = False
) -> bool:
    """Process an event later, or give it up; return whether it is given up.

    `is_final`: another attempt would fail as well. Raises `DatabaseUnavailable`.
    """
    values = describe_failure(event.attempts + 1, error, at, is_final=is_final)
    async with database.transaction() as session:
        await session.execute(
            sa.update(billing_inbox).where(billing_inbox.c.id == event.id).values(values)
        )
    return bool(values["state"] == InboxState.FAILED)


async def list_received(
    session: ReadSession, *, state: InboxState | None = None
) -> list[InboxEvent]:
    """Events, the latest first, at most `EVENTS_PAGE_MAX`; optionally in a state."""
    columns = billing_inbox.c
    query = (
        sa.select(billing_inbox)
        .order_by(columns.received_at.desc(), columns.id)
        .limit(EVENTS_PAGE_MAX)
    )
    if state is not None:
        query = query.where(columns.state == state)
    return [_read_row(row) for row in (await session.execute(query)).mappings()]


async def retry_event(database: Database, by: Principal, event_id: str, at: datetime) -> InboxEvent:
    """Process a failed or pending event now, counting its attempts anew.

    Raises `NotFound` for others, and `DatabaseUnavailable`.
    """
    async with database.transaction() as session:
        row = await retry_row(session, billing_inbox, event_id, at)
        if row is None:
            raise NotFound("no event with this id is to be processed")
        event = _read_row(row)
        detail = {"type": event.type}
        await record_action(
            session, by.actor, Action.STRIPE_EVENT_RETRIED, target_id=event_id, detail=detail
        )
    return event


def _read_row(row: Mapping[Any, Any]) -> InboxEvent:
    return convert_row(row, InboxEvent)


async def count_failed(session: ReadSession) -> int:
    """The number of events that were given up."""
    return (await count_rows(session, billing_inbox, [InboxState.FAILED]))[InboxState.FAILED]


def read_errors(event: Mapping[str, Any]) -> ReportedErrors:
    """The meter events that a complete error report names. Absent parts are empty."""
    reason = (event.get("data") or {}).get("reason") or {}
    samples = list(_list_samples(reason))
    identifiers = [identifier for identifier, _ in samples if identifier]
    count = reason.get("error_count")
    detail = next((message for _, message in samples if message), "reported as an error by Stripe")
    unnamed = max(0, count - len(identifiers)) if isinstance(count, int) else 0
    return ReportedErrors(identifiers, detail, unnamed)


def _list_samples(reason: Mapping[str, Any]) -> Iterator[tuple[str | None, str | None]]:
    """Identifier and message of each error that a report describes."""
    for error_type in reason.get("error_types") or []:
        for sample in error_type.get("sample_errors") or []:
            request = sample.get("request") or {}
            yield request.get("identifier"), sample.get("error_message")
