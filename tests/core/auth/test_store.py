"""Keys: made, shown once, checked in full, ended."""

import asyncio
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from service.core.auth import credentials, store
from service.core.auth.credentials import hash_credential
from service.core.auth.principals import BOOTSTRAP, Principal, Role, Scope
from service.core.auth.store import ApiKey, NewKey
from service.core.database.engine import Database
from service.core.database.tables import api_keys
from service.core.encoding import utc_now
from service.core.errors import Forbidden, KeyReplaced, KeysFull, NotFound, Unauthorized
from tests.access import Clocks, carrying, door, made

SERVICE = Path(__file__).parents[3] / "service"


async def test_a_key_is_shown_once_and_kept_as_a_hash(database: Database) -> None:
    """The database has SHA-256 and a prefix, no list has the key, and the hash is no credential."""
    key = await made(database)
    assert re.fullmatch(r"kt_[A-Za-z0-9_-]{43}", str(key.key))
    async with database.read_session() as session:
        row = (await session.execute(sa.select(api_keys))).mappings().one()
        (listed,) = await store.list_keys(session, BOOTSTRAP)

    assert row["hash"] == hash_credential(str(key.key))
    assert str(key.key) not in str(dict(row))
    assert not isinstance(listed.key, str)
    assert not any("hash" in name for name in ApiKey.__struct_fields__)
    with pytest.raises(Unauthorized):
        await door(database).authenticate(carrying(row["hash"]))


SCOPES = st.frozensets(st.sampled_from(list(Scope)))


@hypothesis_given(
    SCOPES, SCOPES, st.sampled_from(list(Role)), st.sampled_from(list(Role)), st.booleans()
)
def test_a_key_has_no_more_than_its_maker(
    mine: frozenset[Scope], child: frozenset[Scope], role: Role, of: Role, own: bool
) -> None:
    """Scopes of a child are a part of its maker's; users make keys of users, and of themselves alone."""
    by = Principal(user_id="alice", role=role, scopes=mine, credential="key:1")
    wanted = NewKey(user_id="alice" if own else "bob", role=of, scopes=child)
    fits = child <= mine and (role is Role.ADMIN or (own and of is Role.USER))
    try:
        store._check_child(by, wanted)
    except Forbidden:
        assert not fits
    else:
        assert fits


async def test_a_key_with_an_end_makes_none_without(database: Database) -> None:
    """A key does not outlive its maker."""
    by = Principal(
        user_id="alice",
        role=Role.USER,
        credential="key:1",
        ends_at=(utc_now() + timedelta(days=1)).timestamp(),
    )
    for end in (None, utc_now() + timedelta(days=2)):
        with pytest.raises(Forbidden):
            await made(database, by=by, expires_at=end)
    assert (
        await made(database, by=by, expires_at=utc_now() + timedelta(hours=1))
    ).user_id == "alice"


async def test_keys_have_a_limit(database: Database) -> None:
    """One key more than the maximum is a refusal; revoked and expired ones do not count."""
    keys = [
        await store.create_key(database, BOOTSTRAP, NewKey(user_id="a"), keys_max=3)
        for _ in range(3)
    ]
    with pytest.raises(KeysFull):
        await store.create_key(database, BOOTSTRAP, NewKey(user_id="a"), keys_max=3)
    await store.revoke_key(database, BOOTSTRAP, keys[0].id)
    await store.create_key(database, BOOTSTRAP, NewKey(user_id="a"), keys_max=3)


async def test_a_rotated_key_lives_on_for_its_grace(database: Database) -> None:
    """Both keys work until the grace is over."""
    clocks = Clocks()
    clocks.now = utc_now().timestamp()
    old, verifies = await made(database), door(database, clocks)
    new = await store.rotate_key(database, BOOTSTRAP, old.id, grace_seconds=60, keys_max=1)
    for key in (old, new):
        await verifies.authenticate(carrying(key))
    clocks.now += 61
    await verifies.authenticate(carrying(new))
    with pytest.raises(Unauthorized):
        await verifies.authenticate(carrying(old))


async def stored(database: Database) -> list[dict[str, Any]]:
    """Every key as the database has it."""
    async with database.read_session() as session:
        return [dict(row) for row in (await session.execute(sa.select(api_keys))).mappings()]


async def rotate(database: Database, key_id: str, **arguments: Any) -> ApiKey:
    """A key, rotated by an admin."""
    return await store.rotate_key(
        database, BOOTSTRAP, key_id, **({"grace_seconds": 60, "keys_max": 100} | arguments)
    )


async def test_a_rotated_key_names_the_one_that_replaces_it(database: Database) -> None:
    """The old key ends after the grace period, or at its own end if that is earlier, and has the id of the new one."""
    lasting, ending = (
        await made(database),
        await made(database, expires_at=utc_now() + timedelta(seconds=5)),
    )
    replacing = {old.id: await rotate(database, old.id) for old in (lasting, ending)}
    async with database.read_session() as session:
        listed = {key.id: key for key in await store.list_keys(session, BOOTSTRAP)}

    assert {listed[old].replaced_by for old in replacing} == {new.id for new in replacing.values()}
    assert (
        utc_now()
        < (listed[lasting.id].expires_at or utc_now())
        <= utc_now() + timedelta(seconds=60)
    )
    assert listed[ending.id].expires_at == ending.expires_at


async def test_two_rotations_at_once_create_one_key(database: Database) -> None:
    """Whichever comes second, from this process or another one, gets an error that names the new key."""
    old = await made(database)
    other = Database(f"sqlite+aiosqlite:///{database.file}")
    found = await asyncio.gather(
        *(rotate(each, old.id) for each in (database, other) * 5), return_exceptions=True
    )
    await other.close()
    (new,) = [key for key in found if isinstance(key, ApiKey)]

    assert [type(error) for error in found if error is not new] == [KeyReplaced] * 9
    assert all(new.id in str(error) for error in found if error is not new)
    assert {key["id"] for key in await stored(database)} == {old.id, new.id}


async def test_a_key_that_replaces_another_can_be_rotated(database: Database) -> None:
    """The new key is as good as the old one was: it has no end that it would have got from the grace period."""
    old = await made(database)
    new = await rotate(database, (await rotate(database, old.id)).id)

    assert new.expires_at is None


async def test_a_rotation_that_dies_leaves_nothing(database: Database) -> None:
    """Whichever statement of it is the last, the old key is as it was and there is no other."""
    old = await made(database)
    before = await stored(database)
    executed, last = 0, 0

    def die(*_: Any) -> None:
        nonlocal executed
        executed += 1
        if executed > last:
            raise OSError("the disk is gone")

    sa.event.listen(database._writer.sync_engine, "before_cursor_execute", die)
    new = None
    while new is None:
        try:
            new = await rotate(database, old.id)
        except OSError:
            assert await stored(database) == before
            executed, last = 0, last + 1

    assert last > 5
    assert len(await stored(database)) == 2


async def test_a_key_that_has_ended_is_not_rotated(database: Database) -> None:
    """Neither a revoked nor an expired key comes back to life."""
    revoked, expired = (
        await made(database),
        await made(database, expires_at=utc_now() - timedelta(seconds=1)),
    )
    await store.revoke_key(database, BOOTSTRAP, revoked.id)
    for key in (revoked, expired):
        with pytest.raises(NotFound):
            await rotate(database, key.id)

    assert len(await stored(database)) == 2


async def test_one_session_too_many_ends_the_oldest(database: Database) -> None:
    """A user has a limited number of sessions."""
    alice = Principal(user_id="alice", role=Role.USER, credential="key:1")
    begun = [
        await store.begin_session(database, alice, "key:1", seconds=60, sessions_max=2)
        for _ in range(3)
    ]
    async with database.read_session() as session:
        rows = [
            await store.find_session(session, credentials.hash_credential(value))
            for value, _ in begun
        ]

    assert [row is not None for row in rows] == [False, True, True]
