"""The reaper without its database: failed work is repeated, a lasting failure is reported."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from service.core.auth import store
from service.core.auth.authenticator import Authenticator
from service.core.auth.principals import BOOTSTRAP
from service.core.auth.revocation import RevocationMonitor
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.errors import DatabaseUnavailable, QuotaExceeded
from service.core.ports import QuotaLimits, QuotaSubject
from service.core.quota.local import LocalQuota
from service.core.settings import Settings
from service.core.telemetry import Metrics
from service.workers.background import FAILURES_MAX
from service.workers.reaper import Reaper
from tests.access import Clocks, create_credentials, create_key
from tests.records import build_intent, build_outcome
from tests.rows import away, write


class Scene:
    """A reaper with everything that it works on."""

    def __init__(self, database: Database) -> None:
        self.database, self.metrics, self.clock = database, Metrics(), Clocks()
        self.clock.now, self.monotonic = time.time(), time.monotonic()
        self.authenticator, self.revocation, self.quota = (
            Authenticator(Settings(auth="keys"), database),
            RevocationMonitor(),
            LocalQuota(300, clock=self.clock),
        )

    def reaper(self, wait_recovered: Callable[[], Awaitable[None]]) -> Reaper:
        """A reaper that ticks a hundred times a second."""
        return Reaper(
            self.authenticator,
            self.revocation,
            self.quota,
            self.database,
            wait_recovered,
            finish_immediately,
            self.metrics,
            tick_seconds=0.01,
            clock=self.clock,
            monotonic=lambda: self.monotonic,
        )


async def finish_immediately() -> None:
    """Nothing has to be recovered or committed."""


@pytest.fixture
def scene(database: Database) -> Scene:
    """The scene of one test."""
    return Scene(database)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_usage_is_loaded_when_the_database_is_back(scene: Scene) -> None:
    """A failed load is repeated until it succeeds; until then usage is unavailable."""
    await write(scene.database, [build_outcome(build_intent(user_id="alice"))])
    reaper = scene.reaper(finish_immediately)
    with away(scene.database):
        reaper.start()
        await until(lambda: reaper.statistics().ticks > 3)
        loaded_meanwhile = scene.quota.statistics().loaded
    await until(lambda: scene.quota.statistics().loaded)
    await reaper.stop()

    assert not loaded_meanwhile
    assert scene.quota.get_usage("user:alice")["tokens_per_month"] == (15, 0)


async def test_usage_is_loaded_without_the_rows_that_recovery_lost(scene: Scene) -> None:
    """If recovery fails, usage is loaded from the existing log rows."""

    async def fail() -> None:
        raise DatabaseUnavailable("the rows could not be written")

    await write(scene.database, [build_outcome(build_intent(user_id="alice"))])
    reaper = scene.reaper(fail)
    reaper.start()
    await until(lambda: scene.quota.statistics().loaded)
    await reaper.stop()

    assert scene.quota.get_usage("user:alice")["tokens_per_month"] == (15, 0)


async def test_a_stop_does_not_wait_for_a_load(scene: Scene) -> None:
    """Stopping cancels a load that waits for recovery."""
    recovering = asyncio.Event()

    async def wait_recovered() -> None:
        await recovering.wait()

    reaper = scene.reaper(wait_recovered)
    reaper.start()
    await until(lambda: reaper.statistics().ticks > 0)
    async with asyncio.timeout(5):
        await reaper.stop()

    assert not scene.quota.statistics().loaded


async def test_a_stop_without_the_database_keeps_last_uses(scene: Scene) -> None:
    """A stop that cannot write the last uses does not fail, and keeps them for the next write."""
    key = await create_key(scene.database)
    await scene.authenticator.authenticate(create_credentials(key))
    reaper = scene.reaper(finish_immediately)
    reaper.start()
    await until(lambda: scene.quota.statistics().loaded)
    with away(scene.database):
        await reaper.stop()
    await scene.authenticator.write_last_used()
    async with scene.database.read_session() as session:
        (listed,) = await store.list_keys(session, BOOTSTRAP)

    assert listed.last_used_at is not None


async def test_ticks_that_fail_degrade_and_heal(scene: Scene) -> None:
    """Degraded after more than `FAILURES_MAX` failed ticks in a row, until one succeeds."""
    key = await create_key(scene.database)
    scene.revocation.watch_principal(
        await scene.authenticator.authenticate(create_credentials(key)), lambda: None
    )
    reaper = scene.reaper(finish_immediately)
    reaper.start()
    await until(lambda: scene.quota.statistics().loaded)
    with away(scene.database):
        await until(lambda: reaper.statistics().failures > 0)
        degraded_at_first = reaper.degraded()
        await until(lambda: reaper.statistics().failures > FAILURES_MAX)
        degraded_later = reaper.degraded()
    await until(lambda: reaper.statistics().failures == 0)
    degraded_afterwards = reaper.degraded()
    await reaper.stop()

    assert (degraded_at_first, degraded_later, degraded_afterwards) == (False, True, False)


@pytest.mark.parametrize(
    ("seconds", "direction", "count"),
    [(1, "forwards", 1), (-1, "backwards", 1), (86_400, "forwards", 1), (0.1, "forwards", 0)],
)
async def test_clock_jumps_are_counted(
    scene: Scene, seconds: float, direction: str, count: int
) -> None:
    """A difference between the time of day and the monotonic clock is a metric."""
    reaper = scene.reaper(finish_immediately)
    await reaper.run_checks()
    scene.monotonic += 1
    scene.clock.now += 1 + seconds
    await reaper.run_checks()

    sample = {"direction": direction}
    value = scene.metrics.registry.get_sample_value("kotae_clock_jumps_total", sample)
    assert (value or 0) == count


async def test_usage_is_loaded_again_after_a_jump_to_an_earlier_day(scene: Scene) -> None:
    """Callers with limits wait for the usage of the day that the clock jumped to."""
    yesterday = utc_now() - timedelta(days=1)
    await write(scene.database, [build_outcome(build_intent(at=yesterday, user_id="alice"))])
    reaper = scene.reaper(finish_immediately)
    reaper.start()
    await until(lambda: scene.quota.statistics().loaded)
    scene.clock.now = yesterday.timestamp()
    alice = [QuotaSubject.for_user("alice", QuotaLimits(tokens_per_day=20))]
    with pytest.raises(QuotaExceeded):
        await scene.quota.hold("too much", alice, tokens=6, nano_usd=None)
    await scene.quota.hold("the rest", alice, tokens=5, nano_usd=None)
    await reaper.stop()
