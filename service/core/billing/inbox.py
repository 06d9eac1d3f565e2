"""The inbox of events from Stripe, which arrive at least once and in any order.

An event is stored before it is confirmed, under its id, so that a repeated one changes nothing. It
is processed later, by one process. Its notification is thin: the complete event is fetched then.
An error report names meter events that Stripe accepted and could not use later; they go to review.
Reports name a limited number of events: what is not named is logged with its count.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.billing.meter_events import review_events
from service.core.database.engine import Database, ReadSession
from service.core.database.outboxes import count_rows, describe_failure, select_due
from service.core.database.tables import billing_inbox
from service.core.database.upserts import insert_new
from service.core.errors import InvalidRequest

ERROR_REPORTS = frozenset(
    {"v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"}
)
KEPT_DAYS = 30  # processed events; Stripe repeats one for up to three days


class InboxState(StrEnum):
    """What became of an event of Stripe."""

    PENDING = "pending"
    PROCESSED = "processed"
    FAILED = "failed"  # given up


class ReceivedEvent(msgspec.Struct, frozen=True):
    """The fields of an event that are needed; others are ignored."""

    id: str
    type: str


class InboxEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A row."""

    id: str
    type: str
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
        event = msgspec.json.decode(payload, type=ReceivedEvent)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest("the body is not an event of Stripe") from error
    if not (0 < len(event.id) <= 255 and event.id.isascii() and event.id.isprintable()):
        raise InvalidRequest("the body is not an event of Stripe")
    return event


async def store_event(database: Database, event: ReceivedEvent, at: datetime) -> bool:
    """Store an event; return whether it is new. Raises `DatabaseUnavailable`."""
    row = InboxEvent(
        id=event.id, type=event.type, received_at=at, state=InboxState.PENDING, next_at=at
    )
    async with database.transaction() as session:
        return bool(await insert_new(session, billing_inbox, [msgspec.structs.asdict(row)]))


async def list_due(session: ReadSession, at: datetime, count_max: int) -> list[InboxEvent]:
    """The events to be processed, the longest due first."""
    query = select_due(billing_inbox, at, count_max)
    rows = (await session.execute(query)).mappings()
    return [msgspec.convert({str(k): v for k, v in row.items()}, InboxEvent) for row in rows]


async def process_errors(
    database: Database, event: InboxEvent, errors: ReportedErrors, at: datetime
) -> list[str]:
    """Move the reported events to review and end the event, in one transaction.

    Returns the identifiers that were moved. Raises `DatabaseUnavailable`.
    """
    columns = billing_inbox.c
    async with database.transaction() as session:
        moved = await review_events(session, errors.identifiers, errors.detail, at)
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
    return moved


async def delay_event(database: Database, event: InboxEvent, error: str, at: datetime) -> None:
    """Process an event later, or give it up. Raises `DatabaseUnavailable`."""
    values = describe_failure(event.attempts + 1, error, at)
    async with database.transaction() as session:
        await session.execute(
            sa.update(billing_inbox).where(billing_inbox.c.id == event.id).values(values)
        )


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
