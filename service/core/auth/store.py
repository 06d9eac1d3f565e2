"""Users, keys and sessions as the database keeps them.

A user is there once they have a key, or once an admin has said something about them; whoever comes with a JWT needs no
row. Keys are never deleted, only revoked: rows of the log name them. Who may see or change a key is decided here, by the
`Principal` that asks: somebody else's key is not found.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from service.core.auth.credentials import (
    generate_key,
    generate_session,
    hash_credential,
    key_prefix,
)
from service.core.auth.principals import EVERYTHING, Principal, Role, Scope
from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import api_keys, plans, sessions, users
from service.core.encoding import create_id, utc_now
from service.core.errors import Forbidden, KeyReplaced, KeysFull, NotFound
from service.core.ports import QuotaLimits

DEFAULT_PLAN = "default"
KEYS_PAGE_MAX = 1000
USER_KEYS_MAX = 100  # valid at once
SESSIONS_PER_USER_MAX = 20  # the oldest gives way


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the wire shows it; `key` itself is there once, in the answer that made it."""

    id: str
    prefix: str
    name: str
    user_id: str
    role: str
    scopes: list[str]
    limits: dict[str, Any] | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    replaced_by: str | None
    key: str | msgspec.UnsetType = msgspec.UNSET


class User(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a user beside their keys."""

    id: str
    disabled: bool = False
    plan: str | None = None
    limits: QuotaLimits | None = None


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key to be made."""

    user_id: str
    role: Role = Role.USER
    scopes: frozenset[Scope] = EVERYTHING
    name: str = ""
    expires_at: datetime | None = None
    limits: QuotaLimits | None = None


async def create_key(
    database: Database, by: Principal, wanted: NewKey, *, keys_max: int = USER_KEYS_MAX
) -> ApiKey:
    """Make a key; the result has it. Raises `Forbidden` for more than `by` has, `KeysFull`, `DatabaseUnavailable`."""
    async with database.transaction() as session:
        return await _insert_key(session, by, wanted, keys_max=keys_max)


async def _insert_key(session: Session, by: Principal, wanted: NewKey, *, keys_max: int) -> ApiKey:
    _check_child(by, wanted)
    key, at = generate_key(), utc_now()
    key_id = create_id(at)
    row = {
        "id": key_id,
        "hash": hash_credential(key),
        "prefix": key_prefix(key),
        "name": wanted.name,
        "user_id": wanted.user_id,
        "role": wanted.role.value,
        "scopes": sorted(wanted.scopes),
        "limits": None if wanted.limits is None else msgspec.to_builtins(wanted.limits),
        "created_at": at,
        "expires_at": wanted.expires_at,
    }
    await session.execute(
        insert(users)
        .values(id=wanted.user_id, disabled=False, created_at=at)
        .on_conflict_do_nothing()
    )
    alive = sa.and_(api_keys.c.user_id == wanted.user_id, _alive(at))
    if (await session.execute(sa.select(sa.func.count()).where(alive))).scalar_one() >= keys_max:
        raise KeysFull(f"the user has {keys_max} valid keys, which is the maximum: revoke some")
    await session.execute(sa.insert(api_keys).values(**row))
    return msgspec.structs.replace(_shown(await _key(session, key_id, by)), key=key)


def _check_child(by: Principal, wanted: NewKey) -> None:
    """A key has nothing that its maker has not. Raises `Forbidden`."""
    if by.is_admin and by.scopes >= wanted.scopes:
        return
    if wanted.user_id != by.user_id or wanted.role is Role.ADMIN:
        raise Forbidden("only admins make keys of others, or of admins")
    if not by.scopes >= wanted.scopes:
        raise Forbidden("a key has no scope that its maker has not")
    if by.key_limits is not None:
        raise Forbidden("a key with limits of its own makes no keys: they would escape its limits")
    if by.ends_at is not None and (
        wanted.expires_at is None or wanted.expires_at.timestamp() > by.ends_at
    ):
        raise Forbidden(
            "a key does not outlive the credential that made it: give an earlier expires_at"
        )


async def list_keys(
    session: ReadSession, by: Principal, *, user_id: str | None = None
) -> list[ApiKey]:
    """The keys that `by` may see, newest first, `KEYS_PAGE_MAX` at most; those of `user_id` alone, if given."""
    query = sa.select(*_SHOWN).where(_owned(by)).order_by(api_keys.c.id.desc()).limit(KEYS_PAGE_MAX)
    if user_id is not None:
        query = query.where(api_keys.c.user_id == user_id)
    return [_shown(row) for row in (await session.execute(query)).mappings()]


async def rotate_key(
    database: Database,
    by: Principal,
    key_id: str,
    *,
    grace_seconds: float,
    keys_max: int = USER_KEYS_MAX,
) -> ApiKey:
    """Create a key in place of another one, which stays valid for the grace period: both in one transaction, or neither.

    A key is rotated once: of two rotations at the same time the second raises `KeyReplaced`, because the new key is shown
    once only. Raises `NotFound`, also for a revoked or expired key, `Forbidden` and `KeysFull`.
    """
    async with database.transaction() as session:
        at, old = utc_now(), await _key(session, key_id, by)
        if old["revoked_at"] or (old["expires_at"] and old["expires_at"] <= at):
            raise NotFound("this key is revoked or expired: make a new one")
        if old["replaced_by"]:
            raise KeyReplaced(f"this key was rotated: key {old['replaced_by']} replaces it")
        wanted = msgspec.convert({str(name): value for name, value in old.items()}, NewKey)
        # A key with limits of its own may be rotated by itself: the new one has the same limits.
        rotating = msgspec.structs.replace(by, key_limits=None) if by.key_id == key_id else by
        new = await _insert_key(session, rotating, wanted, keys_max=keys_max + 1)
        end = at + timedelta(seconds=grace_seconds)
        values = {"replaced_by": new.id, "expires_at": min(end, old["expires_at"] or end)}
        await session.execute(sa.update(api_keys).where(api_keys.c.id == key_id).values(**values))
    return new


async def revoke_key(database: Database, by: Principal, key_id: str) -> None:
    """End a key now. Idempotent. Raises `NotFound`."""
    async with database.transaction() as session:
        await _key(session, key_id, by)
        await session.execute(
            sa.update(api_keys)
            .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
            .values(revoked_at=utc_now())
        )


async def find_key(session: ReadSession, key_hash: str) -> Mapping[Any, Any] | None:
    """The key of this hash with its user and the limits in force; None if there is none."""
    own = (
        *(
            api_keys.c[name]
            for name in ("id", "hash", "user_id", "role", "scopes", "expires_at", "revoked_at")
        ),
    )
    query = sa.select(*own, api_keys.c.limits.label("key_limits"), *_USER).join(
        users, users.c.id == api_keys.c.user_id
    )
    return (await session.execute(query.where(api_keys.c.hash == key_hash))).mappings().first()


async def find_session(session: ReadSession, session_hash: str) -> Mapping[Any, Any] | None:
    """The session of this hash, with the disabled flag and limits of its user; None if there is none."""
    query = sa.select(sessions, *_USER).outerjoin(users, users.c.id == sessions.c.user_id)
    return (await session.execute(query.where(sessions.c.hash == session_hash))).mappings().first()


async def find_key_by_id(session: ReadSession, key_id: str) -> Mapping[Any, Any] | None:
    """As `find_key`, by the id."""
    found = (
        await session.execute(sa.select(api_keys.c.hash).where(api_keys.c.id == key_id))
    ).scalar()
    return None if found is None else await find_key(session, found)


async def find_user(session: ReadSession, user_id: str) -> Mapping[Any, Any]:
    """The disabled flag and the limits in force of a user, whether there is a row or not."""
    default = sa.select(sa.literal(user_id).label("wanted")).subquery()
    query = sa.select(*_USER).select_from(default).outerjoin(users, users.c.id == default.c.wanted)
    return (await session.execute(query)).mappings().one()


async def touch_keys(database: Database, used: Mapping[str, datetime]) -> None:
    """Note when keys were last used."""
    statement = (
        sa.update(api_keys)
        .where(api_keys.c.id == sa.bindparam("key_id"))
        .values(last_used_at=sa.bindparam("at"))
    )
    async with database.transaction() as session:
        await session.execute(
            statement, [{"key_id": key_id, "at": at} for key_id, at in used.items()]
        )


async def begin_session(
    database: Database,
    by: Principal,
    origin: str,
    *,
    seconds: float,
    sessions_max: int = SESSIONS_PER_USER_MAX,
) -> tuple[str, datetime]:
    """A new session of this principal: (the cookie's value, its end), which is the credential's end at the latest.

    A user has at most `sessions_max` sessions; the oldest are ended.
    """
    value, at = generate_session(), utc_now()
    end = at + timedelta(seconds=seconds)
    if by.ends_at is not None:
        end = min(end, datetime.fromtimestamp(by.ends_at, UTC))
    row = {
        "hash": hash_credential(value),
        "user_id": by.user_id,
        "role": by.role.value,
        "scopes": sorted(by.scopes),
        "origin": origin,
    }
    async with database.transaction() as session:
        await session.execute(sa.delete(sessions).where(sessions.c.expires_at <= at))
        kept = (
            sa.select(sessions.c.hash)
            .where(sessions.c.user_id == by.user_id)
            .order_by(sessions.c.created_at.desc())
        )
        await session.execute(
            sa.delete(sessions).where(sessions.c.hash.in_(kept.offset(sessions_max - 1).limit(-1)))
        )
        await session.execute(sa.insert(sessions).values(**row, created_at=at, expires_at=end))
    return value, end


async def end_session(database: Database, session_hash: str) -> None:
    """End a session. Idempotent."""
    async with database.transaction() as session:
        await session.execute(sa.delete(sessions).where(sessions.c.hash == session_hash))


async def list_users(session: ReadSession, *, limit: int, after: str = "") -> list[User]:
    """Users by id, those after `after`."""
    query = sa.select(users.c.id, users.c.disabled, users.c.plan, users.c.limits).where(
        users.c.id > after
    )
    return [
        _user(row)
        for row in (await session.execute(query.order_by(users.c.id).limit(limit))).mappings()
    ]


async def get_user(session: ReadSession, user_id: str) -> User:
    """What is known of a user; of one without a row, nothing."""
    query = sa.select(users.c.id, users.c.disabled, users.c.plan, users.c.limits).where(
        users.c.id == user_id
    )
    row = (await session.execute(query)).mappings().first()
    return User(id=user_id) if row is None else _user(row)


async def put_user(database: Database, user_id: str, **values: Any) -> User:
    """Set `disabled`, or `plan` and `limits`, of a user. Raises `NotFound` for a plan that is none."""
    if "limits" in values and values["limits"] is not None:
        values["limits"] = msgspec.to_builtins(values["limits"])
    async with database.transaction() as session:
        if (plan := values.get("plan")) is not None:
            await _require_plan(session, plan)
        row = {"id": user_id, "disabled": False, "created_at": utc_now()} | values
        await session.execute(
            insert(users).values(**row).on_conflict_do_update(index_elements=["id"], set_=values)
        )
        return await get_user(session, user_id)


async def list_plans(session: ReadSession) -> dict[str, QuotaLimits]:
    """Every plan."""
    return {
        row.name: msgspec.convert(row.limits, QuotaLimits)
        for row in await session.execute(sa.select(plans).order_by(plans.c.name))
    }


async def put_plan(database: Database, name: str, limits: QuotaLimits) -> None:
    """Make or change a plan."""
    values = {"limits": msgspec.to_builtins(limits)}
    async with database.transaction() as session:
        await session.execute(
            insert(plans)
            .values(name=name, **values)
            .on_conflict_do_update(index_elements=["name"], set_=values)
        )


async def delete_plan(database: Database, name: str) -> None:
    """Delete a plan; who had it has the default one. Raises `NotFound`."""
    async with database.transaction() as session:
        await _require_plan(session, name)
        await session.execute(sa.delete(plans).where(plans.c.name == name))


async def _require_plan(session: Session, name: str) -> None:
    if (await session.execute(sa.select(plans.c.name).where(plans.c.name == name))).first() is None:
        raise NotFound("no plan has this name")


def user_limits(row: Mapping[Any, Any], role: Role) -> QuotaLimits | None:
    """The limits in force: the user's own, else their plan's, else the default plan's, which is not for admins."""
    limits = row["user_limits"] if row["user_limits"] is not None else row["plan_limits"]
    if limits is None and role is Role.USER:
        limits = row["default_limits"]
    return None if limits is None else msgspec.convert(limits, QuotaLimits)


def is_alive(row: Mapping[Any, Any], at: float | None = None) -> bool:
    """Whether a key or session that was found may be used at this time."""
    expires_at = row["expires_at"]
    over = expires_at is not None and expires_at.timestamp() <= (time.time() if at is None else at)
    return not (over or row.get("revoked_at") or row["disabled"])


def _alive(at: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(
        api_keys.c.revoked_at.is_(None),
        sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > at),
    )


def _owned(by: Principal) -> sa.ColumnElement[bool]:
    return sa.true() if by.visible_user_id is None else api_keys.c.user_id == by.visible_user_id


async def _key(session: ReadSession, key_id: str, by: Principal) -> Mapping[Any, Any]:
    row = (
        (await session.execute(sa.select(*_SHOWN).where(api_keys.c.id == key_id, _owned(by))))
        .mappings()
        .first()
    )
    if row is None:
        raise NotFound("no key has this id")
    return row


def _shown(row: Mapping[Any, Any]) -> ApiKey:
    values = {str(name): value for name, value in row.items()}
    if values["limits"] is not None:
        values["limits"] = msgspec.convert(values["limits"], QuotaLimits).to_wire()
    return msgspec.convert(values, ApiKey)


def _user(row: Mapping[Any, Any]) -> User:
    return msgspec.convert({str(name): value for name, value in row.items()}, User)


_SHOWN = tuple(column for column in api_keys.c if column.name != "hash")
_USER = (
    sa.func.coalesce(users.c.disabled, False).label("disabled"),
    users.c.limits.label("user_limits"),
    sa.select(plans.c.limits)
    .where(plans.c.name == users.c.plan)
    .scalar_subquery()
    .label("plan_limits"),
    sa.select(plans.c.limits)
    .where(plans.c.name == DEFAULT_PLAN)
    .scalar_subquery()
    .label("default_limits"),
)
