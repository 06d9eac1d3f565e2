"""Usage in the log is loaded by window, and counted once."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.core.accounting import log as request_log
from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP
from service.core.database.engine import Database
from service.core.errors import QuotaExceeded
from service.core.pricing import Usage
from service.core.quota.history import read_totals, rebuild_usage
from service.core.quota.local import LocalQuota
from service.core.records import Intent, Status, UsageSource
from tests.access import create_key
from tests.core.quota.test_local import create_quota, user
from tests.damage import drop_not_null
from tests.quotas import Clock
from tests.records import build_intent, build_outcome

pytestmark = pytest.mark.every_database

NOON = datetime(2027, 3, 31, 12, 0, 5, tzinfo=UTC)


async def write_row(database: Database, intent: Intent, tokens: int = 0, **changes: Any) -> None:
    """Write the row of an answer, twice, as a redelivery would."""
    usage = Usage(prompt_tokens=tokens, completion_tokens=0)
    row = [build_outcome(intent, **({"usage": usage} | changes))]
    async with database.transaction() as session:
        await request_log.apply_outcomes(session, row)
        await request_log.apply_outcomes(session, row)


async def load(database: Database, quota: LocalQuota) -> None:
    """Load the log into a quota."""
    async with database.read_session() as session:
        await rebuild_usage(session, quota)


async def test_earlier_usage_is_loaded_by_window(database: Database) -> None:
    """Usage of this month, day and minute is loaded, and unknown usage as the hold."""
    ages = [timedelta(days=40), timedelta(days=3), timedelta(hours=2), timedelta(seconds=2)]
    for n, age in enumerate(ages):
        intent = build_intent(at=NOON - age, user_id="alice", key_id="k")
        await write_row(database, intent, tokens=10**n)
    unknown = build_intent(at=NOON - ages[2], user_id="alice", held_tokens=500_000)
    await write_row(
        database, unknown, usage=None, usage_source=UsageSource.UNKNOWN, status=Status.TIMEOUT
    )
    quota = create_quota(Clock(NOON.timestamp()), loaded=False)
    await load(database, quota)

    usage = quota.get_usage("user:alice")
    assert usage["tokens_per_month"] == (1_110 + 500_000, 0)
    assert usage["tokens_per_day"] == (1_100 + 500_000, 0)
    assert usage["tokens_per_minute"] == (1_000, 0)
    assert usage["requests_per_minute"] == (1, 0)
    assert quota.get_usage("key:k")["tokens_per_month"] == (1_110, 0)


@pytest.mark.parametrize("logged", [False, True])
async def test_own_answers_count_once(database: Database, logged: bool) -> None:
    """What was settled before loading counts once, whether its row is written yet or not."""
    intent = build_intent(at=NOON, user_id="alice")
    quota = create_quota(Clock(NOON.timestamp()), loaded=False)
    await quota.hold(intent.id, user(), tokens=900, nano_usd=None)
    quota.settle(intent.id, tokens=700, nano_usd=0)
    await quota.hold("open", user(), tokens=50, nano_usd=None)
    if logged:
        await write_row(database, intent, tokens=700)
    await load(database, quota)

    assert quota.get_usage("user:alice")["tokens_per_day"] == (700, 50)
    assert quota.get_usage("user:alice")["requests_per_minute"] == (1, 1)


async def test_usage_of_rotated_keys_is_loaded_as_one(database: Database) -> None:
    """The usage of all keys of a lineage counts for each of them."""
    first = await create_key(database)
    second = await store.rotate_key(database, BOOTSTRAP, first.id, grace_seconds=60)
    for key in (first, second):
        await write_row(database, build_intent(at=NOON, user_id="alice", key_id=key.id), tokens=5)
    quota = create_quota(Clock(NOON.timestamp()), loaded=False)
    await load(database, quota)

    for window in ("tokens_per_minute", "tokens_per_day", "tokens_per_month"):
        assert quota.get_usage(f"key:{first.id}")[window] == (10, 0)


@pytest.mark.parametrize("ahead", [timedelta(minutes=5), timedelta(days=1), timedelta(days=40)])
async def test_usage_with_a_later_date_counts_when_it_comes(
    database: Database, ahead: timedelta
) -> None:
    """Rows of a process whose clock was ahead do not count now, but in their windows."""
    await write_row(database, build_intent(at=NOON + ahead, user_id="alice"), tokens=70)
    clock = Clock(NOON.timestamp())
    quota = create_quota(clock, loaded=False, load_seconds=0)
    await load(database, quota)
    subjects = user(tokens_per_minute=100)
    await quota.hold("now", subjects, tokens=100, nano_usd=None)
    clock.pass_time(ahead.total_seconds())
    if not quota._is_known(quota.get_load_starts()):
        await load(database, quota)

    with pytest.raises(QuotaExceeded):
        await quota.hold("too much", subjects, tokens=31, nano_usd=None)
    await quota.hold("the rest", subjects, tokens=30, nano_usd=None)


async def test_usage_before_the_start_counts_after_a_jump_back(database: Database) -> None:
    """A process that started with its clock ahead loads today's usage when that is corrected."""
    await write_row(database, build_intent(at=NOON, user_id="alice"), tokens=70)
    clock = Clock((NOON + timedelta(days=1)).timestamp())
    quota = create_quota(clock, loaded=False, load_seconds=0)
    await load(database, quota)
    subjects = user(tokens_per_day=100)
    await quota.hold("ahead", subjects, tokens=100, nano_usd=None)
    clock.now -= 86_400
    await load(database, quota)

    with pytest.raises(QuotaExceeded):
        await quota.hold("too much", subjects, tokens=31, nano_usd=None)
    await quota.hold("the rest", subjects, tokens=30, nano_usd=None)


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("UPDATE quota_totals SET tokens = 'many' WHERE subject = 'user:alice'", 0),
        ("UPDATE quota_totals SET tokens = NULL WHERE subject = 'user:alice'", 0),
        ("UPDATE quota_totals SET tokens = CAST(x'ff' AS TEXT) WHERE subject = 'user:alice'", 0),
        ("UPDATE quota_totals SET subject = CAST(x'ff' AS TEXT) WHERE subject = 'user:alice'", 0),
        ("UPDATE quota_totals SET day = 'x' WHERE subject = 'user:alice'", 0),
        ("UPDATE request_logs SET prompt_tokens = 'x' WHERE user_id = 'alice'", 5),
        ("UPDATE request_logs SET user_id = CAST(x'ff' AS TEXT) WHERE user_id = 'alice'", 5),
    ],
)
async def test_a_damaged_total_does_not_hide_others(
    database: Database, change: str, expected: int
) -> None:
    """Usage that cannot be read is reported and not counted; that of other users is loaded."""
    for name in ("alice", "bob"):
        await write_row(database, build_intent(at=NOON, user_id=name), tokens=5)
    assert database.file
    drop_not_null(database.file, "quota_totals", "request_logs")
    with closing(sqlite3.connect(database.file)) as connection:
        assert connection.execute(change).rowcount == 1
        connection.commit()
    quota = create_quota(Clock(NOON.timestamp()), loaded=False)
    await load(database, quota)

    assert quota.get_usage("user:bob")["tokens_per_day"] == (5, 0)
    assert quota.get_usage("user:bob")["tokens_per_minute"] == (5, 0)
    assert quota.get_usage("user:alice")["tokens_per_day"] == (expected, 0)
    assert database.damage is not None


@pytest.mark.sqlite
async def test_damaged_totals_are_reported_with_the_others(database: Database) -> None:
    """Totals by day are listed although a key cannot be decoded and a count is no number."""
    for model in ("m1", "m2"):
        await write_row(database, build_intent(at=NOON, user_id="alice", model=model), tokens=5)
    assert database.file
    with closing(sqlite3.connect(database.file)) as connection:
        connection.execute(
            "UPDATE rollups SET cost_nano_usd = 'x'"
            " WHERE group_id = (SELECT id FROM rollup_groups WHERE model = 'm1')"
        )
        connection.execute(
            "UPDATE rollup_groups SET model = CAST(x'ff' AS TEXT) WHERE model = 'm1'"
        )
        connection.commit()
    async with database.read_session() as session:
        totals = await read_totals(
            session, user_id="alice", since=NOON.date(), until=NOON.date() + timedelta(days=1)
        )

    assert [(total.model, total.prompt_tokens) for total in totals] == [("m2", 5), ("\ufffd", 5)]
    assert database.damage is not None
