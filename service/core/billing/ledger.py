"""The ledger: amounts added to and taken from the wallets of users, in nano-dollars.

Entries are only added; triggers of both databases abort changes. Each has a unique cause: the
payment, not the event that reported it; the refund; the answer and the rank of its record. An entry
whose cause exists is not added again, so callers may repeat theirs in any order and number.

The balance of a user is the sum of the entries. It is cached in `wallets`, which changes in the
transaction of the entries, so it is equal at any time; `kotae audit` compares them.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.database.constructs import sum_exactly
from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import ledger_entries, wallets
from service.core.database.upserts import insert_into, insert_new
from service.core.encoding import convert_row, create_id

CAUSE_CHARACTERS_MAX, NOTE_CHARACTERS_MAX = 300, 500
DEBIT_CAUSE = "answer:"  # followed by the id of the answer and the rank of its record


class EntryKind(StrEnum):
    """Why an amount was added or taken."""

    TOP_UP = "top_up"  # a payment, without tax
    DEBIT = "debit"  # the charge of an answer, or the difference to that of its previous record
    REFUND = "refund"  # of a payment; positive if a refund failed
    DISPUTE = "dispute"  # an amount withdrawn by a bank; positive if it was reinstated
    GRANT = "grant"  # credit given by an admin
    ADJUSTMENT = "adjustment"  # a correction by an admin


class NewEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry to be added. The amount is signed and not 0; `note` is shown to the user."""

    user_id: str
    kind: EntryKind
    amount_nano_usd: int
    cause: str
    note: str | None = None


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the ledger. `seq`: the position in pages."""

    seq: int
    id: str
    user_id: str
    kind: EntryKind
    amount_nano_usd: int
    cause: str
    note: str | None
    created_at: datetime


class Wallet(msgspec.Struct, frozen=True, kw_only=True):
    """The balance of a user, as of the last entry."""

    user_id: str
    balance_nano_usd: int
    updated_at: datetime


async def add_entries(
    session: Session, entries: Sequence[NewEntry], at: datetime
) -> list[NewEntry]:
    """Add the entries whose cause is new, change the wallets by these, and return them.

    Of entries with the same cause the first is added. Idempotent, in any order.
    """
    if not entries:
        return []
    by_id = {create_id(at): entry for entry in entries}
    rows = [{"id": id_, "created_at": at, **_get_values(entry)} for id_, entry in by_id.items()]
    new_ids = await insert_new(session, ledger_entries, rows)
    added = {id_: entry for id_, entry in by_id.items() if id_ in new_ids}
    await _change_wallets(session, added, at)
    return list(added.values())


def _get_values(entry: NewEntry) -> dict[str, Any]:
    return msgspec.structs.asdict(entry) | {"kind": entry.kind.value}


async def _change_wallets(session: Session, entries: Mapping[str, NewEntry], at: datetime) -> None:
    sums: dict[str, int] = {}
    credit_ids: dict[str, str] = {}
    for id_, entry in entries.items():
        sums[entry.user_id] = sums.get(entry.user_id, 0) + entry.amount_nano_usd
        if entry.amount_nano_usd > 0 and entry.kind is not EntryKind.DEBIT:
            credit_ids[entry.user_id] = id_
    if not sums:
        return
    insert = insert_into(session, wallets)
    statement = insert.on_conflict_do_update(
        index_elements=["user_id"],
        set_={
            "balance_nano_usd": wallets.c.balance_nano_usd + insert.excluded.balance_nano_usd,
            "updated_at": insert.excluded.updated_at,
            "credit_id": sa.func.coalesce(insert.excluded.credit_id, wallets.c.credit_id),
        },
    )
    rows = [
        {"user_id": user_id, "balance_nano_usd": amount, "updated_at": at,
         "credit_id": credit_ids.get(user_id)}
        for user_id, amount in sorted(sums.items())  # the order in which wallets are locked
    ]  # fmt: skip
    await session.execute(statement, rows)


async def rebuild_wallets(database: Database) -> None:
    """Compute all balances from the entries again. Raises `DatabaseUnavailable`."""
    columns = ledger_entries.c
    sums = sa.select(
        columns.user_id, sum_exactly(columns.amount_nano_usd), sa.func.max(columns.created_at)
    ).group_by(columns.user_id)
    names = ["user_id", "balance_nano_usd", "updated_at"]
    latest_credit = (
        sa.select(columns.id)
        .where(
            columns.user_id == wallets.c.user_id,
            columns.amount_nano_usd > 0,
            columns.kind != EntryKind.DEBIT,
        )
        .order_by(columns.seq.desc())
        .limit(1)
    )
    async with database.transaction() as session:
        await session.execute(sa.delete(wallets))
        await session.execute(sa.insert(wallets).from_select(names, sums))
        await session.execute(sa.update(wallets).values(credit_id=latest_credit.scalar_subquery()))


async def list_entries(
    session: ReadSession, user_id: str, *, before_seq: int | None = None, limit: int
) -> list[LedgerEntry]:
    """Entries of a user, newest first; `before_seq`: those before this position."""
    columns = ledger_entries.c
    query = sa.select(ledger_entries).where(columns.user_id == user_id)
    if before_seq is not None:
        query = query.where(columns.seq < before_seq)
    rows = (await session.execute(query.order_by(columns.seq.desc()).limit(limit))).mappings()
    return [convert_row(row, LedgerEntry) for row in rows]


async def read_balance(session: ReadSession, user_id: str) -> int:
    """The balance of a user in nano-dollars; 0 without entries."""
    query = sa.select(wallets.c.balance_nano_usd).where(wallets.c.user_id == user_id)
    return int((await session.execute(query)).scalar() or 0)


async def list_wallets(
    session: ReadSession, *, after: str | None = None, limit: int
) -> list[Wallet]:
    """Wallets by user id; `after`: those after this user."""
    query = sa.select(wallets).order_by(wallets.c.user_id).limit(limit)
    if after is not None:
        query = query.where(wallets.c.user_id > after)
    rows = (await session.execute(query)).mappings()
    return [convert_row(row, Wallet) for row in rows]
