"""Fair shares of the limits that all users have in common.

Every limit on memory or concurrent work is a limit for all users together. Without shares, one user
could exhaust it for everybody. The rule is the same everywhere: one user can use `USER_SHARE` of a
limit (at least one unit), all users together the whole. In open mode there is only one user, who
can use the whole (`Settings.user_share`). The rule is fixed rather than a part of what is free: a
refusal tells users about their own usage only, and what is free would tell them about the others.

`SharedLimit` counts amounts and refuses what exceeds them. `FairTurns` lets callers wait: a free
turn goes to the users in rotation, and of one user to the first who came. So a user who waits is
delayed by one turn of each other user, however many requests those have. `BoundedTurns` also limits
how many callers wait.

`Precedence` lets long work in a thread pause while short work of others is in progress.
"""

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from types import TracebackType

from service.core.errors import Overloaded

USER_SHARE = 0.5
# The user on whose behalf the current task works; empty for the service itself.
current_user: ContextVar[str] = ContextVar("current_user", default="")


def compute_user_max(capacity: int, user_share: float) -> int:
    """The part of a limit that one user can use."""
    return max(1, int(capacity * user_share))


class TurnTimeout(Exception):
    """No turn was free within the time that callers may wait."""


class SharedLimit:
    """Amounts by user, limited by user and in total. `noun` names the units in refusals."""

    def __init__(self, capacity: int, noun: str, user_share: float = 1.0) -> None:
        self._capacity, self._noun = capacity, noun
        self._user_max = compute_user_max(capacity, user_share)
        self._used: dict[str, int] = {}  # a Counter is several times slower
        self._total = 0

    @property
    def total(self) -> int:
        """The amount of all users."""
        return self._total

    def get_used(self, user_id: str) -> int:
        """The amount of one user."""
        return self._used.get(user_id, 0)

    def require(self, user_id: str, amount: int = 1) -> None:
        """Raise `Overloaded` if the user cannot take this amount. Names no number of others."""
        used = self._used.get(user_id, 0)
        if used + amount > self._user_max:
            raise Overloaded(
                f"you have {used} {self._noun}, and one user can have {self._user_max}"
            )
        if self._total + amount > self._capacity:
            raise Overloaded(f"all users together have too many {self._noun}")

    def take(self, user_id: str, amount: int = 1) -> None:
        """Add an amount. Raises `Overloaded`."""
        self.require(user_id, amount)
        self.add(user_id, amount)

    def add(self, user_id: str, amount: int = 1) -> None:
        """Add an amount for which `require` was called before."""
        self._used[user_id] = self._used.get(user_id, 0) + amount
        self._total += amount

    def release(self, user_id: str, amount: int = 1) -> None:
        """Subtract an amount that was taken."""
        used = self._used.pop(user_id) - amount
        if used:
            self._used[user_id] = used
        self._total -= amount

    def hold(self, user_id: str, amount: int = 1) -> "_Held":
        """A context manager that takes the amount and releases it at the end."""
        return _Held(self, user_id, amount)


class _Held:
    def __init__(self, limit: SharedLimit, user_id: str, amount: int) -> None:
        self._limit, self._user_id, self._amount = limit, user_id, amount

    def __enter__(self) -> None:
        self._limit.take(self._user_id, self._amount)

    def __exit__(self, *_: object) -> None:
        self._limit.release(self._user_id, self._amount)


class FairTurns:
    """At most `at_once` turns at the same time, given to the users in rotation.

    The number of callers that wait is not limited here. They wait up to `wait_seconds`, if given.
    """

    def __init__(
        self, at_once: int, user_share: float = 1.0, *, wait_seconds: float | None = None
    ) -> None:
        self._at_once, self._wait_seconds = at_once, wait_seconds
        self._user_max = compute_user_max(at_once, user_share)
        self._running: dict[str, int] = {}
        self._total = 0
        # In the order of rotation; without users that do not wait.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """The number of callers that wait."""
        return sum(map(len, self._waiting.values()))

    def turn(self, user_id: str | None = None) -> "_Turn":
        """A context manager for one turn at a time of a user; default: of `current_user`."""
        return _Turn(self, current_user.get() if user_id is None else user_id)

    async def acquire(self, user_id: str) -> None:
        """Wait for a turn. `release` must follow. Raises `TurnTimeout`."""
        if (
            self._total < self._at_once
            and self._running.get(user_id, 0) < self._user_max
            and user_id not in self._waiting
        ):
            self._begin_turn(user_id)
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user_id, deque()).append(granted)
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._wait_granted(user_id, granted)
        except TimeoutError as error:
            raise TurnTimeout from error

    async def _wait_granted(self, user_id: str, granted: asyncio.Future[None]) -> None:
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(user_id)
            else:
                self._remove(user_id, granted)
            raise

    def release(self, user_id: str) -> None:
        """End a turn, and give free turns to the callers that wait."""
        self._total -= 1
        running = self._running.pop(user_id) - 1
        if running:
            self._running[user_id] = running
        while self._waiting and (next_user := self._find_next()) is not None:
            queue = self._waiting[next_user]
            granted = queue.popleft()
            self._waiting.move_to_end(next_user)
            if not queue:
                del self._waiting[next_user]
            if not granted.done():
                self._begin_turn(next_user)
                granted.set_result(None)

    def _begin_turn(self, user_id: str) -> None:
        self._total += 1
        self._running[user_id] = self._running.get(user_id, 0) + 1

    def _find_next(self) -> str | None:
        """The first user in rotation who waits and may have another turn.

        Only users with all of their turns are skipped, so few.
        """
        if self._total >= self._at_once:
            return None
        return next(
            (name for name in self._waiting if self._running.get(name, 0) < self._user_max), None
        )

    def _remove(self, user_id: str, granted: asyncio.Future[None]) -> None:
        if granted in (queue := self._waiting.get(user_id, deque())):
            queue.remove(granted)
            if not queue:
                del self._waiting[user_id]


class _Turn:
    """Can be entered again after its end."""

    def __init__(self, turns: FairTurns, user_id: str) -> None:
        self._turns, self._user_id = turns, user_id

    async def __aenter__(self) -> None:
        await self._turns.acquire(self._user_id)

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._turns.release(self._user_id)


class BoundedTurns:
    """Turns with a bounded queue: at most `open_max` callers have a turn or wait for one.

    Of one user: one turn, and `user_share` of the queue.
    """

    def __init__(
        self, at_once: int, open_max: int, noun: str, user_share: float, *, wait_seconds: float
    ) -> None:
        self._open = SharedLimit(open_max, noun, user_share)
        self._turns = FairTurns(at_once, 1 / at_once, wait_seconds=wait_seconds)
        self._noun, self._wait_seconds = noun, wait_seconds

    @property
    def waiting(self) -> int:
        """The number of callers that wait."""
        return self._turns.waiting

    @asynccontextmanager
    async def turn(self, user_id: str) -> AsyncIterator[None]:
        """Wait for a turn. Raises `Overloaded` if the queue is full or the wait is too long."""
        with self._open.hold(user_id):
            try:
                await self._turns.acquire(user_id)
            except TurnTimeout as error:
                raise Overloaded(
                    f"the {self._noun} before yours took more than {self._wait_seconds:g} s"
                ) from error
            try:
                yield
            finally:
                self._turns.release(user_id)


class Precedence:
    """Short work, entered on the event loop, before long work, which calls `pause` in a thread.

    A pause lasts up to `pause_seconds`, so that long work also ends if there is always short work.
    """

    def __init__(self, pause_seconds: float) -> None:
        self._pause_seconds = pause_seconds
        self._count = 0
        self._idle = threading.Event()
        self._idle.set()

    @contextmanager
    def short_work(self) -> Iterator[None]:
        """Short work that waits or runs."""
        self._count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._idle.set()

    def pause(self) -> None:
        """Block while there is short work."""
        self._idle.wait(self._pause_seconds)
