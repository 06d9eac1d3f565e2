"""The ledger: entries are added once and never changed, and wallets have their sum."""

from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.billing.ledger import (
    EntryKind,
    LedgerEntry,
    NewEntry,
    Wallet,
    add_entries,
    list_entries,
    list_wallets,
    read_balance,
)
from service.core.database.engine import Database
from service.core.encoding import read_id_time
from tests.billing import START

pytestmark = pytest.mark.every_database


def build_entry(cause: str, amount: int = 5, user_id: str = "alice", **fields: Any) -> NewEntry:
    """A top-up, or another entry."""
    values = {"kind": EntryKind.TOP_UP, "user_id": user_id} | fields
    return NewEntry(cause=cause, amount_nano_usd=amount, **values)


async def add(database: Database, *entries: NewEntry) -> list[NewEntry]:
    """Add entries in a transaction."""
    async with database.transaction() as session:
        return await add_entries(session, entries, START)


async def read(database: Database, user_id: str = "alice", **page: Any) -> list[LedgerEntry]:
    """Entries of a user, newest first."""
    async with database.read_session() as session:
        return await list_entries(session, user_id, **{"limit": 10_000, **page})


async def read_wallets(database: Database, **page: Any) -> list[Wallet]:
    """All wallets by user."""
    async with database.read_session() as session:
        return await list_wallets(session, **{"limit": 100, **page})


async def test_an_entry_changes_the_balance_once(database: Database) -> None:
    """A cause is added once, whatever the amount of a repetition."""
    entry = build_entry("payment:pi_1", 7, note="card 4242")
    assert await add(database, entry, build_entry("payment:pi_1", 9)) == [entry]
    assert await add(database, build_entry("payment:pi_1", 8)) == []
    [stored] = await read(database)
    assert (stored.amount_nano_usd, stored.kind, stored.note) == (7, EntryKind.TOP_UP, "card 4242")
    assert stored.created_at == read_id_time(stored.id) == START
    async with database.read_session() as session:
        assert await read_balance(session, "alice") == 7
        assert await read_balance(session, "bob") == 0


async def test_entries_have_pages(database: Database) -> None:
    """Entries are listed from the newest to the oldest, wallets by user."""
    causes = [f"grant:{n}" for n in range(5)]
    await add(database, *map(build_entry, causes), build_entry("grant:x", user_id="bob"))
    first = await read(database, limit=3)
    second = await read(database, limit=3, before_seq=first[-1].seq)
    assert [entry.cause for entry in (*first, *second)] == causes[::-1]
    assert await read_wallets(database) == [
        Wallet(user_id="alice", balance_nano_usd=25, updated_at=START),
        Wallet(user_id="bob", balance_nano_usd=5, updated_at=START),
    ]
    assert [wallet.user_id for wallet in await read_wallets(database, after="alice")] == ["bob"]
    assert len(await read_wallets(database, limit=1)) == 1


async def test_many_entries_are_added_at_once(database: Database) -> None:
    """A call may have more entries than a statement has parameters."""
    entries = [build_entry(f"answer:{n}:2", -1, kind=EntryKind.DEBIT) for n in range(1_200)]
    assert await add(database, *entries) == entries
    assert (await read_wallets(database))[0].balance_nano_usd == -1_200


@pytest.mark.parametrize(
    "statement", ["UPDATE ledger_entries SET amount_nano_usd = 1", "DELETE FROM ledger_entries"]
)
async def test_entries_cannot_be_changed(database: Database, statement: str) -> None:
    """The database aborts changes and deletions."""
    await add(database, build_entry("grant:1"))
    with pytest.raises(sa.exc.DBAPIError, match="entries of the ledger cannot be"):
        async with database.transaction() as session:
            await session.execute(sa.text(statement))


async def test_an_amount_is_not_zero(database: Database) -> None:
    """An entry without an amount is refused, and the wallet is unchanged."""
    with pytest.raises(sa.exc.DBAPIError):
        await add(database, build_entry("grant:1", 0))
    assert await read_wallets(database) == []


amounts = st.integers(-(10**15), 10**15).filter(bool)
events = st.tuples(st.sampled_from("abcdef"), amounts, st.sampled_from(["alice", "bob"]))


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batches=st.lists(st.lists(events, max_size=6), max_size=6))
async def test_balances_are_the_sums_of_entries(
    database: Database, batches: list[list[tuple[str, int, str]]]
) -> None:
    """In any order and number of entries, the wallets have the sums, and causes are unique."""
    example = len(await read(database)) + len(await read(database, "bob"))  # they share a database
    for batch in batches:
        entries = [build_entry(f"{example}:{cause}", amount, user) for cause, amount, user in batch]
        await add(database, *entries)
    stored = [*await read(database), *await read(database, "bob")]
    assert len({entry.cause for entry in stored}) == len(stored)
    sums = Counter[str]()
    for entry in stored:
        sums[entry.user_id] += entry.amount_nano_usd
    balances = {wallet.user_id: wallet.balance_nano_usd for wallet in await read_wallets(database)}
    assert balances == sums
