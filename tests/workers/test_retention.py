"""Texts of old rows are erased, and nothing else."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.core.accounting.audit import audit_log
from service.core.database.engine import Database
from service.core.database.tables import request_logs
from service.workers.retention import TICKS_OF_A_PASS, TextRetention
from tests.conftest import Serve
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.every_database

START = datetime(2026, 3, 1, tzinfo=UTC)
DAYS = 30


class Clock:
    """A clock of days since the first row."""

    def __init__(self) -> None:
        self.days = 0.0

    def __call__(self) -> datetime:
        """The time."""
        return START + timedelta(days=self.days)


async def read_rows(database: Database) -> list[tuple[Any, ...]]:
    """Prompt, response, tokens, cost and whether it is erased, of each row, oldest first."""
    columns = request_logs.c
    names = ("prompt", "response", "prompt_tokens", "cost_nano_usd", "erased_at")
    query = sa.select(*(columns[name] for name in names)).order_by(columns.id)
    async with database.read_session() as session:
        return [(*row[:-1], row[-1] is not None) for row in await session.execute(query)]


@pytest.fixture
async def log(database: Database) -> Database:
    """A log with a row for each of ten days."""
    await write(
        database,
        [
            build_outcome(build_intent(at=START + timedelta(days=n), prompt=f"p{n}"))
            for n in range(10)
        ],
    )
    return database


async def test_texts_are_erased_after_their_time(log: Database, tmp_path: Path) -> None:
    """Rows lose their texts when they are old enough; their accounts, and others, stay."""
    before, clock = await read_rows(log), Clock()
    worker = TextRetention(log, DAYS, batch_rows=2, clock=clock)
    await worker.erase_old()
    assert await read_rows(log) == before

    clock.days = DAYS + 4.5
    await worker.erase_old()

    rows = await read_rows(log)
    assert [row[4] for row in rows] == [True] * 5 + [False] * 5
    assert [row[:2] for row in rows[:5]] == [("", "")] * 5
    assert [row[2:4] for row in rows] == [row[2:4] for row in before]
    assert rows[5:] == before[5:]
    assert worker.statistics().erased == 5
    assert (await audit_log(log, tmp_path)).details == []


async def test_late_records_of_old_answers_are_erased_with_the_next_pass(log: Database) -> None:
    """A row that arrives with an old id is found once per day."""
    clock = Clock()
    clock.days = DAYS + 20.0
    worker = TextRetention(log, DAYS, clock=clock)
    await worker.erase_old()
    await write(log, [build_outcome(build_intent(at=START, prompt="late"))])
    for _ in range(TICKS_OF_A_PASS):
        await worker.erase_old()

    assert {row[0] for row in await read_rows(log)} == {""}
    assert worker.statistics().erased == 11


@pytest.mark.sqlite
@pytest.mark.parametrize("text_days", [None, 0.5])
async def test_the_service_erases_texts(serve: Serve, text_days: float | None) -> None:
    """With KOTAE_TEXT_DAYS the worker is part of the service; without, texts stay."""
    service = await serve(text_days=text_days)

    assert ("retention" in service.services.workers) == (text_days is not None)
