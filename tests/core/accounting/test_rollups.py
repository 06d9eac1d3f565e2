"""Rollups are the sums of the rows after any order of records."""

import random
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from service.core.accounting.rollups import (
    COUNTS,
    ROW_COLUMNS,
    build_group,
    list_contributions,
    list_latencies,
    rebuild_rollups,
)
from service.core.accounting.rows import read_attempts
from service.core.database.engine import Database
from service.core.database.tables import (
    latency_counts,
    request_logs,
    rollup_groups,
    rollups,
)
from service.core.encoding import find_quarter
from service.core.pricing import Usage
from service.core.records import Outcome, Status, UsageSource
from tests.records import build_attempt, build_intent, build_outcome, build_outcome_of_attempts
from tests.rows import write

pytestmark = pytest.mark.every_database

START = datetime(2026, 3, 1, 23, 50, tzinfo=UTC)
ATTEMPTS = (
    build_attempt(provider="p1", model="x", cost_nano_usd=70),
    build_attempt(provider="p2", model="y", cost_nano_usd=500),
)
Sums = tuple[dict[Any, list[int]], dict[Any, int]]


async def read_rollups(database: Database) -> Sums:
    """The rollups and latency counts that are not zero."""
    async with database.read_session() as session:
        groups = {row[0]: tuple(row[1:]) for row in await session.execute(sa.select(rollup_groups))}
        sums = (await session.execute(sa.select(rollups))).all()
        counts = (await session.execute(sa.select(latency_counts))).all()
    return (
        {(row[0], *groups[row[1]]): list(row[2:]) for row in sums if any(row[2:])},
        {(row[0], *groups[row[1]], *row[2:-1]): row[-1] for row in counts if row[-1]},
    )


async def compute_sums(database: Database) -> Sums:
    """The same from the rows and their attempts."""
    async with database.read_session() as session:
        columns = request_logs.c.id, *ROW_COLUMNS
        result = (await session.execute(sa.select(*columns))).mappings()
        rows = [{str(name): value for name, value in row.items()} for row in result]
        several = [row["id"] for row in rows if row["attempts"] > 1]
        by_answer = await session.run_sync(read_attempts, several)
    sums: dict[Any, list[int]] = {}
    latencies: Counter[Any] = Counter()
    for row in rows:
        quarter = find_quarter(row["created_at"])
        for group, counts in list_contributions(row, by_answer.get(row["id"], [])):
            total = sums.setdefault((quarter, *group), [0] * len(COUNTS))
            total[:] = [a + b for a, b in zip(total, counts, strict=True)]
        key = (quarter, *build_group(row))
        latencies.update((*key, *latency) for latency in list_latencies(row))
    return {key: counts for key, counts in sums.items() if any(counts)}, dict(latencies)


def build_versions(choose: random.Random, n: int) -> list[Outcome]:
    """The records of one answer: interrupted, estimated, and twice the final one."""
    intent = build_intent(
        at=START + timedelta(minutes=choose.randint(0, 40)),
        user_id=choose.choice("ab"),
        model=choose.choice(["m", "n"]),
        key_id=choose.choice([None, "k"]),
    )
    latency = {"response_time_ms": choose.choice([0, 7, 31, 5000]), "first_token_ms": n % 3 or None}
    final = build_outcome_of_attempts(*ATTEMPTS, intent=intent, **latency)
    final = (
        final
        if n % 4 == 0
        else build_outcome(
            intent,
            usage=Usage(prompt_tokens=100 + n, completion_tokens=5, cached_tokens=n),
            cost_nano_usd=choose.choice([None, 1000 + n]),
            attempts=choose.randint(1, 3),
            **latency,
        )
    )
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
            cost_nano_usd=n,
            **latency | {"response_time_ms": 12},
        ),
        final,
        final,
    ]


async def test_attempts_count_for_their_own_model(database: Database) -> None:
    """Answers count for the model that was asked for, tokens and cost for that of the attempt."""
    outcome = build_outcome_of_attempts(*ATTEMPTS)
    await write(database, [outcome])
    sums, _ = await read_rollups(database)
    by_model = {(key[3], key[4]): counts for key, counts in sums.items()}

    assert by_model[outcome.intent.model, outcome.provider or ""][0] == 1
    for attempt in ATTEMPTS:
        counts = by_model[attempt.model, attempt.provider]
        assert counts[1] == 1
        assert counts[6] == (attempt.cost_nano_usd or 0)
    assert sum(counts[6] for counts in by_model.values()) == outcome.cost_nano_usd


@pytest.mark.parametrize("seed", range(3))
async def test_rollups_are_the_sums_of_the_rows(database: Database, seed: int) -> None:
    """Records are delivered in any order, several times, with late usage: sums stay exact."""
    choose = random.Random(seed)
    records = [version for n in range(20) for version in build_versions(choose, n)] * 2
    choose.shuffle(records)
    while records:
        size = choose.randint(1, 25)
        batch, records = records[:size], records[size:]
        await write(database, batch)
        assert await read_rollups(database) == await compute_sums(database)

    sums, _ = await read_rollups(database)
    assert sum(counts[0] for counts in sums.values()) == 20


async def test_migration_computes_rollups_from_the_rows(database: Database) -> None:
    """After an upgrade the rollups are those of all rows."""
    choose = random.Random(7)
    await write(database, [choose.choice(build_versions(choose, n)) for n in range(30)])
    expected = await read_rollups(database)
    await database.migrate("0034")
    await database.migrate()

    assert expected == await compute_sums(database) == await read_rollups(database)
    assert expected[1]


@pytest.mark.parametrize("since", [None, START.date()])
async def test_rollups_are_rebuilt_from_the_rows(database: Database, since: date | None) -> None:
    """Missing, wrong and superfluous rollups are replaced, from a day on or altogether."""
    choose = random.Random(3)
    await write(database, [build_versions(choose, n)[2] for n in range(30)])
    expected = await read_rollups(database)
    async with database.transaction() as session:
        await session.execute(sa.update(rollups).values(answers=77))
        await session.execute(sa.delete(latency_counts).where(latency_counts.c.kind == 0))
        for table in (rollups, latency_counts):
            later = table.c.quarter + 96 * 40
            is_some = table.c.group_id % 2 == 0
            await session.execute(sa.update(table).where(is_some).values(quarter=later))
    await rebuild_rollups(database, since)

    assert await read_rollups(database) == expected


async def test_days_before_since_are_not_rebuilt(database: Database) -> None:
    """Rollups before the first day stay as they are."""
    await write(database, [build_outcome(build_intent(at=START))])
    async with database.transaction() as session:
        await session.execute(sa.update(rollups).values(answers=77))
    await rebuild_rollups(database, START.date() + timedelta(days=1))

    sums, _ = await read_rollups(database)
    assert {counts[0] for counts in sums.values()} == {77}


async def test_an_empty_log_has_no_rollups(database: Database) -> None:
    """Rebuilding without rows and rollups does nothing."""
    await rebuild_rollups(database, None)

    assert await read_rollups(database) == ({}, {})
