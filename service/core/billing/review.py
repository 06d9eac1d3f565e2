"""Decisions about meter events that are not sent again by themselves, and the state of billing."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.audit_log import Action, record_action
from service.core.auth.principals import Principal
from service.core.billing import inbox
from service.core.billing.customers import list_connections
from service.core.billing.meter_events import (
    EventObject,
    EventState,
    build_event,
    find_due_end,
    list_events,
)
from service.core.billing.usage import NOTHING, HourUsage, find_hour, list_parts, read_usage
from service.core.database.constructs import is_listed, sum_exactly
from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import billing_events
from service.core.errors import InvalidRequest, NotFound
from service.core.pricing import format_usd

STATUS_DAYS = 31


class Decision(StrEnum):
    """What happens to an event in review."""

    BILLED = "billed"  # Stripe has it, or it is not to be billed
    SEND = "send"  # Stripe does not have it: it is sent under a new identifier


class CustomerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The usage of a customer in the due hours of the last `STATUS_DAYS` days.

    `usage_usd` is the known cost. It is the sum of `delivered_usd`, `billed_usd` (by decision),
    `pending_usd`, `review_usd` and `open_usd`, for which there is no event yet.
    """

    user_id: str
    stripe_customer_id: str
    usage_usd: str
    delivered_usd: str
    billed_usd: str
    pending_usd: str
    review_usd: str
    open_usd: str
    unpriced: int


class BillingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of billing. `failed_webhooks`: events of Stripe that could not be processed."""

    since: datetime
    until: datetime
    customers: list[CustomerStatus]
    failed_webhooks: int


async def resolve_event(
    database: Database, by: Principal, event_id: str, decision: Decision, at: datetime
) -> EventObject:
    """Decide about an event, and return it, or the one that replaces it.

    Raises `NotFound` unless it is in review, `InvalidRequest` if it is too old to be sent, and
    `DatabaseUnavailable`.
    """
    async with database.transaction() as session:
        columns = billing_events.c
        query = sa.select(billing_events).where(
            columns.id == event_id, columns.state == EventState.REVIEW
        )
        row = (await session.execute(query)).mappings().first()
        if row is None:
            raise NotFound("no event with this id is in review")
        state, kept_id = EventState.BILLED, event_id
        if decision is Decision.SEND:
            state, kept_id = EventState.REPLACED, await _replace_event(session, dict(row), at)
        await session.execute(
            sa.update(billing_events).where(columns.id == event_id).values(state=state)
        )
        (event,) = await list_events(session, event_id=kept_id)
        await record_action(
            session,
            by.actor,
            Action.METER_EVENT_RESOLVED,
            target_id=event_id,
            user_id=event.user_id,
            detail={"decision": decision.value, "usd": event.usd},
        )
    return event


async def _replace_event(session: Session, row: dict[str, Any], at: datetime) -> str:
    """Add an event with the value of another one, and return its identifier."""
    columns = billing_events.c
    query = sa.select(sa.func.max(columns.number)).where(
        columns.customer_id == row["customer_id"], columns.hour == row["hour"]
    )
    number = (await session.execute(query)).scalar_one() + 1
    event = build_event(row["customer_id"], row["hour"], number, row["value_nano_usd"], at)
    if event.state is not EventState.PENDING:
        raise InvalidRequest(f"this event cannot be sent: it is {event.error}")
    await session.execute(sa.insert(billing_events).values(msgspec.structs.asdict(event)))
    return event.id


async def read_status(session: ReadSession, at: datetime) -> BillingStatus:
    """Compare the usage of all customers with their events, in one snapshot."""
    until = find_due_end(at)
    since = find_hour(until - timedelta(days=STATUS_DAYS))
    connections = await list_connections(session, since, at)
    usage: dict[str, HourUsage] = {}
    for start, end in list_parts(since, until, len(connections)):
        part = await read_usage(session, connections, start, end)
        for (customer_id, _), item in part.items():
            total = usage.get(customer_id, NOTHING)
            usage[customer_id] = HourUsage(
                total.nano_usd + item.nano_usd, total.unpriced + item.unpriced
            )
    sums = await _sum_states(session, [customer.id for customer in connections], since, until)
    customers = []
    for customer in sorted(connections, key=lambda item: (item.user_id, item.id)):
        of_customer = usage.get(customer.id, NOTHING)
        by_state = {state: sums.get((customer.id, state), 0) for state in EventState}
        del by_state[EventState.REPLACED]
        customers.append(
            CustomerStatus(
                user_id=customer.user_id,
                stripe_customer_id=customer.stripe_customer_id,
                usage_usd=format_usd(of_customer.nano_usd),
                **{f"{state}_usd": format_usd(amount) for state, amount in by_state.items()},
                open_usd=format_usd(of_customer.nano_usd - sum(by_state.values())),
                unpriced=of_customer.unpriced,
            )
        )
    failed = await inbox.count_failed(session)
    return BillingStatus(since=since, until=until, customers=customers, failed_webhooks=failed)


async def _sum_states(
    session: ReadSession, customer_ids: list[str], since: datetime, until: datetime
) -> dict[tuple[str, str], int]:
    columns = billing_events.c
    query = (
        sa.select(columns.customer_id, columns.state, sum_exactly(columns.value_nano_usd))
        .where(
            columns.hour >= since,
            columns.hour < until,
            is_listed(columns.customer_id, customer_ids),
        )
        .group_by(columns.customer_id, columns.state)
    )
    return {
        (customer_id, state): total for customer_id, state, total in await session.execute(query)
    }
