"""Billing for tests: customers, usage at a time, a clock, and a worker that calls the fake."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from service.core.auth.principals import BOOTSTRAP
from service.core.billing import meter_events
from service.core.billing.customers import Customer, connect_customer
from service.core.billing.meter_events import EventObject
from service.core.billing.stripe import StripeConnection
from service.core.database.engine import Database
from service.core.database.tables import request_logs
from service.core.telemetry import Metrics
from service.workers.billing import BillingWorker
from tests.fakes.stripe import KEY, METER, StripeFake
from tests.records import build_intent, build_outcome
from tests.rows import write

START = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Clock:
    """A clock that is moved by the test; also in seconds."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """The time."""
        return self.now

    def read_seconds(self) -> float:
        """The time of a monotonic clock."""
        return self.now.timestamp()


async def connect(database: Database, user_id: str = "local", at: datetime = START) -> Customer:
    """Bill a user from a time on."""
    return await connect_customer(database, BOOTSTRAP, user_id, f"cus_{user_id}", at=at)


async def use(
    database: Database, nano_usd: int | None, at: datetime, user_id: str = "local"
) -> None:
    """Write a row of this cost and time."""
    intent = build_intent(at=at, user_id=user_id)
    await write(database, [build_outcome(intent, cost_nano_usd=nano_usd)])


@asynccontextmanager
async def running_worker(
    database: Database, fake: StripeFake, clock: Clock, **options: Any
) -> AsyncIterator[BillingWorker]:
    """A worker that is not started, with a client of its own."""
    connection = StripeConnection(KEY, base_url=fake.url, seconds=5)
    values: dict[str, Any] = {"meter": METER, "metrics": Metrics()} | options
    yield BillingWorker(database, connection, clock=clock, monotonic=clock.read_seconds, **values)
    await connection.aclose()


async def list_events(database: Database, **options: Any) -> list[EventObject]:
    """The events, the latest hours first."""
    async with database.read_session() as session:
        return await meter_events.list_events(session, **options)


async def sum_rows(database: Database) -> dict[tuple[str, int], int]:
    """The known cost of the rows by customer (`cus_` and the user) and hour since 1970."""
    columns = request_logs.c
    query = sa.select(columns.user_id, columns.created_at, columns.cost_nano_usd)
    sums: Counter[tuple[str, int]] = Counter()
    async with database.read_session() as session:
        for user_id, created_at, nano_usd in await session.execute(query):
            sums[f"cus_{user_id}", int(created_at.timestamp()) // 3600] += nano_usd or 0
    return {key: value for key, value in sums.items() if value}
