"""The request log: one row per answer, written once, read in pages.

Pages are ordered by id, which sorts by the time an answer started: newest first, with keyset
pagination, so page 1,000 costs as much as page 1. Tailing is ordered by `seq`, the order of commit,
so an answer that started early and ended late is not missed.

No query scans the whole log. A single filter has an index in the order of the page. With several
filters the index of one is used (`_choose_leading`) and the others are checked on its entries, at
most `SCAN_MAX` of them: a page may then end early, even empty, with a cursor to continue.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import RowMapping

from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import api_keys, daily_totals, quota_totals, request_logs
from service.core.encoding import compute_first_id
from service.core.errors import InvalidCursor, NotFound
from service.core.ports import list_subject_names
from service.core.pricing import Usage, format_usd
from service.core.records import RANKS, Answer, Intent, Outcome, Status, compute_row_charge

PAGE_MAX = 200
SCAN_MAX = 10_000  # maximum index entries of the leading filter per page, a few ms
TAIL_SCAN_MAX = 2_000  # maximum rows per tail; these are read completely
_EXPORT_PAGE = 500
# The most selective first: see `_choose_leading`.
_FILTERS = (
    "user_id",
    "model",
    "endpoint",
    "status",
)
# Long, and rarely read.
OMITTED_IN_LISTS = ("nearest", "messages")
_LISTED = [column for column in request_logs.c if column.name not in OMITTED_IN_LISTS]
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

# What erasure removes: the texts, and the hash of a request, from which a text can be guessed.
ERASED_VALUES: dict[str, Any] = {
    "prompt": "",
    "response": "",
    "sources": [],
    "nearest": None,
    "messages": None,
    "body_hash": None,
}
_insert = insert(request_logs)
_upsert = _insert.on_conflict_do_update(
    index_elements=["id"],
    set_={
        column.name: _insert.excluded[column.name]
        if column.name not in ERASED_VALUES
        else sa.case(
            (request_logs.c.erased_at.is_(None), _insert.excluded[column.name]),
            else_=request_logs.c[column.name],
        )
        for column in request_logs.c
        if column.name not in ("seq", "id", "erased_at")
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
    """A filter of rows; None matches any value.

    `since` is inclusive, `until` exclusive; both refer to the start of an answer.
    """

    user_id: str | None = None
    endpoint: str | None = None
    model: str | None = None
    status: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class LogPage(msgspec.Struct, frozen=True):
    """A page. `next_cursor` is None only on the last page; when tailing it is always set.

    With several filters a page may have fewer rows than requested, even none, before the last page.
    """

    items: list[Answer]
    next_cursor: str | None


async def apply_outcomes(session: Session, outcomes: Sequence[Outcome]) -> int:
    """Write the rows and their totals. Returns the number of new rows.

    Idempotent in any order and number: a row is inserted once and replaced only by a record of
    higher rank (`RANKS`); the totals change by the difference in the same transaction. Erasure is
    final: a record changes the numbers of an erased row, but not its texts, and a new row of an
    erased conversation is inserted without texts.
    """
    best: dict[str, Outcome] = {}
    for outcome in outcomes:
        current = best.get(outcome.intent.id)
        if current is None or _get_rank(outcome) > _get_rank(current):
            best[outcome.intent.id] = outcome
    result = (
        await session.execute(sa.select(*_TOTALLED).where(request_logs.c.id.in_(best)))
    ).mappings()
    existing = {row["id"]: {str(key): value for key, value in row.items()} for row in result}
    accepted = [
        outcome
        for id_, outcome in best.items()
        if id_ not in existing or existing[id_]["rank"] < _get_rank(outcome)
    ]
    if accepted:
        erased = await _read_erased(session, accepted)
        rows = [
            _build_row(outcome) | erased.get(outcome.intent.conversation_id or "", {})
            for outcome in accepted
        ]
        await session.execute(_upsert, rows)
        replaced = [existing[row["id"]] for row in rows if row["id"] in existing]
        await _add_totals(session, rows, replaced)
        await _add_charges(session, rows, replaced)
    return sum(outcome.intent.id not in existing for outcome in accepted)


async def _read_erased(session: Session, outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Return the values of erased rows for each conversation of these outcomes that is erased."""
    ids = {
        conversation_id
        for outcome in outcomes
        if (conversation_id := outcome.intent.conversation_id) not in {None, outcome.intent.id}
    }
    if not ids:
        return {}
    query = sa.select(request_logs.c.id, request_logs.c.erased_at).where(
        request_logs.c.id.in_(ids), request_logs.c.erased_at.is_not(None)
    )
    return {
        row.id: ERASED_VALUES | {"erased_at": row.erased_at} for row in await session.execute(query)
    }


async def _add_totals(
    session: Session, added: Sequence[Mapping[str, Any]], replaced: Sequence[Mapping[str, Any]]
) -> None:
    sums: dict[tuple[str, ...], list[int]] = {}
    for sign, rows in ((1, added), (-1, replaced)):
        for row in rows:
            counts = sums.setdefault(_build_total_key(row), [0] * len(_COUNTS))
            for n, value in enumerate(_list_counts(row)):
                counts[n] += sign * value
    names = [*_KEY, *_COUNTS]
    await session.execute(
        _add, [dict(zip(names, [*key, *counts], strict=True)) for key, counts in sums.items()]
    )


async def _add_charges(
    session: Session, added: Sequence[Mapping[str, Any]], replaced: Sequence[Mapping[str, Any]]
) -> None:
    """Add the charges to the quotas of the user and the lineage of the key."""
    lineages = await _read_lineages(session, {row["key_id"] for row in (*added, *replaced)})
    sums: dict[tuple[str, str], list[int]] = {}
    for sign, rows in ((1, added), (-1, replaced)):
        for row in rows:
            day, (tokens, nano_usd) = (
                row["created_at"].strftime("%Y-%m-%d"),
                compute_row_charge(row),
            )
            lineage = lineages.get(row["key_id"], row["key_id"])
            for subject in list_subject_names(row["user_id"], lineage):
                counts = sums.setdefault((day, subject), [0, 0, 0])
                for n, value in enumerate((1, tokens, nano_usd)):
                    counts[n] += sign * value
    names = ("day", "subject", *_CHARGES)
    await session.execute(
        _charge, [dict(zip(names, [*key, *counts], strict=True)) for key, counts in sums.items()]
    )


async def _read_lineages(session: Session, key_ids: set[str | None]) -> dict[str, str]:
    """The lineages of keys that were rotated; a key without is its own lineage."""
    if key_ids == {None}:
        return {}
    query = sa.select(api_keys.c.id, api_keys.c.lineage).where(api_keys.c.id.in_(key_ids - {None}))
    return {row.id: row.lineage for row in await session.execute(query)}


def _build_total_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (row["created_at"].strftime("%Y-%m-%d"), *(str(row[name]) for name in _KEY[1:]))


def _list_counts(row: Mapping[str, Any]) -> list[int]:
    return [1, *(row[name] or 0 for name in _COUNTS[1:-1]), row["cost_nano_usd"] is None]


async def read_page(
    session: ReadSession,
    log_filter: LogFilter,
    *,
    limit: int,
    cursor: str | None = None,
    scan_max: int = SCAN_MAX,
) -> LogPage:
    """Read a page, newest first. Raises `InvalidCursor`."""
    interval = _build_interval(log_filter)
    if cursor is not None:
        interval.append(request_logs.c.id < parse_cursor(cursor))
    lead, others = _split_conditions(log_filter)
    where, end = [*lead, *others, *interval], None
    if others:
        scanned_ids = (
            sa.select(request_logs.c.id).where(*lead, *interval).order_by(request_logs.c.id.desc())
        )
        end = (await session.execute(scanned_ids.offset(scan_max - 1).limit(1))).scalar()
        where += [] if end is None else [request_logs.c.id >= end]
    query = sa.select(*_LISTED).where(*where).order_by(request_logs.c.id.desc()).limit(limit + 1)
    rows = (await session.execute(query)).mappings().all()
    items = [build_answer(row) for row in rows[:limit]]
    return LogPage(items, items[-1].id if len(rows) > limit else end)


async def read_tail(
    session: ReadSession,
    log_filter: LogFilter,
    *,
    limit: int,
    after: str,
    scan_max: int = TAIL_SCAN_MAX,
) -> LogPage:
    """Read the rows committed after the answer `after`, in commit order.

    Raises `InvalidCursor`.
    """
    seq = (
        await session.execute(
            sa.select(request_logs.c.seq).where(request_logs.c.id == parse_cursor(after))
        )
    ).scalar()
    if seq is None:
        raise InvalidCursor("`after` is not the id of an answer in the log")
    lead, others = _split_conditions(log_filter, tailing=True)
    lead.append(request_logs.c.seq > seq)
    where, end = [*lead, *others], None
    if others:
        scanned_rows = (
            sa.select(request_logs.c.seq, request_logs.c.id)
            .where(*lead)
            .order_by(request_logs.c.seq)
        )
        end = (await session.execute(scanned_rows.offset(scan_max - 1).limit(1))).first()
        where += [] if end is None else [request_logs.c.seq <= end.seq]
    rows = (
        (
            await session.execute(
                sa.select(*_LISTED).where(*where).order_by(request_logs.c.seq).limit(limit)
            )
        )
        .mappings()
        .all()
    )
    items = [build_answer(row) for row in rows]
    if end is not None and len(items) < limit:
        return LogPage(items, end.id)
    return LogPage(items, items[-1].id if items else after)


async def read_row(session: ReadSession, answer_id: str, *, user_id: str | None) -> Answer:
    """Read one row. Raises `NotFound`, also for other users' rows; None: any user's."""
    row = (
        (await session.execute(sa.select(request_logs).where(request_logs.c.id == answer_id)))
        .mappings()
        .first()
    )
    if row is None or user_id not in {None, row["user_id"]}:
        raise NotFound("no answer has this id")
    return build_answer(row)


async def find_by_key(session: ReadSession, user_id: str, idempotency_key: str) -> Outcome | None:
    """Return the outcome of the request with this key from its row; None without a row."""
    columns = request_logs.c
    return await _read_outcome(
        session, columns.user_id == user_id, columns.idempotency_key == idempotency_key
    )


async def find_outcome(session: ReadSession, answer_id: str) -> Outcome | None:
    """Return the outcome of an answer of any user from its row; None without a row."""
    return await _read_outcome(session, request_logs.c.id == answer_id)


async def _read_outcome(session: ReadSession, *where: sa.ColumnElement[bool]) -> Outcome | None:
    row = (await session.execute(sa.select(request_logs).where(*where))).mappings().first()
    if row is None:
        return None
    fields: dict[str, Any] = {str(name): value for name, value in row.items()}
    usage = msgspec.convert(fields, Usage) if fields["prompt_tokens"] is not None else None
    return msgspec.convert(
        fields | {"intent": msgspec.convert(fields, Intent), "usage": usage}, Outcome
    )


async def export_pages(
    database: Database, log_filter: LogFilter, *, scan_max: int = SCAN_MAX
) -> AsyncGenerator[list[Answer], None]:
    """Yield all matching rows, newest first, by pages. No session is held between pages."""
    cursor: str | None = None
    while True:
        async with database.read_session() as session:
            page = await read_page(
                session, log_filter, limit=_EXPORT_PAGE, cursor=cursor, scan_max=scan_max
            )
        yield page.items
        if (cursor := page.next_cursor) is None:
            return


def _split_conditions(
    log_filter: LogFilter, *, tailing: bool = False
) -> tuple[list[sa.ColumnElement[bool]], list[sa.ColumnElement[bool]]]:
    """Return the leading filter, whose index is used, and the others.

    The others are written so that no index is chosen for them.
    """
    if tailing:
        leading_name = None if log_filter.user_id is None else "user_id"
    else:
        leading_name = _choose_leading(log_filter)
    leading, others = [], []
    for name in _FILTERS:
        if (value := getattr(log_filter, name)) is not None:
            if name == leading_name:
                leading.append(request_logs.c[name] == value)
            else:
                others.append(request_logs.c[name].concat("") == value)
    return leading, others + (
        _build_interval(log_filter, request_logs.c.id.concat("")) if tailing else []
    )


def _choose_leading(log_filter: LogFilter) -> str | None:
    """Return the filter that probably matches the fewest rows: most answers are completed."""
    if log_filter.user_id is None and log_filter.status not in {None, Status.COMPLETED}:
        return "status"
    return next((name for name in _FILTERS if getattr(log_filter, name) is not None), None)


def _build_interval(
    log_filter: LogFilter, answer_id: sa.ColumnElement[str] = request_logs.c.id
) -> list[sa.ColumnElement[bool]]:
    # Ids start with their time: an interval of time is an interval of ids, without another index.
    return [
        *(
            [answer_id >= compute_first_id(log_filter.since)]
            if log_filter.since is not None
            else []
        ),
        *([answer_id < compute_first_id(log_filter.until)] if log_filter.until is not None else []),
    ]


def parse_cursor(cursor: str) -> str:
    """Return the id that a cursor is. Raises `InvalidCursor`."""
    if len(cursor) != 36 or not cursor.isascii():
        raise InvalidCursor("the cursor is not the id of an answer")
    return cursor


def _get_rank(outcome: Outcome) -> int:
    return RANKS[outcome.usage_source]


def _build_row(outcome: Outcome) -> dict[str, Any]:
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
        "nearest": msgspec.to_builtins(outcome.nearest),
        "attempts": outcome.attempts,
        "request_id": intent.request_id,
        "rank": _get_rank(outcome),
        "idempotency_key": intent.idempotency_key,
        "body_hash": intent.body_hash,
        "relevance_share": intent.relevance_share,
        "relevance_terms": intent.relevance_terms,
        "relevance_cosine": intent.relevance_cosine,
        "key_id": intent.key_id,
        "asked_by": intent.asked_by,
        "held_tokens": intent.held_tokens,
        "held_nano_usd": intent.held_nano_usd,
        "conversation_id": intent.conversation_id,
        "messages": msgspec.to_builtins(intent.messages),
        "erased_at": None,
    }


def build_answer(row: RowMapping) -> Answer:
    """Build the answer object of a row, without the columns that were not selected."""
    prompt, completion, cost = row["prompt_tokens"], row["completion_tokens"], row["cost_nano_usd"]
    derived = {
        "total_tokens": None if prompt is None or completion is None else prompt + completion,
        "estimated_cost": None if cost is None else format_usd(cost),
    }
    # The keys are a subclass of str, which msgspec does not accept.
    fields = {
        str(key): value
        for key, value in row.items()
        if value is not None or key not in OMITTED_IN_LISTS
    }
    return msgspec.convert(fields | derived, Answer)
