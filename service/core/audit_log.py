"""The audit log: who changed keys, users, plans and data of others, and who read their texts.

A change is recorded in its own transaction (`record_action`), so that neither exists without the
other. A read is recorded before the texts are sent (`ReadRecorder`): one that cannot be recorded is
refused. Reads are aggregated: one entry for an actor, an action and a user in `READ_SECONDS`, even
with several replicas.

Entries are never changed or deleted: triggers of both databases abort that. They contain ids and
limits, neither texts nor secrets. What users do with their own texts and documents is not recorded,
and neither are reads in open mode, where there is only one caller.
"""

from collections.abc import AsyncGenerator, Callable, Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import audit_log
from service.core.encoding import compute_first_id, convert_row, create_id, utc_now
from service.core.errors import InvalidCursor
from service.core.telemetry import get_request_id

PAGE_MAX = 200
READ_SECONDS = 900  # reads in this time are one entry
RECENT_READS_MAX = 1_000  # remembered by a process, so that a repeated read needs no transaction
_EXPORT_PAGE = 500
_ID_CHARACTERS = 36


class Action(StrEnum):
    """What was done; the part before the dot is the kind of the target."""

    KEY_CREATED = "key.created"  # detail: role, scopes, expiry, limits
    KEY_ROTATED = "key.rotated"  # the target is the old key; detail: the new one, the last use
    KEY_REVOKED = "key.revoked"  # detail: the key from which it was revoked as a created one
    USER_DISABLED = "user.disabled"
    USER_ENABLED = "user.enabled"
    USER_LIMITED = "user.limited"  # another plan or other limits; detail: old and new
    USER_TEXTS_ERASED = "user.texts_erased"  # all texts of a user's answers
    PLAN_CHANGED = "plan.changed"  # detail: old and new limits; without old ones it was created
    PLAN_DELETED = "plan.deleted"  # detail: its limits
    BUDGET_CREATED = "budget.created"  # the target is its name; detail: its fields
    BUDGET_CHANGED = "budget.changed"  # detail: old and new fields
    BUDGET_DELETED = "budget.deleted"  # detail: its fields
    CUSTOMER_CONNECTED = "customer.connected"  # the target is Stripe's id; detail: the previous one
    CUSTOMER_DISCONNECTED = "customer.disconnected"
    PAYER_ASSIGNED = "payer.assigned"  # as which customer at Stripe a user pays
    WALLET_CREDITED = "wallet.credited"  # by an admin; detail: the kind, amount and note
    METER_EVENT_RESOLVED = "meter_event.resolved"  # detail: the decision and the amount
    STRIPE_EVENT_RETRIED = "stripe_event.retried"  # one that could not be processed; detail: type
    CONVERSATION_ERASED = "conversation.erased"  # of another user
    CONVERSATION_READ = "conversation.read"  # of another user: one, or the list of their titles
    ANSWER_READ = "answer.read"  # one answer of another user, by its id
    LOG_READ = "log.read"  # log rows with texts; the user is empty if the list was of all users
    LOG_EXPORTED = "log.exported"  # the same as CSV or NDJSON
    DOCUMENT_READ = "document.read"  # a document of another user that is not shared
    DOCUMENT_SEARCHED = "document.searched"  # a search in the documents of all users
    DOCUMENT_CHANGED = "document.changed"  # of another user; detail: the names of the fields
    DOCUMENT_DELETED = "document.deleted"  # of another user


class Actor(msgspec.Struct, frozen=True):
    """Who did something. `credential`: key, session, jwt, secret, open or cli."""

    user_id: str
    credential: str
    key_id: str | None = None


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry. `actor` is a user id, `user_id` the user whose key, limits or data it is about."""

    id: str
    created_at: datetime
    action: str
    actor: str
    credential: str
    key_id: str | None
    user_id: str | None
    target_kind: str
    target_id: str | None
    detail: dict[str, Any]
    request_id: str | None


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """A filter of entries; None matches any value. `since` is inclusive, `until` exclusive."""

    actor: tuple[str, ...] | None = None
    action: tuple[str, ...] | None = None
    user_id: tuple[str, ...] | None = None
    since: datetime | None = None
    until: datetime | None = None


class AuditPage(msgspec.Struct, frozen=True):
    """Entries, newest first. `next_cursor` is null on the last page."""

    items: list[AuditEntry]
    next_cursor: str | None


async def record_action(
    session: Session,
    actor: Actor,
    action: Action,
    *,
    target_id: str | None = None,
    user_id: str | None = None,
    detail: dict[str, Any] | None = None,
    at: datetime | None = None,
) -> None:
    """Add an entry to the transaction. `detail`: small, of JSON types, without texts."""
    now = at or utc_now()
    values = {
        "id": create_id(now),
        "created_at": now,
        "action": action.value,
        "actor": actor.user_id,
        "credential": actor.credential,
        "key_id": actor.key_id,
        "user_id": user_id,
        "target_kind": action.partition(".")[0],
        "target_id": target_id,
        "detail": detail or {},
        "request_id": get_request_id(),
    }
    await session.execute(sa.insert(audit_log).values(**values))


class ReadRecorder:
    """Records reads, each once in `READ_SECONDS`. See the module."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = utc_now) -> None:
        self._database, self._clock = database, clock
        self._recent: dict[tuple[str, Action, str | None], datetime] = {}  # oldest first

    async def record(
        self,
        actor: Actor,
        action: Action,
        user_ids: Iterable[str | None],
        *,
        target_id: str | None = None,
    ) -> None:
        """Record a read of the texts of these users; None: of all. Raises `DatabaseUnavailable`."""
        now = self._clock()
        due = [user for user in user_ids if not self._is_recent((actor.user_id, action, user), now)]
        if not due:
            return
        times = {}
        async with self._database.transaction() as session:
            for user_id in due:
                recorded_at = await _find_recent_read(session, actor, action, user_id, now)
                if recorded_at is None:
                    await record_action(
                        session, actor, action, target_id=target_id, user_id=user_id, at=now
                    )
                times[user_id] = recorded_at or now
        for user_id, moment in times.items():
            self._remember((actor.user_id, action, user_id), moment)

    def _is_recent(self, key: tuple[str, Action, str | None], now: datetime) -> bool:
        recorded_at = self._recent.get(key)
        return recorded_at is not None and now - recorded_at < timedelta(seconds=READ_SECONDS)

    def _remember(self, key: tuple[str, Action, str | None], moment: datetime) -> None:
        self._recent.pop(key, None)
        self._recent[key] = moment
        if len(self._recent) > RECENT_READS_MAX:
            del self._recent[next(iter(self._recent))]


async def _find_recent_read(
    session: Session, actor: Actor, action: Action, user_id: str | None, now: datetime
) -> datetime | None:
    """When the same read was recorded within `READ_SECONDS`, by any process.

    Transactions do not overlap, so two of them cannot both find nothing.
    """
    query = (
        sa.select(audit_log.c.created_at)
        .where(
            audit_log.c.actor == actor.user_id,
            audit_log.c.id >= compute_first_id(now - timedelta(seconds=READ_SECONDS)),
            audit_log.c.action == action.value,
            audit_log.c.user_id.is_not_distinct_from(user_id),
        )
        .order_by(audit_log.c.id.desc())
        .limit(1)
    )
    recorded_at: datetime | None = (await session.execute(query)).scalar()
    return recorded_at


async def list_entries(
    session: ReadSession, audit_filter: AuditFilter, *, limit: int, cursor: str | None = None
) -> AuditPage:
    """A page of entries, newest first. Raises `InvalidCursor`."""
    query = sa.select(audit_log).order_by(audit_log.c.id.desc()).limit(limit + 1)
    for name in ("actor", "action", "user_id"):
        if (values := getattr(audit_filter, name)) is not None:
            query = query.where(audit_log.c[name].in_(values))
    if audit_filter.since is not None:
        query = query.where(audit_log.c.id >= compute_first_id(audit_filter.since))
    if audit_filter.until is not None:
        query = query.where(audit_log.c.id < compute_first_id(audit_filter.until))
    if cursor is not None:
        if len(cursor) != _ID_CHARACTERS or not cursor.isascii():
            raise InvalidCursor("the cursor is not the id of an entry")
        query = query.where(audit_log.c.id < cursor)
    rows = (await session.execute(query)).mappings().all()
    items = [convert_row(row, AuditEntry) for row in rows]
    is_last = len(items) <= limit
    return AuditPage(items[:limit], None if is_last else items[limit - 1].id)


async def export_entries(
    database: Database, audit_filter: AuditFilter
) -> AsyncGenerator[list[AuditEntry], None]:
    """Yield all matching entries, newest first, by pages, without a session between pages."""
    cursor: str | None = None
    while True:
        async with database.read_session() as session:
            page = await list_entries(session, audit_filter, limit=_EXPORT_PAGE, cursor=cursor)
        yield page.items
        if (cursor := page.next_cursor) is None:
            return
