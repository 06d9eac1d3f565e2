"""Contract of `Quota`, for every implementation."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import pytest

from service.core.encoding import create_id, read_id_time
from service.core.errors import BeyondQuota, KotaeError, QuotaExceeded, UnpricedModel
from service.core.ports import Quota, QuotaLimits, QuotaSubject
from service.core.pricing import Usage
from service.core.quota.local import LocalQuota
from tests.quotas import NOON, Clock, open_postgres_quota, open_redis_quota
from tests.records import build_intent, build_outcome
from tests.redis import RedisServer, running_redis
from tests.rows import write

TTL = 300
Settle = Callable[[str, int, int], Awaitable[None]]


class QuotaFixture:
    """A quota, its clock, and a function that records the outcome of an answer."""

    def __init__(self, quota: Quota, clock: Clock, settle: Settle) -> None:
        self.quota, self.clock, self.settle = quota, clock, settle

    def create_id(self) -> str:
        """The id of an answer that starts now."""
        return create_id(datetime.fromtimestamp(self.clock.now, UTC))

    async def read_used(self, name: str, subject: str = "user:alice") -> tuple[int, int]:
        """(used, held) of a limit."""
        await self.quota.refresh([QuotaSubject(subject, "user", QuotaLimits(concurrent=100))])
        return self.quota.get_usage(subject)[name]


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """A Redis server for these tests."""
    with running_redis() as server:
        yield server


@pytest.fixture(
    params=[
        "local",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("postgres", "redis")),
    ]
)
async def fixture(request: pytest.FixtureRequest) -> AsyncIterator[QuotaFixture]:
    """Each implementation, with the log that it derives usage from."""
    clock = Clock()
    async with AsyncExitStack() as stack:
        if request.param == "local":
            local = LocalQuota(TTL, clock=clock, monotonic=lambda: clock.monotonic)
            local.load(local.get_load_starts(), ({}, {}, {}))

            async def settle_local(name: str, tokens: int, nano_usd: int) -> None:
                local.settle(name, tokens=tokens, nano_usd=nano_usd)

            yield QuotaFixture(local, clock, settle_local)
            return
        server = request.getfixturevalue("postgres")
        if request.param == "redis":
            redis = request.getfixturevalue("redis_server")
            redis.run("FLUSHALL")
            opened = open_redis_quota(redis.url, server, clock)
        else:
            opened = open_postgres_quota(server, clock)
        shared, database = await stack.enter_async_context(opened)

        async def settle_row(name: str, tokens: int, nano_usd: int) -> None:
            shared.settle(name, tokens=tokens, nano_usd=nano_usd)
            intent = build_intent(id=name, user_id="alice", created_at=read_id_time(name))
            usage = Usage(prompt_tokens=tokens, completion_tokens=0)
            outcome = build_outcome(intent, usage=usage, cost_nano_usd=nano_usd)
            await write(database, [outcome])
            shared.remove_written([name])
            if isinstance(delivery := getattr(shared._store, "_delivery", None), asyncio.Task):
                await delivery

        yield QuotaFixture(shared, clock, settle_row)


def user(name: str = "alice", /, **limits: int) -> list[QuotaSubject]:
    """A user with these limits."""
    return [QuotaSubject(f"user:{name}", "user", QuotaLimits(**limits) if limits else None)]


async def test_a_hold_is_replaced_by_the_usage(fixture: QuotaFixture) -> None:
    """A hold is the upper bound, then the actual usage, once."""
    quota, subjects, name = fixture.quota, user(tokens_per_day=1000), fixture.create_id()
    await quota.hold(name, subjects, tokens=700, nano_usd=None)
    assert await fixture.read_used("tokens_per_day") == (0, 700)
    for _ in range(2):
        await fixture.settle(name, 150, 0)

    assert await fixture.read_used("tokens_per_day") == (150, 0)
    assert await fixture.read_used("concurrent") == (0, 0)
    assert await fixture.read_used("requests_per_minute") == (1, 0)


async def test_a_released_hold_is_gone(fixture: QuotaFixture) -> None:
    """After a release, repeated or not, the whole limit is free."""
    subjects = user(tokens_per_day=1000, concurrent=1)
    await fixture.quota.hold("a", subjects, tokens=1000, nano_usd=None)
    for _ in range(2):
        fixture.quota.release("a")

    await fixture.quota.hold("b", subjects, tokens=1000, nano_usd=None)
    assert await fixture.read_used("tokens_per_day") == (0, 1000)


async def test_a_refused_hold_changes_no_account(fixture: QuotaFixture) -> None:
    """If the key's limit refuses a hold, the user's account is unchanged."""
    key = QuotaSubject("key:k", "key", QuotaLimits(requests_per_minute=1))
    subjects = [*user(requests_per_minute=5), key]
    await fixture.quota.hold("a", subjects, tokens=1, nano_usd=0)
    with pytest.raises(QuotaExceeded) as caught:
        await fixture.quota.hold("b", subjects, tokens=1, nano_usd=0)

    assert caught.value.extra == {
        "limit": "requests_per_minute",
        "of": "key",
        "violated-policies": ["key-requests-per-minute"],
    }
    assert [window.held for window in caught.value.windows] == [1]
    assert await fixture.read_used("requests_per_minute") == (0, 1)


@pytest.mark.parametrize(
    ("limits", "retry_after"),
    [
        ({"requests_per_minute": 0}, None),
        ({"tokens_per_day": 99}, None),
        ({"cost_nano_usd_per_month": 4}, None),
        ({"tokens_per_minute": 150}, 55),
        ({"tokens_per_day": 150}, 12 * 3600 - 5),
        ({"tokens_per_month": 150}, 12 * 3600 - 5),
        ({"cost_nano_usd_per_day": 7}, 12 * 3600 - 5),
        ({"concurrent": 0}, 1),
    ],
)
async def test_a_refusal_has_a_retry_delay(
    fixture: QuotaFixture, limits: dict[str, int], retry_after: int | None
) -> None:
    """Retry at the end of the window, soon if only holds are in the way, never if it cannot fit.

    Usage before the first limit counts.
    """
    name = fixture.create_id()
    await fixture.quota.hold(name, user(), tokens=100, nano_usd=5)
    await fixture.settle(name, 100, 5)
    with pytest.raises(KotaeError) as caught:
        await fixture.quota.hold("a", user(**limits), tokens=100, nano_usd=5)

    assert type(caught.value) is (QuotaExceeded if retry_after else BeyondQuota)
    assert caught.value.retry_after_seconds == retry_after


async def test_a_growing_hold_is_checked(fixture: QuotaFixture) -> None:
    """A hold grows when the context is known, or is refused and unchanged; it may shrink."""
    quota, subjects = fixture.quota, user(tokens_per_day=1000)
    await quota.hold("a", subjects, tokens=100, nano_usd=None)
    await quota.grow("a", tokens=900, nano_usd=None)
    await quota.hold("b", subjects, tokens=50, nano_usd=None)
    with pytest.raises(QuotaExceeded):
        await quota.grow("b", tokens=101, nano_usd=None)
    with pytest.raises(BeyondQuota):
        await quota.grow("b", tokens=1001, nano_usd=None)
    await quota.grow("a", tokens=100, nano_usd=None)

    assert await fixture.read_used("tokens_per_day") == (0, 150)


async def test_cost_without_a_price_is_refused(fixture: QuotaFixture) -> None:
    """A model without a price is refused only where money is limited."""
    with pytest.raises(UnpricedModel):
        await fixture.quota.hold("a", user(cost_nano_usd_per_day=10), tokens=1, nano_usd=None)
    await fixture.quota.hold("b", user(tokens_per_day=10), tokens=1, nano_usd=None)


async def test_an_answer_is_charged_to_the_window_of_its_beginning(fixture: QuotaFixture) -> None:
    """Usage that becomes known in the next minute belongs to the minute of the start."""
    quota, subjects, name = fixture.quota, user(requests_per_minute=1), fixture.create_id()
    await quota.hold(name, subjects, tokens=1, nano_usd=None)
    fixture.clock.pass_time(60)
    await quota.hold("b", subjects, tokens=1, nano_usd=None)
    fixture.clock.pass_time(-60)
    await fixture.settle(name, 1, 0)

    assert await fixture.read_used("requests_per_minute") == (1, 0)
    fixture.clock.pass_time(60)
    assert await fixture.read_used("requests_per_minute") == (0, 1)


async def test_usage_before_a_jump_of_the_clock_counts_again(fixture: QuotaFixture) -> None:
    """After a jump forwards over several windows and back, the limit is still used up."""
    quota, subjects, name = fixture.quota, user(tokens_per_day=100), fixture.create_id()
    await quota.hold(name, subjects, tokens=100, nano_usd=None)
    await fixture.settle(name, 100, 0)
    for n in range(3):
        fixture.clock.now += 86_400
        await quota.hold(f"later {n}", subjects, tokens=1, nano_usd=None)
    fixture.clock.now = NOON
    with pytest.raises(QuotaExceeded):
        await quota.hold("a", subjects, tokens=1, nano_usd=None)

    assert await fixture.read_used("tokens_per_day") == (100, 0)


async def test_parallel_holds_are_exact(fixture: QuotaFixture) -> None:
    """Of 100 parallel holds with room for 10, exactly 10 succeed."""
    subjects = user(tokens_per_minute=100)
    results = await asyncio.gather(
        *(fixture.quota.hold(f"{n}", subjects, tokens=10, nano_usd=None) for n in range(100)),
        return_exceptions=True,
    )

    assert sum(result is None for result in results) == 10
    assert all(isinstance(result, QuotaExceeded | None) for result in results)


async def test_holds_without_limits_are_never_refused(fixture: QuotaFixture) -> None:
    """A subject without limits needs no room, and an unknown name may be settled."""
    await fixture.quota.hold("a", user(), tokens=10**12, nano_usd=None)
    await fixture.quota.grow("a", tokens=10**13, nano_usd=None)
    fixture.quota.release("a")
    fixture.quota.settle("unknown", tokens=1, nano_usd=1)
