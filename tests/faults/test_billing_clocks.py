"""Meter events while clocks jump: in any order of usage, failures and restarts, billed once."""

import asyncio
import shutil
from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.billing.meter_events import EventObject
from service.core.database.engine import Database
from service.core.pricing import to_nano_usd
from service.core.records import Intent, Status, UsageSource
from tests.billing import HOUR, START, Clock, connect, list_events, running_worker, sum_rows
from tests.fakes.stripe import BUSY, CUT, ERROR, ERROR_AFTERWARDS, LOST, StripeFake
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
SKEW_MINUTES = 29  # two clocks within this differ by less than the hour that the outbox leaves

SETTINGS = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Step = tuple[str, Any]


def draw_steps(skew_minutes: int) -> st.SearchStrategy[list[Step]]:
    """Steps with clocks that differ from Stripe's by up to some minutes, or any time."""
    usage = st.tuples(
        st.sampled_from("ab"), st.integers(0, 47), st.booleans(), st.integers(0, 10**7)
    )
    steps = st.one_of(
        st.tuples(st.just("use"), usage),
        st.tuples(st.just("correct"), st.integers(0, 10**7)),
        st.tuples(st.just("fail"), st.sampled_from([LOST, CUT, ERROR, ERROR_AFTERWARDS, BUSY])),
        st.tuples(st.just("pass"), st.integers(1, 30 * 60)),
        st.tuples(st.just("skew"), st.integers(-skew_minutes, skew_minutes)),
        st.tuples(st.just("work"), st.integers(1, 3)),
    )
    return st.lists(steps, min_size=4, max_size=25)


class Skewed(Clock):
    """A clock that is set: `skew` is its difference to the time at Stripe."""

    def __init__(self, true: Clock) -> None:
        super().__init__()
        self.true, self.skew = true, timedelta()

    def __call__(self) -> datetime:
        """The time here."""
        return self.true.now + self.skew

    def read_seconds(self) -> float:
        """The monotonic clock is not set."""
        return self.true.read_seconds()


async def play(database: Database, steps: list[Step]) -> tuple[StripeFake, list[EventObject]]:
    """Play steps, then let the rest be delivered with the right time; return what is billed."""
    true = Clock()
    clock, estimates = Skewed(true), []
    for user_id in "ab":
        await connect(database, user_id, at=START - timedelta(days=3))
    async with StripeFake(true) as fake:
        for kind, value in steps:
            if kind == "use":
                intent = await add_usage(database, true, *value)
                estimates += [intent] if value[2] else []
            elif kind == "correct" and estimates:
                await write(database, [build_outcome(estimates.pop(), cost_nano_usd=value)])
            elif kind == "fail":
                fake.replies.append(value)
            elif kind == "pass":
                true.now += timedelta(minutes=value)
            elif kind == "skew":
                clock.skew = timedelta(minutes=value)
            elif kind == "work":
                await work(database, fake, clock, value)
        fake.replies.clear()
        clock.skew = timedelta()
        true.now += HOUR + timedelta(minutes=15)
        for _ in range(3):
            await work(database, fake, clock, 1)
            true.now += HOUR
        return fake, await list_events(database)


async def add_usage(
    database: Database, true: Clock, user_id: str, hours: int, is_estimated: bool, cost: int
) -> Intent:
    """Write a row of some hours ago."""
    intent = build_intent(at=true.now - hours * HOUR, user_id=user_id)
    options: dict[str, Any] = {"cost_nano_usd": cost}
    if is_estimated:
        options |= {"status": Status.CLIENT_GONE, "usage_source": UsageSource.ESTIMATED}
    await write(database, [build_outcome(intent, **options)])
    return intent


async def work(database: Database, fake: StripeFake, clock: Clock, count: int) -> None:
    """Let a process that starts now do what is due, some times."""
    async with running_worker(database, fake, clock) as worker:
        for _ in range(count):
            await worker.run_once()


def play_on_copy(file: Path, steps: list[Step]) -> tuple[StripeFake, list[EventObject], Any]:
    """Play steps on a copy of a migrated database; return what is billed, events, and usage."""

    async def run(copy: Path) -> tuple[StripeFake, list[EventObject], Any]:
        database = Database(f"sqlite+aiosqlite:///{copy}")
        try:
            return *await play(database, steps), await sum_rows(database)
        finally:
            await database.close()

    with TemporaryDirectory() as folder:
        return asyncio.run(run(Path(shutil.copy(file, folder))))


def sum_events(events: list[EventObject], states: set[str]) -> dict[tuple[str, int], int]:
    """The values of events in some states by customer and hour since 1970, in nano-dollars."""
    sums: Counter[tuple[str, int]] = Counter()
    for event in events:
        if event.state in states:
            hour = int(event.hour.timestamp()) // 3600
            sums[event.stripe_customer_id, hour] += to_nano_usd(Decimal(event.usd))
    return {key: value for key, value in sums.items() if value}


@SETTINGS
@given(steps=draw_steps(SKEW_MINUTES))
def test_any_order_with_clocks_that_differ_bills_once(migrated: Path, steps: list[Step]) -> None:
    """No identifier is accepted twice, and nothing is lost: it is delivered or in review."""
    fake, events, usage = play_on_copy(migrated, steps)
    assert set(fake.count_identifiers().values()) <= {1}
    assert sum_events(events, {"delivered", "review"}) == usage
    accepted = fake.count_identifiers()
    assert all(accepted[event.id] == 1 for event in events if event.state == "delivered")


@SETTINGS
@given(steps=draw_steps(0))
def test_any_order_with_the_right_time_bills_everything(migrated: Path, steps: list[Step]) -> None:
    """With the right time, only events that were attempted for 23 hours are not delivered."""
    fake, events, usage = play_on_copy(migrated, steps)
    assert set(fake.count_identifiers().values()) <= {1}
    delivered = sum_events(events, {"delivered"})
    for event in events:
        if event.state == "review":
            assert "Stripe recognizes a repetition" in (event.error or "")
    if all(event.state == "delivered" for event in events):
        assert fake.sum_nano_usd() == usage == delivered
