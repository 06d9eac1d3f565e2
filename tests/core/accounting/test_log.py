"""The request log: rows are written once, replaced by rank, and read through indexes."""

import random
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from service.core.accounting import log as request_log
from service.core.accounting.log_pages import LogFilter, read_page
from service.core.database.engine import Database
from service.core.database.tables import quota_totals
from service.core.pricing import Usage
from service.core.records import Outcome, Status, UsageSource, create_answer_object
from tests.records import (
    build_attempt,
    build_failed_attempt,
    build_intent,
    build_outcome,
    build_outcome_of_attempts,
)
from tests.rows import write

pytestmark = pytest.mark.every_database

START = datetime(2026, 3, 1, tzinfo=UTC)


async def test_a_row_is_written_once(database: Database) -> None:
    """A duplicate record changes nothing."""
    first, second = build_outcome(), build_outcome()

    assert await write(database, [first]) == 1
    assert await write(database, [first, second, second]) == 1
    async with database.read_session() as session:
        assert len((await read_page(session, LogFilter(), limit=10)).items) == 2


async def read_totals(database: Database) -> dict[str, int]:
    """Read the sum of the totals."""
    names = (
        "answers",
        "prompt_tokens",
        "completion_tokens",
        "cached_tokens",
        "reasoning_tokens",
        "cost_nano_usd",
        "unpriced",
    )
    columns = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in names)
    async with database.read_session() as session:
        return dict(
            (await session.execute(sa.text(f"SELECT {columns} FROM rollups"))).mappings().one()
        )


async def compute_sums(database: Database) -> dict[str, int]:
    """Compute the same sums from the rows."""
    async with database.read_session() as session:
        query = """SELECT count(*) AS answers, coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
            coalesce(sum(completion_tokens), 0) AS completion_tokens,
            coalesce(sum(cached_tokens), 0) AS cached_tokens,
            coalesce(sum(reasoning_tokens), 0) AS reasoning_tokens,
            coalesce(sum(cost_nano_usd), 0) AS cost_nano_usd,
            coalesce(sum(CASE WHEN cost_nano_usd IS NULL THEN 1 END), 0) AS unpriced
            FROM request_logs"""
        return dict((await session.execute(sa.text(query))).mappings().one())


def build_versions(seed: int) -> list[Outcome]:
    """Build the records of one answer: interrupted, estimated, and twice the final one."""
    intent = build_intent(at=START + timedelta(hours=seed), user_id="ab"[seed % 2])
    reported = Usage(prompt_tokens=100 + seed, completion_tokens=50, cached_tokens=seed)
    return [
        build_outcome(
            intent,
            status=Status.INTERRUPTED,
            usage_source=UsageSource.UNKNOWN,
            usage=None,
            cost_nano_usd=None,
        ),
        build_outcome(
            intent,
            status=Status.CLIENT_GONE,
            usage_source=UsageSource.ESTIMATED,
            cost_nano_usd=seed,
        ),
        build_outcome(intent, usage=reported, cost_nano_usd=1000 + seed),
        build_outcome(intent, usage=reported, cost_nano_usd=1000 + seed),
    ]


async def test_record_order_and_duplicates_do_not_matter(database: Database) -> None:
    """Duplicated and reordered records end with the best rows; totals are always their sum."""
    choose = random.Random(11)
    records = [version for seed in range(20) for version in build_versions(seed)]
    delivered = records * 2
    choose.shuffle(delivered)
    while delivered:
        size = choose.randint(1, 9)
        batch, delivered = delivered[:size], delivered[size:]
        await write(database, batch)
        assert await read_totals(database) == await compute_sums(database)
    await write(database, records)

    async with database.read_session() as session:
        rows = (await read_page(session, LogFilter(), limit=100)).items
    assert [(row.status, row.usage_source, row.prompt_tokens) for row in reversed(rows)] == [
        ("completed", "provider", 100 + seed) for seed in range(20)
    ]
    assert await read_totals(database) == await compute_sums(database)


async def test_records_of_lower_rank_change_nothing(database: Database) -> None:
    """A record of equal or lower rank changes nothing."""
    unknown, estimated, truth, _ = build_versions(1)
    for record in (truth, estimated, unknown):
        await write(database, [record])

    async with database.read_session() as session:
        row = (await read_page(session, LogFilter(), limit=1)).items[0]
    assert (row.usage_source, row.estimated_cost) == ("provider", "0.000001001")


async def test_a_later_record_replaces_the_held_charge(database: Database) -> None:
    """A record of higher rank changes the charge by the difference."""
    intent = build_intent(held_tokens=1000)
    unknown = build_outcome(
        intent,
        usage=None,
        usage_source=UsageSource.UNKNOWN,
        status=Status.INTERRUPTED,
        cost_nano_usd=None,
        price=None,
    )
    async with database.transaction() as session:
        await request_log.apply_outcomes(session, [unknown])
        await request_log.apply_outcomes(session, [build_outcome(intent)])
    async with database.read_session() as session:
        row = (await session.execute(sa.select(quota_totals))).mappings().one()
    assert (row["subject"], row["requests"], row["tokens"], row["cost_nano_usd"]) == (
        "user:local",
        1,
        15,
        1500,
    )


async def test_attempts_are_written_with_their_row(database: Database) -> None:
    """They are read in order, written once, and replaced with a row of lower rank."""
    intent = build_intent(model="chat")
    cut = build_outcome_of_attempts(
        build_failed_attempt(),
        build_failed_attempt(provider="second", unbilled=False),
        intent=intent,
        status=Status.INTERRUPTED,
    )
    final = build_outcome_of_attempts(
        build_failed_attempt(),
        build_attempt(provider="second", model="large"),
        build_attempt(provider="third"),
        intent=intent,
    )
    await write(database, [cut])
    await write(database, [final, cut])
    await write(database, [final])
    async with database.read_session() as session:
        row = await request_log.read_row(session, intent.id, user_id=None)
        (listed,) = (await read_page(session, LogFilter(), limit=5)).items
        outcome = await request_log.find_outcome(session, intent.id)

    assert isinstance(row.attempt_list, list)
    assert [a.provider for a in row.attempt_list] == ["first", "second", "third"]
    assert (row.estimated_cost, row.provider) == ("0.000003", "third")
    assert listed.attempt_list == row.attempt_list
    assert outcome
    assert create_answer_object(outcome) == create_answer_object(final)
