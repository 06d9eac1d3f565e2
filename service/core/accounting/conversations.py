"""Conversations: answers whose rows have the same `conversation_id`, the id of the first one.

Every answer begins a conversation unless it continues one. Erasure removes the texts of all its
rows and keeps their numbers; `log.apply_outcomes` keeps them erased when records arrive later.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

import msgspec
import sqlalchemy as sa

from service.core.accounting.log_pages import build_cursor, parse_cursor
from service.core.accounting.receipt_log import erase_nonces
from service.core.accounting.rows import (
    ANSWER_COLUMNS,
    ERASED_VALUES,
    LoggedAnswer,
    read_answers,
)
from service.core.database.damaged_rows import KeyedRow, read_rows
from service.core.database.engine import ReadSession, Session
from service.core.database.tables import receipts, request_logs
from service.core.encoding import EPOCH, convert_row, read_id_time, replace_surrogates, utc_now
from service.core.records import Message

PAGE_MAX = 100
TITLE_CHARACTERS_MAX = 200
_columns = request_logs.c
_follow_ups = request_logs.alias("follow_ups")


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation in a list. `title`: the beginning of its first prompt."""

    id: str
    title: str
    user_id: str
    answers: int
    created_at: datetime
    updated_at: datetime


class ConversationPage(msgspec.Struct, frozen=True):
    """Conversations, the last started first. `next_cursor` is null on the last page."""

    items: list[Conversation]
    next_cursor: str | None


class Thread(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation with its answers, oldest first. `next_cursor` is null on the last page."""

    id: str
    user_id: str
    items: list[LoggedAnswer]
    next_cursor: str | None


class ConversationState(msgspec.Struct, frozen=True):
    """The owner of a conversation, and when it was erased."""

    user_id: str
    erased_at: datetime | None


async def read_state(session: ReadSession, conversation_id: str) -> ConversationState | None:
    """Return the state of a conversation; None without a row of its first answer."""
    query = sa.select(_columns.user_id, _columns.erased_at).where(
        _columns.id == conversation_id, _columns.conversation_id == conversation_id
    )
    row = (await session.execute(query)).first()
    return None if row is None else ConversationState(row.user_id, row.erased_at)


async def list_conversations(
    session: ReadSession, *, user_id: str, limit: int, cursor: str | None = None
) -> ConversationPage:
    """Return a page of a user's conversations. Raises `InvalidCursor`."""
    later = sa.and_(
        _follow_ups.c.conversation_id == _columns.id,
        _follow_ups.c.conversation_id != _follow_ups.c.id,
    )
    count = sa.select(sa.func.count()).select_from(_follow_ups).where(later).scalar_subquery()
    last = (
        sa.select(_follow_ups.c.created_at)
        .where(later)
        .order_by(_follow_ups.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = (
        sa.select(
            _columns.seq,
            _columns.id,
            sa.func.substr(_columns.prompt, 1, TITLE_CHARACTERS_MAX).label("title"),
            _columns.user_id,
            _columns.created_at,
            (count + 1).label("answers"),
            sa.func.coalesce(last, _columns.created_at, type_=_columns.created_at.type).label(
                "updated_at"
            ),
        )
        .where(
            _columns.user_id == user_id,
            _columns.conversation_id == _columns.id,
            _columns.erased_at.is_(None),
        )
        .order_by(_columns.id.desc())
        .limit(limit + 1)
    )
    if cursor is not None:
        query = query.where(_columns.id < parse_cursor(cursor))
    rows = await session.run_sync(read_rows, query, _columns.seq, _columns.id)
    items = [_build_conversation(keyed, user_id) for keyed in rows[:limit]]
    return ConversationPage(items, build_cursor(items[-1].id) if len(rows) > limit else None)


def _build_conversation(keyed: KeyedRow, user_id: str) -> Conversation:
    """A conversation from the row of its first answer; without title if that is damaged."""
    if keyed.row is not None:
        with suppress(msgspec.ValidationError):
            return convert_row(keyed.row, Conversation)
    conversation_id = replace_surrogates(keyed.name)
    begun = read_id_time(conversation_id) or EPOCH
    return Conversation(
        id=conversation_id,
        title="\ufffd",
        user_id=user_id,
        answers=1,
        created_at=begun,
        updated_at=begun,
    )


async def read_thread(
    session: ReadSession, conversation_id: str, *, limit: int, after: str | None = None
) -> tuple[list[LoggedAnswer], str | None]:
    """Return answers of a conversation, oldest first, and the cursor of the next page.

    Raises `InvalidCursor`.
    """
    query = sa.select(*ANSWER_COLUMNS).where(_belongs_to(conversation_id)).order_by(_columns.id)
    if after is not None:
        query = query.where(_columns.id > parse_cursor(after))
    rows = await read_answers(session, query.limit(limit + 1), user_id=None)
    items = rows[:limit]
    return items, items[-1].id if len(rows) > limit else None


async def read_turns(session: ReadSession, conversation_id: str, limit: int) -> list[Message]:
    """Return the messages of the last answers of a conversation, oldest first.

    Answers without a text, or whose row is damaged, are left out.
    """
    query = (
        sa.select(_columns.seq, _columns.id, _columns.messages, _columns.prompt, _columns.response)
        .where(_belongs_to(conversation_id))
        .order_by(_columns.id.desc())
        .limit(limit)
    )
    turns: list[Message] = []
    rows = await session.run_sync(
        read_rows, query, _columns.seq, _columns.id, condition=_columns.response != ""
    )
    for keyed in reversed(rows):
        if (row := keyed.row) is not None:
            with suppress(msgspec.ValidationError):
                sent = row["messages"] or [{"role": "user", "content": row["prompt"]}]
                turns += [
                    *msgspec.convert(sent, list[Message]),
                    Message("assistant", msgspec.convert(row["response"], str)),
                ]
    return turns


async def erase_rows(session: Session, conversation_id: str) -> Sequence[str]:
    """Erase the texts of all rows of a conversation. Idempotent. Returns their ids."""
    erasure = (
        sa.update(request_logs)
        .where(_belongs_to(conversation_id), _columns.erased_at.is_(None))
        .values(**ERASED_VALUES, erased_at=utc_now())
    )
    await session.execute(erasure)
    query = sa.select(_columns.id).where(_belongs_to(conversation_id))
    ids = (await session.execute(query)).scalars().all()
    await erase_nonces(session, receipts.c.answer_id.in_(query))
    return ids


def _belongs_to(conversation_id: str) -> sa.ColumnElement[bool]:
    """A condition of rows, in the form that the indexes support."""
    return sa.or_(
        sa.and_(_columns.id == conversation_id, _columns.conversation_id == conversation_id),
        sa.and_(
            _columns.conversation_id == conversation_id, _columns.conversation_id != _columns.id
        ),
    )
