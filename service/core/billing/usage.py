"""The usage of customers by hour, from the rollups: the same sums as in the analytics.

Only known costs are billed. Answers of unknown cost are counted beside them. In the hours in which
a connection begins or ends, the rows of its part of the hour are added up instead.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.billing.customers import Customer
from service.core.database.constructs import is_listed, sum_exactly, to_quarter
from service.core.database.engine import ReadSession
from service.core.database.tables import request_logs, rollup_groups, rollups
from service.core.encoding import EPOCH, compute_first_id, find_quarter

HOUR = timedelta(hours=1)
QUARTERS_PER_HOUR = 4
CUSTOMER_HOURS_MAX = 2000  # a few milliseconds of the event loop
_IS_UNPRICED = sa.case((request_logs.c.cost_nano_usd.is_(None), 1), else_=0)
CustomerHour = tuple[str, datetime]
"""The id of a connection, and the beginning of an hour."""
HourOfUser = tuple[str, datetime, "HourUsage"]


class HourUsage(msgspec.Struct, frozen=True):
    """The sum of known costs, and the number of answers of unknown cost."""

    nano_usd: int
    unpriced: int


NOTHING = HourUsage(0, 0)


def find_hour(at: datetime) -> datetime:
    """The beginning of the hour of a time, in UTC."""
    return at.replace(minute=0, second=0, microsecond=0)


def list_parts(
    since: datetime, until: datetime, customers: int
) -> Iterator[tuple[datetime, datetime]]:
    """Divide an interval of hours, so that few rows are processed at a time for all customers."""
    length = max(1, CUSTOMER_HOURS_MAX // max(1, customers)) * HOUR
    while since < until:
        yield since, min(since + length, until)
        since += length


async def read_usage(
    session: ReadSession,
    customers: Sequence[Customer],
    since: datetime,
    until: datetime,
    *,
    from_rows: bool = False,
) -> dict[CustomerHour, HourUsage]:
    """The usage of connections in the hours from `since` to `until`, both the start of an hour.

    `from_rows`: it is summed from the rows of the log, to compare it with the rollups.
    """
    read_hours = _read_row_hours if from_rows else _read_rollup_hours
    by_user: dict[str, list[Customer]] = {}
    for customer in customers:
        by_user.setdefault(customer.user_id, []).append(customer)
    usage: dict[CustomerHour, HourUsage] = {}
    for user_id, hour, hour_usage in await read_hours(session, list(by_user), since, until):
        for customer in by_user[user_id]:
            is_ended = customer.ended_at is not None and customer.ended_at < hour + HOUR
            if customer.started_at <= hour and not is_ended:
                usage[customer.id, hour] = hour_usage
    for customer in customers:
        for hour in _list_partial_hours(customer):
            if since <= hour < until:
                usage[customer.id, hour] = await _read_rows(session, customer, hour)
    return usage


async def _read_rollup_hours(
    session: ReadSession, user_ids: list[str], since: datetime, until: datetime
) -> list[HourOfUser]:
    columns, user_id = rollups.c, rollup_groups.c.user_id
    hour = (columns.quarter // QUARTERS_PER_HOUR).label("hour")
    query = (
        sa.select(user_id, hour, sum_exactly(columns.cost_nano_usd), sum_exactly(columns.unpriced))
        .select_from(rollups.join(rollup_groups, rollup_groups.c.id == columns.group_id))
        .where(
            columns.quarter >= find_quarter(since),
            columns.quarter < find_quarter(until),
            is_listed(user_id, user_ids),
        )
        .group_by(user_id, hour)
    )
    return await _execute_hours(session, query)


async def _read_row_hours(
    session: ReadSession, user_ids: list[str], since: datetime, until: datetime
) -> list[HourOfUser]:
    logs = request_logs.c
    hour = (to_quarter(logs.created_at) // QUARTERS_PER_HOUR).label("hour")
    query = (
        sa.select(logs.user_id, hour, sum_exactly(logs.cost_nano_usd), sum_exactly(_IS_UNPRICED))
        .where(
            logs.id >= compute_first_id(since),
            logs.id < compute_first_id(until),
            is_listed(logs.user_id, user_ids),
        )
        .group_by(logs.user_id, hour)
    )
    return await _execute_hours(session, query)


async def _execute_hours(session: ReadSession, query: sa.Select[Any]) -> list[HourOfUser]:
    return [
        (user_id, EPOCH + number * HOUR, HourUsage(nano_usd, unpriced))
        for user_id, number, nano_usd, unpriced in await session.execute(query)
    ]


def _list_partial_hours(customer: Customer) -> set[datetime]:
    """The hours of which only a part belongs to a connection."""
    ends = [customer.started_at, *([customer.ended_at] if customer.ended_at else [])]
    return {find_hour(end) for end in ends if find_hour(end) != end}


async def _read_rows(session: ReadSession, customer: Customer, hour: datetime) -> HourUsage:
    """The usage of a connection in a part of an hour."""
    start, end = max(customer.started_at, hour), hour + HOUR
    if customer.ended_at is not None:
        end = min(end, customer.ended_at)
    logs = request_logs.c
    query = sa.select(sum_exactly(logs.cost_nano_usd), sum_exactly(_IS_UNPRICED)).where(
        logs.user_id == customer.user_id,
        logs.id >= compute_first_id(start),
        logs.id < compute_first_id(end),
    )
    nano_usd, unpriced = (await session.execute(query)).one()
    return HourUsage(nano_usd, unpriced)
