"""Fair shares: what one user can take, and the order of turns."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import Overloaded
from service.core.fair_share import (
    BoundedTurns,
    FairTurns,
    Precedence,
    SharedLimit,
    TurnTimeout,
    compute_user_max,
    current_user,
)
from tests.waiting import wait_until


def test_one_user_leaves_half_for_others() -> None:
    """A user at their share is refused, and the other half is there for others."""
    limit = SharedLimit(10, "things", user_share=0.5)
    limit.take("a", 5)
    with pytest.raises(Overloaded):
        limit.take("a")
    limit.take("b", 5)

    assert limit.total == 10


def test_a_refusal_contains_only_numbers_of_the_caller() -> None:
    """Neither refusal depends on how much others have."""
    refusals = []
    for others in (1, 4):
        limit = SharedLimit(12, "things", user_share=0.5)
        limit.take("b", others)
        limit.take("a", 6)
        with pytest.raises(Overloaded) as refusal:
            limit.take("a")
        refusals.append(str(refusal.value))
    with pytest.raises(Overloaded) as refusal:
        limit.take("c", 3)

    assert refusals == ["you have 6 things, and one user can have 6"] * 2
    assert str(refusal.value) == "all users together have too many things"


def test_the_only_user_can_use_the_whole() -> None:
    """In open mode nothing is kept for others."""
    limit = SharedLimit(10, "things", user_share=1.0)
    limit.take("local", 10)
    with pytest.raises(Overloaded):
        limit.take("local")


@pytest.mark.parametrize(("capacity", "user_max"), [(1, 1), (2, 1), (3, 1), (5, 2), (100, 50)])
def test_everyone_can_use_at_least_one(capacity: int, user_max: int) -> None:
    """The share of a small limit is rounded down, to at least one."""
    assert compute_user_max(capacity, 0.5) == user_max


def test_amounts_are_released_after_an_error() -> None:
    """An amount is released whatever happens, and users without an amount are forgotten."""
    limit = SharedLimit(1, "things")
    with suppress(ValueError), limit.hold("a"):
        raise ValueError
    with limit.hold("a"), pytest.raises(Overloaded), limit.hold("a"):
        pass

    assert (limit.total, limit.get_used("a"), dict(limit._used)) == (0, 0, {})


async def settle() -> None:
    """Let all tasks run until they wait."""
    for _ in range(20):
        await asyncio.sleep(0)


class Callers:
    """Tasks that take a turn, wait until they may go on, and note the order of their turns."""

    def __init__(self, turns: FairTurns) -> None:
        self.turns, self.order = turns, [""][:0]
        self.tasks: list[asyncio.Task[None]] = []
        self.leave: dict[str, asyncio.Event] = {}

    async def add(self, *names: str) -> None:
        """Start callers; the first letter of a name is the user."""
        for name in names:
            self.leave[name] = asyncio.Event()
            self.tasks.append(asyncio.create_task(self._run(name), name=name))
        await settle()

    async def end(self, *names: str) -> None:
        """End the turns of these callers."""
        for name in names:
            self.leave[name].set()
            await settle()

    async def _run(self, name: str) -> None:
        async with self.turns.turn(name[0]):
            self.order.append(name)
            await self.leave[name].wait()


async def test_users_take_turns() -> None:
    """A user who comes later waits for one turn of each other user, not for all of them."""
    callers = Callers(FairTurns(1))
    await callers.add("a1", "a2", "a3", "a4", "b1", "b2", "c1")
    for _ in range(7):
        await callers.end(callers.order[-1])

    assert callers.order == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_a_turn_is_left_for_others() -> None:
    """One user cannot have all turns; the next one to come has a turn at once."""
    callers = Callers(FairTurns(4, user_share=0.5))
    await callers.add("a1", "a2", "a3", "a4")
    assert callers.order == ["a1", "a2"]
    await callers.add("b1")
    assert callers.order == ["a1", "a2", "b1"]

    await callers.end("a1")
    assert callers.order == ["a1", "a2", "b1", "a3"]
    await callers.end("b1", "a2", "a3", "a4")


async def test_the_only_user_has_all_turns() -> None:
    """In open mode every turn can be used."""
    callers = Callers(FairTurns(3, user_share=1.0))
    await callers.add("a1", "a2", "a3", "a4")

    assert callers.order == ["a1", "a2", "a3"]
    await callers.end("a1", "a2", "a3", "a4")


async def test_a_cancelled_caller_does_not_keep_a_turn() -> None:
    """Cancelling a caller that waits, or that was just given a turn, gives the turn to the next."""
    callers = Callers(FairTurns(1))
    await callers.add("a1", "a2", "b1", "b2")
    callers.tasks[1].cancel()
    callers.leave["a1"].set()
    await asyncio.sleep(0)  # a1 ends: b1 is given the turn, and does not know it yet
    callers.tasks[2].cancel()
    await settle()

    assert callers.order == ["a1", "b2"]
    await callers.end("b2")
    assert (callers.turns.waiting, callers.turns._total) == (0, 0)


async def test_waiting_may_have_an_end() -> None:
    """A caller that has waited too long is refused, and the turn is not lost."""
    turns = FairTurns(1, wait_seconds=0.01)
    async with turns.turn("a"):
        with pytest.raises(TurnTimeout):
            await turns.acquire("b")
    async with turns.turn("b"):
        assert (turns.waiting, turns._total) == (0, 1)


async def test_a_bounded_wait_ends_in_a_refusal() -> None:
    """A caller that waits too long is refused, and leaves the queue."""
    turns = BoundedTurns(1, 4, "requests", 0.5, wait_seconds=0.001)
    async with turns.turn("a"):
        with pytest.raises(Overloaded, match=r"took more than 0\.001 s"):
            async with turns.turn("b"):
                raise AssertionError
    async with turns.turn("b"):
        assert turns.waiting == 0


async def test_a_bounded_queue_has_a_share_for_each_user() -> None:
    """A user whose share of the queue is full is refused at once, another one is not."""
    turns = BoundedTurns(2, 4, "requests", 0.5, wait_seconds=60)
    async with turns.turn("a"):
        waiting = asyncio.create_task(_take_turn(turns, "a"))
        await wait_until(lambda: turns.waiting == 1)
        with pytest.raises(Overloaded, match="you have 2 requests"):
            await _take_turn(turns, "a")
        await _take_turn(turns, "b")
    await waiting


async def _take_turn(turns: BoundedTurns, user_id: str) -> None:
    async with turns.turn(user_id):
        pass


async def test_the_current_user_takes_the_turn() -> None:
    """Without a user, a turn is that of the user for whom the task works."""
    turns = FairTurns(2, user_share=0.5)
    current_user.set("a")
    async with turns.turn():
        assert dict(turns._running) == {"a": 1}


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), max_size=30),
)
def test_turns_are_never_lost(at_once: int, calls: list[tuple[str, int, bool]]) -> None:
    """With any order of calls, ends and cancellations, limits hold and everyone has a turn."""

    async def run() -> None:
        turns = FairTurns(at_once, user_share=0.5)
        most, done = 0, 0

        async def call(user_id: str, steps: int) -> None:
            nonlocal most, done
            async with turns.turn(user_id):
                most = max(most, turns._total)
                assert turns._running[user_id] <= max(1, at_once // 2)
                for _ in range(steps):
                    await asyncio.sleep(0)
            done += 1

        tasks = []
        for user_id, steps, cancelled in calls:
            tasks.append(asyncio.create_task(call(user_id, steps)))
            await asyncio.sleep(0)
            if cancelled:
                tasks[len(tasks) // 2].cancel()
        async with asyncio.timeout(5):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert done + sum(isinstance(item, asyncio.CancelledError) for item in results) == len(
            tasks
        )
        assert most <= at_once
        assert (turns.waiting, turns._total, dict(turns._running)) == (0, 0, {})

    asyncio.run(run())


def is_pausing(precedence: Precedence) -> bool:
    """Whether a pause, with its maximum of zero seconds, ends without the short work."""
    return not precedence._idle.wait(0)


def test_long_work_pauses_while_there_is_short_work() -> None:
    """A pause lasts until no short work is left, also after an error in it."""
    precedence = Precedence(60)
    with suppress(ValueError), precedence.short_work():
        with precedence.short_work():
            assert is_pausing(precedence)
        assert is_pausing(precedence)
        raise ValueError

    assert not is_pausing(precedence)
    precedence.pause()


def test_a_pause_has_an_end() -> None:
    """Long work continues while there is short work after the maximum of a pause."""
    precedence = Precedence(0.001)
    with precedence.short_work():
        precedence.pause()
        assert is_pausing(precedence)
