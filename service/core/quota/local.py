"""Quota in memory: usage and holds of users and keys against their limits. Synchronous arithmetic.

    hold ──► settled      once, with the actual usage, usually less than the hold
      │ └──► released     the answer was refused before anything was used
      └────► expired      no outcome arrived; usage that arrives later is still added

A hold reserves the upper bound in every limited window of the user and the key, or nothing.
Therefore `used + held ≤ limit` in every window under any concurrency: checking and reserving are
one step without an await. Usage can exceed a limit in two ways, both afterwards: an outcome that
arrives after its hold has expired, and a provider that returns more than was requested.

Windows are fixed: an answer is charged to the minute, day and month (UTC) in which it started,
whenever it ends, as in the log. `concurrent` has no window: it counts holds.

Unknown usage is charged as the full hold: it may have been billed, and disconnecting early must
not be a way to avoid charges.

Until `load` has added the usage of earlier processes, callers with limits wait: see `history`.
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
LOAD_SECONDS = 5  # how long callers with limits wait for `load`
SOON_SECONDS = 1  # retry delay if only holds are in the way: they end with their answers
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
    """One user or key: start, usage and holds of each window (requests, tokens, nano-dollars)."""

    __slots__ = ("held", "open", "starts", "used")

    def __init__(self, starts: Sequence[int]) -> None:
        self.starts = list(starts)
        self.used = [[0, 0, 0] for _ in starts]
        self.held = [[0, 0, 0] for _ in starts]
        self.open = 0

    def roll_windows(self, starts: Sequence[int]) -> None:
        """Reset the windows that have ended. A clock that goes back changes nothing."""
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
    """`expired`: holds without an outcome. `late`: those whose outcome arrived afterwards."""

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
        self._holds: dict[str, _Hold] = {}  # in order of expiry: the TTL is the same for all
        self._expired_holds: dict[str, _Hold] = {}  # waiting for a late outcome; bounded like holds
        self._month = (0, 0)
        self._expired_count = self._late_count = 0
        self._loaded = asyncio.Event()

    async def hold(
        self, name: str, subjects: Sequence[QuotaSubject], *, tokens: int, nano_usd: int | None
    ) -> None:
        """Hold for the answer `name`, for all subjects or none.

        Raises `QuotaExceeded`, `BeyondQuota`, `UnpricedModel`, `Overloaded` and
        `DatabaseUnavailable`.
        """
        if not self._loaded.is_set() and any(subject.limits is not None for subject in subjects):
            await self._wait_loaded()
        self.expire()
        now = self._clock()
        starts = self._compute_starts(now)
        amount = (1, tokens, nano_usd or 0)
        accounts = [self._get_account(subject, starts) for subject in subjects]
        for subject, account in zip(subjects, accounts, strict=True):
            if subject.limits is not None:
                self._check_limits(subject, account, subject.limits, amount, amount, nano_usd, now)
                if (
                    concurrent_max := subject.limits.concurrent
                ) is not None and account.open >= concurrent_max:
                    self._raise_exceeded(
                        subject, CONCURRENT[0], concurrent_max, 1, subjects, SOON_SECONDS
                    )
        for account in accounts:
            account.open += 1
            _add_amount(account.held, account, starts, amount)
        self._holds[name] = _Hold(subjects, accounts, starts, amount, now + self._ttl_seconds)

    async def grow(self, name: str, *, tokens: int, nano_usd: int | None) -> None:
        """Change the amount of a hold. Raises like `hold`; the hold is then unchanged."""
        hold = self._holds[name]
        amount = (1, tokens, nano_usd or 0)
        increase = (0, tokens - hold.amount[TOKENS], amount[COST] - hold.amount[COST])
        now = self._clock()
        for subject, account in zip(hold.subjects, hold.accounts, strict=True):
            if subject.limits is not None:
                self._check_limits(
                    subject, account, subject.limits, amount, increase, nano_usd, now
                )
        for account in hold.accounts:
            _add_amount(account.held, account, hold.starts, increase)
        hold.amount = amount

    def settle(self, name: str, *, tokens: int, nano_usd: int) -> None:
        """Replace a hold by the actual usage. Idempotent; unknown names are ignored."""
        hold = self._holds.pop(name, None)
        if hold is None:
            hold = self._expired_holds.pop(name, None)
            if hold is None:
                return
            self._late_count += 1
        else:
            self._return_hold(hold)
        for account in hold.accounts:
            _add_amount(account.used, account, hold.starts, (1, tokens, nano_usd))

    def release(self, name: str) -> None:
        """Drop the hold of a refused answer. Idempotent."""
        if (hold := self._holds.pop(name, None)) is not None:
            self._return_hold(hold)

    def expire(self) -> int:
        """Expire overdue holds and return their number."""
        count, now = 0, self._clock()
        while (
            self._holds
            and (name := next(iter(self._holds)))
            and self._holds[name].expires_at <= now
        ):
            hold = self._holds.pop(name)
            self._return_hold(hold)
            if len(self._expired_holds) >= ACCOUNTS_MAX:
                del self._expired_holds[next(iter(self._expired_holds))]
            self._expired_holds[name] = hold
            count += 1
        self._expired_count += count
        return count

    def windows(self, subjects: Sequence[QuotaSubject]) -> list[QuotaWindow]:
        """The state of every limit of these subjects."""
        return list(self._iterate_windows(subjects))

    def get_usage(self, subject: str) -> Mapping[str, tuple[int, int]]:
        """(used, held) of a subject by the names of `LIMITS` and `concurrent`, limited or not."""
        account = self._accounts.get(subject)
        if account is None:
            return dict.fromkeys((*(name for name, *_ in LIMITS), CONCURRENT[0]), (0, 0))
        account.roll_windows(self._compute_starts(self._clock()))
        usage = {
            name: (account.used[window][kind], account.held[window][kind])
            for name, window, kind, _ in LIMITS
        }
        return usage | {CONCURRENT[0]: (0, account.open)}

    def load(
        self,
        day: Mapping[str, Sequence[int]],
        month: Mapping[str, Sequence[int]],
        minute: Mapping[str, Sequence[int]],
    ) -> None:
        """Add the usage of earlier processes: (requests, tokens, nano-dollars) by subject."""
        starts = self._compute_starts(self._clock())
        for window, usage in ((MINUTE, minute), (DAY, day), (MONTH, month)):
            for subject, amount in usage.items():
                account = self._accounts.get(subject)
                if account is None:
                    if len(self._accounts) >= ACCOUNTS_MAX:
                        continue
                    account = self._accounts[subject] = UsageAccount(starts)
                account.roll_windows(starts)
                account.used[window] = [
                    before + added
                    for before, added in zip(account.used[window], amount, strict=True)
                ]
        self._loaded.set()

    async def _wait_loaded(self) -> None:
        try:
            async with asyncio.timeout(self._load_seconds):
                await self._loaded.wait()
        except TimeoutError as error:
            raise DatabaseUnavailable("earlier usage has not been loaded yet") from error

    def get_window_starts(self) -> tuple[int, int, int]:
        """Start of the current windows, in seconds since 1970: minute, day, month."""
        return self._compute_starts(self._clock())

    def statistics(self) -> LocalQuotaStatistics:
        """An immutable snapshot of the counters."""
        return LocalQuotaStatistics(
            loaded=self._loaded.is_set(),
            accounts=len(self._accounts),
            holds=len(self._holds),
            expired=self._expired_count,
            late=self._late_count,
        )

    def _check_limits(
        self,
        subject: QuotaSubject,
        account: UsageAccount,
        limits: QuotaLimits,
        bound: Sequence[int],
        increase: Sequence[int],
        nano_usd: int | None,
        now: float,
    ) -> None:
        """Raise if `bound` can never fit a limit, or `increase` does not fit now."""
        for name, window, kind, limit, _, _ in _list_limits(limits):
            if kind == COST and nano_usd is None:
                raise UnpricedModel(
                    f"{_get_wire_name(name)} is limited, and the model has no known price"
                )
            used, held = account.used[window][kind], account.held[window][kind]
            if bound[kind] > limit:
                raise BeyondQuota(
                    f"the request needs up to {bound[kind]} {_get_unit(name)}, more than the "
                    f"{_get_wire_name(name)} of this {subject.of} ({limit}) allows",
                    extra={"limit": _get_wire_name(name), "of": subject.of},
                )
            if increase[kind] > 0 and used + held + increase[kind] > limit:
                wait = (
                    SOON_SECONDS
                    if used + bound[kind] <= limit
                    else _round_up(self._compute_end(window) - now)
                )
                self._raise_exceeded(subject, name, limit, increase[kind], [subject], wait)

    def _raise_exceeded(
        self,
        subject: QuotaSubject,
        name: str,
        limit: int,
        needed: int,
        subjects: Sequence[QuotaSubject],
        retry_after_seconds: int,
    ) -> None:
        error = QuotaExceeded(
            f"{needed} more would exceed the {_get_wire_name(name)} of this {subject.of} ({limit})",
            retry_after_seconds=retry_after_seconds,
            extra={
                "limit": _get_wire_name(name),
                "of": subject.of,
                "violated-policies": [format_policy(subject.of, name)],
            },
        )
        error.windows = self.windows(subjects)
        raise error

    def _iterate_windows(self, subjects: Sequence[QuotaSubject]) -> Iterator[QuotaWindow]:
        now = self._clock()
        starts = self._compute_starts(now)
        ends = (starts[MINUTE] + 60, starts[DAY] + 86_400, self._month[1])
        for subject in subjects:
            if subject.limits is None:
                continue
            account = self._accounts.get(subject.name) or UsageAccount(starts)
            account.roll_windows(starts)
            for _, window, kind, limit, wire_name, unit in _list_limits(subject.limits):
                yield QuotaWindow(
                    name=wire_name,
                    of=subject.of,
                    unit=unit,
                    limit=limit,
                    used=account.used[window][kind],
                    held=account.held[window][kind],
                    seconds=ends[window] - starts[window],
                    reset_seconds=_round_up(ends[window] - now),
                )
            if (concurrent_max := subject.limits.concurrent) is not None:
                yield QuotaWindow(
                    name=CONCURRENT[0],
                    of=subject.of,
                    unit=CONCURRENT[1],
                    limit=concurrent_max,
                    used=0,
                    held=account.open,
                )

    def _get_account(self, subject: QuotaSubject, starts: Sequence[int]) -> UsageAccount:
        account = self._accounts.get(subject.name)
        if account is None:
            account = UsageAccount(starts)
            if len(self._accounts) >= ACCOUNTS_MAX:
                self._remove_inactive(starts)
            if len(self._accounts) < ACCOUNTS_MAX:
                self._accounts[subject.name] = account
            elif subject.limits is not None:
                raise Overloaded(f"{ACCOUNTS_MAX} users and keys are active this month")
        account.roll_windows(starts)
        return account

    def _remove_inactive(self, starts: Sequence[int]) -> None:
        """Drop accounts that were last active in an earlier month."""
        inactive = [
            name
            for name, account in self._accounts.items()
            if not account.open and account.starts[MONTH] < starts[MONTH]
        ]
        for name in inactive:
            del self._accounts[name]

    def _return_hold(self, hold: _Hold) -> None:
        decrease = tuple(-part for part in hold.amount)
        for account in hold.accounts:
            account.open -= 1
            _add_amount(account.held, account, hold.starts, decrease)

    def _compute_starts(self, now: float) -> tuple[int, int, int]:
        seconds = int(now)
        if not self._month[0] <= seconds < self._month[1]:
            first = datetime.fromtimestamp(seconds, UTC).replace(
                day=1, hour=0, minute=0, second=0, microsecond=0
            )
            begin = int(first.timestamp())
            self._month = (begin, begin + calendar.monthrange(first.year, first.month)[1] * 86_400)
        return seconds - seconds % 60, seconds - seconds % 86_400, self._month[0]

    def _compute_end(self, window: int) -> int:
        starts = self._compute_starts(self._clock())
        return self._month[1] if window == MONTH else starts[window] + (60, 86_400)[window]


@lru_cache(maxsize=1024)
def _list_limits(limits: QuotaLimits) -> tuple[tuple[str, int, int, int, str, str], ...]:
    """The limits that are set: (name, window, kind, limit, name on the wire, unit)."""
    limit_rows = (
        (name, window, kind, getattr(limits, name), _get_wire_name(name), unit)
        for name, window, kind, unit in LIMITS
    )
    return tuple(row for row in limit_rows if row[3] is not None)


def format_policy(of: str, name: str) -> str:
    """The name of a limit in the `RateLimit` headers, such as `user-tokens-per-day`."""
    return f"{of}-{_get_wire_name(name).replace('_', '-')}"


def _add_amount(
    sums: list[list[int]], account: UsageAccount, starts: Sequence[int], amount: Sequence[int]
) -> None:
    """Add to the windows that are still the ones in which the answer started."""
    for window, start in enumerate(starts):
        if account.starts[window] == start:
            totals = sums[window]
            totals[0] += amount[0]
            totals[1] += amount[1]
            totals[2] += amount[2]


def _get_wire_name(name: str) -> str:
    return name.replace("nano_usd", "usd")


def _get_unit(name: str) -> str:
    return (
        "tokens"
        if name.startswith("tokens")
        else "nano-dollars"
        if name.startswith("cost")
        else "requests"
    )


def _round_up(seconds: float) -> int:
    return max(1, int(seconds) + (seconds % 1 > 0))
