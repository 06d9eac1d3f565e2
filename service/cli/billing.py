"""`kotae billing`: customers at Stripe, and their meter events."""

import re
import sys
from typing import Annotated

import typer

from service.cli.database import run_on_database
from service.cli.output import Json, format_dollars, format_time, print_json, print_table
from service.core.auth.principals import COMMAND_LINE
from service.core.billing import customers, inbox, meter_events, restoring, review
from service.core.billing.customers import STRIPE_ID_PATTERN, Customer
from service.core.billing.inbox import InboxEvent, InboxState
from service.core.billing.meter_events import EventObject, EventState
from service.core.billing.review import BillingStatus, Decision
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.settings import load_settings

billing = typer.Typer(
    help="Billing: wallets, customers at Stripe and their meter events.", no_args_is_help=True
)
_AMOUNTS = ("USAGE", "DELIVERED", "BILLED", "PENDING", "REVIEW", "OPEN")


@billing.command("status")
def show_status(as_json: Json = False) -> None:
    """Compare the usage of the last 31 days with the meter events."""

    async def read(database: Database) -> BillingStatus:
        async with database.read_session() as session:
            return await review.read_status(session, utc_now())

    status = run_on_database(load_settings(), read)
    if as_json:
        print_json(status.customers)
        return
    print_table(
        ("USER", "CUSTOMER", *_AMOUNTS, "UNPRICED"),
        (
            (
                customer.user_id,
                customer.stripe_customer_id,
                *(f"${getattr(customer, f'{name.lower()}_usd')}" for name in _AMOUNTS),
                customer.unpriced,
            )
            for customer in status.customers
        ),
        right=(*_AMOUNTS, "UNPRICED"),
        empty="no customers yet: kotae billing connect USER_ID CUSTOMER_ID",
    )
    if status.failed_webhooks:
        print(
            f"{status.failed_webhooks} events of Stripe could not be processed:"
            " kotae billing inbox --state failed",
            file=sys.stderr,
        )


@billing.command("events")
def list_events(
    state: Annotated[EventState | None, typer.Option(help="Only those in this state.")] = None,
    user: Annotated[str | None, typer.Option(help="Only those of this user.")] = None,
    as_json: Json = False,
) -> None:
    """List the meter events of the latest hours."""
    _print_events(_read_events(state, user), as_json=as_json, empty="no meter events")


@billing.command("review")
def list_review(as_json: Json = False) -> None:
    """List the meter events that wait for a decision."""
    listed = _read_events(EventState.REVIEW, None)
    _print_events(listed, as_json=as_json, empty="nothing to review")


@billing.command("resolve")
def resolve_event(
    event_id: str,
    decision: Annotated[
        Decision,
        typer.Option(
            "--as",
            help="billed: Stripe has it, or it is not to be billed. send: Stripe does not have it.",
        ),
    ],
) -> None:
    """Decide about a meter event in review."""
    event = run_on_database(
        load_settings(),
        lambda database: review.resolve_event(
            database, COMMAND_LINE, event_id, decision, utc_now()
        ),
    )
    print(f"{event.state}: {event.id}")


@billing.command("inbox")
def list_inbox(
    state: Annotated[InboxState | None, typer.Option(help="Only those in this state.")] = None,
    as_json: Json = False,
) -> None:
    """List the events that Stripe has sent."""

    async def read(database: Database) -> list[InboxEvent]:
        async with database.read_session() as session:
            return await inbox.list_received(session, state=state)

    listed = run_on_database(load_settings(), read)
    if as_json:
        print_json(listed)
        return
    print_table(
        ("EVENT", "TYPE", "RECEIVED", "STATE", "ATTEMPTS", "ERROR"),
        (
            (
                event.id,
                event.type,
                format_time(event.received_at),
                event.state,
                event.attempts,
                event.error,
            )
            for event in listed
        ),
        right=("ATTEMPTS",),
        empty="no events of Stripe",
    )


@billing.command("retry")
def retry_event(event_id: str) -> None:
    """Process an event of Stripe again that could not be processed."""
    run_on_database(
        load_settings(),
        lambda database: inbox.retry_event(database, COMMAND_LINE, event_id, utc_now()),
    )
    print(f"pending: {event_id}")


@billing.command("customers")
def list_customers(as_json: Json = False) -> None:
    """List the users who are billed."""

    async def read(database: Database) -> list[Customer]:
        async with database.read_session() as session:
            return await customers.list_customers(session)

    listed = run_on_database(load_settings(), read)
    if as_json:
        print_json(listed)
        return
    print_table(
        ("USER", "CUSTOMER", "SINCE"),
        (
            (customer.user_id, customer.stripe_customer_id, format_time(customer.started_at))
            for customer in listed
        ),
        empty="no customers yet: kotae billing connect USER_ID CUSTOMER_ID",
    )


@billing.command("connect")
def connect_customer(user_id: str, customer_id: str) -> None:
    """Bill a user as a customer at Stripe (`cus_…`) from now on."""
    if not re.fullmatch(STRIPE_ID_PATTERN, customer_id):
        raise typer.BadParameter(f"{customer_id!r} is not the id of a customer, such as cus_Nffr")
    run_on_database(
        load_settings(),
        lambda database: customers.connect_customer(database, COMMAND_LINE, user_id, customer_id),
    )
    print(f"connected: {user_id}")


@billing.command("disconnect")
def disconnect_customer(user_id: str) -> None:
    """Bill nothing from now on; usage until now still is."""
    run_on_database(
        load_settings(),
        lambda database: customers.disconnect_customer(database, COMMAND_LINE, user_id),
    )
    print(f"disconnected: {user_id}")


@billing.command("restored")
def mark_restored() -> None:
    """Prevent that events are billed again after PostgreSQL was restored, before a start."""
    count = run_on_database(
        load_settings(), lambda database: restoring.mark_restored(database, utc_now())
    )
    print(f"marked: {count}")


def _read_events(state: EventState | None, user_id: str | None) -> list[EventObject]:
    async def read(database: Database) -> list[EventObject]:
        async with database.read_session() as session:
            return await meter_events.list_events(session, state=state, user_id=user_id)

    return run_on_database(load_settings(), read)


def _print_events(listed: list[EventObject], *, as_json: bool, empty: str) -> None:
    if as_json:
        print_json(listed)
        return
    print_table(
        ("EVENT", "HOUR", "USER", "CUSTOMER", "VALUE", "STATE", "ATTEMPTS", "ERROR"),
        (
            (
                event.id,
                format_time(event.hour),
                event.user_id,
                event.stripe_customer_id,
                format_dollars(event.usd),
                event.state,
                event.attempts,
                event.error,
            )
            for event in listed
        ),
        right=("VALUE", "ATTEMPTS"),
        empty=empty,
    )
