"""Erasure of the texts of old log rows; their accounts stay.

Erased rows are those of erased conversations: see `conversations.py`. The journal and backups are
not searched.
"""

from datetime import datetime

import sqlalchemy as sa

from service.core.accounting.rows import ERASED_VALUES
from service.core.database.engine import Database
from service.core.database.tables import request_logs
from service.core.encoding import compute_first_id, utc_now

BATCH_ROWS = 1000  # in a transaction, some 10 ms


async def erase_texts_before(
    database: Database, moment: datetime, position: str, *, batch_rows: int = BATCH_ROWS
) -> tuple[str | None, int]:
    """Erase the texts of the next rows after the id `position` that began before this time.

    Returns the new position, None at the end, and the number of rows that were erased. Raises
    `DatabaseUnavailable`.
    """
    ids = request_logs.c.id
    is_old = sa.and_(ids > position, ids < compute_first_id(moment))
    async with database.read_session() as session:
        batch = sa.select(ids).where(is_old).order_by(ids).limit(batch_rows)
        listed = (await session.execute(batch)).scalars().all()
    if not listed:
        return None, 0
    erasure = (
        sa.update(request_logs)
        .where(ids > position, ids <= listed[-1], request_logs.c.erased_at.is_(None))
        .values(**ERASED_VALUES, erased_at=utc_now())
    )
    async with database.transaction() as session:
        erased = (await session.execute(erasure)).rowcount
    return listed[-1], erased
