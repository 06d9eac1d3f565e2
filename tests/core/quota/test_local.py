"""Quotas: limits are never exceeded, holds never leak, actual usage is recorded."""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.core.errors import (
    BeyondQuota,
    DatabaseUnavailable,
    KotaeError,
    QuotaExceeded,
    UnpricedModel,
)
from service.core.ports import QuotaLimits, QuotaSubject
from service.core.quota.local import LOAD_SECONDS, LocalQuota

ASK = {"prompt": "Why?", "grounded": False, "max_tokens": 100}
NOON = datetime(2027, 3, 31, 12, 0, 5, tzinfo=UTC).timestamp()
TTL = 300


class Clock:
    """A clock set by the test."""

    def __init__(self, at: float = NOON) -> None:
        self.now = at

    def __call__(self) -> float:
        return self.now


def create_quota(
    clock: Clock | None = None, *, loaded: bool = True, load_seconds: float = LOAD_SECONDS
) -> LocalQuota:
    """An empty quota."""
    quota = LocalQuota(TTL, load_seconds=load_seconds, clock=clock or Clock())
    if loaded:
        quota.load({}, {}, {})
    return quota


def user(name: str = "alice", /, **limits: int) -> list[QuotaSubject]:
    """A user with these limits."""
    return [QuotaSubject(f"user:{name}", "user", QuotaLimits(**limits) if limits else None)]


async def test_hold_is_replaced_by_actual_usage() -> None:
    """A hold is the upper bound, then the actual usage, once."""
    quota, subjects = create_quota(), user(tokens_per_day=1000)
    await quota.hold("a", subjects, tokens=700, nano_usd=None)
    assert quota.get_usage("user:alice")["tokens_per_day"] == (0, 700)
    with pytest.raises(QuotaExceeded):
        await quota.hold("b", subjects, tokens=400, nano_usd=None)
    for _ in range(2):
        quota.settle("a", tokens=150, nano_usd=0)
    assert quota.get_usage("user:alice")["tokens_per_day"] == (150, 0)
    quota.release("a")
    await quota.hold("b", subjects, tokens=850, nano_usd=None)
    for _ in range(2):
        quota.release("b")
    assert quota.get_usage("user:alice")["concurrent"] == (0, 0)
    assert quota.get_usage("user:alice")["requests_per_minute"] == (1, 0)


async def test_refused_hold_changes_no_account() -> None:
    """If the key's limit refuses a hold, the user's account is unchanged."""
    key = QuotaSubject("key:k", "key", QuotaLimits(requests_per_minute=1))
    quota, subjects = create_quota(), [*user(requests_per_minute=5), key]
    await quota.hold("a", subjects, tokens=1, nano_usd=0)
    with pytest.raises(QuotaExceeded) as caught:
        await quota.hold("b", subjects, tokens=1, nano_usd=0)

    assert caught.value.extra == {
        "limit": "requests_per_minute",
        "of": "key",
        "violated-policies": ["key-requests-per-minute"],
    }
    assert quota.get_usage("user:alice")["requests_per_minute"] == (0, 1)
    assert quota.statistics().holds == 1


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
async def test_refusal_has_a_retry_delay(limits: dict[str, int], retry_after: int | None) -> None:
    """Retry at the end of the window, soon if only holds are in the way, never if it cannot fit."""
    quota = create_quota()
    await quota.hold("before", user(), tokens=100, nano_usd=5)
    quota.settle("before", tokens=100, nano_usd=5)
    with pytest.raises(KotaeError) as caught:
        await quota.hold("a", user(**limits), tokens=100, nano_usd=5)

    assert type(caught.value) is (QuotaExceeded if retry_after else BeyondQuota)
    assert caught.value.retry_after_seconds == retry_after


async def test_growing_hold_is_checked() -> None:
    """A hold grows when the context is known, or is refused and unchanged; it may shrink."""
    quota, subjects = create_quota(), user(tokens_per_day=1000)
    await quota.hold("a", subjects, tokens=100, nano_usd=None)
    await quota.grow("a", tokens=900, nano_usd=None)
    await quota.hold("b", subjects, tokens=50, nano_usd=None)
    with pytest.raises(QuotaExceeded):
        await quota.grow("b", tokens=101, nano_usd=None)
    with pytest.raises(BeyondQuota):
        await quota.grow("b", tokens=1001, nano_usd=None)
    await quota.grow("a", tokens=100, nano_usd=None)
    assert quota.get_usage("user:alice")["tokens_per_day"] == (0, 150)


async def test_cost_without_a_price_is_refused() -> None:
    """A model without a price is refused only where money is limited."""
    quota = create_quota()
    with pytest.raises(UnpricedModel):
        await quota.hold("a", user(cost_nano_usd_per_day=10), tokens=1, nano_usd=None)
    await quota.hold("b", user(tokens_per_day=10), tokens=1, nano_usd=None)


async def test_answer_is_charged_to_the_window_in_which_it_started() -> None:
    """An answer is charged to the windows in which it started."""
    clock = Clock(datetime(2027, 3, 31, 23, 59, 59, tzinfo=UTC).timestamp())
    quota, subjects = (
        create_quota(clock),
        user(tokens_per_minute=100, tokens_per_day=100, tokens_per_month=100),
    )
    await quota.hold("a", subjects, tokens=90, nano_usd=None)
    clock.now += 2
    await quota.hold("b", subjects, tokens=60, nano_usd=None)
    quota.settle("a", tokens=80, nano_usd=0)
    assert {
        name: quota.get_usage("user:alice")[name]
        for name in ("tokens_per_minute", "tokens_per_day", "tokens_per_month")
    } == dict.fromkeys(("tokens_per_minute", "tokens_per_day", "tokens_per_month"), (0, 60))
    clock.now -= 3600  # a clock that goes back does not reopen a window
    with pytest.raises(QuotaExceeded):
        await quota.hold("c", subjects, tokens=60, nano_usd=None)


async def test_expired_hold_is_returned_and_late_usage_counts() -> None:
    """An expired hold is returned; its late usage is still added."""
    clock = Clock()
    quota, subjects = create_quota(clock), user(tokens_per_day=100, concurrent=1)
    await quota.hold("a", subjects, tokens=100, nano_usd=None)
    clock.now += TTL + 1
    await quota.hold("b", subjects, tokens=100, nano_usd=None)
    quota.settle("a", tokens=40, nano_usd=0)
    quota.settle("a", tokens=40, nano_usd=0)
    assert quota.get_usage("user:alice")["tokens_per_day"] == (
        40,
        100,
    )  # above the limit: the only way
    assert (quota.statistics().expired, quota.statistics().late) == (1, 1)


async def test_limited_callers_are_refused_before_loading() -> None:
    """Before earlier usage is loaded, callers with limits are refused and others are not."""
    quota = create_quota(loaded=False, load_seconds=0)
    await quota.hold("a", user("bob"), tokens=1, nano_usd=None)
    with pytest.raises(DatabaseUnavailable):
        await quota.hold("b", user(tokens_per_day=100), tokens=1, nano_usd=None)


async def test_limited_callers_wait_for_loading() -> None:
    """A caller that waited for earlier usage is limited by it."""
    quota = create_quota(loaded=False)
    waiting = asyncio.create_task(
        quota.hold("c", user(tokens_per_day=100), tokens=10, nano_usd=None)
    )
    await asyncio.sleep(0)
    quota.load({"user:alice": (1, 95, 0)}, {}, {})
    with pytest.raises(QuotaExceeded):
        await waiting


class QuotaMachine(RuleBasedStateMachine):
    """Any order of operations and restarts, compared with a model of sums."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.number = 0
        self.open: dict[str, tuple[int, float]] = {}
        self.expired: set[str] = set()
        self.truth: list[tuple[float, int]] = []  # (start, tokens) of everything settled
        self.late = 0

    @initialize(limit=st.integers(1, 500), concurrent=st.integers(1, 5))
    def begin(self, limit: int, concurrent: int) -> None:
        """A user with limits in every window."""
        self.limits = {
            "tokens_per_day": limit,
            "tokens_per_minute": limit,
            "concurrent": concurrent,
            "requests_per_minute": 8,
        }
        self.who = user(**self.limits)
        self.book = create_quota(self.clock)

    def run(self, work: Awaitable[None]) -> bool:
        """Whether the operation was accepted."""
        coroutine: Any = work
        try:
            coroutine.send(None)
        except StopIteration:
            return True
        except (QuotaExceeded, BeyondQuota):
            return False
        raise AssertionError("the ledger waited")

    @rule(tokens=st.integers(0, 300))
    def hold(self, tokens: int) -> None:
        self.number += 1
        name = str(self.number)
        self.lapse()
        fits = self.fits(tokens, 1)
        assert self.run(self.book.hold(name, self.who, tokens=tokens, nano_usd=None)) == fits
        if fits:
            self.open[name] = (tokens, self.clock.now)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), share=st.floats(0, 1))
    def settle(self, data: st.DataObject, share: float) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        tokens, began = self.open.pop(name)
        for _ in range(2):
            self.book.settle(name, tokens=int(tokens * share), nano_usd=0)
        self.truth.append((began, int(tokens * share)))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        self.open.pop(name)
        self.book.release(name)
        self.book.release(name)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=st.integers(0, 400))
    def grow(self, data: st.DataObject, tokens: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        held, began = self.open[name]
        if self.run(self.book.grow(name, tokens=tokens, nano_usd=None)):
            self.open[name] = (tokens, began)
        else:
            assert tokens > held or tokens > self.limits["tokens_per_day"]

    @rule(seconds=st.sampled_from([1, 20, 61, 400, 90_000]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds
        self.lapse()

    @rule()
    def restart(self) -> None:
        """The process dies: usage of open answers is unknown and charged as held."""
        self.truth += [(began, tokens) for tokens, began in self.open.values()]
        self.open, self.expired = {}, set()
        self.book = create_quota(self.clock, loaded=False)
        day, minute = self.used("day"), self.used("minute")
        self.book.load({"user:alice": day}, {"user:alice": day}, {"user:alice": minute})

    def lapse(self) -> None:
        """Expire overdue holds in the model and in the quota."""
        expired = [name for name, (_, began) in self.open.items() if began + TTL <= self.clock.now]
        assert self.book.expire() == len(expired)
        for name in expired:
            del self.open[name]

    def used(self, window: str) -> tuple[int, int, int]:
        seconds = {"minute": 60, "day": 86_400}[window]
        start = self.clock.now // seconds * seconds
        amounts = [tokens for began, tokens in self.truth if began >= start]
        return len(amounts), sum(amounts), 0

    def fits(self, tokens: int, requests: int) -> bool:
        sums = {}
        for window in ("minute", "day"):
            seconds = {"minute": 60, "day": 86_400}[window]
            begun = [
                held
                for held, began in self.open.values()
                if began >= self.clock.now // seconds * seconds
            ]
            used = self.used(window)
            sums[window] = (used[0] + len(begun) + requests, used[1] + sum(begun) + tokens)
        limit = self.limits["tokens_per_day"]
        return (
            sums["minute"][1] <= limit
            and sums["day"][1] <= limit
            and sums["minute"][0] <= 8
            and len(self.open) + requests <= self.limits["concurrent"]
        )

    @invariant()
    def never_above(self) -> None:
        """`used + held ≤ limit` in every window, equal to the model's sums."""
        if not hasattr(self, "book"):
            return
        usage = self.book.get_usage("user:alice")
        for name, limit in self.limits.items():
            assert sum(usage[name]) <= limit
        assert usage["concurrent"] == (0, len(self.open))
        assert usage["tokens_per_minute"][0] == self.used("minute")[1]
        if not self.open:
            assert all(held == 0 for _, held in usage.values())


QuotaMachine.TestCase.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestQuotaMachine = QuotaMachine.TestCase
