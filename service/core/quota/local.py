"""The ledger: what users and keys have used and hold, against their limits. Arithmetic in memory; nothing here waits.

    hold ──► settled      once, to the truth: less than was held, as a rule
      │ └──► released     the answer was refused before anything was used
      └────► expired      nobody ever said how it ended; the truth, should it still come, is added then

A hold takes the upper bound of everything that has a limit, of the user and of the key, or nothing at all. So in every
window `used + held ≤ limit`, however many ask at once: looking and taking are one step, without an await. There are two
ways above a limit, both after the fact: truth that comes after its hold has expired, and a provider that gives more
than it was asked for.

Windows are fixed: the minute, day and month (UTC) in which an answer *began* is charged for all of it, whenever it
ends, which is what the log says too. `concurrent` has no window: it counts holds.

What nobody knows (usage `unknown`) is charged with its hold: it may have been billed, and cutting a stream early must
not be a way to ask for nothing.

Until `load` has brought what earlier processes used, whoever has a limit has to wait: see `history`.
"""

import asyncio
import calendar
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from service.core.errors import (
    BeyondQuota,
    DatabaseUnavailable,
    Overloaded,
    QuotaExceeded,
    UnpricedModel,
)
from service.core.ports import QuotaLimits, QuotaSubject, QuotaWindow

MINUTE, DAY, MONTH = 0, 1, 2
REQUESTS, TOKENS, COST = 0, 1, 2
ACCOUNTS_MAX = 100_000  # users and keys active this month
LOAD_SECONDS = 5  # how long whoever has a limit waits for `load`
SOON_SECONDS = 1  # when to come back if only holds are in the way: they end when answers do
LIMITS = (  # field of QuotaLimits, window, kind, unit
    ("requests_per_minute", MINUTE, REQUESTS, "requests"),
    ("tokens_per_minute", MINUTE, TOKENS, "tokens"),
    ("tokens_per_day", DAY, TOKENS, "tokens"),
    ("tokens_per_month", MONTH, TOKENS, "tokens"),
    ("cost_nano_usd_per_day", DAY, COST, "nano-usd"),
    ("cost_nano_usd_per_month", MONTH, COST, "nano-usd"),
)
CONCURRENT = ("concurrent", "concurrent-requests")


class UsageAccount:
    """One user or key: for each window when it began, what was used and what is held (requests, tokens, nano-dollars)."""

    __slots__ = ("held", "open", "starts", "used")

    def __init__(self, starts: Sequence[int]) -> None:
        self.starts = list(starts)
        self.used = [[0, 0, 0] for _ in starts]
        self.held = [[0, 0, 0] for _ in starts]
        self.open = 0

    def roll(self, starts: Sequence[int]) -> None:
        """Begin the windows anew whose time is over. A clock that goes back changes nothing."""
        for window, start in enumerate(starts):
            if start > self.starts[window]:
                self.starts[window] = start
                self.used[window] = [0, 0, 0]
                self.held[window] = [0, 0, 0]


class _Hold(msgspec.Struct):
    subjects: Sequence[QuotaSubject]
    accounts: list[UsageAccount]
    starts: tuple[int, int, int]
    amount: tuple[int, int, int]
    expires_at: float


class LocalQuotaStatistics(msgspec.Struct, frozen=True):
    """`expired`: holds that nobody ended. `late`: those whose truth came after all."""

    loaded: bool
    accounts: int
    holds: int
    expired: int
    late: int


class LocalQuota:
    """The quota of one process. Callers with a limit wait up to `load_seconds` for `load`."""

    def __init__(
        self,
        ttl_seconds: float,
        *,
        load_seconds: float = LOAD_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ttl_seconds, self._load_seconds = ttl_seconds, load_seconds
        self._clock = clock
        self._accounts: dict[str, UsageAccount] = {}
        self._holds: dict[
            str, _Hold
        ] = {}  # in the order of their expiry: it is the same time for all
        self._gone: dict[
            str, _Hold
        ] = {}  # expired, and waiting for late truth; bounded as holds are
        self._month = (0, 0)
        self._expired = self._late = 0
        self._loaded = asyncio.Event()

    async def hold(
        self, name: str, subjects: Sequence[QuotaSubject], *, tokens: int, nano_usd: int | None
    ) -> None:
        """Hold for the answer `name`. Raises `QuotaExceeded`, `BeyondQuota`, `UnpricedModel`, `Overloaded`; then nothing is held."""
        if not self._loaded.is_set() and any(subject.limits is not None for subject in subjects):
            await self._wait_loaded()
        self.expire()
        at = self._clock()
        starts = self._starts(at)
        amount = (1, tokens, nano_usd or 0)
        accounts = [self._account(subject, starts) for subject in subjects]
        for subject, account in zip(subjects, accounts, strict=True):
            if subject.limits is not None:
                self._check(subject, account, subject.limits, amount, amount, nano_usd, at)
                if (most := subject.limits.concurrent) is not None and account.open >= most:
                    self._refuse(subject, CONCURRENT[0], most, 1, subjects, SOON_SECONDS)
        for account in accounts:
            account.open += 1
            _add(account.held, account, starts, amount)
        self._holds[name] = _Hold(subjects, accounts, starts, amount, at + self._ttl_seconds)

    async def grow(self, name: str, *, tokens: int, nano_usd: int | None) -> None:
        """Raise a hold to more, or lower it to less. Raises as `hold` does; then the hold is as it was."""
        held = self._holds[name]
        amount = (1, tokens, nano_usd or 0)
        more = (0, tokens - held.amount[TOKENS], amount[COST] - held.amount[COST])
        at = self._clock()
        for subject, account in zip(held.subjects, held.accounts, strict=True):
            if subject.limits is not None:
                self._check(subject, account, subject.limits, amount, more, nano_usd, at)
        for account in held.accounts:
            _add(account.held, account, held.starts, more)
        held.amount = amount

    def settle(self, name: str, *, tokens: int, nano_usd: int) -> None:
        """The truth about an answer: what was held becomes what was used. Once; again, or of no hold, it does nothing."""
        held = self._holds.pop(name, None)
        if held is None:
            held = self._gone.pop(name, None)
            if held is None:
                return
            self._late += 1
        else:
            self._let_go(held)
        for account in held.accounts:
            _add(account.used, account, held.starts, (1, tokens, nano_usd))

    def release(self, name: str) -> None:
        """The answer was refused and used nothing. Idempotent."""
        if (held := self._holds.pop(name, None)) is not None:
            self._let_go(held)

    def expire(self) -> int:
        """Let go of the holds whose time is over; returns how many."""
        count, at = 0, self._clock()
        while (
            self._holds and (name := next(iter(self._holds))) and self._holds[name].expires_at <= at
        ):
            held = self._holds.pop(name)
            self._let_go(held)
            if len(self._gone) >= ACCOUNTS_MAX:
                del self._gone[next(iter(self._gone))]
            self._gone[name] = held
            count += 1
        self._expired += count
        return count

    def windows(self, subjects: Sequence[QuotaSubject]) -> list[QuotaWindow]:
        """Where these stand: every limit that they have."""
        return list(self._windows(subjects))

    def used(self, subject: str) -> Mapping[str, tuple[int, int]]:
        """(used, held) of a user or key by the names of `LIMITS` and `concurrent`, whether limited or not."""
        account = self._accounts.get(subject)
        if account is None:
            return dict.fromkeys((*(name for name, *_ in LIMITS), CONCURRENT[0]), (0, 0))
        account.roll(self._starts(self._clock()))
        found = {
            name: (account.used[window][kind], account.held[window][kind])
            for name, window, kind, _ in LIMITS
        }
        return found | {CONCURRENT[0]: (0, account.open)}

    def load(
        self,
        day: Mapping[str, Sequence[int]],
        month: Mapping[str, Sequence[int]],
        minute: Mapping[str, Sequence[int]],
    ) -> None:
        """Add what earlier processes have used: (requests, tokens, nano-dollars) by subject, of the windows of now."""
        starts = self._starts(self._clock())
        for window, found in ((MINUTE, minute), (DAY, day), (MONTH, month)):
            for subject, amount in found.items():
                account = self._accounts.get(subject)
                if account is None:
                    if len(self._accounts) >= ACCOUNTS_MAX:
                        continue
                    account = self._accounts[subject] = UsageAccount(starts)
                account.roll(starts)
                account.used[window] = [
                    have + more for have, more in zip(account.used[window], amount, strict=True)
                ]
        self._loaded.set()

    async def _wait_loaded(self) -> None:
        try:
            async with asyncio.timeout(self._load_seconds):
                await self._loaded.wait()
        except TimeoutError as error:
            raise DatabaseUnavailable(
                "what was used before this process began is not known yet"
            ) from error

    def starts(self) -> tuple[int, int, int]:
        """When the windows of now began, in seconds since 1970: minute, day, month."""
        return self._starts(self._clock())

    def statistics(self) -> LocalQuotaStatistics:
        """A frozen look at the ledger."""
        return LocalQuotaStatistics(
            loaded=self._loaded.is_set(),
            accounts=len(self._accounts),
            holds=len(self._holds),
            expired=self._expired,
            late=self._late,
        )

    def _check(
        self,
        subject: QuotaSubject,
        account: UsageAccount,
        limits: QuotaLimits,
        whole: Sequence[int],
        more: Sequence[int],
        nano_usd: int | None,
        at: float,
    ) -> None:
        """Raises if `whole` can never fit a limit, or `more` does not fit now."""
        for name, window, kind, limit, _, _ in _set(limits):
            if kind == COST and nano_usd is None:
                raise UnpricedModel(
                    f"{name.replace('nano_usd', 'usd')} is limited, and the model has no known price"
                )
            used, held = account.used[window][kind], account.held[window][kind]
            if whole[kind] > limit:
                raise BeyondQuota(
                    f"this needs up to {whole[kind]} {_unit(name)}, more than {subject.of}'s {_shown(name)} of {limit} can ever hold",
                    extra={"limit": _shown(name), "of": subject.of},
                )
            if more[kind] > 0 and used + held + more[kind] > limit:
                wait = (
                    SOON_SECONDS
                    if used + whole[kind] <= limit
                    else _seconds(self._end(window) - at)
                )
                self._refuse(subject, name, limit, more[kind], [subject], wait)

    def _refuse(
        self,
        subject: QuotaSubject,
        name: str,
        limit: int,
        needed: int,
        subjects: Sequence[QuotaSubject],
        retry_after_seconds: int,
    ) -> None:
        error = QuotaExceeded(
            f"the {_shown(name)} of this {subject.of} ({limit}) has no room for {needed} more",
            retry_after_seconds=retry_after_seconds,
            extra={
                "limit": _shown(name),
                "of": subject.of,
                "violated-policies": [format_policy(subject.of, name)],
            },
        )
        error.windows = self.windows(subjects)
        raise error

    def _windows(self, subjects: Sequence[QuotaSubject]) -> Iterator[QuotaWindow]:
        at = self._clock()
        starts = self._starts(at)
        ends = (starts[MINUTE] + 60, starts[DAY] + 86_400, self._month[1])
        for subject in subjects:
            if subject.limits is None:
                continue
            account = self._accounts.get(subject.name) or UsageAccount(starts)
            account.roll(starts)
            for _, window, kind, limit, shown, unit in _set(subject.limits):
                yield QuotaWindow(
                    name=shown,
                    of=subject.of,
                    unit=unit,
                    limit=limit,
                    used=account.used[window][kind],
                    held=account.held[window][kind],
                    seconds=ends[window] - starts[window],
                    reset_seconds=_seconds(ends[window] - at),
                )
            if (most := subject.limits.concurrent) is not None:
                yield QuotaWindow(
                    name=CONCURRENT[0],
                    of=subject.of,
                    unit=CONCURRENT[1],
                    limit=most,
                    used=0,
                    held=account.open,
                )

    def _account(self, subject: QuotaSubject, starts: Sequence[int]) -> UsageAccount:
        account = self._accounts.get(subject.name)
        if account is None:
            account = UsageAccount(starts)
            if len(self._accounts) >= ACCOUNTS_MAX:
                self._prune(starts)
            if len(self._accounts) < ACCOUNTS_MAX:
                self._accounts[subject.name] = account
            elif subject.limits is not None:
                raise Overloaded(f"{ACCOUNTS_MAX} users and keys are active")
        account.roll(starts)
        return account

    def _prune(self, starts: Sequence[int]) -> None:
        """Forget whose month is over."""
        old = [
            name
            for name, account in self._accounts.items()
            if not account.open and account.starts[MONTH] < starts[MONTH]
        ]
        for name in old:
            del self._accounts[name]

    def _let_go(self, held: _Hold) -> None:
        less = tuple(-part for part in held.amount)
        for account in held.accounts:
            account.open -= 1
            _add(account.held, account, held.starts, less)

    def _starts(self, at: float) -> tuple[int, int, int]:
        seconds = int(at)
        if not self._month[0] <= seconds < self._month[1]:
            first = datetime.fromtimestamp(seconds, UTC).replace(
                day=1, hour=0, minute=0, second=0, microsecond=0
            )
            begin = int(first.timestamp())
            self._month = (begin, begin + calendar.monthrange(first.year, first.month)[1] * 86_400)
        return seconds - seconds % 60, seconds - seconds % 86_400, self._month[0]

    def _end(self, window: int) -> int:
        starts = self._starts(self._clock())
        return self._month[1] if window == MONTH else starts[window] + (60, 86_400)[window]


@lru_cache(maxsize=1024)
def _set(limits: QuotaLimits) -> tuple[tuple[str, int, int, int, str, str], ...]:
    """Those limits that are set: name, window, kind, limit, name as shown, unit."""
    found = (
        (name, window, kind, getattr(limits, name), _shown(name), unit)
        for name, window, kind, unit in LIMITS
    )
    return tuple(each for each in found if each[3] is not None)


def format_policy(of: str, name: str) -> str:
    """The name of a limit in the `RateLimit` headers, such as `user-tokens-per-day`."""
    return f"{of}-{_shown(name).replace('_', '-')}"


def _add(
    sums: list[list[int]], account: UsageAccount, starts: Sequence[int], amount: Sequence[int]
) -> None:
    """Add to every window that is still the one in which the answer began."""
    for window, start in enumerate(starts):
        if account.starts[window] == start:
            one = sums[window]
            one[0] += amount[0]
            one[1] += amount[1]
            one[2] += amount[2]


def _shown(name: str) -> str:
    return name.replace("nano_usd", "usd")


def _unit(name: str) -> str:
    return (
        "tokens"
        if name.startswith("tokens")
        else "nano-dollars"
        if name.startswith("cost")
        else "requests"
    )


def _seconds(seconds: float) -> int:
    return max(1, int(seconds) + (seconds % 1 > 0))
