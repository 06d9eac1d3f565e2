"""The part of a shared quota that does not depend on its store."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from service.core.errors import QuotaUnavailable
from service.core.ports import QuotaLimits, QuotaSubject
from service.core.quota.shared import (
    PROLONG_SECONDS,
    AccountState,
    Generation,
    Operation,
    Reply,
    SharedQuota,
    StoredHold,
    build_account,
)
from service.core.quota.windows import DAY, MINUTE
from tests.quotas import Clock

ALICE = [QuotaSubject.for_user("alice", QuotaLimits(tokens_per_day=100))]


class StoreFake:
    """A store that admits everything, and records what it is sent."""

    def __init__(self) -> None:
        self.generation = Generation(1, open=True)
        self.batches: list[list[Operation]] = []
        self.registered: list[list[str]] = []
        self.prolonged: list[str] = []
        self.may_reply = asyncio.Event()
        self.may_reply.set()
        self.reachable = True

    async def apply(
        self, generation: int, operations: Sequence[Operation]
    ) -> tuple[Sequence[Reply], Mapping[str, AccountState]] | None:
        """Admit everything in the current generation."""
        self._require_reachable()
        self.batches.append(list(operations))
        await self.may_reply.wait()
        if generation != self.generation.number:
            return None
        return [Reply("ok") for _ in operations], {}

    async def load(self, _subjects: Sequence[str], _starts: object) -> None:
        """Nothing is missing."""

    async def register(self, holds: Sequence[StoredHold]) -> Generation:
        """Register."""
        self._require_reachable()
        self.registered.append([hold.name for hold in holds])
        return self.generation

    async def keep_alive(self, generation: int, prolonged: Sequence[str]) -> bool:
        """Note the prolonged holds."""
        self._require_reachable()
        self.prolonged += prolonged
        return generation == self.generation.number

    async def expire(self, _count_max: int) -> int:
        """Nothing expires."""
        return 0

    def notify_written(self) -> None:
        """Nothing is delivered."""

    async def close(self) -> None:
        """Nothing is open."""

    def _require_reachable(self) -> None:
        if not self.reachable:
            raise QuotaUnavailable("away")


async def start(store: StoreFake, clock: Clock | None = None, seconds: float = 5) -> SharedQuota:
    """A quota on this store."""
    clock = clock or Clock()
    quota = SharedQuota(store, seconds=seconds, clock=clock, monotonic=lambda: clock.monotonic)
    await quota.start()
    return quota


async def hold(quota: SharedQuota, name: str) -> None:
    """Hold a token."""
    await quota.hold(name, ALICE, tokens=1, nano_usd=None)


async def test_operations_that_wait_form_one_batch() -> None:
    """While a batch is in flight, others are collected."""
    store = StoreFake()
    quota = await start(store)
    store.may_reply.clear()
    holds = [asyncio.create_task(hold(quota, "first"))]
    while not store.batches:
        await asyncio.sleep(0)
    holds += [asyncio.create_task(hold(quota, f"{n}")) for n in range(5)]
    await asyncio.sleep(0)
    store.may_reply.set()
    await asyncio.gather(*holds)
    await quota.stop()

    assert [len(batch) for batch in store.batches] == [1, 5]


async def test_a_new_generation_gets_all_holds_again() -> None:
    """If the store has lost holds, they are registered, and the operation is repeated."""
    store = StoreFake()
    quota = await start(store)
    await hold(quota, "a")
    store.generation = Generation(2, open=True)
    await hold(quota, "b")
    await quota.stop()

    assert store.registered == [[], ["a"]]
    assert quota.statistics().holds == 2


async def test_a_closed_generation_admits_nothing() -> None:
    """Until every replica has registered, holds are refused."""
    store = StoreFake()
    quota = await start(store)
    store.generation = Generation(2, open=False)
    with pytest.raises(QuotaUnavailable):
        await hold(quota, "a")
    store.generation = Generation(2, open=True)
    await hold(quota, "a")
    await quota.stop()

    assert quota.statistics().holds == 1


async def test_a_cancelled_hold_is_released() -> None:
    """The hold of a caller who has left may exist: it is released, and not registered."""
    store = StoreFake()
    quota = await start(store)
    store.may_reply.clear()
    caller = asyncio.create_task(hold(quota, "a"))
    while not store.batches:
        await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    store.may_reply.set()
    await hold(quota, "b")
    await quota.stop()

    operations = [(item.kind, item.name) for batch in store.batches for item in batch]
    assert operations == [("hold", "a"), ("release", "a"), ("hold", "b")]
    assert quota.statistics().holds == 1


async def test_an_unreachable_store_is_found_again() -> None:
    """Holds are refused without asking it, until a sign of life has reached it."""
    store = StoreFake()
    quota = await start(store)
    store.reachable = False
    with pytest.raises(QuotaUnavailable):
        await hold(quota, "a")
    store.reachable = True
    with pytest.raises(QuotaUnavailable):
        await hold(quota, "b")
    await quota.keep_alive()
    await hold(quota, "c")
    await quota.stop()

    operations = [(item.kind, item.name) for batch in store.batches for item in batch]
    assert operations == [("release", "a"), ("hold", "c")]


async def test_a_store_that_does_not_reply_is_not_waited_for() -> None:
    """The time limit is that of the caller."""
    store = StoreFake()
    quota = await start(store, seconds=0.01)
    store.may_reply.clear()
    with pytest.raises(QuotaUnavailable):
        await hold(quota, "a")
    store.may_reply.set()
    await quota.stop()

    assert not quota.statistics().available


async def test_holds_wait_for_their_rows() -> None:
    """A hold whose row is written late is prolonged, and forgotten when it is written."""
    store, clock = StoreFake(), Clock()
    quota = await start(store, clock)
    await hold(quota, "a")
    await hold(quota, "running")
    quota.settle("a", tokens=1, nano_usd=0)
    clock.pass_time(PROLONG_SECONDS + 1)
    await quota.keep_alive()
    quota.remove_written(["a"])
    await quota.keep_alive()
    await quota.stop()

    assert store.prolonged == ["a"]


def test_an_account_has_two_windows_of_each_kind() -> None:
    """The state of an account is that of its windows; empty ones have no start."""
    minutes = [120, 1, 2, 3, 4, 5, 6, 60, 7, 8, 9, 0, 0, 0]
    days = [86_400, 1, 1, 1, 0, 0, 0, *[0] * 7]
    account = build_account([3, *minutes, *days, *days])

    assert account.open == 3
    assert account.get_window(MINUTE, 120).held == [4, 5, 6]
    assert account.get_window(MINUTE, 60).used == [7, 8, 9]
    assert account.list_starts(DAY) == [86_400]
