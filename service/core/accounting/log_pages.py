"""Pages, tails and exports of the request log.

Pages are ordered by id, which sorts by the time an answer started: newest first, with keyset
pagination, so page 1,000 costs as much as page 1. Tailing is ordered by `seq`, the order of commit,
so an answer that started early and ended late is not missed.

No query scans the whole log. A single filter has an index in the order of the page; several values
of it are several ranges of the index, merged. With several filters the index of one is used
(`_choose_leading`) and the others are checked on its entries, a bounded number of them: a page may
then end early, even empty, with a cursor to continue.
"""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from itertools import takewhile

import msgspec
import sqlalchemy as sa

from service.core.accounting.rows import LISTED_COLUMNS, LoggedAnswer, read_answers
from service.core.database.constructs import as_text, read_as_bytes, without_index
from service.core.database.damaged_rows import decode_name
from service.core.database.engine import Database, ReadSession
from service.core.database.failures import DamagedValue
from service.core.database.tables import request_logs
from service.core.encoding import compute_first_id
from service.core.errors import InvalidCursor, InvalidInterval
from service.core.records import FAILURES, Status

PAGE_MAX = 200
SCAN_MAX = 10_000  # maximum index entries of the leading filter per page, a few ms
READ_MAX = 2_000  # maximum rows per page if they are read completely: tails and searched words
ORDERED_MAX = 100_000  # maximum rows of an interval that is ordered by a value, some 0.2 s
_EXPORT_PAGE = 500
_ID_CHARACTERS = 36
# The most selective first: see `_choose_leading`.
_FILTERS = ("user_id", "model", "endpoint", "status")
_ORDERS: dict[str, sa.ColumnElement[int]] = {
    "response_time_ms": request_logs.c.response_time_ms,
    "estimated_cost": request_logs.c.cost_nano_usd,
    "total_tokens": request_logs.c.prompt_tokens + request_logs.c.completion_tokens,
}
_Conditions = list[sa.ColumnElement[bool]]


class LogFilter(msgspec.Struct, frozen=True, kw_only=True):
    """A filter of rows; None matches any value, a tuple any of its values.

    `since` is inclusive, `until` exclusive; both refer to the start of an answer. `words`: texts
    that occur in the prompt or the response, all of them.
    """

    user_id: tuple[str, ...] | None = None
    endpoint: tuple[str, ...] | None = None
    model: tuple[str, ...] | None = None
    status: tuple[str, ...] | None = None
    since: datetime | None = None
    until: datetime | None = None
    min_response_time_ms: int | None = None
    words: tuple[str, ...] = ()

    @property
    def only_user_id(self) -> str | None:
        """The user whose rows match; None: more than one."""
        return self.user_id[0] if self.user_id is not None and len(self.user_id) == 1 else None


class LogPage(msgspec.Struct, frozen=True):
    """A page. `next_cursor` is None only on the last page; when tailing it is always set.

    With several filters a page may have fewer rows than requested, even none, before the last page.
    """

    items: list[LoggedAnswer]
    next_cursor: str | None


async def read_page(
    session: ReadSession,
    log_filter: LogFilter,
    *,
    limit: int,
    cursor: str | None = None,
    scan_max: int | None = None,
) -> LogPage:
    """Read a page, newest first. Raises `InvalidCursor`."""
    interval = _build_interval(log_filter)
    if cursor is not None:
        interval.append(request_logs.c.id < parse_cursor(cursor))
    leads, others = _split_conditions(log_filter)
    end = None
    if others:
        scan_max = scan_max or (READ_MAX if log_filter.words else SCAN_MAX)
        last = await _find_scan_end(session, leads, interval, max(1, scan_max // len(leads)))
        if last is not None:
            interval.append(request_logs.c.id >= as_text(last))
            end = build_cursor(decode_name(last))
    query = (
        sa.select(*LISTED_COLUMNS)
        .where(*_merge_ranges(leads, [*others, *interval], limit + 1))
        .order_by(request_logs.c.id.desc())
        .limit(limit + 1)
    )
    rows = await read_answers(session, query, user_id=log_filter.only_user_id)
    items = rows[:limit]
    next_cursor = build_cursor(items[-1].id) if len(rows) > limit else end
    if next_cursor is not None and cursor is not None and next_cursor >= cursor:
        raise DamagedValue("the order of an index is wrong")
    return LogPage(items, next_cursor)


async def _find_scan_end(
    session: ReadSession, leads: list[_Conditions], interval: _Conditions, scan_max: int
) -> bytes | None:
    """The id at which all ranges have been scanned as far as allowed; None: they end before."""
    ends: list[bytes] = []
    for lead in leads:
        scanned = (
            sa.select(read_as_bytes(request_logs.c.id))
            .where(*lead, *interval)
            .order_by(request_logs.c.id.desc())
        )
        last = (await session.execute(scanned.offset(scan_max - 1).limit(1))).scalar()
        if last is not None:
            ends.append(last)
    return max(ends, default=None)


def _merge_ranges(leads: list[_Conditions], others: _Conditions, limit: int) -> _Conditions:
    """The conditions for the newest rows of several ranges of an index."""
    if len(leads) == 1:
        return [*leads[0], *others]
    newest = [
        sa.select(request_logs.c.id)
        .where(*lead, *others)
        .order_by(request_logs.c.id.desc())
        .limit(limit)
        .subquery()
        for lead in leads
    ]
    return [request_logs.c.id.in_(sa.union_all(*(sa.select(ids.c.id) for ids in newest)))]


async def read_top(
    session: ReadSession,
    log_filter: LogFilter,
    *,
    order: str,
    limit: int,
    rows_max: int = ORDERED_MAX,
) -> LogPage:
    """Read the rows with the largest values of `order`, a field of `_ORDERS`; unknown ones last.

    Raises `InvalidInterval` if the interval has more than `rows_max` rows.
    """
    (lead, *_), others = _split_conditions(log_filter, ranges=False)
    interval = [*lead, *_build_interval(log_filter)]
    scanned = sa.select(request_logs.c.id).where(*interval).limit(rows_max + 1).subquery()
    count = (await session.execute(sa.select(sa.func.count()).select_from(scanned))).scalar_one()
    if count > rows_max:
        raise InvalidInterval(
            f"an ordered list is limited to {rows_max:,} rows in the interval: choose a later"
            " `since` or an earlier `until`, or one user"
        )
    ordering = [_ORDERS[order].desc().nulls_last(), request_logs.c.id.desc()]
    ids = sa.select(request_logs.c.id).where(*interval, *others).order_by(*ordering).limit(limit)
    query = sa.select(*LISTED_COLUMNS).where(request_logs.c.id.in_(ids)).order_by(*ordering)
    return LogPage(await read_answers(session, query, user_id=log_filter.only_user_id), None)


async def read_tail(
    session: ReadSession,
    log_filter: LogFilter,
    *,
    limit: int,
    after: str,
    scan_max: int = READ_MAX,
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
    lead, others = _split_tail_conditions(log_filter)
    lead.append(request_logs.c.seq > seq)
    where, end = [*lead, *others], None
    if others:
        scanned_rows = (
            sa.select(request_logs.c.seq, read_as_bytes(request_logs.c.id))
            .where(*lead)
            .order_by(request_logs.c.seq)
        )
        last = (await session.execute(scanned_rows.offset(scan_max - 1).limit(1))).first()
        if last is not None:
            where.append(request_logs.c.seq <= last[0])
            name = decode_name(last[1])
            end = name if _is_cursor(name) else after
    query = sa.select(*LISTED_COLUMNS).where(*where).order_by(request_logs.c.seq).limit(limit)
    items = await read_answers(session, query, user_id=log_filter.only_user_id)
    if end is not None and len(items) < limit:
        return LogPage(items, end)
    sound_ids = (item.id for item in reversed(items) if _is_cursor(item.id))
    return LogPage(items, next(sound_ids, after))


async def export_pages(
    database: Database, log_filter: LogFilter, *, scan_max: int | None = None
) -> AsyncGenerator[list[LoggedAnswer], None]:
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
    log_filter: LogFilter, *, ranges: bool = True
) -> tuple[list[_Conditions], _Conditions]:
    """Return the ranges of the leading filter, whose index is used, and the other conditions.

    One range without a leading filter, or without `ranges` if it has several values. The other
    conditions are written so that no index is chosen for them.
    """
    leading_name = _choose_leading(log_filter)
    values = getattr(log_filter, leading_name) if leading_name is not None else None
    if leading_name is None or values is None or (len(values) > 1 and not ranges):
        return [[]], _build_unindexed(log_filter, _FILTERS)
    leads: list[_Conditions] = [[request_logs.c[leading_name] == value] for value in values]
    return leads, _build_unindexed(log_filter, [n for n in _FILTERS if n != leading_name])


def _split_tail_conditions(log_filter: LogFilter) -> tuple[_Conditions, _Conditions]:
    """The same for a tail: only rows of a user have an index in the order of commit."""
    interval = _build_interval(log_filter, without_index(request_logs.c.id))
    if log_filter.only_user_id is None:
        return [], [*_build_unindexed(log_filter, _FILTERS), *interval]
    lead = [request_logs.c.user_id == log_filter.only_user_id]
    return lead, [*_build_unindexed(log_filter, _FILTERS[1:]), *interval]


def _build_unindexed(log_filter: LogFilter, names: list[str] | tuple[str, ...]) -> _Conditions:
    """The conditions of these filters, of the response time and of the words, without an index."""
    conditions = []
    for name in names:
        if (values := getattr(log_filter, name)) is not None:
            column = without_index(request_logs.c[name])
            conditions.append(column == values[0] if len(values) == 1 else column.in_(values))
    if log_filter.min_response_time_ms is not None:
        conditions.append(request_logs.c.response_time_ms >= log_filter.min_response_time_ms)
    return conditions + [
        sa.or_(
            request_logs.c.prompt.icontains(word, autoescape=True),
            request_logs.c.response.icontains(word, autoescape=True),
        )
        for word in log_filter.words
    ]


def _choose_leading(log_filter: LogFilter) -> str | None:
    """Return the filter that probably matches the fewest rows: most answers are completed."""
    statuses = log_filter.status
    if log_filter.user_id is None and statuses is not None and Status.COMPLETED not in statuses:
        return "status"
    return next((name for name in _FILTERS if getattr(log_filter, name) is not None), None)


def _build_interval(
    log_filter: LogFilter, answer_id: sa.ColumnElement[str] = request_logs.c.id
) -> _Conditions:
    # Ids start with their time: an interval of time is an interval of ids, without another index.
    return [
        *(
            [answer_id >= compute_first_id(log_filter.since)]
            if log_filter.since is not None
            else []
        ),
        *([answer_id < compute_first_id(log_filter.until)] if log_filter.until is not None else []),
    ]


def list_statuses(statuses: Sequence[str]) -> tuple[str, ...]:
    """The statuses that match; `error` stands for all failures."""
    listed = [FAILURES if status == "error" else (status,) for status in statuses]
    return tuple(dict.fromkeys(status for group in listed for status in group))


def parse_cursor(cursor: str) -> str:
    """Return the id that a cursor is. Raises `InvalidCursor`."""
    if not _is_cursor(cursor):
        raise InvalidCursor("the cursor is not the id of an answer")
    return cursor


def _is_cursor(text: str) -> bool:
    return len(text) == _ID_CHARACTERS and text.isascii()


def build_cursor(answer_id: str) -> str:
    """The cursor after a row: its id or, if that is damaged, a text of the same length before it.

    There is no sound id between the two.
    """
    if _is_cursor(answer_id):
        return answer_id
    ascii_prefix = "".join(takewhile(str.isascii, answer_id[:_ID_CHARACTERS]))
    if answer_id == ascii_prefix and answer_id:  # too short
        ascii_prefix = ascii_prefix[:-1] + chr(max(0, ord(ascii_prefix[-1]) - 1))
    return ascii_prefix.ljust(_ID_CHARACTERS, "\x7f")
