"""The audit log: entries of changes and reads, their order, and that they stay."""

from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from service.core.audit_log import (
    READ_SECONDS,
    Action,
    Actor,
    AuditEntry,
    AuditFilter,
    ReadRecorder,
    export_entries,
    list_entries,
    record_action,
)
from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP
from service.core.auth.store import NewKey
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.errors import InvalidCursor, NotFound
from service.core.ports import QuotaLimits

pytestmark = pytest.mark.every_database

ROOT = Actor("root", "key", "k1")


async def read_entries(database: Database, **filters: Any) -> list[AuditEntry]:
    """Return all entries by action and target: those of a millisecond have any order in pages."""
    pages = [page async for page in export_entries(database, AuditFilter(**filters))]
    entries = [entry for page in pages for entry in page]
    return sorted(entries, key=lambda entry: (entry.action, entry.target_id or "", entry.id))


async def test_every_change_of_keys_users_and_plans_has_an_entry(database: Database) -> None:
    """Each entry names the action, the affected user, the target, and old and new limits."""
    limits = QuotaLimits(tokens_per_day=5, cost_nano_usd_per_day=10**9)
    await store.put_plan(database, BOOTSTRAP, "team", limits)
    await store.put_user(database, BOOTSTRAP, "bob", plan="team", limits=None)
    await store.put_user(database, BOOTSTRAP, "bob", disabled=True)
    await store.put_user(database, BOOTSTRAP, "bob", disabled=False)
    key = await store.create_key(database, BOOTSTRAP, NewKey(user_id="bob", name="laptop"))
    new = await store.rotate_key(database, BOOTSTRAP, key.id, grace_seconds=60)
    await store.revoke_key(database, BOOTSTRAP, new.id)
    await store.delete_plan(database, BOOTSTRAP, "team")
    entries = await read_entries(database)
    wire = {"tokens_per_day": 5, "cost_usd_per_day": "1"}

    assert [(entry.action, entry.user_id, entry.target_id) for entry in entries] == [
        ("key.created", "bob", key.id),
        ("key.revoked", "bob", new.id),
        ("key.rotated", "bob", key.id),
        ("plan.changed", None, "team"),
        ("plan.deleted", None, "team"),
        ("user.disabled", "bob", "bob"),
        ("user.enabled", "bob", "bob"),
        ("user.limited", "bob", "bob"),
    ]
    assert entries[3].detail == {"new": wire}
    assert entries[7].detail == {
        "old": {"plan": None, "limits": None},
        "new": {"plan": "team", "limits": None},
    }
    assert entries[0].detail["role"] == "user"
    assert entries[2].detail["replaced_by"] == new.id
    assert {(entry.actor, entry.credential) for entry in entries} == {("admin", "secret")}
    assert str(key.key) not in str(entries)
    assert str(key.prefix) not in str(entries)


async def test_what_changes_nothing_has_no_entry(database: Database) -> None:
    """Repeated settings, repeated revocations and refused changes are not recorded."""
    await store.put_plan(database, BOOTSTRAP, "team", QuotaLimits(concurrent=1))
    await store.put_user(database, BOOTSTRAP, "bob", disabled=True)
    key = await store.create_key(database, BOOTSTRAP, NewKey(user_id="bob"))
    await store.revoke_key(database, BOOTSTRAP, key.id)
    before = await read_entries(database)
    await store.put_plan(database, BOOTSTRAP, "team", QuotaLimits(concurrent=1))
    await store.put_user(database, BOOTSTRAP, "bob", disabled=True)
    await store.revoke_key(database, BOOTSTRAP, key.id)
    with pytest.raises(NotFound):
        await store.put_user(database, BOOTSTRAP, "bob", plan="none", limits=None)
    with pytest.raises(NotFound):
        await store.delete_plan(database, BOOTSTRAP, "none")

    assert await read_entries(database) == before


async def test_a_revocation_with_created_keys_has_an_entry_for_each(database: Database) -> None:
    """Entries of keys that were revoked with their creator name it."""
    first = await store.create_key(database, BOOTSTRAP, NewKey(user_id="bob"))
    creator = msgspec.structs.replace(BOOTSTRAP, key_id=first.id)
    second = await store.create_key(database, creator, NewKey(user_id="eve"))
    await store.revoke_key(database, BOOTSTRAP, first.id, cascade=True)
    entries = await read_entries(database, action=("key.revoked",))

    assert {entry.target_id: (entry.user_id, entry.detail) for entry in entries} == {
        first.id: ("bob", {}),
        second.id: ("eve", {"created_by": first.id}),
    }


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log"])
async def test_entries_are_neither_changed_nor_deleted(database: Database, statement: str) -> None:
    """The database itself refuses both."""
    await store.put_user(database, BOOTSTRAP, "bob", disabled=True)
    before = await read_entries(database)
    with pytest.raises(sa.exc.DBAPIError, match="entries of audit_log cannot be"):
        async with database.transaction() as session:
            await session.execute(sa.text(statement))

    assert await read_entries(database) == before != []


async def test_an_entry_is_rolled_back_with_its_change(database: Database) -> None:
    """Without the change there is no entry."""

    async def fail() -> None:
        async with database.transaction() as session:
            await record_action(session, ROOT, Action.USER_DISABLED, user_id="bob")
            raise RuntimeError("before the commit")

    with pytest.raises(RuntimeError, match="before the commit"):
        await fail()

    assert await read_entries(database) == []


async def test_reads_within_the_interval_are_one_entry(database: Database) -> None:
    """Also those of another process; each user, action and actor has its own entry."""
    now = utc_now()
    first, second = (ReadRecorder(database, lambda: now) for _ in range(2))
    for recorder in (first, second, first):
        await recorder.record(ROOT, Action.ANSWER_READ, ["bob", "eve"], target_id="a")
    await second.record(ROOT, Action.LOG_READ, ["bob"])
    await second.record(Actor("boss", "jwt"), Action.ANSWER_READ, ["bob"])
    await first.record(ROOT, Action.LOG_READ, [None])
    await second.record(ROOT, Action.LOG_READ, [None])
    entries = await read_entries(database)

    # In any order: they have the same time.
    assert sorted((entry.actor, entry.action, entry.user_id or "") for entry in entries) == [
        ("boss", "answer.read", "bob"),
        ("root", "answer.read", "bob"),
        ("root", "answer.read", "eve"),
        ("root", "log.read", ""),
        ("root", "log.read", "bob"),
    ]


@pytest.mark.parametrize(("seconds", "count"), [(READ_SECONDS - 1, 1), (READ_SECONDS + 1, 2)])
async def test_a_later_read_is_another_entry(database: Database, seconds: int, count: int) -> None:
    """The interval begins with the recorded read, also if another process recorded it."""
    now = utc_now()
    times = [now, now + timedelta(seconds=60), now + timedelta(seconds=seconds)]
    clock: list[datetime] = []
    recorder, other = (ReadRecorder(database, lambda: clock[-1]) for _ in range(2))
    for moment, reader in zip(times, (other, recorder, recorder), strict=True):
        clock.append(moment)
        await reader.record(ROOT, Action.LOG_READ, ["bob"])

    assert len(await read_entries(database)) == count


async def test_pages_of_filtered_entries(database: Database) -> None:
    """Pages are newest first and continue at their cursor; filters and times restrict them."""
    for n in range(5):
        for user in ("bob", "eve"):
            await store.put_user(database, BOOTSTRAP, user, disabled=n % 2 == 0)
    entries = await read_entries(database)
    audit_filter = AuditFilter(user_id=("bob",), action=("user.disabled",), actor=("admin",))
    async with database.read_session() as session:
        first = await list_entries(session, audit_filter, limit=2)
        rest = await list_entries(session, audit_filter, limit=2, cursor=first.next_cursor)
        with pytest.raises(InvalidCursor):
            await list_entries(session, audit_filter, limit=2, cursor="x")
    since = await read_entries(database, since=utc_now() + timedelta(seconds=1))
    until = await read_entries(database, until=utc_now() + timedelta(seconds=1))

    expected = [e for e in entries if (e.user_id, e.action) == ("bob", "user.disabled")]
    assert first.items + rest.items == sorted(expected, key=lambda e: e.id, reverse=True)
    assert (len(first.items), rest.next_cursor) == (2, None)
    assert (since, until) == ([], entries)
