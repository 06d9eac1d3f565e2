"""Quotas: never above a limit, never a hold that stays, the truth afterwards."""

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
    """A clock that is moved by hand."""

    def __init__(self, at: float = NOON) -> None:
        self.now = at

    def __call__(self) -> float:
        return self.now


def ledger(
    clock: Clock | None = None, *, loaded: bool = True, load_seconds: float = LOAD_SECONDS
) -> LocalQuota:
    """An empty ledger."""
    made = LocalQuota(TTL, load_seconds=load_seconds, clock=clock or Clock())
    if loaded:
        made.load({}, {}, {})
    return made


def user(name: str = "alice", /, **limits: int) -> list[QuotaSubject]:
    """A user with these limits."""
    return [QuotaSubject(f"user:{name}", "user", QuotaLimits(**limits) if limits else None)]


async def test_a_hold_becomes_what_was_used() -> None:
    """Held is the bound, used the truth, once; what comes again changes nothing."""
    book, who = ledger(), user(tokens_per_day=1000)
    await book.hold("a", who, tokens=700, nano_usd=None)
    assert book.used("user:alice")["tokens_per_day"] == (0, 700)
    with pytest.raises(QuotaExceeded):
        await book.hold("b", who, tokens=400, nano_usd=None)
    for _ in range(2):
        book.settle("a", tokens=150, nano_usd=0)
    assert book.used("user:alice")["tokens_per_day"] == (150, 0)
    book.release("a")
    await book.hold("b", who, tokens=850, nano_usd=None)
    for _ in range(2):
        book.release("b")
    assert book.used("user:alice")["concurrent"] == (0, 0)
    assert book.used("user:alice")["requests_per_minute"] == (1, 0)


async def test_a_refused_hold_takes_nothing_of_anybody() -> None:
    """With a user and a key, one that has no room is enough to refuse, and the other is as before."""
    key = QuotaSubject("key:k", "key", QuotaLimits(requests_per_minute=1))
    book, who = ledger(), [*user(requests_per_minute=5), key]
    await book.hold("a", who, tokens=1, nano_usd=0)
    with pytest.raises(QuotaExceeded) as caught:
        await book.hold("b", who, tokens=1, nano_usd=0)

    assert caught.value.extra == {
        "limit": "requests_per_minute",
        "of": "key",
        "violated-policies": ["key-requests-per-minute"],
    }
    assert book.used("user:alice")["requests_per_minute"] == (0, 1)
    assert book.statistics().holds == 1


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
async def test_a_refusal_says_when_to_come_back(
    limits: dict[str, int], retry_after: int | None
) -> None:
    """At the end of the window; at once if only holds are in the way; never, with another code, if it cannot fit."""
    book = ledger()
    await book.hold("before", user(), tokens=100, nano_usd=5)
    book.settle("before", tokens=100, nano_usd=5)
    with pytest.raises(KotaeError) as caught:
        await book.hold("a", user(**limits), tokens=100, nano_usd=5)

    assert type(caught.value) is (QuotaExceeded if retry_after else BeyondQuota)
    assert caught.value.retry_after_seconds == retry_after


async def test_a_growing_hold_is_checked_too() -> None:
    """When the context is known the hold grows, or is refused and stays as it was; it may shrink."""
    book, who = ledger(), user(tokens_per_day=1000)
    await book.hold("a", who, tokens=100, nano_usd=None)
    await book.grow("a", tokens=900, nano_usd=None)
    await book.hold("b", who, tokens=50, nano_usd=None)
    with pytest.raises(QuotaExceeded):
        await book.grow("b", tokens=101, nano_usd=None)
    with pytest.raises(BeyondQuota):
        await book.grow("b", tokens=1001, nano_usd=None)
    await book.grow("a", tokens=100, nano_usd=None)
    assert book.used("user:alice")["tokens_per_day"] == (0, 150)


async def test_cost_without_a_price_is_refused() -> None:
    """Where money is limited, a model without a price is a refusal; where it is not, it is none."""
    book = ledger()
    with pytest.raises(UnpricedModel):
        await book.hold("a", user(cost_nano_usd_per_day=10), tokens=1, nano_usd=None)
    await book.hold("b", user(tokens_per_day=10), tokens=1, nano_usd=None)


async def test_an_answer_belongs_to_the_window_in_which_it_began() -> None:
    """What ends in the next minute, day or month is not charged to it."""
    clock = Clock(datetime(2027, 3, 31, 23, 59, 59, tzinfo=UTC).timestamp())
    book, who = ledger(clock), user(tokens_per_minute=100, tokens_per_day=100, tokens_per_month=100)
    await book.hold("a", who, tokens=90, nano_usd=None)
    clock.now += 2
    await book.hold("b", who, tokens=60, nano_usd=None)
    book.settle("a", tokens=80, nano_usd=0)
    assert {
        name: book.used("user:alice")[name]
        for name in ("tokens_per_minute", "tokens_per_day", "tokens_per_month")
    } == dict.fromkeys(("tokens_per_minute", "tokens_per_day", "tokens_per_month"), (0, 60))
    clock.now -= 3600  # a clock that goes back opens no window anew
    with pytest.raises(QuotaExceeded):
        await book.hold("c", who, tokens=60, nano_usd=None)


async def test_a_hold_that_nobody_ends_expires_and_late_truth_counts() -> None:
    """After its time a hold gives its room back; the truth is added when it comes after all."""
    clock = Clock()
    book, who = ledger(clock), user(tokens_per_day=100, concurrent=1)
    await book.hold("a", who, tokens=100, nano_usd=None)
    clock.now += TTL + 1
    await book.hold("b", who, tokens=100, nano_usd=None)
    book.settle("a", tokens=40, nano_usd=0)
    book.settle("a", tokens=40, nano_usd=0)
    assert book.used("user:alice")["tokens_per_day"] == (
        40,
        100,
    )  # above the limit: the one way there is
    assert (book.statistics().expired, book.statistics().late) == (1, 1)


async def test_who_has_a_limit_is_refused_while_the_past_is_not_known() -> None:
    """Closed: before what was used is loaded, nobody with a limit is let in, and everybody else is."""
    book = ledger(loaded=False, load_seconds=0)
    await book.hold("a", user("bob"), tokens=1, nano_usd=None)
    with pytest.raises(DatabaseUnavailable):
        await book.hold("b", user(tokens_per_day=100), tokens=1, nano_usd=None)


async def test_who_has_a_limit_waits_for_the_past() -> None:
    """What was used before counts for a request that came before it was loaded."""
    book = ledger(loaded=False)
    waiting = asyncio.create_task(
        book.hold("c", user(tokens_per_day=100), tokens=10, nano_usd=None)
    )
    await asyncio.sleep(0)
    book.load({"user:alice": (1, 95, 0)}, {}, {})
    with pytest.raises(QuotaExceeded):
        await waiting


class Book(RuleBasedStateMachine):
    """Any order of holding, growing, settling, releasing, expiring and starting again, against a model of sums."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.number = 0
        self.open: dict[str, tuple[int, float]] = {}
        self.expired: set[str] = set()
        self.truth: list[
            tuple[float, int]
        ] = []  # (when it began, tokens) of everything that was ever settled
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
        self.book = ledger(self.clock)

    def run(self, work: Awaitable[None]) -> bool:
        """Whether it was not refused."""
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
        """The process dies: what was open is unknown, and is charged as it was held."""
        self.truth += [(began, tokens) for tokens, began in self.open.values()]
        self.open, self.expired = {}, set()
        self.book = ledger(self.clock, loaded=False)
        day, minute = self.used("day"), self.used("minute")
        self.book.load({"user:alice": day}, {"user:alice": day}, {"user:alice": minute})

    def lapse(self) -> None:
        """Expire what is over, in the model and in the ledger."""
        over = [name for name, (_, began) in self.open.items() if began + TTL <= self.clock.now]
        assert self.book.expire() == len(over)
        for name in over:
            del self.open[name]

    def used(self, window: str) -> tuple[int, int, int]:
        seconds = {"minute": 60, "day": 86_400}[window]
        start = self.clock.now // seconds * seconds
        found = [tokens for began, tokens in self.truth if began >= start]
        return len(found), sum(found), 0

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
        """`used + held ≤ limit` in every window, and the ledger agrees with the sums of what happened."""
        if not hasattr(self, "book"):
            return
        found = self.book.used("user:alice")
        for name, limit in self.limits.items():
            assert sum(found[name]) <= limit
        assert found["concurrent"] == (0, len(self.open))
        assert found["tokens_per_minute"][0] == self.used("minute")[1]
        if not self.open:
            assert all(held == 0 for _, held in found.values())


Book.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBook = Book.TestCase
