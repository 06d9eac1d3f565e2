"""Meter events after a database was restored from a backup.

What was sent after the backup is unknown to it. So all usage in it is treated as if it had been
sent when it was due: Stripe recognizes the identifiers of the last 23 hours, and the rest goes to
review instead of being billed again.
"""

from datetime import datetime, timedelta

import sqlalchemy as sa

from service.core.billing.customers import find_first_start
from service.core.billing.meter_events import DUE_SECONDS, EventState, create_missing_events
from service.core.billing.usage import HOUR
from service.core.database.engine import Database
from service.core.database.tables import billing_events


async def mark_restored(database: Database, at: datetime) -> int:
    """Begin the window of repetitions of all events that have none; return their number.

    Called before a service uses the restored database. Raises `DatabaseUnavailable`.
    """
    async with database.read_session() as session:
        start = await find_first_start(session)
    if start is None:
        return 0
    new = {event.id for event in await create_missing_events(database, start, at)}
    columns = billing_events.c
    query = sa.select(columns.id, columns.hour, columns.created_at).where(
        columns.state == EventState.PENDING, columns.first_attempt_at.is_(None)
    )
    async with database.transaction() as session:
        rows = (await session.execute(query)).all()
        for event_id, hour, created_at in rows:
            due_at = hour + HOUR + timedelta(seconds=DUE_SECONDS)
            first_at = due_at if event_id in new else created_at
            await session.execute(
                sa.update(billing_events)
                .where(columns.id == event_id)
                .values(first_attempt_at=first_at)
            )
    return len(rows)
