"""The sums over the rows of an interval equal the stored ones, unless rows were changed."""

from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa

from service.core.accounting.analytics import SECONDS_MAX
from service.core.accounting.reconciliation import (
    ReconciledSums,
    describe_sums,
    reconcile_sums,
)
from service.core.database.engine import Database
from service.core.database.tables import request_logs
from service.core.errors import InvalidInterval
from service.core.records import FAILURES
from tests.core.accounting.test_analytics import ROWS, START
from tests.rows import write

pytestmark = pytest.mark.every_database

END = START + timedelta(hours=9)


@pytest.fixture
async def filled(database: Database) -> Database:
    """A database with random rows within eight hours."""
    await write(database, ROWS)
    return database


async def reconcile(database: Database, **options: Any) -> ReconciledSums:
    """Both sums of an interval; by default of all rows."""
    interval = {"since": START, "until": END} | options
    return await database.run_blocking_read(partial(reconcile_sums, **interval))


async def test_sums_of_rows_equal_the_stored_sums(filled: Database) -> None:
    """All counts agree, unknown and unpriced answers among them, and they are those of the rows."""
    result = await reconcile(filled)
    described = describe_sums(result.rows)

    assert result.agrees
    assert described == describe_sums(result.sums)
    assert described["answers"] == len(ROWS)
    assert described["errors"] == sum(row.status in FAILURES for row in ROWS)
    assert described["unknown_answers"] == sum(row.usage is None for row in ROWS)
    assert result.rows["cost_nano_usd"] == sum(row.cost_nano_usd or 0 for row in ROWS)


async def test_interval_is_widened_to_whole_quarters(filled: Database) -> None:
    """An interval within quarters is compared by the quarters that contain it."""
    since, until = START + timedelta(hours=1, minutes=1), START + timedelta(hours=1, minutes=13)
    result = await reconcile(filled, since=since, until=until)

    assert (result.since, result.until) == (
        datetime(2026, 3, 28, 22, 0, tzinfo=UTC),
        datetime(2026, 3, 28, 22, 30, tzinfo=UTC),
    )
    assert result.agrees
    assert result.rows["answers"] == sum(
        result.since <= row.intent.created_at < result.until for row in ROWS
    )


async def test_changed_row_is_detected(filled: Database) -> None:
    """A cost that was changed by hand is a difference of its nano-dollars."""
    row = next(row for row in ROWS if row.cost_nano_usd)
    changed = sa.update(request_logs).where(request_logs.c.id == row.intent.id)
    async with filled.transaction() as session:
        await session.execute(changed.values(cost_nano_usd=request_logs.c.cost_nano_usd + 1))
    result = await reconcile(filled)

    assert not result.agrees
    assert result.rows["cost_nano_usd"] - result.sums["cost_nano_usd"] == 1


async def test_empty_interval_agrees(filled: Database) -> None:
    """An interval without answers, or that ends before it begins, has sums of 0."""
    for since, until in ((END, END + timedelta(days=1)), (END, START)):
        result = await reconcile(filled, since=since, until=until)
        assert result.agrees
        assert result.rows.total() == 0


async def test_interval_of_all_times_is_answered(filled: Database) -> None:
    """The first and the last moment of the calendar are bounds like any other."""
    first, last = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)
    result = await reconcile(filled, since=first, until=last)

    assert result.rows["answers"] == result.sums["answers"] == len(ROWS)


async def test_too_many_rows_are_refused(filled: Database) -> None:
    """One row more than the limit is refused; the limit itself is not."""
    assert (await reconcile(filled, rows_max=len(ROWS))).agrees
    with pytest.raises(InvalidInterval, match="kotae audit"):
        await reconcile(filled, rows_max=len(ROWS) - 1)


async def test_slow_sums_are_refused(filled: Database) -> None:
    """When the time is over before all rows are summed, the request is refused."""
    with pytest.raises(InvalidInterval, match="take more than"):
        await reconcile(filled, clock=count(0, SECONDS_MAX + 1).__next__)
