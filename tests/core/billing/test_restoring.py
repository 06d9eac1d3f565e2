"""Restoring a backup bills nothing twice."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from service.core.billing.meter_events import create_events
from service.core.billing.restoring import mark_restored
from service.core.database.engine import Database
from service.core.database.tables import billing_events
from tests.billing import HOUR, START, Clock, connect, list_events, running_worker, use
from tests.fakes.stripe import StripeFake

pytestmark = pytest.mark.every_database
DUE = START + timedelta(hours=1, minutes=15)


async def restore(database: Database, *, with_events: bool) -> None:
    """Let the database be as it was before its events were sent, or created."""
    async with database.transaction() as session:
        if not with_events:
            await session.execute(sa.delete(billing_events))
            return
        await session.execute(
            sa.update(billing_events).values(
                state="pending", attempts=0, first_attempt_at=None, next_at=DUE, ended_at=None
            )
        )


@pytest.mark.parametrize("with_events", [True, False])
@pytest.mark.parametrize(("hours", "state"), [(2, "delivered"), (30, "review")])
async def test_what_was_sent_after_the_backup_is_not_billed_again(
    database: Database, with_events: bool, hours: int, state: str
) -> None:
    """A recent event is recognized by Stripe; an older one goes to review."""
    clock = Clock()
    await connect(database)
    await use(database, 1500, START)
    async with StripeFake(clock) as fake:
        async with running_worker(database, fake, clock) as worker:
            clock.now = DUE
            await worker.run_once()
        await restore(database, with_events=with_events)
        clock.now += hours * HOUR
        assert await mark_restored(database, clock.now) == 1
        async with running_worker(database, fake, clock) as worker:
            await worker.run_once()
            await use(database, 300, clock.now)
            clock.now += 2 * HOUR
            await worker.run_once()
    assert sorted(int(event.value * 1000) for event in fake.accepted) == [300, 1500]
    assert sorted(event.state for event in await list_events(database)) == sorted(
        ["delivered", state]
    )


async def test_attempts_keep_their_time(database: Database) -> None:
    """The window of an event that was attempted before the backup does not change."""
    await connect(database)
    await use(database, 1500, START)
    await create_events(database, START, DUE, DUE)
    assert await mark_restored(database, DUE) == 1
    assert await mark_restored(database, DUE + HOUR) == 0


async def test_without_customers_nothing_is_marked(database: Database) -> None:
    """A database that bills nobody does not change."""
    assert await mark_restored(database, DUE) == 0
