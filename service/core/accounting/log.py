"""The log of answers: one row each, written once, read by pages.

Pages go by id, which sorts by the time an answer began: newest first, keyset, so that page 1,000 costs what page 1
costs. Tailing goes by `seq`, the order of commit: an answer that began early and ended late is not missed.

Nothing here reads the whole log, however large it is and whatever is asked. One filter alone has an index that is in
the order of the page. Of several, the index of one is followed (`_leading`), the others are looked up in it, and this for
`LOOK_MAX` rows at most: a page may then end early, even empty, with a cursor to go on.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import RowMapping

from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import daily_totals, quota_totals, request_logs
from service.core.encoding import first_id
from service.core.errors import InvalidCursor, NotFound
from service.core.ports import list_subject_names
from service.core.pricing import Usage, format_usd
from service.core.records import RANKS, Answer, Intent, Outcome, Status, charge_of_row

PAGE_MAX = 200
LOOK_MAX = (
    10_000  # rows of the leading filter that one page looks at: entries of an index, a few ms
)
TAIL_LOOK_MAX = 2_000  # rows that one tail looks at: these are read whole
_EXPORT_PAGE = 500
_FILTERS = (
    "user_id",
    "model",
    "endpoint",
    "status",
)  # the likely most selective first: see `_leading`
_KEY = ("day", "user_id", "endpoint", "model", "status", "usage_source")
_COUNTS = (
    "answers",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "cost_nano_usd",
    "unpriced",
)
_TOTALLED = [
    request_logs.c[name]
    for name in (
        "id",
        "rank",
        "created_at",
        "key_id",
        "held_tokens",
        "held_nano_usd",
        *_KEY[1:],
        *_COUNTS[1:-1],
    )
]
_CHARGES = ("requests", "tokens", "cost_nano_usd")

_insert = insert(request_logs)
_upsert = _insert.on_conflict_do_update(
    index_elements=["id"],
    set_={
        column.name: _insert.excluded[column.name]
        for column in request_logs.c
        if column.name not in ("seq", "id")
    },
    where=request_logs.c.rank < _insert.excluded.rank,
)
_insert_total = insert(daily_totals)
_add = _insert_total.on_conflict_do_update(
    index_elements=list(_KEY),
    set_={name: daily_totals.c[name] + _insert_total.excluded[name] for name in _COUNTS},
)
_insert_charge = insert(quota_totals)
_charge = _insert_charge.on_conflict_do_update(
    index_elements=["day", "subject"],
    set_={name: quota_totals.c[name] + _insert_charge.excluded[name] for name in _CHARGES},
)


class LogFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows; None means any. `since` is inclusive, `until` exclusive, both about when an answer began."""

    user_id: str | None = None
    endpoint: str | None = None
    model: str | None = None
    status: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class LogPage(msgspec.Struct, frozen=True):
    """`next_cursor` is None on the last page, and there alone; when tailing it is where to go on, always.

    With several filters a page may have fewer rows than asked for, even none, and still not be the last.
    """

    items: list[Answer]
    next_cursor: str | None


async def apply_outcomes(session: Session, outcomes: Sequence[Outcome]) -> int:
    """Write the rows and their totals. Returns how many rows are new.

    Idempotent in any order and number: a row is inserted once, replaced only by a record that knows more (`RANKS`), and
    the totals change by the difference that this makes, in the same transaction.
    """
    best: dict[str, Outcome] = {}
    for outcome in outcomes:
        known = best.get(outcome.intent.id)
        if known is None or _rank(outcome) > _rank(known):
            best[outcome.intent.id] = outcome
    found = (
        await session.execute(sa.select(*_TOTALLED).where(request_logs.c.id.in_(best)))
    ).mappings()
    there = {row["id"]: {str(key): value for key, value in row.items()} for row in found}
    accepted = [
        outcome
        for id_, outcome in best.items()
        if id_ not in there or there[id_]["rank"] < _rank(outcome)
    ]
    if accepted:
        rows = [_values(outcome) for outcome in accepted]
        await session.execute(_upsert, rows)
        replaced = [there[row["id"]] for row in rows if row["id"] in there]
        await _add_totals(session, rows, replaced)
        await _add_charges(session, rows, replaced)
    return sum(outcome.intent.id not in there for outcome in accepted)


async def _add_totals(
    session: Session, added: Sequence[Mapping[str, Any]], replaced: Sequence[Mapping[str, Any]]
) -> None:
    sums: dict[tuple[str, ...], list[int]] = {}
    for sign, rows in ((1, added), (-1, replaced)):
        for row in rows:
            counts = sums.setdefault(_total_key(row), [0] * len(_COUNTS))
            for n, value in enumerate(_counts(row)):
                counts[n] += sign * value
    names = [*_KEY, *_COUNTS]
    await session.execute(
        _add, [dict(zip(names, [*key, *counts], strict=True)) for key, counts in sums.items()]
    )


async def _add_charges(
    session: Session, added: Sequence[Mapping[str, Any]], replaced: Sequence[Mapping[str, Any]]
) -> None:
    """What counts toward quotas, of the user and of the key that asked."""
    sums: dict[tuple[str, str], list[int]] = {}
    for sign, rows in ((1, added), (-1, replaced)):
        for row in rows:
            day, (tokens, nano_usd) = row["created_at"].strftime("%Y-%m-%d"), charge_of_row(row)
            for subject in list_subject_names(row["user_id"], row["key_id"]):
                counts = sums.setdefault((day, subject), [0, 0, 0])
                for n, value in enumerate((1, tokens, nano_usd)):
                    counts[n] += sign * value
    names = ("day", "subject", *_CHARGES)
    await session.execute(
        _charge, [dict(zip(names, [*key, *counts], strict=True)) for key, counts in sums.items()]
    )


def _total_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (row["created_at"].strftime("%Y-%m-%d"), *(str(row[name]) for name in _KEY[1:]))


def _counts(row: Mapping[str, Any]) -> list[int]:
    return [1, *(row[name] or 0 for name in _COUNTS[1:-1]), row["cost_nano_usd"] is None]


async def read_page(
    session: ReadSession,
    which: LogFilter,
    *,
    limit: int,
    cursor: str | None = None,
    look_max: int = LOOK_MAX,
) -> LogPage:
    """Newest first. Raises `InvalidCursor`."""
    interval = _interval(which)
    if cursor is not None:
        interval.append(request_logs.c.id < _checked(cursor))
    lead, others = _conditions(which)
    where, end = [*lead, *others, *interval], None
    if others:
        looked = (
            sa.select(request_logs.c.id).where(*lead, *interval).order_by(request_logs.c.id.desc())
        )
        end = (await session.execute(looked.offset(look_max - 1).limit(1))).scalar()
        where += [] if end is None else [request_logs.c.id >= end]
    query = (
        sa.select(request_logs).where(*where).order_by(request_logs.c.id.desc()).limit(limit + 1)
    )
    rows = (await session.execute(query)).mappings().all()
    items = [_answer(row) for row in rows[:limit]]
    return LogPage(items, items[-1].id if len(rows) > limit else end)


async def read_tail(
    session: ReadSession,
    which: LogFilter,
    *,
    limit: int,
    after: str,
    look_max: int = TAIL_LOOK_MAX,
) -> LogPage:
    """What was committed after the row `after` (an answer's id), in the order of commit. Raises `InvalidCursor`."""
    seq = (
        await session.execute(
            sa.select(request_logs.c.seq).where(request_logs.c.id == _checked(after))
        )
    ).scalar()
    if seq is None:
        raise InvalidCursor("`after` names no answer in the log")
    lead, others = _conditions(which, tailing=True)
    lead.append(request_logs.c.seq > seq)
    where, end = [*lead, *others], None
    if others:
        looked = (
            sa.select(request_logs.c.seq, request_logs.c.id)
            .where(*lead)
            .order_by(request_logs.c.seq)
        )
        end = (await session.execute(looked.offset(look_max - 1).limit(1))).first()
        where += [] if end is None else [request_logs.c.seq <= end.seq]
    rows = (
        (
            await session.execute(
                sa.select(request_logs).where(*where).order_by(request_logs.c.seq).limit(limit)
            )
        )
        .mappings()
        .all()
    )
    items = [_answer(row) for row in rows]
    if end is not None and len(items) < limit:
        return LogPage(items, end.id)
    return LogPage(items, items[-1].id if items else after)


async def read_row(session: ReadSession, answer_id: str, *, user_id: str | None) -> Answer:
    """One row. Raises `NotFound`, also for somebody else's; `user_id` None may see every row."""
    row = (
        (await session.execute(sa.select(request_logs).where(request_logs.c.id == answer_id)))
        .mappings()
        .first()
    )
    if row is None or user_id not in {None, row["user_id"]}:
        raise NotFound("no answer has this id")
    return _answer(row)


async def find_by_key(session: ReadSession, user_id: str, idempotency_key: str) -> Outcome | None:
    """The outcome of the request that came with this key, as its row has it; None if there is no such row."""
    columns = request_logs.c
    return await _outcome(
        session, columns.user_id == user_id, columns.idempotency_key == idempotency_key
    )


async def find_outcome(session: ReadSession, answer_id: str) -> Outcome | None:
    """The outcome of an answer, whosever it is, as its row has it; None if there is no such row."""
    return await _outcome(session, request_logs.c.id == answer_id)


async def _outcome(session: ReadSession, *where: sa.ColumnElement[bool]) -> Outcome | None:
    row = (await session.execute(sa.select(request_logs).where(*where))).mappings().first()
    if row is None:
        return None
    fields: dict[str, Any] = {str(name): value for name, value in row.items()}
    usage = msgspec.convert(fields, Usage) if fields["prompt_tokens"] is not None else None
    return msgspec.convert(
        fields | {"intent": msgspec.convert(fields, Intent), "usage": usage}, Outcome
    )


async def export_pages(
    database: Database, which: LogFilter, *, look_max: int = LOOK_MAX
) -> AsyncGenerator[list[Answer], None]:
    """Every row that fits, newest first, a page at a time; no session is held between pages."""
    cursor: str | None = None
    while True:
        async with database.read_session() as session:
            found = await read_page(
                session, which, limit=_EXPORT_PAGE, cursor=cursor, look_max=look_max
            )
        yield found.items
        if (cursor := found.next_cursor) is None:
            return


def _conditions(
    which: LogFilter, *, tailing: bool = False
) -> tuple[list[sa.ColumnElement[bool]], list[sa.ColumnElement[bool]]]:
    """(the leading filter, whose index is followed; the others, written so that no index is chosen for them)."""
    leading = which.user_id is not None and "user_id" if tailing else _leading(which)
    lead, others = [], []
    for name in _FILTERS:
        if (value := getattr(which, name)) is not None:
            if name == leading:
                lead.append(request_logs.c[name] == value)
            else:
                others.append(request_logs.c[name].concat("") == value)
    return lead, others + (_interval(which, request_logs.c.id.concat("")) if tailing else [])


def _leading(which: LogFilter) -> str | None:
    """Which filter probably fits the fewest rows: nearly all answers are completed, few end otherwise."""
    if which.user_id is None and which.status not in {None, Status.COMPLETED}:
        return "status"
    return next((name for name in _FILTERS if getattr(which, name) is not None), None)


def _interval(
    which: LogFilter, answer_id: sa.ColumnElement[str] = request_logs.c.id
) -> list[sa.ColumnElement[bool]]:
    # Ids begin with their time, so that an interval of time is an interval of ids: no further index is needed.
    return [
        *([answer_id >= first_id(which.since)] if which.since is not None else []),
        *([answer_id < first_id(which.until)] if which.until is not None else []),
    ]


def _checked(cursor: str) -> str:
    if len(cursor) != 36 or not cursor.isascii():
        raise InvalidCursor("a cursor is the id of an answer")
    return cursor


def _rank(outcome: Outcome) -> int:
    return RANKS[outcome.usage_source]


def _values(outcome: Outcome) -> dict[str, Any]:
    intent, usage = outcome.intent, outcome.usage
    return {
        "id": intent.id,
        "created_at": intent.created_at,
        "user_id": intent.user_id,
        "endpoint": intent.endpoint,
        "model": intent.model,
        "status": outcome.status,
        "finish_reason": outcome.finish_reason,
        "error_code": outcome.error_code,
        "prompt": intent.prompt,
        "response": outcome.response,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "reasoning_tokens": usage.reasoning_tokens if usage else None,
        "usage_source": outcome.usage_source,
        "cost_nano_usd": outcome.cost_nano_usd,
        "price": outcome.price,
        "response_time_ms": outcome.response_time_ms,
        "first_token_ms": outcome.first_token_ms,
        "grounded": intent.grounded,
        "sources": msgspec.to_builtins(outcome.sources),
        "attempts": outcome.attempts,
        "request_id": intent.request_id,
        "rank": _rank(outcome),
        "idempotency_key": intent.idempotency_key,
        "body_hash": intent.body_hash,
        "relevance_share": intent.relevance_share,
        "relevance_terms": intent.relevance_terms,
        "relevance_cosine": intent.relevance_cosine,
        "key_id": intent.key_id,
        "asked_by": intent.asked_by,
        "held_tokens": intent.held_tokens,
        "held_nano_usd": intent.held_nano_usd,
    }


def _answer(row: RowMapping) -> Answer:
    prompt, completion, cost = row["prompt_tokens"], row["completion_tokens"], row["cost_nano_usd"]
    derived = {
        "total_tokens": None if prompt is None or completion is None else prompt + completion,
        "estimated_cost": None if cost is None else format_usd(cost),
    }
    # The keys are SQLAlchemy's own strings, which msgspec does not take for strings.
    return msgspec.convert({str(key): value for key, value in row.items()} | derived, Answer)
