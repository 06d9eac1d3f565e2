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
    Overloaded,
    QuotaExceeded,
    UnpricedModel,
)
from service.core.ports import QuotaLimits, QuotaSubject
from service.core.quota.local import LOAD_SECONDS, LocalQuota
from service.core.quota.windows import DAY, MINUTE, add_amount, compute_starts
from tests.quotas import Clock

ASK = {"prompt": "Why?", "grounded": False, "max_tokens": 100}
TTL = 300


def create_quota(
    clock: Clock | None = None, *, loaded: bool = True, load_seconds: float = LOAD_SECONDS
) -> LocalQuota:
    """An empty quota."""
    clock = clock or Clock()
    quota = LocalQuota(
        TTL, load_seconds=load_seconds, clock=clock, monotonic=lambda: clock.monotonic
    )
    if loaded:
        quota.load(quota.get_load_starts(), ({}, {}, {}))
    return quota


def load_used(quota: LocalQuota, tokens: int) -> None:
    """Load earlier usage of alice in the current windows."""
    starts = quota.get_load_starts()
    usage = [{("user:alice", start): (1, tokens, 0)} for start in starts]
    quota.load(starts, usage)


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
    clock.pass_time(2)
    await quota.hold("b", subjects, tokens=60, nano_usd=None)
    quota.settle("a", tokens=80, nano_usd=0)
    assert {
        name: quota.get_usage("user:alice")[name]
        for name in ("tokens_per_minute", "tokens_per_day", "tokens_per_month")
    } == dict.fromkeys(("tokens_per_minute", "tokens_per_day", "tokens_per_month"), (0, 60))


async def test_expired_hold_is_returned_and_late_usage_counts() -> None:
    """An expired hold is returned; its late usage is still added."""
    clock = Clock()
    quota, subjects = create_quota(clock), user(tokens_per_day=100, concurrent=1)
    await quota.hold("a", subjects, tokens=100, nano_usd=None)
    clock.pass_time(TTL + 1)
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
    load_used(quota, 95)
    with pytest.raises(QuotaExceeded):
        await waiting


@pytest.mark.parametrize("seconds", [86_400, 31 * 86_400, 1, -86_400])
async def test_limits_hold_when_the_clock_jumps_and_returns(seconds: float) -> None:
    """Usage before a jump counts when the clock is back: limits are neither exceeded nor stuck."""
    clock = Clock(datetime(2027, 3, 31, 12, 0, 59, tzinfo=UTC).timestamp())
    limits = {"tokens_per_minute": 100, "tokens_per_day": 100, "tokens_per_month": 100}
    quota, subjects = create_quota(clock), user(**limits)
    if seconds < 0:
        quota.load(compute_starts(clock.now + seconds), ({}, {}, {}))
    await quota.hold("before", subjects, tokens=60, nano_usd=None)
    quota.settle("before", tokens=60, nano_usd=0)
    clock.now += seconds
    others = user("bob", tokens_per_minute=100, tokens_per_day=100)
    await quota.hold("meanwhile", others, tokens=100, nano_usd=None)
    clock.now -= seconds

    with pytest.raises(QuotaExceeded):
        await quota.hold("too much", subjects, tokens=41, nano_usd=None)
    await quota.hold("the rest", subjects, tokens=40, nano_usd=None)


async def test_window_of_a_jump_is_not_exceeded_when_it_comes() -> None:
    """What was used while the clock was a day ahead counts on the next day."""
    clock = Clock()
    quota, subjects = create_quota(clock), user(tokens_per_day=100)
    clock.now += 86_400
    await quota.hold("ahead", subjects, tokens=70, nano_usd=None)
    quota.settle("ahead", tokens=70, nano_usd=0)
    clock.now -= 86_400
    await quota.hold("today", subjects, tokens=100, nano_usd=None)
    quota.settle("today", tokens=100, nano_usd=0)
    for n in range(3 * 24):
        clock.pass_time(1_200)
        await quota.hold(f"{n}", user("bob", tokens_per_minute=9), tokens=1, nano_usd=None)

    with pytest.raises(QuotaExceeded):
        await quota.hold("tomorrow", subjects, tokens=31, nano_usd=None)
    await quota.hold("the rest", subjects, tokens=30, nano_usd=None)


async def test_clock_that_steps_back_at_a_minute_boundary_gives_no_second_minute() -> None:
    """The minute before the boundary is as used up as it was, and so is the next one."""
    clock = Clock(datetime(2027, 3, 31, 12, 0, 59, tzinfo=UTC).timestamp())
    quota, subjects = create_quota(clock), user(requests_per_minute=2)
    accepted = []
    for n in range(20):
        try:
            await quota.hold(f"{n}", subjects, tokens=1, nano_usd=None)
            accepted.append(clock.now)
        except QuotaExceeded:
            pass
        clock.now += -1 if n % 2 else 1

    assert len(accepted) == 4


@pytest.mark.parametrize("seconds", [86_400, -86_400, TTL + 1])
async def test_jump_expires_no_hold(seconds: float) -> None:
    """Holds expire after their time, not when the time of day changes."""
    clock = Clock()
    quota = create_quota(clock)
    await quota.hold("a", user(), tokens=1, nano_usd=None)
    clock.now += seconds

    assert quota.expire() == 0
    clock.monotonic += TTL + 1
    assert quota.expire() == 1


async def test_jump_to_an_unknown_window_waits_for_the_log() -> None:
    """Before the start of the process, usage is not known: it is loaded, or the caller refused."""
    clock = Clock()
    quota, subjects = create_quota(clock, load_seconds=0), user(tokens_per_day=100)
    clock.now -= 86_400
    with pytest.raises(DatabaseUnavailable):
        await quota.hold("a", subjects, tokens=10, nano_usd=None)
    await asyncio.wait_for(quota.wait_load_requested(), 1)
    assert not quota.statistics().loaded
    load_used(quota, 95)

    with pytest.raises(QuotaExceeded):
        await quota.hold("b", subjects, tokens=10, nano_usd=None)
    await quota.hold("c", subjects, tokens=5, nano_usd=None)


async def test_usage_settled_while_loading_counts_once() -> None:
    """Answers that the log does not contain yet are added to it, others are not."""
    clock = Clock()
    quota = create_quota(clock, loaded=False)
    for name in ("logged", "late"):
        await quota.hold(name, user(), tokens=10, nano_usd=None)
        quota.settle(name, tokens=10, nano_usd=0)
    names = quota.list_settled()
    starts = quota.get_load_starts()
    quota.load(starts, [{("user:alice", start): (1, 15, 0)} for start in starts], {"logged"})

    assert names == ["logged", "late"]
    assert quota.get_usage("user:alice")["tokens_per_day"] == (25, 0)
    assert quota.get_usage("user:alice")["requests_per_minute"] == (2, 0)


async def test_answer_is_charged_to_the_window_of_its_creation() -> None:
    """A hold that comes after the boundary counts for the minute in which the answer started."""
    clock = Clock(datetime(2027, 3, 31, 12, 1, 0, tzinfo=UTC).timestamp())
    quota, subjects = create_quota(clock), user(requests_per_minute=1)
    quota.load(compute_starts(clock.now - 1), ({}, {}, {}))
    await quota.hold("a", subjects, tokens=1, nano_usd=None, created_at=clock.now - 1)
    await quota.hold("b", subjects, tokens=1, nano_usd=None, created_at=clock.now)

    with pytest.raises(QuotaExceeded):
        await quota.hold("c", subjects, tokens=1, nano_usd=None, created_at=clock.now - 1)


async def test_expired_hold_grows_if_it_still_fits() -> None:
    """Growing an expired hold makes it again, or is refused like a new one."""
    clock = Clock()
    quota, subjects = create_quota(clock), user(tokens_per_day=100, concurrent=2)
    for name in ("fits", "does not fit"):
        await quota.hold(name, subjects, tokens=10, nano_usd=None)
    clock.pass_time(TTL + 1)
    await quota.hold("other", subjects, tokens=50, nano_usd=None)
    await quota.grow("fits", tokens=50, nano_usd=None)
    with pytest.raises(QuotaExceeded):
        await quota.grow("does not fit", tokens=10, nano_usd=None)

    assert quota.get_usage("user:alice")["tokens_per_day"] == (0, 100)
    assert quota.get_usage("user:alice")["concurrent"] == (0, 2)
    quota.settle("fits", tokens=20, nano_usd=0)
    quota.release("other")
    assert quota.get_usage("user:alice")["tokens_per_day"] == (20, 0)


@pytest.mark.parametrize("end", ["settle", "release", "never held"])
async def test_hold_that_has_ended_does_not_grow(end: str) -> None:
    """It is a refusal with its own status, not an internal error."""
    quota = create_quota()
    if end != "never held":
        await quota.hold("a", user(), tokens=10, nano_usd=None)
    if end == "settle":
        quota.settle("a", tokens=1, nano_usd=0)
    quota.release("a")

    with pytest.raises(Overloaded):
        await quota.grow("a", tokens=20, nano_usd=None)


class QuotaMachine(RuleBasedStateMachine):
    """Any order of operations, restarts and clock jumps, compared with a model of sums."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.number = 0
        self.open: dict[str, tuple[int, float, float]] = {}  # (tokens, start, expiry)
        self.truth: list[tuple[float, int]] = []  # (start, tokens) of everything settled

    @initialize(limit=st.integers(1, 500), concurrent=st.integers(1, 5))
    def begin(self, limit: int, concurrent: int) -> None:
        """A user with limits in every window."""
        self.limits = {
            "tokens_per_day": limit,
            "tokens_per_minute": limit,
            "concurrent": concurrent,
            "requests_per_minute": 8,
        }
        self.subjects = user(**self.limits)
        self.quota = create_quota(self.clock)

    def run(self, work: Awaitable[None]) -> bool:
        """Whether the operation was accepted."""
        coroutine: Any = work
        try:
            coroutine.send(None)
        except StopIteration:
            return True
        except (QuotaExceeded, BeyondQuota):
            return False
        raise AssertionError("the quota waited")

    @rule(tokens=st.integers(0, 300))
    def hold(self, tokens: int) -> None:
        self.number += 1
        name = str(self.number)
        self.lapse()
        self.load_if_unknown()
        fits = self.fits(tokens, 1)
        hold = self.quota.hold(name, self.subjects, tokens=tokens, nano_usd=None)
        assert self.run(hold) == fits
        if fits:
            self.open[name] = (tokens, self.clock.now, self.clock.monotonic + TTL)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), share=st.floats(0, 1))
    def settle(self, data: st.DataObject, share: float) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        tokens, began, _ = self.open.pop(name)
        for _ in range(2):
            self.quota.settle(name, tokens=int(tokens * share), nano_usd=0)
        self.truth.append((began, int(tokens * share)))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        self.open.pop(name)
        self.quota.release(name)
        self.quota.release(name)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=st.integers(0, 400))
    def grow(self, data: st.DataObject, tokens: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        before, began, expiry = self.open[name]
        if self.run(self.quota.grow(name, tokens=tokens, nano_usd=None)):
            self.open[name] = (tokens, began, expiry)
        else:
            assert tokens > before or tokens > self.limits["tokens_per_day"]

    @rule(seconds=st.sampled_from([1, 20, 61, 400, 90_000]))
    def wait(self, seconds: int) -> None:
        self.clock.pass_time(seconds)
        self.lapse()

    @rule(seconds=st.sampled_from([1, -1, 61, -61, 400, -400, 90_000, -90_000]))
    def jump(self, seconds: int) -> None:
        """The time of day changes, no time passes."""
        self.clock.now += seconds
        self.lapse()

    @rule()
    def restart(self) -> None:
        """The process dies: usage of open answers is unknown and charged as held."""
        self.truth += [(began, tokens) for tokens, began, _ in self.open.values()]
        self.open = {}
        self.quota = create_quota(self.clock, loaded=False)
        self.load_if_unknown()

    def load_if_unknown(self) -> None:
        """Load from the log, as the reaper does when a caller waits."""
        starts = self.quota.get_load_starts()
        if self.quota._is_known(starts):
            return
        usage: list[dict[tuple[str, int], list[int]]] = [{}, {}, {}]
        for began, tokens in self.truth:
            for kind, start in enumerate(compute_starts(began)):
                if start >= starts[kind]:
                    total = usage[kind].setdefault(("user:alice", start), [0, 0, 0])
                    add_amount(total, (1, tokens, 0))
        self.quota.load(starts, usage)

    def lapse(self) -> None:
        """Expire overdue holds in the model and in the quota."""
        expired = [
            name for name, (*_, expiry) in self.open.items() if expiry <= self.clock.monotonic
        ]
        assert self.quota.expire() == len(expired)
        for name in expired:
            del self.open[name]

    def used(self, kind: int) -> tuple[int, int]:
        """Requests and tokens used in the current window."""
        amounts = [tokens for began, tokens in self.truth if self.is_current(kind, began)]
        return len(amounts), sum(amounts)

    def is_current(self, kind: int, began: float) -> bool:
        """Whether an answer started in the current window."""
        return compute_starts(began)[kind] == compute_starts(self.clock.now)[kind]

    def fits(self, tokens: int, requests: int) -> bool:
        sums = []
        for kind in (MINUTE, DAY):
            held = [held for held, began, _ in self.open.values() if self.is_current(kind, began)]
            used = self.used(kind)
            sums.append((used[0] + len(held) + requests, used[1] + sum(held) + tokens))
        limit = self.limits["tokens_per_day"]
        return (
            all(total[1] <= limit for total in sums)
            and sums[0][0] <= 8
            and len(self.open) + requests <= self.limits["concurrent"]
        )

    @invariant()
    def never_above(self) -> None:
        """`used + held ≤ limit` in every window, equal to the model's sums."""
        if not hasattr(self, "quota"):
            return
        usage = self.quota.get_usage("user:alice")
        for name, limit in self.limits.items():
            assert sum(usage[name]) <= limit
        assert usage["concurrent"] == (0, len(self.open))
        if self.quota._is_known(compute_starts(self.clock.now)):
            assert usage["tokens_per_minute"][0] == self.used(MINUTE)[1]
            assert usage["tokens_per_day"][0] == self.used(DAY)[1]
        if not self.open:
            assert all(held == 0 for _, held in usage.values())


QuotaMachine.TestCase.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestQuotaMachine = QuotaMachine.TestCase


async def test_usage_is_loaded_again_for_added_subjects() -> None:
    """Callers wait for the load; a hold from before requires another one when it is settled."""
    clock = Clock()
    quota = create_quota(clock)
    await quota.hold("before", [], tokens=1, nano_usd=None)
    quota.reload_usage()
    starts = quota.get_load_starts()
    assert not quota._is_known(starts)
    quota.load(starts, ({}, {}, {}))
    assert not quota._is_known(starts)  # it may have begun before the request
    await quota.wait_load_requested()
    quota.load(starts, ({}, {}, {}))
    assert quota._is_known(starts)
    for known in (False, True):
        quota.settle("before", tokens=1, nano_usd=0)
        assert quota._is_known(starts) is known
        await asyncio.wait_for(quota.wait_load_requested(), 1) if not known else None
        quota.load(starts, ({}, {}, {}))


async def test_a_subject_may_be_charged_for_a_part() -> None:
    """Shares replace the usage for the subjects that they name."""
    quota = create_quota(Clock())
    subjects = [
        QuotaSubject("user:alice", "user", QuotaLimits(tokens_per_day=100)),
        QuotaSubject("budget:b", "budget", QuotaLimits(cost_nano_usd_per_day=100), "b"),
    ]
    await quota.hold("a", subjects, tokens=50, nano_usd=50)
    quota.settle("a", tokens=20, nano_usd=30, shares={"budget:b": (1, 2)})
    assert quota.get_usage("user:alice")["cost_nano_usd_per_day"] == (30, 0)
    assert quota.get_usage("budget:b")["cost_nano_usd_per_day"] == (2, 0)
