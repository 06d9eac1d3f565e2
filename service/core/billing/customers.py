"""Customers: which user is billed as which customer at Stripe, and since when.

A row is a connection and is never changed, except for its end. Its id is part of the identifiers of
its meter events, so a user who is connected again never repeats an identifier. Usage before the
beginning and after the end of a connection is not billed.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.audit_log import Action, record_action
from service.core.auth.principals import Principal
from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import billing_customers
from service.core.encoding import convert_row, create_id, utc_now
from service.core.errors import CustomersFull, NotFound

CUSTOMERS_MAX = 10_000
STRIPE_ID_PATTERN = r"^cus_[A-Za-z0-9_]{1,200}$"


class Customer(msgspec.Struct, frozen=True, kw_only=True):
    """A connection. `ended_at` None: it is in force."""

    id: str
    user_id: str
    stripe_customer_id: str
    started_at: datetime
    ended_at: datetime | None = None


async def connect_customer(
    database: Database,
    by: Principal,
    user_id: str,
    stripe_customer_id: str,
    *,
    at: datetime | None = None,
    customers_max: int = CUSTOMERS_MAX,
) -> Customer:
    """Bill a user as a customer from now on, instead of the previous one. Idempotent.

    Raises `CustomersFull` and `DatabaseUnavailable`.
    """
    now = at or utc_now()
    async with database.transaction() as session:
        present = await _find_present(session, user_id)
        if present is not None and present.stripe_customer_id == stripe_customer_id:
            return present
        if present is None:
            query = sa.select(sa.func.count()).where(billing_customers.c.ended_at.is_(None))
            if (await session.execute(query)).scalar_one() >= customers_max:
                raise CustomersFull(f"there are {customers_max} customers, which is the maximum")
        else:
            await _end(session, present, now)
        customer = Customer(
            id=create_id(now),
            user_id=user_id,
            stripe_customer_id=stripe_customer_id,
            started_at=now,
        )
        values = msgspec.structs.asdict(customer)
        await session.execute(sa.insert(billing_customers).values(values))
        await record_action(
            session,
            by.actor,
            Action.CUSTOMER_CONNECTED,
            target_id=stripe_customer_id,
            user_id=user_id,
            detail={"previous": None if present is None else present.stripe_customer_id},
        )
    return customer


async def disconnect_customer(
    database: Database, by: Principal, user_id: str, *, at: datetime | None = None
) -> Customer:
    """Bill nothing from now on; usage until now still is. Raises `NotFound`."""
    now = at or utc_now()
    async with database.transaction() as session:
        present = await _find_present(session, user_id)
        if present is None:
            raise NotFound("this user is not connected to a customer")
        await _end(session, present, now)
        await record_action(
            session,
            by.actor,
            Action.CUSTOMER_DISCONNECTED,
            target_id=present.stripe_customer_id,
            user_id=user_id,
        )
    return msgspec.structs.replace(present, ended_at=now)


async def _end(session: Session, customer: Customer, at: datetime) -> None:
    is_row = billing_customers.c.id == customer.id
    await session.execute(
        sa.update(billing_customers).where(is_row).values(ended_at=max(at, customer.started_at))
    )


async def read_customer(session: ReadSession, user_id: str) -> Customer:
    """The connection of a user that is in force. Raises `NotFound`."""
    customer = await _find_present(session, user_id)
    if customer is None:
        raise NotFound("this user is not connected to a customer")
    return customer


async def _find_present(session: ReadSession, user_id: str) -> Customer | None:
    columns = billing_customers.c
    query = sa.select(billing_customers).where(
        columns.user_id == user_id, columns.ended_at.is_(None)
    )
    row = (await session.execute(query)).mappings().first()
    return None if row is None else _create_customer(row)


async def list_customers(session: ReadSession) -> list[Customer]:
    """The connections in force, by user."""
    columns = billing_customers.c
    query = sa.select(billing_customers).where(columns.ended_at.is_(None)).order_by(columns.user_id)
    return [_create_customer(row) for row in (await session.execute(query)).mappings()]


async def list_connections(
    session: ReadSession, since: datetime, until: datetime
) -> list[Customer]:
    """The connections that were in force at some time of an interval."""
    columns = billing_customers.c
    query = sa.select(billing_customers).where(
        columns.started_at < until, sa.or_(columns.ended_at.is_(None), columns.ended_at > since)
    )
    return [_create_customer(row) for row in (await session.execute(query)).mappings()]


async def count_connections(session: ReadSession) -> int:
    """The number of connections, also of those that have ended."""
    query = sa.select(sa.func.count()).select_from(billing_customers)
    return int((await session.execute(query)).scalar_one())


async def find_first_start(session: ReadSession) -> datetime | None:
    """The beginning of the first connection, if there is one."""
    start: datetime | None = (
        await session.execute(
            sa.select(billing_customers.c.started_at)
            .order_by(billing_customers.c.started_at)
            .limit(1)
        )
    ).scalar()
    return start


def _create_customer(row: Mapping[Any, Any]) -> Customer:
    return convert_row(row, Customer)
