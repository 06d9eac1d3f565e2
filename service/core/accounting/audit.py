"""The audit: compare the log with its own totals and with the provider's export.

It recomputes every total from the rows, checks each row, looks for records that never became rows,
and can compare the rows with a provider's usage export. It only reads, one day at a time: each day
is one snapshot, in which rows and totals must agree to the token and nano-dollar even while the
writer is running. Rows are streamed and sums are computed by the database, so memory does not grow
with the log. It repairs nothing, and cannot detect an answer that was never recorded.
"""

import fcntl
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from service.core.accounting.audit_rules import (
    TOKEN_COUNTS,
    WRONG_TYPES,
    check_attempts,
    check_row,
    read_moment,
)
from service.core.accounting.provider_comparison import (
    Key,
    LoggedUsage,
    UsagePair,
    describe_differences,
)
from service.core.accounting.provider_export import Export, ProviderUsage, remove_snapshot
from service.core.accounting.rollups import COUNTS, DIMENSIONS, LATENCIES, select_contributions
from service.core.accounting.rows import read_attempts
from service.core.accounting.wallet_audit import (
    count_debited_rows,
    count_wallets,
    list_balance_differences,
    list_debit_differences,
)
from service.core.budgets.budget import (
    BUDGET_PREFIX,
    EVERYTHING,
    Period,
    SubjectKind,
    compute_window,
)
from service.core.budgets.store import list_budgets
from service.core.database.constructs import (
    as_text,
    is_listed,
    read_as_bytes,
    read_kind,
    sum_exactly,
    to_quarter,
)
from service.core.database.damaged_rows import KeyedRow, decode_name, iterate_rows
from service.core.database.engine import Database, ReadSession
from service.core.database.failures import DamagedValue, describe_error, is_damage
from service.core.database.tables import (
    api_keys,
    attempts,
    latency_counts,
    quota_totals,
    request_logs,
    rollup_groups,
    rollups,
)
from service.core.encoding import (
    EPOCH,
    QUARTERS_PER_DAY,
    compute_first_id,
    find_quarter,
    replace_surrogates,
)
from service.core.errors import KotaeError
from service.core.ports import KEY_PREFIX, USER_PREFIX
from service.core.records import UsageSource
from service.core.settings import EXTRACTIVE

DETAILS_MAX = 20  # differences that are described; the others are counted
_BATCH = 2000
_QUARTERS_END = find_quarter(datetime(9999, 1, 1, tzinfo=UTC))  # see `_parse_date`
_CALLED = ("usage_source", "prompt_tokens", "completion_tokens", "cost_nano_usd")
ATTEMPTS = "answers with several attempts"
ROWS, TOTALS, CHARGES = "rows of the log", "rollups by quarter", "quotas by day and subject"
BUDGETS = "budgets by day"
WALLETS, DEBITS = "wallets", "debits of prepaid answers"
_CHARGES = ("requests", "tokens", "cost_nano_usd")  # of a quota
FILES, EXPORT = "records put aside", "days and models of the export"
_LABELS = {TOTALS: "rollups", CHARGES: "quotas"}


class AuditReport:
    """The number of compared items and differences, and the first `DETAILS_MAX` in words."""

    def __init__(self) -> None:
        self.compared: Counter[str] = Counter()
        self.different: Counter[str] = Counter()
        self.doubts: Counter[str] = Counter()  # answers in the days of the export, by what is open
        self.details: list[str] = []

    @property
    def agrees(self) -> bool:
        """True if there is no difference."""
        return not self.different.total()

    def add_difference(self, kind: str, text: str) -> None:
        """Count a difference and keep its description, up to the limit."""
        self.different[kind] += 1
        if len(self.details) < DETAILS_MAX:
            self.details.append(replace_surrogates(text))

    def _describe_doubts(self) -> str:
        doubts = self.doubts
        return (
            f"beside the export: {doubts['unknown']:,} answers of unknown usage,"
            f" {doubts['estimated']:,} estimated, {doubts['unpriced']:,} of unknown cost"
        )

    def to_text(self) -> str:
        """Format a table, followed by the differences."""
        lines = [f"{'compared':32}{'checked':>14}{'different':>12}"]
        lines += [
            f"{kind:32}{count:>14,}{self.different[kind]:>12,}"
            for kind, count in self.compared.items()
        ]
        lines += ["", *self.details] if self.details else ["", "all agrees"]
        if omitted := self.different.total() - len(self.details):
            lines.append(f"… and {omitted:,} more")
        if EXPORT in self.compared:
            lines += ["", self._describe_doubts()]
        return "\n".join(lines)


async def audit_log(
    database: Database, data_dir: Path, *, since: date | None = None, export: Export | None = None
) -> AuditReport:
    """Audit the log from day `since` on. Raises `KotaeError` for unreadable data."""
    if database.file and not database.file.exists():
        raise KotaeError(f"no database at {database.file}")
    await database.require_current_schema()
    report = AuditReport()
    kinds = (ROWS, ATTEMPTS, TOTALS, CHARGES, BUDGETS, WALLETS, DEBITS, FILES)
    report.compared.update(dict.fromkeys(kinds, 0))
    if export is not None:
        _limit_days(export, since)
    pairs = await _audit_days(database, report, since, export)
    for line in describe_differences(pairs):
        report.add_difference(EXPORT, line)
    _check_files(data_dir, report)
    return report


def _limit_days(export: Export, since: date | None) -> None:
    """Leave out the days before `since`."""
    export.first = max(export.first, str(since or ""))
    export.usages = {key: usage for key, usage in export.usages.items() if key[0] >= export.first}


async def _audit_days(
    database: Database, report: AuditReport, since: date | None, export: Export | None
) -> dict[Key, UsagePair]:
    """Audit each day that has rows or totals in its own snapshot.

    Returns what differs from the export.
    """
    pairs: dict[Key, UsagePair] = {}
    unmatched = dict(export.usages) if export else {}
    low_id, low_day = (
        (compute_first_id(_compute_day_start(since)), str(since - timedelta(days=1)))
        if since
        else ("", "")
    )
    low_quarter = find_quarter(_compute_day_start(since)) if since else 0
    while True:
        async with database.read_session() as session:
            answer_id = await _find_next(session, request_logs.c.id, low_id)
            total_days = [
                await _find_next(session, quota_totals.c.day, low_day),
                await _find_next_quarter_day(session, low_quarter),
            ]
            total_day = min((day for day in total_days if day is not None), default=None)
            if answer_id is None and total_day is None:
                break
            moment = read_moment(answer_id) if answer_id is not None else None
            if answer_id is not None and moment is None:
                report.compared[ROWS] += 1
                report.add_difference(ROWS, f"answer {answer_id!r}: its id is not a valid UUIDv7")
                low_id = answer_id
                continue
            day = min(
                [
                    *([str(moment.date())] if moment else []),
                    *([total_day] if total_day is not None else []),
                ]
            )
            low_day = day
            if (date_ := _parse_date(day)) is None:
                report.add_difference(CHARGES, f"quotas of {day!r}: not a date")
                continue
            following = _compute_day_start(date_ + timedelta(days=1))
            low_id = max(low_id, compute_first_id(following))
            low_quarter = max(low_quarter, find_quarter(following))
            await _check_rows(session, date_, report)
            await _check_attempts(session, date_, report)
            await _check_totals(session, date_, report)
            await _check_budgets(session, date_, report)
            await _check_debits(session, date_, report)
            if export is not None and export.first <= day <= export.last:
                with _report_damage(report, EXPORT, f"the rows of {day}"):
                    logged = await _read_calls(session, date_, export.provider, report)
                    _pair_day(day, logged, unmatched, pairs, report)
    async with database.read_session() as session:
        await _check_quarters(session, report)
        await _check_wallets(session, report)
    for day in sorted({day for day, _ in unmatched}):  # days without rows
        _pair_day(day, {}, unmatched, pairs, report)
    if export is not None:
        report.compared[EXPORT] += 0
    return pairs


async def _find_next(session: ReadSession, column: sa.Column[str], low: str) -> str | None:
    """The first value after `low`; undecodable bytes of it are surrogates."""
    query = (
        sa.select(read_as_bytes(column))
        .where(column > as_text(low.encode(errors="surrogateescape")))
        .where(read_kind(column) == "text")
        .order_by(column)
        .limit(1)
    )
    value = (await session.execute(query)).scalar()
    return None if value is None else decode_name(value)


async def _find_next_quarter_day(session: ReadSession, low: int) -> str | None:
    """The day of the first rollup from quarter `low` on."""
    quarters = []
    for table in (rollups, latency_counts):
        query = sa.select(sa.func.min(table.c.quarter)).where(
            table.c.quarter >= low, table.c.quarter < _QUARTERS_END
        )
        quarters.append((await session.execute(query)).scalar())
    first = min((quarter for quarter in quarters if quarter is not None), default=None)
    if first is None:
        return None
    return str(EPOCH.date() + timedelta(days=first // QUARTERS_PER_DAY))


async def _check_quarters(session: ReadSession, report: AuditReport) -> None:
    """Report rollups that belong to no day."""
    for table in (rollups, latency_counts):
        quarter = table.c.quarter
        is_wrong = sa.or_(quarter < 0, quarter >= _QUARTERS_END, read_kind(quarter) != "integer")
        query = sa.select(sa.func.count()).select_from(table).where(is_wrong)
        if count := (await session.execute(query)).scalar_one():
            report.add_difference(TOTALS, f"{count} of {table.name}: not a quarter of an hour")


@contextmanager
def _report_damage(report: AuditReport, kind: str, subject: str) -> Iterator[None]:
    """Report a difference if a read within the block meets damage."""
    try:
        yield
    except (DBAPIError, DamagedValue, *WRONG_TYPES) as error:
        if isinstance(error, DBAPIError) and not is_damage(error):
            raise
        report.add_difference(kind, f"{subject} cannot be read: {describe_error(error)}")


async def _check_rows(session: ReadSession, day: date, report: AuditReport) -> None:
    names = (
        "seq",
        "id",
        "created_at",
        "status",
        "usage_source",
        "rank",
        *TOKEN_COUNTS,
        "cost_nano_usd",
        "price",
    )
    query = sa.select(*(request_logs.c[name] for name in names)).where(*_filter_day(day))
    async for rows in iterate_rows(session, query, request_logs.c.seq, request_logs.c.id):
        report.compared[ROWS] += len(rows)
        for keyed in rows:
            for problem in _check_keyed_row(keyed):
                report.add_difference(ROWS, f"answer {keyed.name}: {problem}")


async def _check_attempts(session: ReadSession, day: date, report: AuditReport) -> None:
    """Check that each row with several attempts is their sum, and each attempt has a row.

    Rows without a provider are from before the table of attempts.
    """
    logs = request_logs.c
    names = ("attempts", "usage_source", *TOKEN_COUNTS, "cost_nano_usd")
    query = sa.select(logs.seq, logs.id, *(logs[name] for name in names)).where(
        *_filter_day(day), logs.attempts > 1, logs.provider.is_not(None)
    )
    low, high = _list_bounds(day)
    orphans = (
        sa.select(attempts.c.answer_id)
        .where(attempts.c.answer_id >= low, attempts.c.answer_id < high)
        .where(~sa.exists().where(logs.id == attempts.c.answer_id, logs.attempts > 1))
        .distinct()
        .limit(_BATCH)
    )
    with _report_damage(report, ATTEMPTS, f"the attempts of {day}"):
        for answer_id in (await session.execute(orphans)).scalars().all():
            report.add_difference(ATTEMPTS, f"answer {answer_id}: attempts without their row")
        async for rows in iterate_rows(session, query, logs.seq, logs.id):
            report.compared[ATTEMPTS] += len(rows)
            by_answer = await session.run_sync(read_attempts, [keyed.name for keyed in rows])
            for keyed in rows:
                listed = by_answer.get(keyed.name, [])
                for problem in check_attempts(keyed.row, listed) if keyed.row else ():
                    report.add_difference(ATTEMPTS, f"answer {keyed.name}: {problem}")


def _check_keyed_row(keyed: KeyedRow) -> list[str]:
    if keyed.row is None:
        return ["its row cannot be read"]
    try:
        return list(check_row(keyed.row))
    except WRONG_TYPES:
        return ["a value in its row has the wrong type"]


async def _check_totals(session: ReadSession, day: date, report: AuditReport) -> None:
    """Compare rows with rollups, then with the charges to quotas.

    The charges are `compute_row_charge` in SQL.
    """
    logs = request_logs.c
    with _report_damage(report, TOTALS, f"the rollups or rows of {day}"):
        key = ("quarter", *DIMENSIONS)
        rows = select_contributions(*_filter_day(day))
        await _compare_sums(session, day, report, TOTALS, rows, _join_groups(rollups), key, COUNTS)
        latencies = [
            _select_latencies(kind).where(*_filter_day(day), logs[name].is_not(None))
            for kind, name in enumerate(LATENCIES)
        ]
        stored = _join_groups(latency_counts)
        await _compare_sums(
            session, day, report, TOTALS, latencies, stored, (*key, "kind"), ("answers",)
        )

    unknown = logs.usage_source == UsageSource.UNKNOWN
    known_tokens = sa.func.coalesce(logs.prompt_tokens, 0) + sa.func.coalesce(
        logs.completion_tokens, 0
    )
    charges: dict[str, sa.ColumnElement[Any]] = {
        "requests": sa.literal(1),
        "tokens": sa.case((unknown, logs.held_tokens), else_=known_tokens),
        "cost_nano_usd": sa.case((unknown, logs.held_nano_usd), else_=logs.cost_nano_usd),
    }
    subjects: list[sa.ColumnElement[Any]] = [
        sa.literal(USER_PREFIX).concat(logs.user_id),
        sa.literal(KEY_PREFIX).concat(_select_lineage()),  # NULL without a key
    ]
    with _report_damage(report, CHARGES, f"the quotas or rows of {day}"):
        rows = [
            sa.select(
                subject.label("subject"),
                *(value.label(name) for name, value in charges.items()),
            ).where(*_filter_day(day), subject.is_not(None))
            for subject in subjects
        ]
        # Those of budgets are compared in `_check_budgets`.
        is_listed_subject = quota_totals.c.subject.not_like(f"{BUDGET_PREFIX}%")
        stored = sa.select(quota_totals).where(is_listed_subject).subquery()
        await _compare_sums(
            session, day, report, CHARGES, rows, stored, ("subject",), list(charges)
        )


async def _check_budgets(session: ReadSession, day: date, report: AuditReport) -> None:
    """Compare the charges to budgets for users, keys and everything with those of quotas.

    Left out are budgets for plans, whose users change, and for models, which have no quota. Charges
    are complete from the month on in which a budget was created.
    """
    listed = [
        budget
        for budget in await list_budgets(session)
        if budget.kind in {SubjectKind.USER, SubjectKind.KEY, SubjectKind.ALL}
        and compute_window(Period.MONTH, budget.created_at).start.date() <= day
    ]
    if not listed:
        return
    with _report_damage(report, BUDGETS, f"the charges to budgets of {day}"):
        charged = await _read_charges(session, day, [budget.quota_name for budget in listed])
        expected = await _read_charges(session, day, [budget.subject for budget in listed])
        expected[EVERYTHING] = await _sum_user_charges(session, day)
        for budget in listed:
            report.compared[BUDGETS] += 1
            sums = (charged.get(budget.quota_name), expected.get(budget.subject))
            counts, quotas = (total or (0, 0, 0) for total in sums)
            if counts != quotas:
                names = zip(_CHARGES, quotas, counts, strict=True)
                differences = "; ".join(
                    f"{name} {quota} in the quotas, {count} charged"
                    for name, quota, count in names
                    if quota != count
                )
                report.add_difference(BUDGETS, f"budget {budget.name} on {day}: {differences}")


async def _check_debits(session: ReadSession, day: date, report: AuditReport) -> None:
    """Compare the charges of prepaid rows with their debits."""
    bounds = _list_bounds(day)
    with _report_damage(report, DEBITS, f"the charges of {day}"):
        report.compared[DEBITS] += await count_debited_rows(session, *bounds)
        async for difference in list_debit_differences(session, *bounds):
            report.add_difference(DEBITS, difference)


async def _check_wallets(session: ReadSession, report: AuditReport) -> None:
    """Compare the balances with the ledger."""
    with _report_damage(report, WALLETS, "the ledger"):
        report.compared[WALLETS] += await count_wallets(session)
        async for difference in list_balance_differences(session):
            report.add_difference(WALLETS, difference)


async def _read_charges(
    session: ReadSession, day: date, subjects: list[str]
) -> dict[str, tuple[int, ...]]:
    """The charges of a day by quota subject."""
    columns = quota_totals.c
    query = sa.select(columns.subject, *(columns[name] for name in _CHARGES)).where(
        columns.day == str(day), is_listed(columns.subject, subjects)
    )
    return {subject: tuple(counts) for subject, *counts in await session.execute(query)}


async def _sum_user_charges(session: ReadSession, day: date) -> tuple[int, ...]:
    columns = quota_totals.c
    query = sa.select(*(sum_exactly(columns[name]) for name in _CHARGES)).where(
        columns.day == str(day), columns.subject.like(f"{USER_PREFIX}%")
    )
    return tuple((await session.execute(query)).one())


def _select_latencies(kind: int) -> sa.Select[Any]:
    """The keys of the latencies of rows, and 1 for each row."""
    columns: list[sa.ColumnElement[Any]] = [
        to_quarter(request_logs.c.created_at).label("quarter"),
        *(sa.func.coalesce(request_logs.c[name], "").label(name) for name in DIMENSIONS),
        sa.literal(kind).label("kind"),
        sa.literal(1).label("answers"),
    ]
    return sa.select(*columns)


def _join_groups(table: sa.Table) -> sa.Subquery:
    """A table of rollups with the dimensions of its groups, NULL if a group is missing."""
    dimensions = [rollup_groups.c[name] for name in DIMENSIONS]
    joined = table.outerjoin(rollup_groups, rollup_groups.c.id == table.c.group_id)
    return sa.select(table, *dimensions).select_from(joined).subquery()


def _select_lineage() -> sa.ColumnElement[str]:
    """The lineage of the key of a log row."""
    key_id = request_logs.c.key_id
    lineage = sa.select(api_keys.c.lineage).where(api_keys.c.id == key_id).scalar_subquery()
    return sa.func.coalesce(lineage, key_id)


async def _compare_sums(
    session: ReadSession,
    day: date,
    report: AuditReport,
    kind: str,
    rows: Sequence[sa.Select[Any]],
    table: sa.FromClause,
    key: Sequence[str],
    names: Sequence[str],
) -> None:
    """Report the keys of a table of sums whose counts differ from the sums of the rows.

    `rows`: the keys and the counts of the rows of the day.
    """
    row_sums = []
    for query in rows:
        columns = query.subquery().c
        keys = [columns[name] for name in key]
        row_sums.append(
            sa.select(
                *keys,
                *(sum_exactly(columns[name]).label(name) for name in names),
                *(sa.literal(0).label(f"stored_{name}") for name in names),
            ).group_by(*keys)
        )
    stored = sa.select(
        *(table.c[name] for name in key),
        *(sa.literal(0) for _ in names),
        *(table.c[name] for name in names),
    )
    is_of_day = _is_of_day(table, day)
    combined = sa.union_all(*row_sums, stored.where(is_of_day)).subquery().c
    sums = {
        name: sum_exactly(combined[name])
        for name in [*names, *(f"stored_{name}" for name in names)]
    }
    query = sa.select(
        *(combined[name] for name in key), *(column.label(name) for name, column in sums.items())
    ).group_by(*(combined[name] for name in key))
    query = query.having(
        sa.or_(*(sums[name] != sums[f"stored_{name}"] for name in names))
    ).order_by(*(combined[name] for name in key))
    count = sa.select(sa.func.count()).select_from(table).where(is_of_day)
    report.compared[kind] += (await session.execute(count)).scalar_one()
    result = await session.stream(query, execution_options={"yield_per": _BATCH})
    async for row in result.mappings():
        unequal = [name for name in names if row[name] != row[f"stored_{name}"]]
        differences = "; ".join(
            f"{name} {row[name]} in the rows, {row[f'stored_{name}']} in the totals"
            for name in unequal
        )
        name = " ".join(str(row[name]) for name in key)
        report.add_difference(kind, f"{_LABELS[kind]} of {day} {name}: {differences}")


def _is_of_day(table: sa.FromClause, day: date) -> sa.ColumnElement[bool]:
    """The condition that a total is one of this day."""
    if "day" in table.c:
        return table.c.day == str(day)
    first = find_quarter(_compute_day_start(day))
    return sa.and_(table.c.quarter >= first, table.c.quarter < first + QUARTERS_PER_DAY)


async def _read_calls(
    session: ReadSession, day: date, provider: str | None, report: AuditReport
) -> dict[str, LoggedUsage]:
    """The calls of a day by model, optionally of a provider; those in doubt are noted."""
    logs = request_logs.c
    low, high = _list_bounds(day)
    # Each attempt is billed as its own model.
    called = sa.union_all(
        sa.select(
            sa.func.coalesce(logs.provider_model, logs.model).label("model"),
            logs.provider,
            *(logs[name] for name in _CALLED),
        ).where(*_filter_day(day), sa.or_(logs.attempts <= 1, logs.provider.is_(None))),
        sa.select(
            attempts.c.model, attempts.c.provider, *(attempts.c[name] for name in _CALLED)
        ).where(attempts.c.answer_id >= low, attempts.c.answer_id < high, ~attempts.c.unbilled),
    ).subquery()
    calls = called.c
    doubts = [
        sum_exactly(sa.case((condition, 1), else_=0))
        for condition in (
            calls.usage_source == UsageSource.ESTIMATED,
            calls.usage_source == UsageSource.UNKNOWN,
            calls.cost_nano_usd.is_(None),
        )
    ]
    sums = [
        sum_exactly(calls[name]) for name in ("prompt_tokens", "completion_tokens", "cost_nano_usd")
    ]
    query = (
        sa.select(calls.model, *sums, *doubts)
        .where(calls.usage_source != UsageSource.NONE, calls.model != EXTRACTIVE)
        .group_by(calls.model)
    )
    if provider is not None:
        query = query.where(sa.func.coalesce(calls.provider, provider) == provider)
    logged: dict[str, LoggedUsage] = {}
    for model, *counts in await session.execute(query):
        logged.setdefault(remove_snapshot(model), LoggedUsage()).add(counts)
    for usage in logged.values():
        report.doubts.update(
            estimated=usage.estimated, unknown=usage.unknown, unpriced=usage.unpriced
        )
    return logged


def _pair_day(
    day: str,
    logged: dict[str, LoggedUsage],
    unmatched: dict[Key, ProviderUsage],
    pairs: dict[Key, UsagePair],
    report: AuditReport,
) -> None:
    """Add what differs on a day to `pairs`, and remove the day from `unmatched`."""
    models = set(logged) | {model for other, model in unmatched if other == day}
    for model in models:
        report.compared[EXPORT] += 1
        reported = unmatched.pop((day, model), ProviderUsage())
        pair = UsagePair(logged.get(model, LoggedUsage()), reported)
        if pair.differs:
            pairs[day, model] = pair


def _check_files(data_dir: Path, report: AuditReport) -> None:
    """Report records outside the log: quarantined ones, and journals of dead processes."""
    for file in sorted((data_dir / "quarantine").glob("*.json")):
        report.compared[FILES] += 1
        report.add_difference(FILES, f"quarantine/{file.name}: rejected by the database")
    for file in sorted((data_dir / "journal").glob("*")):
        report.compared[FILES] += 1
        if not _is_in_use(file):
            report.add_difference(
                FILES,
                f"journal/{file.name}: left by a dead process;"
                " recovered at the next start unless .bad",
            )


def _is_in_use(file: Path) -> bool:
    """Return whether the process that writes this file is alive: it holds a lock on it."""
    try:
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:  # just removed by its process
        return True
    except BlockingIOError:
        return True
    except OSError as error:
        raise KotaeError(f"{file} cannot be read: {error.strerror}") from error
    return False


def _filter_day(day: date) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    """Return the conditions for the rows of a day: ids start with their time."""
    low, high = _list_bounds(day)
    return request_logs.c.id >= low, request_logs.c.id < high


def _list_bounds(day: date) -> tuple[str, str]:
    """The first id of a day, and that of the next one."""
    following = day + timedelta(days=1)
    return compute_first_id(_compute_day_start(day)), compute_first_id(
        _compute_day_start(following)
    )


def _compute_day_start(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _parse_date(text: str) -> date | None:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return day if str(day) == text and day.year < 9999 else None
