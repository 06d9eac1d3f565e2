"""What users and admins see of the ledger, and amounts that admins add to it."""

from datetime import datetime
from decimal import Decimal

import msgspec
import sqlalchemy as sa

from service.core.audit_log import Action, record_action
from service.core.auth.principals import Principal
from service.core.billing.ledger import (
    EntryKind,
    LedgerEntry,
    NewEntry,
    add_entries,
    list_entries,
    list_wallets,
)
from service.core.database.engine import Database, ReadSession
from service.core.database.tables import ledger_entries
from service.core.encoding import convert_row, utc_now
from service.core.errors import AmountInvalid, IdempotencyConflict, InvalidCursor
from service.core.pricing import format_usd, to_nano_usd

_ANSWER = "answer:"


class EntryObject(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry of the ledger. `amount`: signed, in USD. `answer_id`: of a debit."""

    id: str
    kind: EntryKind
    amount: str
    cause: str
    note: str | None = msgspec.field()
    created_at: datetime
    answer_id: str | msgspec.UnsetType = msgspec.UNSET


class EntryPage(msgspec.Struct, frozen=True):
    """Entries, newest first. `next_cursor`: None on the last page."""

    items: list[EntryObject]
    next_cursor: str | None


class WalletObject(msgspec.Struct, frozen=True):
    """The balance of a user, in USD."""

    user_id: str
    balance: str
    updated_at: datetime


class WalletPage(msgspec.Struct, frozen=True):
    """Wallets by user. `next_cursor`: null on the last page."""

    items: list[WalletObject]
    next_cursor: str | None


async def read_entries(
    session: ReadSession, user_id: str, *, cursor: str | None, limit: int
) -> EntryPage:
    """A page of the entries of a user. Raises `InvalidCursor`.

    The cursor is the id of an entry and not its position, which depends on those of other users.
    """
    columns = ledger_entries.c
    before_seq: int | None = None
    if cursor is not None:
        query = sa.select(columns.seq).where(columns.id == cursor, columns.user_id == user_id)
        before_seq = (await session.execute(query)).scalar()
        if before_seq is None:
            raise InvalidCursor("the cursor is not the id of an entry")
    entries = await list_entries(session, user_id, before_seq=before_seq, limit=limit + 1)
    items = [describe_entry(entry) for entry in entries[:limit]]
    return EntryPage(items, items[-1].id if len(entries) > limit else None)


def describe_entry(entry: LedgerEntry) -> EntryObject:
    """An entry as users see it."""
    is_answer = entry.cause.startswith(_ANSWER)
    return EntryObject(
        id=entry.id,
        kind=entry.kind,
        amount=format_usd(entry.amount_nano_usd),
        cause=entry.cause,
        note=entry.note,
        created_at=entry.created_at,
        answer_id=entry.cause.split(":")[1] if is_answer else msgspec.UNSET,
    )


async def read_wallets(session: ReadSession, *, cursor: str | None, limit: int) -> WalletPage:
    """A page of the wallets of all users. `cursor`: the user id after which it begins."""
    wallets = await list_wallets(session, after=cursor, limit=limit + 1)
    items = [
        WalletObject(wallet.user_id, format_usd(wallet.balance_nano_usd), wallet.updated_at)
        for wallet in wallets[:limit]
    ]
    return WalletPage(items, items[-1].user_id if len(wallets) > limit else None)


async def add_grant(
    database: Database,
    by: Principal,
    key: str,
    *,
    user_id: str,
    kind: EntryKind,
    usd: Decimal,
    note: str | None,
    at: datetime | None = None,
) -> LedgerEntry:
    """Add a grant or an adjustment, once for a key; return the entry.

    Raises `AmountInvalid` for 0 and for a grant below it, `IdempotencyConflict` if the key was used
    for something else, and `DatabaseUnavailable`.
    """
    amount_nano_usd = to_nano_usd(usd)
    if not amount_nano_usd or (kind is EntryKind.GRANT and amount_nano_usd < 0):
        raise AmountInvalid("a grant must be more than 0; an adjustment must not be 0")
    entry = NewEntry(
        user_id=user_id,
        kind=kind,
        amount_nano_usd=amount_nano_usd,
        cause=f"{kind.value}:{key}",
        note=note,
    )
    async with database.transaction() as session:
        added = await add_entries(session, [entry], at or utc_now())
        query = sa.select(ledger_entries).where(ledger_entries.c.cause == entry.cause)
        row = (await session.execute(query)).mappings().one()
        stored = convert_row(row, LedgerEntry)
        if added:
            await record_action(
                session,
                by.actor,
                Action.WALLET_CREDITED,
                target_id=stored.id,
                user_id=user_id,
                detail={"kind": kind.value, "usd": format_usd(amount_nano_usd)},
            )
    for name in ("user_id", "amount_nano_usd", "note"):
        if getattr(stored, name) != getattr(entry, name):
            raise IdempotencyConflict("this key was used for a different entry")
    return stored
