"""Payers: the customer at Stripe as which a user pays for top-ups.

Each user who pays has a customer of their own, created by Kotae, because its portal shows payment
methods and invoices. It is independent of `customers`, which bill usage afterwards and may be
shared by several users: a payer is not metered.

A row with the idempotency key of the creation is committed before the customer is created, so that
parallel requests, a lost response or the end of the process lead to one customer. Stripe remembers
a key for 24 hours, and replays the response of an error: after either, there is a new key. The
customer that might exist then is empty and belongs to nobody.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.audit_log import Action, record_action
from service.core.auth.principals import Principal
from service.core.database.engine import Database, ReadSession
from service.core.database.tables import billing_payers
from service.core.database.upserts import insert_into
from service.core.encoding import convert_row, create_id, utc_now
from service.core.errors import PayerExists

KEY_HOURS = 23  # Stripe remembers an idempotency key for at least 24
_columns = billing_payers.c


class Payer(msgspec.Struct, frozen=True, kw_only=True):
    """A row. `stripe_customer_id` None: the customer is being created, under `request_key`."""

    user_id: str
    request_key: str
    requested_at: datetime
    stripe_customer_id: str | None = None


async def find_payer(session: ReadSession, user_id: str) -> Payer | None:
    """The row of a user, if there is one."""
    row = (await session.execute(_select(user_id))).mappings().first()
    return None if row is None else _create_payer(row)


async def _read_payer(session: ReadSession, user_id: str) -> Payer:
    """The row of a user, which exists: rows are not deleted."""
    return _create_payer((await session.execute(_select(user_id))).mappings().one())


def _select(user_id: str) -> sa.Select[Any]:
    return sa.select(billing_payers).where(_columns.user_id == user_id)


def _create_payer(row: Mapping[Any, Any]) -> Payer:
    return convert_row(row, Payer)


async def list_payers(session: ReadSession) -> list[Payer]:
    """All payers, by user."""
    query = sa.select(billing_payers).order_by(_columns.user_id)
    return [_create_payer(row) for row in (await session.execute(query)).mappings()]


async def find_user(session: ReadSession, stripe_customer_id: str) -> str | None:
    """The user who pays as a customer, if there is one."""
    query = sa.select(_columns.user_id).where(_columns.stripe_customer_id == stripe_customer_id)
    user_id: str | None = (await session.execute(query)).scalar()
    return user_id


async def begin_request(database: Database, user_id: str, at: datetime | None = None) -> Payer:
    """The payer of a user, or the key under which its customer is to be created now.

    Raises `DatabaseUnavailable`.
    """
    now = at or utc_now()
    fresh = {"request_key": create_id(now), "requested_at": now}
    async with database.transaction() as session:
        await session.execute(
            insert_into(session, billing_payers)
            .values(user_id=user_id, **fresh)
            .on_conflict_do_nothing()
        )
        await session.execute(
            sa.update(billing_payers)
            .where(
                _columns.user_id == user_id,
                _columns.stripe_customer_id.is_(None),
                _columns.requested_at < now - timedelta(hours=KEY_HOURS),
            )
            .values(fresh)
        )
        return await _read_payer(session, user_id)


async def end_request(database: Database, payer: Payer, stripe_customer_id: str) -> None:
    """Store the customer of a request, unless there is one. Raises `DatabaseUnavailable`."""
    async with database.transaction() as session:
        await session.execute(
            sa.update(billing_payers)
            .where(_columns.user_id == payer.user_id, _columns.stripe_customer_id.is_(None))
            .values(stripe_customer_id=stripe_customer_id)
        )


async def replace_key(database: Database, payer: Payer) -> None:
    """Use another key for the next request. Raises `DatabaseUnavailable`."""
    now = utc_now()
    async with database.transaction() as session:
        await session.execute(
            sa.update(billing_payers)
            .where(
                _columns.user_id == payer.user_id,
                _columns.request_key == payer.request_key,
                _columns.stripe_customer_id.is_(None),
            )
            .values(request_key=create_id(now), requested_at=now)
        )


async def assign_payer(
    database: Database, by: Principal, user_id: str, stripe_customer_id: str
) -> None:
    """Name the customer as which a user pays, such as after restoring an older backup.

    Idempotent. Raises `PayerExists` if the user or the customer has another counterpart, and
    `DatabaseUnavailable`.
    """
    async with database.transaction() as session:
        payer = await find_payer(session, user_id)
        owner = await find_user(session, stripe_customer_id)
        if owner == user_id:
            return
        if owner is not None or (payer is not None and payer.stripe_customer_id is not None):
            raise PayerExists("the user or the customer has another counterpart already")
        now = utc_now()
        values = {"stripe_customer_id": stripe_customer_id, "requested_at": now}
        await session.execute(
            insert_into(session, billing_payers)
            .values(user_id=user_id, request_key=create_id(now), **values)
            .on_conflict_do_update(index_elements=["user_id"], set_=values)
        )
        await record_action(
            session,
            by.actor,
            Action.PAYER_ASSIGNED,
            target_id=stripe_customer_id,
            user_id=user_id,
        )
