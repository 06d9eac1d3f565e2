"""Keys: creation, limits, rotation and revocation."""

import asyncio
import re
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from service.core.audit_log import AuditFilter, list_entries
from service.core.auth import credentials, store
from service.core.auth.authenticator import Authenticator
from service.core.auth.credentials import Credentials, hash_credential
from service.core.auth.principals import BOOTSTRAP, Principal, Role, Scope
from service.core.auth.store import ApiKey, NewKey
from service.core.database.engine import Database
from service.core.database.tables import api_keys
from service.core.encoding import utc_now
from service.core.errors import (
    DatabaseUnavailable,
    Forbidden,
    KeyReplaced,
    KeysFull,
    NotFound,
    Unauthorized,
)
from service.core.ports import QuotaLimits
from service.core.pricing import ChargeTerms
from tests.access import Clocks, create_authenticator, create_credentials, create_key

pytestmark = pytest.mark.every_database

SERVICE = Path(__file__).parents[3] / "service"


async def test_key_is_returned_once_and_stored_as_a_hash(database: Database) -> None:
    """The database contains SHA-256 and a prefix, and the hash is no credential."""
    key = await create_key(database)
    assert re.fullmatch(r"kt_[A-Za-z0-9_-]{43}", str(key.key))
    async with database.read_session() as session:
        row = (await session.execute(sa.select(api_keys))).mappings().one()
        (listed,) = await store.list_keys(session, BOOTSTRAP)

    assert row["hash"] == hash_credential(str(key.key))
    assert str(key.key) not in str(dict(row))
    assert not isinstance(listed.key, str)
    assert not any("hash" in name for name in ApiKey.__struct_fields__)
    with pytest.raises(Unauthorized):
        await create_authenticator(database).authenticate(create_credentials(row["hash"]))


SCOPES = st.frozensets(st.sampled_from(list(Scope)))


@hypothesis_given(
    SCOPES, SCOPES, st.sampled_from(list(Role)), st.sampled_from(list(Role)), st.booleans()
)
def test_key_never_exceeds_its_creator(
    mine: frozenset[Scope], child: frozenset[Scope], role: Role, of: Role, own: bool
) -> None:
    """A key's scopes are a subset of its creator's; only admins create keys for others."""
    by = Principal(user_id="alice", role=role, scopes=mine, credential="key:1")
    new_key = NewKey(user_id="alice" if own else "bob", role=of, scopes=child)
    fits = child <= mine and (role is Role.ADMIN or (own and of is Role.USER))
    try:
        store._check_delegation(by, new_key)
    except Forbidden:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize("role", Role)
async def test_key_does_not_outlive_its_creator(database: Database, role: Role) -> None:
    """Users and admins with an expiring credential create only keys that expire no later."""
    by = Principal(
        user_id="alice",
        role=role,
        credential="key:1",
        ends_at=(utc_now() + timedelta(days=1)).timestamp(),
    )
    for end in (None, utc_now() + timedelta(days=2)):
        with pytest.raises(Forbidden):
            await create_key(database, by=by, expires_at=end)
    assert (
        await create_key(database, by=by, expires_at=utc_now() + timedelta(hours=1))
    ).user_id == "alice"


@pytest.mark.parametrize("role", Role)
async def test_limited_key_creates_no_keys(database: Database, role: Role) -> None:
    """A created key would escape the limits of its creator, whatever the role."""
    limits = QuotaLimits(requests_per_minute=5)
    by = Principal(user_id="alice", role=role, credential="key:1", key_id="1", key_limits=limits)
    for wanted in (None, limits):
        with pytest.raises(Forbidden):
            await create_key(database, by=by, limits=wanted)


async def test_expiring_admin_key_cannot_take_over_a_lasting_key(database: Database) -> None:
    """Rotating reveals a new key, so it obeys the same rules as creating one."""
    lasting = await create_key(database)
    admin = await create_key(
        database, "root", role=Role.ADMIN, expires_at=utc_now() + timedelta(days=1)
    )
    authenticator = create_authenticator(database, create_clocks())
    by = await authenticator.authenticate(create_credentials(admin))

    with pytest.raises(Forbidden):
        await store.rotate_key(database, by, lasting.id, grace_seconds=60)


async def test_expiring_key_may_rotate_itself(database: Database) -> None:
    """The replacement expires with the lineage, not later."""
    old = await create_key(database, role=Role.ADMIN, expires_at=utc_now() + timedelta(days=1))
    authenticator = create_authenticator(database, create_clocks())
    by = await authenticator.authenticate(create_credentials(old))
    new = await store.rotate_key(database, by, old.id, grace_seconds=60)

    assert new.expires_at == old.expires_at


def create_clocks() -> Clocks:
    """Clocks that show the current time."""
    clocks = Clocks()
    clocks.now = utc_now().timestamp()
    return clocks


async def sign_in(database: Database, authenticator: Authenticator, key: ApiKey) -> Principal:
    """The principal of a session of this key."""
    principal = await authenticator.authenticate(create_credentials(key))
    origin = authenticator.get_session_origin(principal)
    cookie, _ = await store.begin_session(database, principal, origin, seconds=60)
    return await authenticator.authenticate(Credentials(session=cookie))


async def test_session_delegates_like_its_key(database: Database) -> None:
    """Keys created by a session may outlive the session, but not its key."""
    authenticator = create_authenticator(database, create_clocks())
    end = utc_now() + timedelta(days=1)
    key = await create_key(database, role=Role.ADMIN, expires_at=end)
    by = await sign_in(database, authenticator, key)
    child = await create_key(database, by=by, expires_at=end)

    assert child.made_by == key.id
    for later in (None, end + timedelta(seconds=1)):
        with pytest.raises(Forbidden):
            await create_key(database, by=by, expires_at=later)


async def create_tree(database: Database) -> dict[str, ApiKey]:
    """An admin key, keys that it created, and a key that it did not."""
    authenticator = create_authenticator(database)

    async def create_by(creator: ApiKey, user_id: str, role: Role = Role.USER) -> ApiKey:
        by = await authenticator.authenticate(create_credentials(creator))
        return await create_key(database, user_id, by, role=role)

    root = await create_key(database, "root", role=Role.ADMIN)
    child = await create_by(root, "bob", Role.ADMIN)
    return {
        "root": root,
        "child": child,
        "grandchild": await create_by(child, "carol"),
        "unrelated": await create_key(database, "root", role=Role.ADMIN),
    }


async def list_valid(database: Database, keys: dict[str, ApiKey]) -> set[str]:
    """The names of keys that are not revoked."""
    revoked = {row["id"] for row in await read_keys(database) if row["revoked_at"]}
    return {name for name, key in keys.items() if key.id not in revoked}


@pytest.mark.parametrize(
    ("cascade", "valid"), [(False, {"child", "grandchild", "unrelated"}), (True, {"unrelated"})]
)
async def test_revoking_a_key_can_revoke_the_keys_it_created(
    database: Database, cascade: bool, valid: set[str]
) -> None:
    """With `cascade` the keys that it created are revoked too, recursively."""
    keys = await create_tree(database)
    revoked = await store.revoke_key(database, BOOTSTRAP, keys["root"].id, cascade=cascade)

    assert await list_valid(database, keys) == valid
    assert set(revoked) == {keys[name].id for name in keys.keys() - valid}


async def test_cascade_includes_keys_created_before_a_rotation(database: Database) -> None:
    """Revoking the replacement of a key revokes what the key itself had created."""
    keys = await create_tree(database)
    keys["replacement"] = await rotate_key(database, keys["root"].id)
    await store.revoke_key(database, BOOTSTRAP, keys["replacement"].id, cascade=True)

    assert await list_valid(database, keys) == {"root", "unrelated"}


async def test_cascade_spares_the_replacement_of_a_leaked_key(database: Database) -> None:
    """A key that an admin put in place of another one was not created by it."""
    keys = await create_tree(database)
    keys["replacement"] = await rotate_key(database, keys["root"].id)
    await store.revoke_key(database, BOOTSTRAP, keys["root"].id, cascade=True)

    assert await list_valid(database, keys) == {"replacement", "unrelated"}


async def test_rotated_keys_share_a_lineage(database: Database) -> None:
    """Every key of a chain of rotations has the id of the first as its lineage."""
    first = await create_key(database)
    second = await rotate_key(database, first.id)
    third = await rotate_key(database, second.id)
    other = await create_key(database)
    lineages = {row["id"]: row["lineage"] for row in await read_keys(database)}

    assert [lineages[key.id] for key in (first, second, third)] == [first.id] * 3
    assert lineages[other.id] == other.id


async def test_number_of_keys_is_limited(database: Database) -> None:
    """A key beyond KOTAE_KEYS_MAX is refused; revoked and expired keys do not count."""
    keys = [
        await store.create_key(database, BOOTSTRAP, NewKey(user_id="a"), keys_max=3)
        for _ in range(3)
    ]
    with pytest.raises(KeysFull):
        await store.create_key(database, BOOTSTRAP, NewKey(user_id="a"), keys_max=3)
    await store.revoke_key(database, BOOTSTRAP, keys[0].id)
    await store.create_key(database, BOOTSTRAP, NewKey(user_id="a"), keys_max=3)


async def test_rotated_key_stays_valid_for_the_grace_period(database: Database) -> None:
    """Both keys are valid during the grace period."""
    clocks = Clocks()
    clocks.now = utc_now().timestamp()
    old, verifies = await create_key(database), create_authenticator(database, clocks)
    new = await store.rotate_key(database, BOOTSTRAP, old.id, grace_seconds=60, keys_max=1)
    for key in (old, new):
        await verifies.authenticate(create_credentials(key))
    clocks.now += 120  # the grace period began a moment after `now`
    await verifies.authenticate(create_credentials(new))
    with pytest.raises(Unauthorized):
        await verifies.authenticate(create_credentials(old))


async def read_keys(database: Database) -> list[dict[str, Any]]:
    """All keys in the database."""
    async with database.read_session() as session:
        return [dict(row) for row in (await session.execute(sa.select(api_keys))).mappings()]


async def rotate_key(database: Database, key_id: str, **arguments: Any) -> ApiKey:
    """Rotate a key as an admin."""
    return await store.rotate_key(
        database, BOOTSTRAP, key_id, **({"grace_seconds": 60, "keys_max": 100} | arguments)
    )


async def test_rotated_key_names_its_replacement(database: Database) -> None:
    """The old key ends after the grace period or at its own expiry, and names the new key."""
    lasting, ending = (
        await create_key(database),
        await create_key(database, expires_at=utc_now() + timedelta(seconds=5)),
    )
    replacing = {old.id: await rotate_key(database, old.id) for old in (lasting, ending)}
    async with database.read_session() as session:
        listed = {key.id: key for key in await store.list_keys(session, BOOTSTRAP)}

    assert {listed[old].replaced_by for old in replacing} == {new.id for new in replacing.values()}
    assert (
        utc_now()
        < (listed[lasting.id].expires_at or utc_now())
        <= utc_now() + timedelta(seconds=60)
    )
    assert listed[ending.id].expires_at == ending.expires_at


@pytest.mark.sqlite
async def test_concurrent_rotations_create_one_key(database: Database) -> None:
    """Of concurrent rotations one succeeds, also across processes; the others name the new key."""
    old = await create_key(database)
    second = Database(f"sqlite+aiosqlite:///{database.file}")
    results = await asyncio.gather(
        *(rotate_key(replica, old.id) for replica in (database, second) * 5), return_exceptions=True
    )
    await second.close()
    (new,) = [key for key in results if isinstance(key, ApiKey)]

    assert [type(error) for error in results if error is not new] == [KeyReplaced] * 9
    assert all(new.id in str(error) for error in results if error is not new)
    assert {key["id"] for key in await read_keys(database)} == {old.id, new.id}


async def test_key_that_replaces_another_can_be_rotated(database: Database) -> None:
    """The new key does not inherit the expiry of the grace period."""
    old = await create_key(database)
    new = await rotate_key(database, (await rotate_key(database, old.id)).id)

    assert new.expires_at is None


async def test_interrupted_rotation_changes_nothing(database: Database) -> None:
    """A rotation interrupted at any statement changes nothing."""
    old = await create_key(database)
    before = await read_keys(database)
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
            new = await rotate_key(database, old.id)
        except (OSError, DatabaseUnavailable):
            assert await read_keys(database) == before
            executed, last = 0, last + 1

    assert last > 5
    assert len(await read_keys(database)) == 2


async def test_ended_key_cannot_be_rotated(database: Database) -> None:
    """Neither a revoked nor an expired key can be rotated."""
    revoked, expired = (
        await create_key(database),
        await create_key(database, expires_at=utc_now() - timedelta(seconds=1)),
    )
    await store.revoke_key(database, BOOTSTRAP, revoked.id)
    for key in (revoked, expired):
        with pytest.raises(NotFound):
            await rotate_key(database, key.id)

    assert len(await read_keys(database)) == 2


async def test_oldest_session_is_deleted_beyond_the_limit(database: Database) -> None:
    """One session too many deletes the oldest."""
    alice = Principal(user_id="alice", role=Role.USER, credential="key:1")
    started = [
        await store.begin_session(database, alice, "key:1", seconds=60, sessions_max=2)
        for _ in range(3)
    ]
    async with database.read_session() as session:
        rows = [
            await store.find_session(session, credentials.hash_credential(value))
            for value, _ in started
        ]

    assert [row is not None for row in rows] == [False, True, True]


async def test_terms_are_those_of_the_plan(database: Database) -> None:
    """A user pays by their plan, else by the default plan, which does not apply to admins."""
    authenticator = create_authenticator(database, Clocks())
    roles = {"alice": Role.USER, "root": Role.ADMIN}
    keys = [await create_key(database, user_id, role=role) for user_id, role in roles.items()]

    async def read_terms() -> list[ChargeTerms | None]:
        authenticator.clear_cache()
        return [(await authenticator.authenticate(create_credentials(key))).terms for key in keys]

    limits = QuotaLimits()
    assert await read_terms() == [None, None]
    await store.put_plan(database, BOOTSTRAP, "default", limits, prepaid=True)
    assert await read_terms() == [ChargeTerms(prepaid=True, markup=Decimal(1)), None]
    await store.put_plan(database, BOOTSTRAP, "team", limits, markup=Decimal("1.25"))
    for user_id in ("alice", "root"):
        await store.put_user(database, BOOTSTRAP, user_id, plan="team", limits=None)
    team = ChargeTerms(markup=Decimal("1.25"))
    assert await read_terms() == [team, team]
    assert (await authenticator.read_subject("alice")).terms == team
    await store.put_user(database, BOOTSTRAP, "alice", plan=None, limits=QuotaLimits(concurrent=1))
    assert (await read_terms())[0] == ChargeTerms(prepaid=True, markup=Decimal(1))


async def test_terms_of_plans_are_stored_and_recorded(database: Database) -> None:
    """A plan has its terms, and a change of them is in the audit log."""
    await store.put_plan(database, BOOTSTRAP, "team", QuotaLimits(concurrent=2))
    await store.put_plan(
        database,
        BOOTSTRAP,
        "team",
        QuotaLimits(concurrent=2),
        prepaid=True,
        markup=Decimal("1.50"),
    )
    async with database.read_session() as session:
        plan = (await store.list_plans(session))["team"]
        [entry, *_] = (await list_entries(session, AuditFilter(), limit=5)).items
    assert (plan.prepaid, plan.markup) == (True, Decimal("1.5"))
    assert entry.detail["new"] == {"concurrent": 2, "prepaid": True, "markup": "1.5"}
    assert entry.detail["old"] == {"concurrent": 2}
