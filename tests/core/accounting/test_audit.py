"""The audit: it finds every kind of difference, and no others."""

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.accounting.audit import (
    ATTEMPTS,
    DETAILS_MAX,
    AuditReport,
    audit_log,
)
from service.core.accounting.journal import Journal
from service.core.accounting.provider_export import Export, ProviderUsage, read_export
from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP
from service.core.database.engine import Database
from service.core.database.tables import quota_totals
from service.core.encoding import create_id
from service.core.pricing import Usage
from service.core.records import Outcome, Status, UsageSource
from tests.access import create_key
from tests.process import kotae
from tests.records import (
    build_attempt,
    build_failed_attempt,
    build_intent,
    build_outcome,
    build_outcome_of_attempts,
)
from tests.rows import write

pytestmark = pytest.mark.every_database

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
NONE: dict[str, Any] = {
    "usage_source": UsageSource.NONE,
    "usage": Usage(prompt_tokens=0, completion_tokens=0),
    "cost_nano_usd": 0,
    "price": None,
}
UNKNOWN: dict[str, Any] = {
    "usage_source": UsageSource.UNKNOWN,
    "usage": None,
    "cost_nano_usd": None,
    "price": None,
}

# Conditions for the rollups of answers with a status.
GROUPS = {
    status: "group_id = (SELECT id FROM rollup_groups JOIN rollups ON id = group_id"
    f" WHERE status = '{status}' AND answers = 1)"
    for status in ("timeout", "client_gone")
}


def build_clean_log() -> list[Outcome]:
    """Build rows of three days, of every valid kind."""
    kinds: list[dict[str, Any]] = [
        {
            "usage": Usage(
                prompt_tokens=10, completion_tokens=5, cached_tokens=10, reasoning_tokens=5
            )
        },
        {"status": Status.CLIENT_GONE, "usage_source": UsageSource.ESTIMATED},
        {"status": Status.TIMEOUT, **UNKNOWN},
        {"status": Status.NO_CONTEXT, **NONE},
        {"cost_nano_usd": None, "price": None},
        {"status": Status.PROVIDER_ERROR, **NONE},
    ]
    return [
        build_outcome(
            build_intent(
                at=START + timedelta(days=n // 2),
                user_id="ab"[n % 2],
                key_id=None if n else "k1",
                held_tokens=700,
                held_nano_usd=90,
            ),
            **kind,
        )
        for n, kind in enumerate(kinds)
    ]


@pytest.fixture
async def log(database: Database) -> Database:
    """A database with a consistent log."""
    await write(database, build_clean_log())
    return database


async def audit_after(database: Database, *statements: str) -> AuditReport:
    """Return the report after a change that the service would never make."""
    assert database.file
    with closing(sqlite3.connect(database.file)) as connection:
        for statement in statements:
            assert connection.execute(statement.format(**GROUPS)).rowcount == 1
        connection.commit()
    return await audit_log(database, database.file.parent)


async def test_a_consistent_log_agrees(log: Database, tmp_path: Path) -> None:
    """Every valid kind of row passes, and everything was checked."""
    report = await audit_log(log, tmp_path)

    assert report.details == []
    assert report.agrees
    assert list(report.compared.values()) == [6, 0, 18, 7, 0, 0, 0, 0]
    assert "all agrees" in report.to_text()


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "UPDATE rollups SET cost_nano_usd = 1501 WHERE cost_nano_usd = 1500 AND {client_gone}",
            "cost_nano_usd 1500 in the rows, 1501",
        ),
        (
            "UPDATE rollups SET answers = 0 WHERE {timeout}",
            "answers 1 in the rows, 0 in the totals",
        ),
        (
            "UPDATE rollups SET unpriced = 0 WHERE {timeout}",
            "unpriced 1 in the rows, 0 in the totals",
        ),
        (
            "UPDATE rollups SET reasoning_tokens = 4 WHERE reasoning_tokens = 5",
            "reasoning_tokens 5 in the rows, 4 in the totals",
        ),
        (
            "DELETE FROM rollups WHERE {timeout}",
            "answers 1 in the rows, 0 in the totals",
        ),
        (
            "UPDATE rollups SET quarter = 1969152 WHERE {timeout}",
            "rollups of 2026-02-28 1969152 a  m  /ai/test timeout unknown: answers 0 in the",
        ),
        (
            "UPDATE rollups SET quarter = 'someday' WHERE {timeout}",
            "1 of rollups: not a quarter",
        ),
        (
            "UPDATE latency_counts SET answers = 9 WHERE {timeout} AND kind = 0",
            "answers 1 in the rows, 9 in the totals",
        ),
        (
            "UPDATE quota_totals SET day = 'someday' WHERE subject = 'key:k1'",
            "'someday': not a date",
        ),
        (
            "UPDATE quota_totals SET tokens = tokens + 1 WHERE subject = 'key:k1'",
            "quotas of 2026-03-01 key:k1: tokens 15 in the rows, 16",
        ),
        (
            "DELETE FROM quota_totals WHERE subject = 'user:a' AND day = '2026-03-02'",
            "tokens 700 in the rows, 0 in the totals",
        ),
        (
            (
                "UPDATE quota_totals SET cost_nano_usd = 0"
                " WHERE subject = 'user:b' AND day = '2026-03-01'"
            ),
            "cost_nano_usd 1500 in the rows, 0",
        ),
        (
            "UPDATE quota_totals SET day = '2027-01-01' WHERE subject = 'key:k1'",
            "quotas of 2027-01-01 key:k1: requests 0 in the rows, 1",
        ),
        (
            "DELETE FROM request_logs WHERE status = 'no_context'",
            "answers 0 in the rows, 1 in the totals",
        ),
    ],
)
async def test_totals_that_differ_are_found(log: Database, change: str, expected: str) -> None:
    """Every count of every key is compared, also keys without rows and rows without keys."""
    report = await audit_after(log, change)

    assert expected in "\n".join(report.details)
    assert not report.agrees


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("change", "where", "expected"),
    [
        ("cost_nano_usd = 5", "status = 'timeout'", "a cost without tokens"),
        ("prompt_tokens = NULL", "status = 'client_gone'", "some token counts are missing"),
        (
            (
                "prompt_tokens = NULL, completion_tokens = NULL, cached_tokens = NULL,"
                " reasoning_tokens = NULL, cost_nano_usd = NULL"
            ),
            "status = 'client_gone'",
            "usage estimated without tokens",
        ),
        ("prompt_tokens = -1", "status = 'client_gone'", "a negative count"),
        ("cached_tokens = 11", "status = 'client_gone'", "11 cached of 10 prompt tokens"),
        ("reasoning_tokens = 6", "status = 'client_gone'", "6 reasoning of 5 completion tokens"),
        (
            "usage_source = 'unknown', rank = 0",
            "status = 'client_gone'",
            "usage unknown with tokens",
        ),
        (
            "cost_nano_usd = NULL",
            "status = 'no_context'",
            "tokens or a cost without a provider call",
        ),
        ("cost_nano_usd = NULL", "status = 'client_gone'", "a price without a cost"),
        ("cost_nano_usd = 7", "price IS NULL AND status = 'completed'", "a cost without a price"),
        ("status = 'completed'", "status = 'timeout'", "status completed with usage unknown"),
        ("status = 'done'", "status = 'timeout'", "status done with usage unknown"),
        ("usage_source = 'guess'", "status = 'client_gone'", "status client_gone with usage guess"),
        ("rank = 2", "status = 'timeout'", "rank 2 with usage unknown"),
        (
            "created_at = '2026-03-02 12:00:00.001000'",
            "status = 'timeout'",
            "its id has another time than 2026-03-02T12:00:00.001000Z",
        ),
        ("id = 'zzz'", "status = 'timeout'", "'zzz': its id is not a valid UUIDv7"),
        ("id = '!'", "status = 'timeout'", "'!': its id is not a valid UUIDv7"),
    ],
)
async def test_invalid_rows_are_found(
    log: Database, change: str, where: str, expected: str
) -> None:
    """Each rule of docs/explanation/accounting.md is checked."""
    report = await audit_after(log, f"UPDATE request_logs SET {change} WHERE {where}")

    assert expected in "\n".join(report.details)
    assert report.different["rows of the log"] >= 1


async def test_usage_of_rotated_keys_agrees(database: Database, tmp_path: Path) -> None:
    """Rows of all keys of a lineage are charged to the first, also when rows are replaced."""
    first = await create_key(database)
    second = await store.rotate_key(database, BOOTSTRAP, first.id, grace_seconds=60)
    intents = [build_intent(user_id="alice", key_id=key.id) for key in (first, second, second)]
    await write(database, [build_outcome(intent, **UNKNOWN) for intent in intents])
    await write(database, [build_outcome(intent) for intent in intents])
    report = await audit_log(database, tmp_path)
    async with database.read_session() as session:
        subjects = sa.select(quota_totals.c.subject, quota_totals.c.requests)
        charged = dict(map(tuple, await session.execute(subjects)))

    assert report.details == []
    assert charged == {"user:alice": 3, f"key:{first.id}": 3}


@pytest.mark.sqlite
async def test_a_bad_id_is_reported_once(log: Database) -> None:
    """A bad id is reported once, however many days of totals follow."""
    later = "UPDATE quota_totals SET day = '2026-04-01' WHERE subject = 'key:k1'"
    report = await audit_after(
        log, "UPDATE request_logs SET id = '~' WHERE status = 'client_gone'", later
    )

    assert report.different["rows of the log"] == 1


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "UPDATE request_logs SET created_at = 'yesterday' WHERE status = 'timeout'",
            "its row cannot be read",
        ),
        (
            "UPDATE request_logs SET cached_tokens = 'x' WHERE status = 'client_gone'",
            "a value in its row has the wrong type",
        ),
        (
            "UPDATE request_logs SET id = CAST(x'ff' AS TEXT) WHERE status = 'timeout'",
            "its id is not a valid UUIDv7",
        ),
        (
            "UPDATE rollups SET quarter = CAST(x'ff' AS TEXT) WHERE {timeout}",
            "not a quarter",
        ),
        (
            "UPDATE rollup_groups SET model = CAST(x'ff' AS TEXT) WHERE status = 'timeout'",
            "the rollups or rows of 2026-03-02 cannot be read: a text cannot be decoded",
        ),
        (
            "UPDATE rollups SET answers = 'x' WHERE {timeout}",
            "answers 1 in the rows, 0 in the totals",
        ),
        (
            "UPDATE quota_totals SET subject = CAST(x'ff' AS TEXT) WHERE subject = 'key:k1'",
            "the quotas or rows of 2026-03-01 cannot be read: a text cannot be decoded",
        ),
    ],
)
async def test_unreadable_values_are_differences(log: Database, change: str, expected: str) -> None:
    """A damaged value is reported, and everything else is compared."""
    report = await audit_after(log, change)

    assert expected in report.to_text()
    report.to_text().encode()
    assert report.compared["rows of the log"] == 6


async def test_records_outside_the_log_are_found(log: Database, tmp_path: Path) -> None:
    """Quarantined records and journals of dead processes are reported, live ones are not."""
    for folder, name in (
        ("quarantine", "x.json"),
        ("journal", "old.journal"),
        ("journal", "torn.journal.bad"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(b"KOTAEJ01")
    living = Journal(
        tmp_path / "journal", None, sync_ms=1000, bytes_max=1 << 20, segment_bytes=1 << 16
    )
    living.start()
    try:
        living.append_intent(build_intent())
        report = await audit_log(log, tmp_path)
    finally:
        living.stop(5)

    assert [detail.partition(":")[0] for detail in report.details] == [
        "quarantine/x.json",
        "journal/old.journal",
        "journal/torn.journal.bad",
    ]
    assert report.compared["records put aside"] == 4


@pytest.mark.sqlite
async def test_days_before_since_are_skipped(log: Database, tmp_path: Path) -> None:
    """`since` is the first day that is audited."""
    await audit_after(log, "DELETE FROM rollups WHERE {client_gone}")

    assert (await audit_log(log, tmp_path, since=date(2026, 3, 2))).compared["rows of the log"] == 4
    assert (await audit_log(log, tmp_path, since=date(2026, 3, 2))).agrees
    assert not (await audit_log(log, tmp_path, since=date(2026, 3, 1))).agrees


async def test_described_differences_are_bounded(log: Database, tmp_path: Path) -> None:
    """The report is bounded."""
    await write(
        log,
        [
            build_outcome(build_intent(at=START + timedelta(minutes=n)), price=None)
            for n in range(DETAILS_MAX + 5)
        ],
    )
    report = await audit_log(log, tmp_path)

    assert len(report.details) == DETAILS_MAX
    assert "… and 5 more" in report.to_text()


EXPORTS = [
    "date,model,input_tokens,output_tokens\n2026-03-01,m,20,10\n2026-03-03,m,10,5\n",
    (
        "Day,Model,Prompt Tokens,Completion Tokens\n2026-03-01T00:00:00Z,m-2026-01-01,15,8\n"
        "2026-03-01T22:00-01:00,m,5,2\n2026-03-03,m,10,5\n"
    ),
    '\ufeffmodel,start_time,OUTPUT_TOKENS,INPUT_TOKENS\nm,1772366400,10,"20"\nm,1772539200,5,10\nm,1772625600,0,0\n',
]


@pytest.mark.parametrize("text", EXPORTS)
async def test_an_equal_export_agrees(log: Database, tmp_path: Path, text: str) -> None:
    """Common names of columns, days and dated models are accepted."""
    file = tmp_path / "usage.csv"
    file.write_text(text)
    report = await audit_log(log, tmp_path, export=read_export(file))

    # On 2 March there is one answer of unknown usage, without tokens on both sides.
    assert report.details == []
    assert report.compared["days and models of the export"] >= 3


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "2026-03-01,m,21,10",
            (
                "2026-03-01 m: 20 prompt and 10 completion tokens here"
                " (1 answers estimated, 0 unknown), 21 prompt"
            ),
        ),
        (
            "2026-03-01,other,1,1",
            (
                "2026-03-01 m: 20 prompt and 10 completion tokens here"
                " (1 answers estimated, 0 unknown), nothing in the export"
            ),
        ),
        (
            "2026-03-01,m,20,10\n2026-03-01,other,1,1",
            "2026-03-01 other: 0 prompt and 0 completion tokens here, 1 prompt",
        ),
        ("2026-03-01,m,20,10\n2026-02-01,m,1,1", "2026-02-01 m: 0 prompt"),
    ],
)
async def test_differences_to_an_export_are_reported(
    log: Database, tmp_path: Path, lines: str, expected: str
) -> None:
    """Different counts, and models or days missing on either side, are reported."""
    file = tmp_path / "usage.csv"
    file.write_text(f"date,model,input_tokens,output_tokens\n{lines}\n")
    report = await audit_log(log, tmp_path, export=read_export(file))

    assert expected in "\n".join(report.details)


@st.composite
def draw_histories(draw: st.DrawFn) -> list[list[Outcome]]:
    """Batches of records: several versions of some answers, with duplicates, in any order."""
    records = []
    for n in range(draw(st.integers(1, 6))):
        at = START + timedelta(hours=draw(st.integers(0, 60)))
        intent = build_intent(
            id=create_id(at)[:-2] + f"{n:02}",
            at=at,
            user_id=draw(st.sampled_from("ab")),
            model=draw(st.sampled_from("mn")),
        )
        prompt, completion = draw(st.integers(0, 10**12)), draw(st.integers(0, 10**12))
        usage = Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=draw(st.integers(0, prompt)),
            reasoning_tokens=draw(st.integers(0, completion)),
        )
        cost = draw(st.none() | st.integers(0, 10**15))
        priced: dict[str, Any] = {
            "usage": usage,
            "cost_nano_usd": cost,
            "price": None if cost is None else "p",
        }
        versions = [
            build_outcome(intent, status=Status.INTERRUPTED, **UNKNOWN),
            build_outcome(
                intent, status=Status.CLIENT_GONE, usage_source=UsageSource.ESTIMATED, **priced
            ),
            build_outcome(intent, **priced),
            build_outcome(intent, status=Status.PROVIDER_ERROR, **NONE),
        ]
        records += draw(st.lists(st.sampled_from(versions), min_size=1, max_size=5))
    delivered = draw(st.permutations(records))
    sizes = draw(st.lists(st.integers(1, 5), min_size=len(delivered), max_size=len(delivered)))
    return list(_split_batches(delivered, sizes))


def _split_batches(delivered: list[Outcome], sizes: list[int]) -> Iterator[list[Outcome]]:
    for size in sizes:
        if delivered:
            yield delivered[:size]
            delivered = delivered[size:]


@contextmanager
def _copy_database(file: Path) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(shutil.copy(file, folder))


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=draw_histories())
def test_any_history_of_records_agrees(migrated: Path, batches: list[list[Outcome]]) -> None:
    """After random records in random order, with duplicates, the audit finds nothing."""

    async def run(file: Path) -> AuditReport:
        database = Database(f"sqlite+aiosqlite:///{file}")
        try:
            for batch in batches:
                await write(database, batch)
            return await audit_log(database, file.parent)
        finally:
            await database.close()

    with _copy_database(migrated) as file:
        assert asyncio.run(run(file)).details == []


@pytest.mark.sqlite
@pytest.mark.slow
async def test_exit_codes_of_the_command(log: Database, tmp_path: Path) -> None:
    """Exit codes: 0 consistent, 1 differences, 2 not audited."""
    file = tmp_path / "usage.csv"
    file.write_text(EXPORTS[0])
    agreeing = await kotae(
        "audit", "--since", "2026-03-01", "--usage", str(file), data_dir=tmp_path
    )
    unreadable = await kotae("audit", "--usage", str(tmp_path / "none.csv"), data_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    absent = await kotae("audit", data_dir=tmp_path / "empty")
    await audit_after(log, "UPDATE rollups SET answers = 2 WHERE {timeout}")
    differing = await kotae("audit", data_dir=tmp_path)

    assert agreeing[0] == 0, agreeing
    assert "all agrees" in agreeing[1]
    assert (differing[0], "answers 1 in the rows, 2 in the totals" in differing[1]) == (1, True)
    assert [
        (code, error.count("\n"), "Traceback" in error) for code, _, error in (unreadable, absent)
    ] == [(2, 1, False)] * 2
    assert not (tmp_path / "empty" / "kotae.db").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "UPDATE attempts SET cost_nano_usd = 1 WHERE n = 2",
            "3000 in the row, 1501",
        ),
        ("UPDATE attempts SET prompt_tokens = 9 WHERE n = 3", "prompt_tokens 20 in the row, 19"),
        ("DELETE FROM attempts WHERE n = 2", "3 attempts, and 2 of them recorded"),
        ("DELETE FROM request_logs", "attempts without their row"),
        (
            "UPDATE attempts SET usage_source = 'unknown', prompt_tokens = NULL WHERE n = 2",
            "usage_source provider in the row, unknown in its attempts",
        ),
    ],
)
async def test_attempts_are_compared_with_their_row(
    database: Database, tmp_path: Path, change: str, expected: str
) -> None:
    """A row with several attempts is their exact sum."""
    outcome = build_outcome_of_attempts(
        build_failed_attempt(), build_attempt(provider="second"), build_attempt(provider="third")
    )
    await write(database, [outcome])
    report = await audit_log(database, tmp_path)
    assert (report.details, report.compared[ATTEMPTS]) == ([], 1)
    async with database.transaction() as session:
        await session.execute(sa.text(change))

    details = (await audit_log(database, tmp_path)).details
    assert any(expected in detail for detail in details), details


async def test_an_export_is_compared_by_the_model_of_each_attempt(
    database: Database, tmp_path: Path
) -> None:
    """A provider bills its own models, not aliases; an attempt that was not billed is left out."""
    alias = build_intent(id=create_id(START), created_at=START, model="chat")
    other = build_intent(id=create_id(START), created_at=START, model="chat")
    await write(
        database,
        [
            build_outcome_of_attempts(
                build_failed_attempt(model="x"), build_attempt(model="large"), intent=alias
            ),
            build_outcome(other, provider="first", provider_model="large"),
        ],
    )
    export = Export({("2026-03-01", "large"): ProviderUsage(20, 10)}, "2026-03-01", "2026-03-01")

    assert (await audit_log(database, tmp_path, export=export)).details == []
