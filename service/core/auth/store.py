"""Users, keys, sessions and plans in the database.

A user has a row once they have a key or an admin has changed their settings; JWT users need none.
Keys are never deleted, only revoked, because log rows refer to them. Access is checked here: keys
of other users are reported as not found.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.audit_log import Action, record_action
from service.core.auth.credentials import (
    generate_key,
    generate_session,
    get_key_prefix,
    hash_credential,
)
from service.core.auth.principals import ALL_SCOPES, Principal, Role, Scope
from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import api_keys, plans, sessions, users
from service.core.database.upserts import insert_into
from service.core.encoding import convert_row, create_id, utc_now
from service.core.errors import Forbidden, KeyReplaced, KeysFull, NotFound
from service.core.ports import QuotaLimits
from service.core.pricing import ChargeTerms, format_markup

DEFAULT_PLAN = "default"
KEYS_PAGE_MAX = 1000
USER_KEYS_MAX = 100  # valid at the same time
SESSIONS_PER_USER_MAX = 20  # the oldest is deleted


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key in responses; `key` itself is included only when it was just created."""

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
    made_by: str | None
    key: str | msgspec.UnsetType = msgspec.UNSET


class User(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a user."""

    id: str
    disabled: bool = False
    plan: str | None = None
    limits: QuotaLimits | None = None


class UserPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan: limits, and what its users pay.

    `prepaid`: from their wallets. `markup`: the factor of the cost; None: nothing is charged or,
    with `prepaid`, the cost.
    """

    limits: QuotaLimits
    prepaid: bool = False
    markup: Decimal | None = None

    def to_wire(self) -> dict[str, Any]:
        """The limits and terms that are set, for the audit log."""
        terms: dict[str, Any] = {"prepaid": True} if self.prepaid else {}
        if self.markup is not None:
            terms["markup"] = format_markup(self.markup)
        return self.limits.to_wire() | terms


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a key to be created."""

    user_id: str
    role: Role = Role.USER
    scopes: frozenset[Scope] = ALL_SCOPES
    name: str = ""
    expires_at: datetime | None = None
    limits: QuotaLimits | None = None


async def create_key(
    database: Database, by: Principal, new_key: NewKey, *, keys_max: int = USER_KEYS_MAX
) -> ApiKey:
    """Create a key. Raises `Forbidden` if it exceeds `by`, `KeysFull`, `DatabaseUnavailable`."""
    async with database.transaction() as session:
        key = await _insert_key(session, by, new_key, keys_max=keys_max)
        detail = {
            "role": key.role,
            "scopes": key.scopes,
            "expires_at": None if key.expires_at is None else key.expires_at.isoformat(),
            "limits": key.limits,
        }
        await record_action(
            session,
            by.actor,
            Action.KEY_CREATED,
            target_id=key.id,
            user_id=key.user_id,
            detail=detail,
        )
    return key


async def _insert_key(
    session: Session, by: Principal, new_key: NewKey, *, keys_max: int, lineage: str | None = None
) -> ApiKey:
    """Insert a key; `lineage` is that of the key it replaces."""
    _check_delegation(by, new_key)
    key, now = generate_key(), utc_now()
    key_id = create_id(now)
    row = {
        "id": key_id,
        "hash": hash_credential(key),
        "prefix": get_key_prefix(key),
        "name": new_key.name,
        "user_id": new_key.user_id,
        "role": new_key.role.value,
        "scopes": sorted(new_key.scopes),
        "limits": None if new_key.limits is None else msgspec.to_builtins(new_key.limits),
        "created_at": now,
        "expires_at": new_key.expires_at,
        "made_by": by.key_id,
        "lineage": lineage or key_id,
    }
    await session.execute(
        insert_into(session, users)
        .values(id=new_key.user_id, disabled=False, created_at=now)
        .on_conflict_do_nothing()
    )
    active = sa.and_(api_keys.c.user_id == new_key.user_id, _build_active_filter(now))
    if (await session.execute(sa.select(sa.func.count()).where(active))).scalar_one() >= keys_max:
        raise KeysFull(f"the user has {keys_max} valid keys, which is the maximum: revoke some")
    await session.execute(sa.insert(api_keys).values(**row))
    return msgspec.structs.replace(_create_api_key(await _read_key(session, key_id, by)), key=key)


def _check_delegation(by: Principal, new_key: NewKey) -> None:
    """Require that a key does not exceed its creator, whatever the role. Raises `Forbidden`."""
    if not by.is_admin and (new_key.user_id != by.user_id or new_key.role is Role.ADMIN):
        raise Forbidden("creating keys for other users or admins requires an admin")
    if not by.scopes >= new_key.scopes:
        raise Forbidden("a key cannot have scopes that its creator lacks")
    if by.key_limits is not None:
        raise Forbidden("a key with its own limits cannot create keys")
    ends_at = by.delegation_ends_at
    if ends_at is not None and (
        new_key.expires_at is None or new_key.expires_at.timestamp() > ends_at
    ):
        raise Forbidden(
            "a key cannot outlive the credential that creates it: set an earlier expires_at"
        )


async def list_keys(
    session: ReadSession, by: Principal, *, user_id: str | None = None
) -> list[ApiKey]:
    """The keys visible to `by`, newest first, at most `KEYS_PAGE_MAX`; optionally of one user."""
    query = (
        sa.select(*_KEY_COLUMNS)
        .where(_build_owner_filter(by))
        .order_by(api_keys.c.id.desc())
        .limit(KEYS_PAGE_MAX)
    )
    if user_id is not None:
        query = query.where(api_keys.c.user_id == user_id)
    return [_create_api_key(row) for row in (await session.execute(query)).mappings()]


async def rotate_key(
    database: Database,
    by: Principal,
    key_id: str,
    *,
    grace_seconds: float,
    keys_max: int = USER_KEYS_MAX,
) -> ApiKey:
    """Replace a key in one transaction; the old key stays valid for the grace period.

    A key is rotated once: of two concurrent rotations the second raises `KeyReplaced`, because a
    new key is shown only once. Raises `NotFound`, also for a revoked or expired key, `Forbidden`
    and `KeysFull`.
    """
    async with database.transaction() as session:
        now, old = utc_now(), await _read_key(session, key_id, by)
        if old["revoked_at"] or (old["expires_at"] and old["expires_at"] <= now):
            raise NotFound("this key is revoked or expired: create a new one")
        if old["replaced_by"]:
            raise KeyReplaced(f"this key was replaced by key {old['replaced_by']}")
        template = convert_row(old, NewKey)
        # A key with its own limits may rotate itself: the new key has the same limits.
        creator = msgspec.structs.replace(by, key_limits=None) if by.key_id == key_id else by
        new = await _insert_key(
            session, creator, template, keys_max=keys_max + 1, lineage=old["lineage"]
        )
        end = now + timedelta(seconds=grace_seconds)
        end = min(end, old["expires_at"] or end)
        values = {"replaced_by": new.id, "expires_at": end}
        await session.execute(sa.update(api_keys).where(api_keys.c.id == key_id).values(**values))
        await record_action(
            session,
            by.actor,
            Action.KEY_ROTATED,
            target_id=key_id,
            user_id=new.user_id,
            detail={"replaced_by": new.id, "valid_until": end.isoformat()},
        )
    return new


async def revoke_key(
    database: Database, by: Principal, key_id: str, *, cascade: bool = False
) -> list[str]:
    """Revoke a key, with `cascade` also the keys that it created; returns the ids.

    Keys created by those keys, and by the keys that this one was rotated from, are included.
    Idempotent. Raises `NotFound`.
    """
    async with database.transaction() as session:
        await _read_key(session, key_id, by)
        selected = _select_created_keys(key_id) if cascade else sa.select(sa.literal(key_id))
        revoked = await session.execute(
            sa.update(api_keys)
            .where(api_keys.c.id.in_(selected), api_keys.c.revoked_at.is_(None))
            .values(revoked_at=utc_now())
            .returning(api_keys.c.id, api_keys.c.user_id)
        )
        owners = {row.id: row.user_id for row in revoked}
        for revoked_id, owner in sorted(owners.items()):
            await record_action(
                session,
                by.actor,
                Action.KEY_REVOKED,
                target_id=revoked_id,
                user_id=owner,
                detail={} if revoked_id == key_id else {"created_by": key_id},
            )
        return sorted(owners)


def _select_created_keys(key_id: str) -> sa.Select[tuple[str]]:
    """The ids of a key, and of the keys that it or its predecessors created, recursively."""
    itself = sa.select(api_keys.c.id).where(api_keys.c.id == key_id)
    origin = itself.cte("origin", recursive=True)
    origin = origin.union(sa.select(api_keys.c.id).where(api_keys.c.replaced_by == origin.c.id))
    created = (
        sa.select(api_keys.c.id)
        .where(api_keys.c.made_by.in_(sa.select(origin.c.id)))
        .cte("created", recursive=True)
    )
    created = created.union(sa.select(api_keys.c.id).where(api_keys.c.made_by == created.c.id))
    return sa.union(itself, sa.select(created.c.id)).subquery().select()


async def find_key(session: ReadSession, key_hash: str) -> Mapping[Any, Any] | None:
    """The key with this hash, with its user and limits; None if there is none."""
    columns = (
        *(
            api_keys.c[name]
            for name in (
                "id",
                "hash",
                "user_id",
                "role",
                "scopes",
                "expires_at",
                "revoked_at",
                "lineage",
            )
        ),
    )
    query = sa.select(*columns, api_keys.c.limits.label("key_limits"), *_USER_COLUMNS).join(
        users, users.c.id == api_keys.c.user_id
    )
    return (await session.execute(query.where(api_keys.c.hash == key_hash))).mappings().first()


async def find_session(session: ReadSession, session_hash: str) -> Mapping[Any, Any] | None:
    """The session with this hash, with the state and limits of its user; None if there is none."""
    query = sa.select(sessions, *_USER_COLUMNS).outerjoin(users, users.c.id == sessions.c.user_id)
    return (await session.execute(query.where(sessions.c.hash == session_hash))).mappings().first()


async def find_key_by_id(session: ReadSession, key_id: str) -> Mapping[Any, Any] | None:
    """Like `find_key`, by id."""
    key_hash = (
        await session.execute(sa.select(api_keys.c.hash).where(api_keys.c.id == key_id))
    ).scalar()
    return None if key_hash is None else await find_key(session, key_hash)


async def find_user(session: ReadSession, user_id: str) -> Mapping[Any, Any]:
    """The disabled flag and limits of a user, with or without a row."""
    default = sa.select(sa.literal(user_id).label("wanted")).subquery()
    query = (
        sa.select(*_USER_COLUMNS)
        .select_from(default)
        .outerjoin(users, users.c.id == default.c.wanted)
    )
    return (await session.execute(query)).mappings().one()


async def touch_keys(database: Database, used: Mapping[str, datetime]) -> None:
    """Record when keys were last used."""
    statement = (
        sa.update(api_keys)
        .where(api_keys.c.id == sa.bindparam("key_id"))
        .values(last_used_at=sa.bindparam("at"))
    )
    async with database.transaction() as session:
        await session.execute(
            statement, [{"key_id": key_id, "at": moment} for key_id, moment in used.items()]
        )


async def begin_session(
    database: Database,
    by: Principal,
    origin: str,
    *,
    seconds: float,
    sessions_max: int = SESSIONS_PER_USER_MAX,
) -> tuple[str, datetime]:
    """Create a session and return (cookie value, expiry); it never outlives the credential.

    A user has at most `sessions_max` sessions; the oldest are deleted.
    """
    value, now = generate_session(), utc_now()
    end = now + timedelta(seconds=seconds)
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
        await session.execute(sa.delete(sessions).where(sessions.c.expires_at <= now))
        newest = (
            sa.select(sessions.c.hash)
            .where(sessions.c.user_id == by.user_id)
            .order_by(sessions.c.created_at.desc())
        )
        await session.execute(
            sa.delete(sessions).where(sessions.c.hash.in_(newest.offset(sessions_max - 1)))
        )
        await session.execute(sa.insert(sessions).values(**row, created_at=now, expires_at=end))
    return value, end


async def end_session(database: Database, session_hash: str) -> None:
    """End a session. Idempotent."""
    async with database.transaction() as session:
        await session.execute(sa.delete(sessions).where(sessions.c.hash == session_hash))


async def list_users(
    session: ReadSession, *, limit: int, after: str = "", part: str | None = None
) -> list[User]:
    """Users ordered by id, after `after`; `part`: only with this text in their id."""
    query = sa.select(users.c.id, users.c.disabled, users.c.plan, users.c.limits).where(
        users.c.id > after
    )
    if part is not None:
        query = query.where(users.c.id.icontains(part, autoescape=True))
    return [
        _create_user(row)
        for row in (await session.execute(query.order_by(users.c.id).limit(limit))).mappings()
    ]


async def get_user(session: ReadSession, user_id: str) -> User:
    """The settings of a user; the defaults without a row."""
    query = sa.select(users.c.id, users.c.disabled, users.c.plan, users.c.limits).where(
        users.c.id == user_id
    )
    row = (await session.execute(query)).mappings().first()
    return User(id=user_id) if row is None else _create_user(row)


async def has_user(session: ReadSession, user_id: str) -> bool:
    """Whether a user has settings or keys."""
    condition = sa.or_(
        sa.exists().where(users.c.id == user_id), sa.exists().where(api_keys.c.user_id == user_id)
    )
    return bool((await session.execute(sa.select(condition))).scalar())


async def put_user(database: Database, by: Principal, user_id: str, **values: Any) -> User:
    """Set `disabled`, or `plan` and `limits`, of a user. Raises `NotFound` for an unknown plan."""
    if "limits" in values and values["limits"] is not None:
        values["limits"] = msgspec.to_builtins(values["limits"])
    async with database.transaction() as session:
        if (plan := values.get("plan")) is not None:
            await _require_plan(session, plan)
        old = await get_user(session, user_id)
        row = {"id": user_id, "disabled": False, "created_at": utc_now()} | values
        await session.execute(
            insert_into(session, users)
            .values(**row)
            .on_conflict_do_update(index_elements=["id"], set_=values)
        )
        user = await get_user(session, user_id)
        await _record_user_change(session, by, old, user)
    return user


async def _record_user_change(session: Session, by: Principal, old: User, user: User) -> None:
    """Record what is different in the settings of a user."""
    if user.disabled != old.disabled:
        action = Action.USER_DISABLED if user.disabled else Action.USER_ENABLED
        await record_action(session, by.actor, action, target_id=user.id, user_id=user.id)
    if (user.plan, user.limits) != (old.plan, old.limits):
        await record_action(
            session,
            by.actor,
            Action.USER_LIMITED,
            target_id=user.id,
            user_id=user.id,
            detail={"old": _describe_limits(old), "new": _describe_limits(user)},
        )


def _describe_limits(user: User) -> dict[str, Any]:
    limits = None if user.limits is None else user.limits.to_wire()
    return {"plan": user.plan, "limits": limits}


async def list_plans(session: ReadSession) -> dict[str, UserPlan]:
    """All plans by name."""
    rows = await session.execute(sa.select(plans).order_by(plans.c.name))
    return {row["name"]: _create_plan(row) for row in rows.mappings()}


async def put_plan(
    database: Database,
    by: Principal,
    name: str,
    limits: QuotaLimits,
    *,
    prepaid: bool = False,
    markup: Decimal | None = None,
) -> None:
    """Create or change a plan."""
    plan = UserPlan(limits=limits, prepaid=prepaid, markup=markup)
    values = {
        "limits": msgspec.to_builtins(limits),
        "prepaid": prepaid,
        "markup": None if markup is None else format_markup(markup),
    }
    async with database.transaction() as session:
        old = await _find_plan(session, name)
        await session.execute(
            insert_into(session, plans)
            .values(name=name, **values)
            .on_conflict_do_update(index_elements=["name"], set_=values)
        )
        if old != plan:
            detail = {"new": plan.to_wire()}
            if old is not None:
                detail["old"] = old.to_wire()
            await record_action(
                session, by.actor, Action.PLAN_CHANGED, target_id=name, detail=detail
            )


async def delete_plan(database: Database, by: Principal, name: str) -> None:
    """Delete a plan; its users fall back to the default plan. Raises `NotFound`."""
    async with database.transaction() as session:
        old = await _require_plan(session, name)
        await session.execute(sa.delete(plans).where(plans.c.name == name))
        await record_action(
            session,
            by.actor,
            Action.PLAN_DELETED,
            target_id=name,
            detail={"old": old.to_wire()},
        )


async def _require_plan(session: Session, name: str) -> UserPlan:
    plan = await _find_plan(session, name)
    if plan is None:
        raise NotFound("no plan has this name")
    return plan


async def _find_plan(session: Session, name: str) -> UserPlan | None:
    rows = await session.execute(sa.select(plans).where(plans.c.name == name))
    row = rows.mappings().first()
    return None if row is None else _create_plan(row)


def _create_plan(row: Mapping[Any, Any]) -> UserPlan:
    markup = row["markup"]
    return UserPlan(
        limits=msgspec.convert(row["limits"], QuotaLimits),
        prepaid=row["prepaid"],
        markup=None if markup is None else Decimal(markup),
    )


def get_user_terms(row: Mapping[Any, Any], role: Role) -> ChargeTerms | None:
    """What a user pays: by the terms of their plan, or (not for admins) of the default plan.

    A prepaid plan without a markup charges the cost. None: nothing is charged.
    """
    prepaid, markup = row["plan_prepaid"], row["plan_markup"]
    if prepaid is None and role is Role.USER:
        prepaid, markup = row["default_prepaid"], row["default_markup"]
    if markup is None:
        return ChargeTerms(prepaid=True, markup=Decimal(1)) if prepaid else None
    return ChargeTerms(prepaid=prepaid, markup=Decimal(markup))


def get_user_limits(row: Mapping[Any, Any], role: Role) -> QuotaLimits | None:
    """The limits in force: the user's own, their plan's, or (not for admins) the default plan's."""
    limits = row["user_limits"] if row["user_limits"] is not None else row["plan_limits"]
    if limits is None and role is Role.USER:
        limits = row["default_limits"]
    return None if limits is None else msgspec.convert(limits, QuotaLimits)


def is_active(row: Mapping[Any, Any], now: float | None = None) -> bool:
    """Whether a key or session may be used at this time."""
    expires_at = row["expires_at"]
    expired = expires_at is not None and expires_at.timestamp() <= (
        time.time() if now is None else now
    )
    return not (expired or row.get("revoked_at") or row["disabled"])


def _build_active_filter(now: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(
        api_keys.c.revoked_at.is_(None),
        sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now),
    )


def _build_owner_filter(by: Principal) -> sa.ColumnElement[bool]:
    return sa.true() if by.visible_user_id is None else api_keys.c.user_id == by.visible_user_id


async def _read_key(session: ReadSession, key_id: str, by: Principal) -> Mapping[Any, Any]:
    row = (
        (
            await session.execute(
                sa.select(*_KEY_COLUMNS).where(api_keys.c.id == key_id, _build_owner_filter(by))
            )
        )
        .mappings()
        .first()
    )
    if row is None:
        raise NotFound("no key has this id")
    return row


def _create_api_key(row: Mapping[Any, Any]) -> ApiKey:
    values = {str(name): value for name, value in row.items()}
    if values["limits"] is not None:
        values["limits"] = msgspec.convert(values["limits"], QuotaLimits).to_wire()
    return msgspec.convert(values, ApiKey)


def _create_user(row: Mapping[Any, Any]) -> User:
    return convert_row(row, User)


_KEY_COLUMNS = tuple(column for column in api_keys.c if column.name != "hash")
_USER_COLUMNS = (
    sa.func.coalesce(users.c.disabled, False).label("disabled"),
    users.c.limits.label("user_limits"),
    *(
        sa.select(column).where(plans.c.name == name).scalar_subquery().label(f"{of}_{column.name}")
        for of, name in (("plan", users.c.plan), ("default", DEFAULT_PLAN))
        for column in (plans.c.limits, plans.c.prepaid, plans.c.markup)
    ),
)
