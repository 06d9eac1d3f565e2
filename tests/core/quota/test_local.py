"""Quotas: never above a limit, never a hold that stays, the truth afterwards."""

import asyncio
import re
import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.api.problems import quota_headers
from service.core.accounting import log as request_log
from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP
from service.core.database.engine import Database
from service.core.database.tables import quota_totals, request_logs
from service.core.errors import BeyondQuota, DatabaseUnavailable, KotaeError, QuotaExceeded, UnpricedModel
from service.core.ports import Message, QuotaLimits, QuotaSubject
from service.core.pricing import Usage
from service.core.quota.history import rebuild
from service.core.quota.local import LIMITS, Ledger
from service.core.records import Status, UsageSource, charge
from service.core.settings import ModelPrice
from service.core.tokens import count, upper_bound
from tests.access import bearer, client, make_key
from tests.api.test_middleware import is_problem
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake
from tests.process import kotae, serving
from tests.records import intent, outcome
from tests.sse import collect, events

ASK = {"prompt": "Why?", "grounded": False, "max_tokens": 100}
NOON = datetime(2027, 3, 31, 12, 0, 5, tzinfo=UTC).timestamp()
TTL = 300


class Clock:
    """A clock that is moved by hand."""

    def __init__(self, at: float = NOON) -> None:
        self.now = at

    def __call__(self) -> float:
        return self.now


def ledger(clock: Clock | None = None, *, loaded: bool = True) -> Ledger:
    """An empty ledger."""
    made = Ledger(TTL, clock=clock or Clock())
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

    assert caught.value.extra == {"limit": "requests_per_minute", "of": "key", "violated-policies": ["key-requests-per-minute"]}
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
async def test_a_refusal_says_when_to_come_back(limits: dict[str, int], retry_after: int | None) -> None:
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
    assert {name: book.used("user:alice")[name] for name in ("tokens_per_minute", "tokens_per_day", "tokens_per_month")} == dict.fromkeys(
        ("tokens_per_minute", "tokens_per_day", "tokens_per_month"), (0, 60)
    )
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
    assert book.used("user:alice")["tokens_per_day"] == (40, 100)  # above the limit: the one way there is
    assert (book.statistics().expired, book.statistics().late) == (1, 1)


async def test_who_has_a_limit_waits_until_the_past_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed: before what was used is loaded, nobody with a limit is let in, and everybody else is."""
    monkeypatch.setattr("service.core.quota.local.LOAD_SECONDS", 0.01)
    book = ledger(loaded=False)
    await book.hold("a", user("bob"), tokens=1, nano_usd=None)
    with pytest.raises(DatabaseUnavailable):
        await book.hold("b", user(tokens_per_day=100), tokens=1, nano_usd=None)
    monkeypatch.setattr("service.core.quota.local.LOAD_SECONDS", 5)
    waiting = asyncio.create_task(book.hold("c", user(tokens_per_day=100), tokens=10, nano_usd=None))
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
        self.truth: list[tuple[float, int]] = []  # (when it began, tokens) of everything that was ever settled
        self.late = 0

    @initialize(limit=st.integers(1, 500), concurrent=st.integers(1, 5))
    def begin(self, limit: int, concurrent: int) -> None:
        """A user with limits in every window."""
        self.limits = {"tokens_per_day": limit, "tokens_per_minute": limit, "concurrent": concurrent, "requests_per_minute": 8}
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
            begun = [held for held, began in self.open.values() if began >= self.clock.now // seconds * seconds]
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


def test_the_upper_bound_is_one() -> None:
    """No text has more tokens than the bound, whatever its language."""
    for text in ("", "Why?", "返品は何日以内にできますか？" * 20, "🙂" * 50, "\x00\x01" * 50, "zq" * 200, "é" * 99):
        assert upper_bound([Message("user", text)]) >= count(text) + 7


def test_headers_are_structured_fields() -> None:
    """`RateLimit-Policy` and `RateLimit` have an item for each limit, with the parameters of the draft."""
    book = ledger()
    asked = quota_headers(book.windows(user(requests_per_minute=60, tokens_per_day=1000, cost_nano_usd_per_month=10**18, concurrent=2)))

    assert asked["RateLimit-Policy"] == (
        '"user-requests-per-minute";q=60;w=60, "user-tokens-per-day";q=1000;w=86400;qu="tokens", '
        '"user-cost-usd-per-month";q=999999999999999;w=2678400;qu="nano-usd", "user-concurrent";q=2;qu="concurrent-requests"'
    )
    assert asked["RateLimit"] == (
        '"user-requests-per-minute";r=60;t=55, "user-tokens-per-day";r=1000;t=43195, '
        '"user-cost-usd-per-month";r=999999999999999;t=43195, "user-concurrent";r=2'
    )
    assert quota_headers(book.windows(user())) == {}


async def limited(service: Service, name: str = "alice", **limits: int) -> str:
    """A key of a user with these limits."""
    key = await make_key(service, name)
    await store.put_user(service.rooms.database, name, limits=QuotaLimits(**limits))
    return str(key.key)


async def room_for(service: Service, count: int) -> tuple[str, int]:
    """A key whose tokens a day are exactly enough for so many questions, and what one of them holds."""
    key = await make_key(service, "alice")
    async with client(service, key) as caller:
        assert (await caller.post("/ai/test", json=ASK)).status_code == 200
    await service.wait_idle()
    async with service.rooms.database.reading() as session:
        query = sa.select(request_logs.c.held_tokens)
        held = int((await session.execute(query)).scalar_one())
    used = service.rooms.quota.used("user:alice")["tokens_per_day"][0]
    await store.put_user(service.rooms.database, "alice", limits=QuotaLimits(tokens_per_day=used + held * count))
    service.rooms.door.forget()
    return str(key.key), held


async def plain(caller: httpx2.AsyncClient, refused: Callable[[], None]) -> int:
    """Ask in one piece."""
    response = await caller.post("/ai/test", json=ASK)
    if response.status_code == 429:
        refused()
    return response.status_code


async def streamed(caller: httpx2.AsyncClient, refused: Callable[[], None]) -> int:
    """Ask for a stream and read it to its end."""
    async with caller.stream("POST", "/ai/stream", json=ASK) as response:
        if response.status_code == 429:
            refused()
            return 429
        assert (await collect(response))[-1].name == "done"
        return response.status_code


async def cut(caller: httpx2.AsyncClient, refused: Callable[[], None]) -> int:
    """Ask for a stream and leave after its first event."""
    async with caller.stream("POST", "/ai/stream", json=ASK) as response:
        if response.status_code == 429:
            refused()
            return 429
        async with aclosing(events(response)) as stream:
            await anext(stream)
        return response.status_code


@pytest.mark.parametrize("way", [plain, streamed, cut])
async def test_two_hundred_at_once_against_room_for_ten(serve: Serve, fake: ProviderFake, way: Any) -> None:
    """Exactly ten reach the provider, 190 are told 429; afterwards used is what the log says, and nothing is held."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    key, _ = await room_for(service, 10)
    held, refusals, before = asyncio.Event(), asyncio.Semaphore(0), len(fake.calls)
    fake.default = Behaviour(hold=held)
    async with client(service, key, limits=httpx2.Limits(max_connections=200)) as caller:
        asked = [asyncio.create_task(way(caller, refusals.release)) for _ in range(200)]
        async with asyncio.timeout(30):
            for _ in range(190):
                await refusals.acquire()
        held.set()
        statuses = await asyncio.gather(*asked)
        answer = await caller.get("/ai/logs", params={"limit": 200})
    await service.wait_idle()

    assert sorted(statuses) == [200] * 10 + [429] * 190
    assert len(fake.calls) - before <= 10
    if way is not cut:
        assert len(fake.calls) - before == 10
    assert answer.status_code == 200
    async with client(service, key) as caller:
        rows = (await caller.get("/ai/logs", params={"limit": 200})).json()["items"]
    assert len(rows) == 11
    found = service.rooms.quota.used("user:alice")
    assert found["tokens_per_day"] == (await charged(service, "user:alice"), 0)
    assert {name: held for name, (_, held) in found.items()} == dict.fromkeys((*(name for name, *_ in LIMITS), "concurrent"), 0)
    assert service.rooms.quota.statistics().holds == 0
    if way is not cut:
        assert found["tokens_per_day"][0] == sum(row["total_tokens"] for row in rows)


async def charged(service: Service, subject: str) -> int:
    """What the database says was used today."""
    totals = quota_totals.c
    async with service.rooms.database.reading() as session:
        return int((await session.execute(sa.select(sa.func.sum(totals.tokens)).where(totals.subject == subject))).scalar_one())


async def test_a_kill_leaves_no_hold_and_no_room(tmp_path: Path, fake: ProviderFake) -> None:
    """Of 200 at once ten get in; killed with them open, the next process holds nothing, and counts what the ten may have cost."""
    await kotae("migrate", data_dir=tmp_path)
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'kotae.db'}")
    made = await store.create_key(database, BOOTSTRAP, store.Wanted(user_id="alice"), keys_max=9)
    await store.put_user(database, "alice", limits=QuotaLimits(concurrent=10, tokens_per_day=100_000))
    fake.default = Behaviour(hang_after=2)
    options = {"OPENAI_BASE_URL": fake.base_url, "KOTAE_MODEL": "m", "KOTAE_AUTH": "keys"}
    async with serving(tmp_path, **options) as first:
        first.client.headers.update(bearer(made))
        asked = [asyncio.create_task(first.client.post("/ai/test", json=ASK)) for _ in range(200)]
        await fake.wait_calls(10)
        async with asyncio.timeout(10):
            while sum(one.done() for one in asked) < 190:
                await asyncio.sleep(0.01)
        first.signal(signal.SIGKILL)
        await first.wait()
        ended = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(one, httpx2.Response) and one.status_code == 429 for one in ended) == 190
    fake.default = Behaviour()
    async with serving(tmp_path, **options) as second:
        second.client.headers.update(bearer(made))
        answer = await second.client.post("/ai/test", json=ASK)
        left = int(re.search(r'"user-tokens-per-day";r=(\d+)', answer.headers["ratelimit"]).group(1))  # type: ignore[union-attr]
        assert '"user-concurrent";r=10' in answer.headers["ratelimit"]
        second.signal(signal.SIGTERM)
        await second.wait()
    async with database.reading() as session:
        rows = (await session.execute(sa.select(request_logs))).mappings().all()
    await database.close()

    assert len(rows) == 11
    assert {row["status"] for row in rows} == {"interrupted", "completed"}
    assert 100_000 - left == sum(charge(row)[0] for row in rows)
    assert all(charge(row)[0] >= 100 for row in rows if row["status"] == "interrupted")


async def test_the_past_counts_once(database: Database) -> None:
    """At start the ledger learns what was used: of this month, today and this minute; its own rows are not counted twice."""
    clock = Clock()
    at = datetime.fromtimestamp(NOON, UTC)
    moments = [at - timedelta(days=40), at - timedelta(days=3), at - timedelta(hours=2), at - timedelta(seconds=2), at]
    for n, moment in enumerate(moments):
        rows = [outcome(intent(at=moment, user_id="alice", key_id="k"), usage=Usage(prompt_tokens=10**n, completion_tokens=0))]
        async with database.transaction() as session:
            await request_log.apply(session, rows)
            await request_log.apply(session, rows)
    unknown = outcome(
        intent(at=moments[2], user_id="alice", held_tokens=500_000), usage=None, usage_source=UsageSource.UNKNOWN, status=Status.TIMEOUT
    )
    async with database.transaction() as session:
        await request_log.apply(session, [unknown])
    book = ledger(clock, loaded=False)
    await book.hold("own", user(), tokens=10**4, nano_usd=0)
    book.settle("own", tokens=10**4, nano_usd=1500)
    async with database.reading() as session:
        await rebuild(session, book, at)

    found = book.used("user:alice")
    assert found["tokens_per_month"] == (510 + 11_000 + 500_000 - 400, 0)
    assert found["tokens_per_day"] == (11_100 + 500_000, 0)
    assert found["tokens_per_minute"] == (11_000, 0)
    assert found["requests_per_minute"] == (2, 0)
    assert book.used("key:k")["tokens_per_month"] == (1110, 0)


async def test_what_becomes_known_later_replaces_what_was_held(database: Database) -> None:
    """When a record that knows more arrives, the charge changes by the difference."""
    begun = intent(held_tokens=1000)
    unknown = outcome(begun, usage=None, usage_source=UsageSource.UNKNOWN, status=Status.INTERRUPTED, cost_nano_usd=None, price=None)
    async with database.transaction() as session:
        await request_log.apply(session, [unknown])
        await request_log.apply(session, [outcome(begun)])
    async with database.reading() as session:
        row = (await session.execute(sa.select(quota_totals))).mappings().one()
    assert (row["subject"], row["requests"], row["tokens"], row["cost_nano_usd"]) == ("user:local", 1, 15, 1500)


async def test_a_refusal_is_whole(serve: Serve, fake: ProviderFake) -> None:
    """429 names its limit, says when, and carries the headers; accepted answers carry them too; nothing reaches the provider."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    async with client(service, await limited(service, requests_per_minute=2, tokens_per_day=50_000)) as alice:
        first = await alice.post("/ai/test", json=ASK)
        async with alice.stream("GET", "/ai/stream", params={"prompt": "Why?", "grounded": False}) as second:
            await second.aread()
        third = await alice.post("/ai/stream", json=ASK)
        beyond = await alice.post("/ai/test", json=ASK | {"prompt": "é" * 15_000, "max_tokens": 8192, "model": "m"})

    assert '"user-requests-per-minute";r=1;t=' in first.headers["ratelimit"]
    assert '"user-requests-per-minute";r=0;t=' in second.headers["ratelimit"]
    problem = is_problem(third, 429, "quota_exceeded")
    assert problem["limit"] == "requests_per_minute"
    assert 1 <= problem["retry_after"] == int(third.headers["retry-after"]) <= 60
    assert third.headers["ratelimit-policy"].startswith('"user-requests-per-minute";q=2;w=60')
    assert is_problem(beyond, 429, "quota_exceeded")["limit"] == "requests_per_minute"
    assert len(fake.calls) == 2


async def test_what_never_fits_is_told_so_at_once(serve: Serve, fake: ProviderFake) -> None:
    """A request whose bound is above the limit is a 400 of its own code, without Retry-After, with or without context."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m", seeded=True)
    async with client(service, await limited(service, tokens_per_day=1000)) as alice:
        for body in (ASK | {"max_tokens": 2000}, {"prompt": "返品は何日以内にできますか？", "max_tokens": 100}):
            response = await alice.post("/ai/test", json=body)
            is_problem(response, 400, "beyond_quota")
            assert "retry-after" not in response.headers
    assert service.rooms.quota.statistics().holds == 0
    assert fake.calls == []


async def test_money_is_held_by_price(serve: Serve, fake: ProviderFake) -> None:
    """Cost is held by the price of the model; one without a price is refused where money is limited."""
    prices = {"m": ModelPrice(input=Decimal(1), output=Decimal(2))}
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m", prices=prices)
    async with client(service, await limited(service, cost_nano_usd_per_day=10_000_000)) as alice:
        answer = (await alice.post("/ai/test", json=ASK)).json()
        is_problem(await alice.post("/ai/test", json=ASK | {"model": "nobody-knows"}), 400, "unpriced_model")
    used = service.rooms.quota.used("user:alice")["cost_nano_usd_per_day"]

    assert used == (round(float(answer["estimated_cost"]) * 1e9), 0)
    assert used[0] > 0


async def test_a_refusal_of_the_service_gives_the_hold_back(serve: Serve, fake: ProviderFake) -> None:
    """When the queue is full after the hold, nothing stays held and nothing is used."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m", queue_records_max=1)
    held = asyncio.Event()
    fake.default = Behaviour(hold=held)
    async with client(service, await limited(service, tokens_per_day=100_000)) as alice:
        first = asyncio.create_task(alice.post("/ai/test", json=ASK))
        await fake.wait_calls(1)
        is_problem(await alice.post("/ai/test", json=ASK), 503, "overloaded")
        assert service.rooms.quota.used("user:alice")["concurrent"] == (0, 1)
        held.set()
        await first
    assert service.rooms.quota.used("user:alice")["requests_per_minute"] == (1, 0)
    assert service.rooms.quota.statistics().holds == 0


async def test_a_refused_question_uses_no_tokens(serve: Serve) -> None:
    """What is refused for want of context counts as a request and costs nothing."""
    service = await serve(auth="keys")
    async with client(service, await limited(service, tokens_per_day=5000)) as alice:
        assert (await alice.post("/ai/test", json={"prompt": "Who invented the quantum computer?"})).json()["status"] == "no_context"
    found = service.rooms.quota.used("user:alice")
    assert (found["tokens_per_day"], found["requests_per_minute"], found["concurrent"]) == ((0, 0), (1, 0), (0, 0))
