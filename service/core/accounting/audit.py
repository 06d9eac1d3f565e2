"""The audit: whether the account is what its own rows say, and what the provider says.

It recomputes every total from the rows, looks at each row by itself, looks for records that never became rows, and can
hold the rows against a provider's own export. It only reads, one day at a time: each day is one snapshot, in which rows
and totals must agree to the last token and nano-dollar even while the writer writes. Rows are streamed and sums are made
by the database, so memory does not grow with the log. What it does not do: mend anything, or know what was never recorded.
"""

import csv
import fcntl
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from service.core.database.engine import Database, ReadSession
from service.core.database.tables import daily_totals, quota_totals, request_logs
from service.core.encoding import first_id, read_id_time
from service.core.errors import KotaeError
from service.core.ports import KEY_PREFIX, USER_PREFIX
from service.core.records import RANKS, Status, UsageSource
from service.core.settings import EXTRACTIVE

SHOWN_MAX = 20  # differences that are told in words; the others are counted
EXPORT_KEYS_MAX = 100_000  # days × models of one export
_BATCH = 2000
_KEY = ("user_id", "endpoint", "model", "status", "usage_source")
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")

ROWS, TOTALS, CHARGES = "rows of the log", "totals by day and key", "quotas by day and subject"
FILES, EXPORT = "records put aside", "days and models of the export"
_TOLD_AS = {TOTALS: "totals", CHARGES: "quotas"}

# Which ends may have which account. The table of docs/explanation/accounting.md, and the ends that come before the first call.
_TOLD = frozenset({UsageSource.PROVIDER, UsageSource.ESTIMATED})
_SOURCES: dict[str, frozenset[str]] = {
    Status.COMPLETED: _TOLD,
    Status.NO_CONTEXT: frozenset({UsageSource.NONE}),
    Status.TIMEOUT: frozenset(UsageSource),
    Status.STOPPED: frozenset(UsageSource),
    Status.CLIENT_GONE: frozenset(UsageSource),
    Status.PROVIDER_ERROR: frozenset(UsageSource),
    Status.INTERRUPTED: frozenset(UsageSource),
}

# The names that providers' exports give to their columns, the preferred first.
_DATE_COLUMNS = ("date", "day", "usage_date", "start_time", "start_time_iso", "timestamp")
_MODEL_COLUMNS = ("model", "model_name", "model_id")
_PROMPT_COLUMNS = ("input_tokens", "prompt_tokens", "n_context_tokens_total")
_COMPLETION_COLUMNS = ("output_tokens", "completion_tokens", "n_generated_tokens_total")
_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$")

Export = dict[tuple[str, str], tuple[int, int]]
"""(day, model without the date of its snapshot) → (prompt tokens, completion tokens)."""


class AuditReport:
    """What was compared, and what differs: all of it counted, the first `SHOWN_MAX` in words."""

    def __init__(self) -> None:
        self.compared: Counter[str] = Counter()
        self.different: Counter[str] = Counter()
        self.told: list[str] = []

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return not self.different.total()

    def add_difference(self, kind: str, text: str) -> None:
        """Note a difference."""
        self.different[kind] += 1
        if len(self.told) < SHOWN_MAX:
            self.told.append(text)

    def to_text(self) -> str:
        """A table for people, then the differences."""
        lines = [f"{'compared':32}{'checked':>14}{'different':>12}"]
        lines += [
            f"{kind:32}{count:>14,}{self.different[kind]:>12,}"
            for kind, count in self.compared.items()
        ]
        lines += ["", *self.told] if self.told else ["", "all agrees"]
        more = self.different.total() - len(self.told)
        return "\n".join([*lines, f"… and {more:,} more"] if more else lines)


async def audit_log(
    database: Database, data_dir: Path, *, since: date | None = None, export: Export | None = None
) -> AuditReport:
    """Compare everything from the day `since` on. Raises `KotaeError` if something cannot be read."""
    if database.file and not database.file.exists():
        raise KotaeError(f"there is no database at {database.file}")
    await database.require_current_schema()
    report = AuditReport()
    report.compared.update(dict.fromkeys((ROWS, TOTALS, CHARGES, FILES), 0))
    wanted = (
        None
        if export is None
        else {key: told for key, told in export.items() if since is None or key[0] >= str(since)}
    )
    try:
        await _days(database, report, since, wanted)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise KotaeError(f"the log holds a value that cannot be read: {error}") from error
    _files(data_dir, report)
    return report


async def _days(
    database: Database, report: AuditReport, since: date | None, export: Export | None
) -> None:
    """Go through the days that have rows or totals, each in a snapshot of its own."""
    first, last = (min(export)[0], max(export)[0]) if export else ("", "")
    open_keys = dict(export or {})
    low_id, low_day = (
        (first_id(_start_of(since)), str(since - timedelta(days=1))) if since else ("", "")
    )
    while True:
        async with database.read_session() as session:
            answer_id = (
                await session.execute(
                    sa.select(sa.func.min(request_logs.c.id)).where(request_logs.c.id > low_id)
                )
            ).scalar()
            total_days = [
                (
                    await session.execute(
                        sa.select(sa.func.min(table.c.day)).where(table.c.day > low_day)
                    )
                ).scalar()
                for table in (daily_totals, quota_totals)
            ]
            total_day = min((found for found in total_days if found is not None), default=None)
            if answer_id is None and total_day is None:
                break
            moment = _moment(answer_id) if answer_id is not None else None
            if answer_id is not None and moment is None:
                report.compared[ROWS] += 1
                report.add_difference(
                    ROWS, f"answer {answer_id!r}: its id is no UUIDv7 of our time"
                )
                low_id = answer_id
                continue
            day = min(
                [
                    *([str(moment.date())] if moment else []),
                    *([total_day] if total_day is not None else []),
                ]
            )
            low_day = day
            if (parsed := _date(day)) is None:
                report.add_difference(TOTALS, f"totals of {day!r}: this is no day")
                continue
            low_id = max(low_id, first_id(_start_of(parsed + timedelta(days=1))))
            await _rows(session, parsed, report)
            await _totals(session, parsed, report)
            if export is not None and first <= day <= last:
                await _export(session, parsed, open_keys, report)
    for (day, model), told in sorted(open_keys.items()):  # the log has no such day
        _compare_export(report, day, model, told, None)
    if export is not None:
        report.compared[EXPORT] += 0


async def _rows(session: ReadSession, day: date, report: AuditReport) -> None:
    names = (
        "id",
        "created_at",
        "status",
        "usage_source",
        "rank",
        *_TOKENS,
        "cost_nano_usd",
        "price",
    )
    query = (
        sa.select(*(request_logs.c[name] for name in names))
        .where(*_of_day(day))
        .order_by(request_logs.c.id)
    )
    found = await session.stream(query, execution_options={"yield_per": _BATCH})
    async for rows in found.mappings().partitions():
        report.compared[ROWS] += len(rows)
        for row in rows:
            for sense in check_row(row):
                report.add_difference(ROWS, f"answer {row['id']}: {sense}")


def check_row(row: Mapping[Any, Any]) -> Iterator[str]:
    """What is wrong with a row by itself; nothing, if it is as docs/explanation/accounting.md says."""
    status, source = row["status"], row["usage_source"]
    if source not in _SOURCES.get(status, ()):
        yield f"status {status} with usage {source}"
    if source in RANKS and row["rank"] != RANKS[source]:
        yield f"rank {row['rank']} with usage {source}"
    if row["created_at"] != _moment(row["id"]):
        yield f"its id is not of {row['created_at']:%Y-%m-%dT%H:%M:%S.%fZ}"
    tokens = [row[name] for name in _TOKENS]
    if None not in tokens:
        yield from _senses_known(row)
        return
    if any(count is not None for count in tokens):
        yield "some of its tokens are known and others are not, so that it has no total"
    if source != UsageSource.UNKNOWN:
        yield f"usage {source} without tokens"
    if row["cost_nano_usd"] is not None:
        yield "a cost without tokens"


def _senses_known(row: Mapping[Any, Any]) -> Iterator[str]:
    source, cost = row["usage_source"], row["cost_nano_usd"]
    prompt, completion, cached, reasoning = (row[name] for name in _TOKENS)
    if min(prompt, completion, cached, reasoning, cost or 0) < 0:
        yield "a negative count"
    if cached > prompt:
        yield f"{cached} cached of {prompt} prompt tokens"
    if reasoning > completion:
        yield f"{reasoning} reasoning of {completion} completion tokens"
    if source == UsageSource.UNKNOWN:
        yield "usage unknown with tokens"
    elif source == UsageSource.NONE:
        if prompt or completion or cost != 0:
            yield "tokens or a cost, although the provider was never called"
    elif (cost is None) != (row["price"] is None):
        yield "a price without a cost" if cost is None else "a cost without a price"


async def _totals(session: ReadSession, day: date, report: AuditReport) -> None:
    """Rows and totals side by side: those of the log, then what counts toward quotas (`events.charge`, in SQL)."""
    logs = request_logs.c
    counts: dict[str, sa.ColumnElement[Any]] = {
        name: logs[name] for name in (*_TOKENS, "cost_nano_usd")
    }
    counts |= {
        "answers": sa.literal(1),
        "unpriced": sa.case((logs.cost_nano_usd.is_(None), 1), else_=0),
    }
    await _compare(
        session, day, report, TOTALS, daily_totals, [{name: logs[name] for name in _KEY}], counts
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
    subjects: list[dict[str, sa.ColumnElement[Any]]] = [
        {"subject": sa.literal(USER_PREFIX).concat(logs.user_id)},
        {
            "subject": sa.literal(KEY_PREFIX).concat(logs.key_id)
        },  # NULL, like the key, where there was none
    ]
    await _compare(session, day, report, CHARGES, quota_totals, subjects, charges)


async def _compare(
    session: ReadSession,
    day: date,
    report: AuditReport,
    kind: str,
    table: sa.Table,
    keys: Sequence[Mapping[str, sa.ColumnElement[Any]]],
    counts: Mapping[str, sa.ColumnElement[Any]],
) -> None:
    """Each key of a table of totals where a count is not what the rows add up to. A row counts for each of `keys` that it has."""
    names, key = list(counts), list(keys[0])
    made = [
        sa.select(
            *(column.label(name) for name, column in of.items()),
            *(sa.func.coalesce(sa.func.sum(counts[name]), 0).label(name) for name in names),
            *(sa.literal(0).label(f"stored_{name}") for name in names),
        )
        .where(*_of_day(day), *(column.is_not(None) for column in of.values()))
        .group_by(*of.values())
        for of in keys
    ]
    kept = sa.select(
        *(table.c[name] for name in key),
        *(sa.literal(0) for _ in names),
        *(table.c[name] for name in names),
    )
    both = sa.union_all(*made, kept.where(table.c.day == str(day))).subquery().c
    sums = {
        name: sa.func.sum(both[name]) for name in [*names, *(f"stored_{name}" for name in names)]
    }
    query = sa.select(
        *(both[name] for name in key), *(each.label(name) for name, each in sums.items())
    ).group_by(*(both[name] for name in key))
    query = query.having(
        sa.or_(*(sums[name] != sums[f"stored_{name}"] for name in names))
    ).order_by(*(both[name] for name in key))
    count = sa.select(sa.func.count()).select_from(table).where(table.c.day == str(day))
    report.compared[kind] += (await session.execute(count)).scalar_one()
    found = await session.stream(query, execution_options={"yield_per": _BATCH})
    async for row in found.mappings():
        unequal = [name for name in names if row[name] != row[f"stored_{name}"]]
        told = "; ".join(
            f"{name} {row[name]} in the rows, {row[f'stored_{name}']} in the totals"
            for name in unequal
        )
        report.add_difference(
            kind, f"{_TOLD_AS[kind]} of {day} {' '.join(row[name] for name in key)}: {told}"
        )


async def _export(session: ReadSession, day: date, open_keys: Export, report: AuditReport) -> None:
    """The day's rows by model against the export's. What is compared leaves `open_keys`."""
    logs = request_logs.c
    estimated = sa.func.sum(sa.case((logs.usage_source == UsageSource.ESTIMATED, 1), else_=0))
    unknown = sa.func.sum(sa.case((logs.usage_source == UsageSource.UNKNOWN, 1), else_=0))
    query = (
        sa.select(
            logs.model,
            sa.func.sum(logs.prompt_tokens),
            sa.func.sum(logs.completion_tokens),
            estimated,
            unknown,
        )
        .where(*_of_day(day), logs.usage_source != UsageSource.NONE, logs.model != EXTRACTIVE)
        .group_by(logs.model)
    )
    ours: dict[str, list[int]] = {}
    for model, *counts in await session.execute(query):
        sums = ours.setdefault(_SNAPSHOT.sub("", model), [0] * 4)
        sums[:] = [total + (count or 0) for total, count in zip(sums, counts, strict=True)]
    models = set(ours) | {model for told_day, model in open_keys if told_day == str(day)}
    for model in sorted(models):
        _compare_export(
            report, str(day), model, open_keys.pop((str(day), model), None), ours.get(model)
        )


def _compare_export(
    report: AuditReport, day: str, model: str, told: tuple[int, int] | None, ours: list[int] | None
) -> None:
    report.compared[EXPORT] += 1
    prompt, completion, estimated, unknown = ours or [0] * 4
    if (prompt, completion) != (told or (0, 0)):
        theirs = f"{told[0]} prompt and {told[1]} completion tokens" if told else "nothing"
        doubts = (
            f" ({estimated} answers estimated, {unknown} unknown)" if estimated or unknown else ""
        )
        report.add_difference(
            EXPORT,
            f"{day} {model}: {prompt} prompt and {completion} completion tokens here{doubts}, {theirs} in the export",
        )


def _files(data_dir: Path, report: AuditReport) -> None:
    """Records that are not in the log: those that the database refused, and journals whose process is gone."""
    for file in sorted((data_dir / "quarantine").glob("*.json")):
        report.compared[FILES] += 1
        report.add_difference(
            FILES, f"quarantine/{file.name}: the database has refused this record"
        )
    for file in sorted((data_dir / "journal").glob("*")):
        report.compared[FILES] += 1
        if not _in_use(file):
            report.add_difference(
                FILES,
                f"journal/{file.name}: left by a process that is gone; the next start brings it in, unless it is .bad",
            )


def _in_use(file: Path) -> bool:
    """Whether the process that writes this file lives: it holds a lock while it does."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:  # done with, meanwhile
        return True
    except BlockingIOError:
        return True
    except OSError as error:
        raise KotaeError(f"{file} cannot be read: {error.strerror}") from error
    return False


def read_export(file: Path) -> Export:
    """A provider's usage export (CSV with a header), summed by UTC day and model. Raises `KotaeError`."""
    sums: Export = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            header = {
                name.strip().lower().replace(" ", "_"): name for name in rows.fieldnames or ()
            }
            names = [
                _column(header, wanted)
                for wanted in (_DATE_COLUMNS, _MODEL_COLUMNS, _PROMPT_COLUMNS, _COMPLETION_COLUMNS)
            ]
            for row in rows:
                try:
                    at, model, prompt, completion = ((row[name] or "").strip() for name in names)
                    if not model:
                        raise ValueError("no model")  # noqa: TRY301 - told with its line, as every mistake of a line
                    key = (_day_of(at), _SNAPSHOT.sub("", model))
                    before = sums.get(key, (0, 0))
                    sums[key] = before[0] + _count(prompt), before[1] + _count(completion)
                except (ValueError, ArithmeticError) as error:
                    raise KotaeError(f"{file}, line {rows.line_num}: {error}") from error
                if len(sums) > EXPORT_KEYS_MAX:
                    raise KotaeError(
                        f"{file} has more than {EXPORT_KEYS_MAX:,} days and models: give a shorter period"
                    )
    except OSError as error:
        raise KotaeError(f"{file} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise KotaeError(f"{file} is no CSV in UTF-8: {error}") from error
    return sums


def _column(header: dict[str, str], wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if name in header:
            return header[name]
    raise KotaeError(
        f"the export has no column {' or '.join(wanted[:3])}; it has: {', '.join(header) or 'none'}"
    )


def _day_of(text: str) -> str:
    """The UTC day of a date, of a time (UTC if it names no offset) or of seconds since 1970."""
    if text.isascii() and text.isdigit() and len(text) > 8:
        return str(datetime.fromtimestamp(int(text), UTC).date())
    at = datetime.fromisoformat(text)
    return str((at.astimezone(UTC) if at.tzinfo else at).date())


def _count(text: str) -> int:
    count = int(text.replace(",", "") or "0")
    if count < 0:
        raise ValueError(f"{text} tokens")
    return count


def _of_day(day: date) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    """Ids begin with their time, so a day of rows is an interval of ids."""
    return request_logs.c.id >= first_id(_start_of(day)), request_logs.c.id < first_id(
        _start_of(day + timedelta(days=1))
    )


def _start_of(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _moment(answer_id: str) -> datetime | None:
    """When an id was made; None if it is no UUIDv7, or of no year that we live to see."""
    at = read_id_time(answer_id)
    return at if at is not None and at.year < 9999 else None


def _date(text: str) -> date | None:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return day if str(day) == text and day.year < 9999 else None
