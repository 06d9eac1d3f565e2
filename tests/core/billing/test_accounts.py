"""Entries as users see them, wallets as admins see them, and grants."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from service.core.audit_log import AuditFilter, list_entries
from service.core.auth.principals import BOOTSTRAP
from service.core.billing.accounts import add_grant, read_entries, read_wallets
from service.core.billing.ledger import EntryKind, NewEntry, add_entries
from service.core.database.engine import Database
from service.core.errors import AmountInvalid, IdempotencyConflict, InvalidCursor
from tests.billing import START
from tests.payments import read_user_balance

pytestmark = pytest.mark.every_database


async def grant(database: Database, key: str = "k", **values: Any) -> Any:
    """Grant 5 USD to alice."""
    fields: dict[str, Any] = {
        "user_id": "alice",
        "kind": EntryKind.GRANT,
        "usd": Decimal(5),
        "note": "welcome",
    }
    return await add_grant(database, BOOTSTRAP, key, **fields | values)


async def test_a_grant_is_added_once(database: Database) -> None:
    """A repeated request returns the entry and is recorded once."""
    first = await grant(database)
    assert await grant(database) == first
    assert (first.cause, await read_user_balance(database, "alice")) == ("grant:k", 5 * 10**9)
    async with database.read_session() as session:
        page = await list_entries(session, AuditFilter(), limit=10)
    (entry,) = page.items
    assert (entry.action, entry.user_id, entry.target_id) == ("wallet.credited", "alice", first.id)
    assert entry.detail == {"kind": "grant", "usd": "5"}


@pytest.mark.parametrize("change", [{"usd": Decimal(6)}, {"user_id": "bob"}, {"note": None}])
async def test_a_key_belongs_to_one_grant(database: Database, change: Any) -> None:
    """With anything else it is refused, and adds nothing."""
    await grant(database)
    with pytest.raises(IdempotencyConflict):
        await grant(database, **change)
    assert await read_user_balance(database, "bob") == 0


@pytest.mark.parametrize("usd", ["0", "-1", "0.0000000001"])
async def test_a_grant_is_more_than_zero(database: Database, usd: str) -> None:
    """An adjustment may be negative, but not 0."""
    with pytest.raises(AmountInvalid):
        await grant(database, usd=Decimal(usd))
    with pytest.raises(AmountInvalid):
        await grant(database, usd=Decimal(0), kind=EntryKind.ADJUSTMENT)
    await grant(database, usd=Decimal(-1), kind=EntryKind.ADJUSTMENT)
    assert await read_user_balance(database, "alice") == -(10**9)


async def test_entries_have_pages_of_their_user(database: Database) -> None:
    """Newest first; the entry of another user is no cursor."""
    foreign = await grant(database, "b", user_id="bob")
    for n in range(5):
        await grant(database, str(n), usd=Decimal(n + 1))
    amounts, cursor = [], None
    async with database.read_session() as session:
        while True:
            page = await read_entries(session, "alice", cursor=cursor, limit=2)
            amounts += [entry.amount for entry in page.items]
            if (cursor := page.next_cursor) is None:
                break
        assert amounts == ["5", "4", "3", "2", "1"]
        for wrong in (foreign.id, "x"):
            with pytest.raises(InvalidCursor):
                await read_entries(session, "alice", cursor=wrong, limit=2)


async def test_a_debit_names_its_answer(database: Database) -> None:
    """Other entries have no answer."""
    entry = NewEntry(user_id="alice", kind=EntryKind.DEBIT, amount_nano_usd=-1, cause="answer:a1:2")
    async with database.transaction() as session:
        await add_entries(session, [entry], START)
    await grant(database)
    async with database.read_session() as session:
        page = await read_entries(session, "alice", cursor=None, limit=9)
    assert [item.answer_id for item in page.items] == [msgspec.UNSET, "a1"]
    assert page.items[1].amount == "-0.000000001"


async def test_wallets_have_pages(database: Database) -> None:
    """By user."""
    for user_id in ("carol", "alice", "bob"):
        await grant(database, user_id, user_id=user_id)
    async with database.read_session() as session:
        first = await read_wallets(session, cursor=None, limit=2)
        second = await read_wallets(session, cursor=first.next_cursor, limit=2)
    wallets = [*first.items, *second.items]
    assert [wallet.user_id for wallet in wallets] == ["alice", "bob", "carol"]
    assert (wallets[0].balance, second.next_cursor) == ("5", None)
