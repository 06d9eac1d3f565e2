"""Keys: made, shown once, checked in full, ended."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from service.core.auth import credentials, store
from service.core.auth.credentials import digest
from service.core.auth.principals import BOOTSTRAP, Principal, Role, Scope
from service.core.auth.store import ApiKey, Wanted
from service.core.database.engine import Database
from service.core.database.tables import api_keys
from service.core.encoding import now
from service.core.errors import Forbidden, KeysFull, Unauthorized
from tests.access import Clocks, carrying, door, made

SERVICE = Path(__file__).parents[3] / "service"


async def test_a_key_is_shown_once_and_kept_as_a_hash(database: Database) -> None:
    """The database has SHA-256 and a prefix, no list has the key, and the hash is no credential."""
    key = await made(database)
    assert re.fullmatch(r"kt_[A-Za-z0-9_-]{43}", str(key.key))
    async with database.reading() as session:
        row = (await session.execute(sa.select(api_keys))).mappings().one()
        (listed,) = await store.list_keys(session, BOOTSTRAP)

    assert row["hash"] == digest(str(key.key))
    assert str(key.key) not in str(dict(row))
    assert not isinstance(listed.key, str)
    assert not any("hash" in name for name in ApiKey.__struct_fields__)
    with pytest.raises(Unauthorized):
        await door(database).admit(carrying(row["hash"]))


SCOPES = st.frozensets(st.sampled_from(list(Scope)))


@hypothesis_given(SCOPES, SCOPES, st.sampled_from(list(Role)), st.sampled_from(list(Role)), st.booleans())
def test_a_key_has_no_more_than_its_maker(mine: frozenset[Scope], child: frozenset[Scope], role: Role, of: Role, own: bool) -> None:
    """Scopes of a child are a part of its maker's; users make keys of users, and of themselves alone."""
    by = Principal(user_id="alice", role=role, scopes=mine, credential="key:1")
    wanted = Wanted(user_id="alice" if own else "bob", role=of, scopes=child)
    fits = child <= mine and (role is Role.ADMIN or (own and of is Role.USER))
    try:
        store._check_child(by, wanted)
    except Forbidden:
        assert not fits
    else:
        assert fits


async def test_a_key_with_an_end_makes_none_without(database: Database) -> None:
    """A key does not outlive its maker."""
    by = Principal(user_id="alice", role=Role.USER, credential="key:1", ends_at=(now() + timedelta(days=1)).timestamp())
    for end in (None, now() + timedelta(days=2)):
        with pytest.raises(Forbidden):
            await made(database, by=by, expires_at=end)
    assert (await made(database, by=by, expires_at=now() + timedelta(hours=1))).user_id == "alice"


async def test_keys_have_a_limit(database: Database) -> None:
    """One more than KOTAE_KEYS_MAX is a refusal; revoked and expired ones do not count."""
    keys = [await store.create_key(database, BOOTSTRAP, Wanted(user_id="a"), keys_max=3) for _ in range(3)]
    with pytest.raises(KeysFull):
        await store.create_key(database, BOOTSTRAP, Wanted(user_id="a"), keys_max=3)
    await store.revoke_key(database, BOOTSTRAP, keys[0].id)
    await store.create_key(database, BOOTSTRAP, Wanted(user_id="a"), keys_max=3)


async def test_a_rotated_key_lives_on_for_its_grace(database: Database) -> None:
    """Both keys work until the grace is over."""
    clocks = Clocks()
    clocks.now = now().timestamp()
    old, verifies = await made(database), door(database, clocks)
    new = await store.rotate_key(database, BOOTSTRAP, old.id, grace_seconds=60, keys_max=1)
    for key in (old, new):
        await verifies.admit(carrying(key))
    clocks.now += 61
    await verifies.admit(carrying(new))
    with pytest.raises(Unauthorized):
        await verifies.admit(carrying(old))


async def test_one_session_too_many_ends_the_oldest(database: Database) -> None:
    """A user has a limited number of sessions."""
    alice = Principal(user_id="alice", role=Role.USER, credential="key:1")
    begun = [await store.begin_session(database, alice, "key:1", seconds=60, sessions_max=2) for _ in range(3)]
    async with database.reading() as session:
        rows = [await store.find_session(session, credentials.digest(value)) for value, _ in begun]

    assert [row is not None for row in rows] == [False, True, True]
