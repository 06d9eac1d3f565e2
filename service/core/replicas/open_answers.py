"""Open answers: intents in the database, for the case that the journal of a replica is lost.

A replica stores the intents of answers that have been running for some seconds, and removes them
when their rows are written. The intents that are left when a replica is lost, or has restarted
without its journal, become rows with the status `interrupted` and unknown usage. Should the journal
return, its records replace these rows (`records.RANKS`); erased texts stay erased.
"""

from collections.abc import Iterable, Sequence

import msgspec
import sqlalchemy as sa

from service.core.database.engine import ReadSession, Session
from service.core.records import Intent

BATCH_INTENTS = 500  # read at once


async def store_open(session: Session, slot: int, intents: Iterable[Intent]) -> None:
    """Store intents. Idempotent."""
    rows = [
        {"id": intent.id, "slot": slot, "intent": msgspec.json.encode(intent)} for intent in intents
    ]
    if rows:
        await session.execute(_STORE, rows)


async def remove_open(session: Session, ids: Sequence[str]) -> None:
    """Remove intents, whose rows are written. Idempotent."""
    await session.execute(_REMOVE, {"ids": list(ids)})


async def list_open(session: ReadSession, slot: int, before: str) -> list[Intent]:
    """Return intents of a slot with an id before this one, up to `BATCH_INTENTS`."""
    rows = await session.execute(_LIST, {"slot": slot, "before": before, "limit": BATCH_INTENTS})
    return [msgspec.json.decode(row.intent, type=Intent) for row in rows]


async def list_lost_slots(session: ReadSession, lost_seconds: float) -> list[int]:
    """Return the slots whose replicas have not been seen for this time."""
    rows = await session.execute(_LOST, {"seconds": lost_seconds})
    return list(rows.scalars())


async def mark_lost(session: Session, slot: int, lost_seconds: float) -> None:
    """Declare a replica lost, unless it has returned."""
    await session.execute(_MARK_LOST, {"slot": slot, "seconds": lost_seconds})


_STORE = sa.text(
    "INSERT INTO open_answers (id, slot, intent) VALUES (:id, :slot, :intent)"
    " ON CONFLICT (id) DO NOTHING"
)
_REMOVE = sa.text("DELETE FROM open_answers WHERE id = ANY(:ids)")
_LIST = sa.text(
    "SELECT intent FROM open_answers WHERE slot = :slot AND id < :before ORDER BY id LIMIT :limit"
)
_LOST = sa.text(
    "SELECT slot FROM replicas"
    " WHERE state = 'serving' AND seen_at < clock_timestamp() - make_interval(secs => :seconds)"
)
_MARK_LOST = sa.text(
    "UPDATE replicas SET state = 'lost' WHERE slot = :slot"
    " AND state = 'serving' AND seen_at < clock_timestamp() - make_interval(secs => :seconds)"
)
