"""Erasure of the texts of old log rows, or of all rows of a user; their accounts stay.

Erased rows are those of erased conversations: see `conversations.py`. The journal and backups are
not searched.
"""

from collections.abc import Sequence
from datetime import datetime

import msgspec
import sqlalchemy as sa

from service.core.accounting.receipt_log import erase_nonces
from service.core.accounting.rows import ERASED_VALUES
from service.core.audit_log import Action, Actor, record_action
from service.core.database.engine import Database
from service.core.database.tables import receipts, request_logs
from service.core.encoding import compute_first_id, utc_now

BATCH_ROWS = 1000  # in a transaction, some 10 ms


class ErasedBatch(msgspec.Struct, frozen=True):
    """The ids of the next old rows in order, and how many of them were erased only now."""

    ids: Sequence[str]
    erased: int


async def erase_texts_before(
    database: Database,
    moment: datetime,
    position: str,
    *,
    user_id: str | None = None,
    actor: Actor | None = None,
    batch_rows: int = BATCH_ROWS,
) -> ErasedBatch:
    """Erase the texts of the next rows after the id `position` that began before this time.

    `user_id`: only of this user; `actor`: who is recorded if rows are erased. Without further rows
    the batch is empty. Raises `DatabaseUnavailable`.
    """
    ids = request_logs.c.id
    of_user = [] if user_id is None else [request_logs.c.user_id == user_id]
    batch = (
        sa.select(ids)
        .where(*of_user, ids > position, ids < compute_first_id(moment))
        .order_by(ids)
        .limit(batch_rows)
    )
    async with database.read_session() as session:
        listed = (await session.execute(batch)).scalars().all()
    if not listed:
        return ErasedBatch([], 0)
    erasure = (
        sa.update(request_logs)
        .where(*of_user, ids > position, ids <= listed[-1], request_logs.c.erased_at.is_(None))
        .values(**ERASED_VALUES, erased_at=utc_now())
    )
    answer_id = receipts.c.answer_id
    of_receipts = [] if user_id is None else [receipts.c.user_id == user_id]
    async with database.transaction() as session:
        erased = (await session.execute(erasure)).rowcount
        await erase_nonces(session, answer_id > position, answer_id <= listed[-1], *of_receipts)
        if actor is not None and erased:
            await record_action(
                session, actor, Action.USER_TEXTS_ERASED, target_id=user_id, user_id=user_id
            )
    return ErasedBatch(listed, erased)
