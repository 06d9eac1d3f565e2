"""Quota in memory: usage and holds of users and keys against their limits. Synchronous arithmetic.

    hold ──► settled      once, with the actual usage, usually less than the hold
      │ └──► released     the answer was refused before anything was used
      └────► expired      no outcome arrived; usage that arrives later is still added

A hold reserves the upper bound in every limited window of the user and the key, or nothing.
Therefore `used + held ≤ limit` in every window under any concurrency: checking and reserving are
one step without an await. Usage can exceed a limit in two ways, both afterwards: an outcome that
arrives after its hold has expired, and a provider that returns more than was requested.

An answer is charged to the minute, day and month (UTC) in which it started, whenever it ends, as in
the log. `concurrent` has no window: it counts holds. Unknown usage is charged as the full hold: it
may have been billed, and disconnecting early must not be a way to avoid charges.

The clock may jump. Windows are found by their start (`windows.py`), so usage before a jump counts
again when the clock returns, and holds expire by the monotonic clock. A window is known if all of
its usage is in memory: because it began in this process, or was loaded from the log
(`history.py`). If the current window is not known, as at the start of the process or after a jump
to an earlier time, callers with limits wait for `load`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from service.core.errors import DatabaseUnavailable, Overloaded
from service.core.ports import QuotaStatistics, QuotaSubject, QuotaWindow
from service.core.quota.limits import LimitChecker, iterate_windows, read_account
from service.core.quota.windows import (
    COST,
    MONTH,
    TOKENS,
    Starts,
    UsageAccount,
    UsageWindow,
    add_amount,
    compute_starts,
)

ACCOUNTS_MAX = 100_000  # users and keys active this month
LOAD_SECONDS = 5  # how long callers with limits wait for `load`
_NEVER = 2**62  # later than any window

LoadedUsage = Sequence[Mapping[tuple[str, int], Sequence[int]]]
"""By kind of window: (requests, tokens, nano-dollars) by subject and start of the window."""


class _Hold(msgspec.Struct):
    name: str
    subjects: Sequence[QuotaSubject]
    accounts: list[UsageAccount]
    starts: Starts
    amount: tuple[int, int, int]
    expires_at: float  # monotonic
    windows: list[UsageWindow]  # of all accounts; those with holds are not dropped


class _Settlement(msgspec.Struct, frozen=True):
    """Usage that the log may not contain yet."""

    name: str
    subjects: Sequence[str]
    starts: Starts
    amounts: Sequence[tuple[int, int, int]]  # by subject


class LocalQuotaStatistics(QuotaStatistics, frozen=True):
    """`expired`: holds without an outcome. `late`: those whose outcome arrived afterwards."""

    loaded: bool
    accounts: int
    expired: int
    late: int


class LocalQuota:
    """The quota of one process. Callers with a limit wait up to `load_seconds` for `load`.

    `clock` is the time of day, which decides about windows; `monotonic` about the expiry of holds.
    """

    def __init__(
        self,
        ttl_seconds: float,
        *,
        load_seconds: float = LOAD_SECONDS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl_seconds, self._load_seconds = ttl_seconds, load_seconds
        self._clock, self._monotonic = clock, monotonic
        self._accounts: dict[str, UsageAccount] = {}
        self._holds: dict[str, _Hold] = {}  # in order of expiry: the TTL is the same for all
        self._expired_holds: dict[str, _Hold] = {}  # waiting for a late outcome; bounded like holds
        self._expired_count = self._late_count = 0
        self._checker = LimitChecker(clock, self.windows)
        # By kind of window: those that start in this interval are known.
        self._known_from, self._known_until = [_NEVER] * 3, [_NEVER] * 3
        self._loaded, self._load_requested = asyncio.Event(), asyncio.Event()
        # Holds without the subjects that were added since, see `reload_usage`.
        self._earlier_holds: set[str] = set()
        self._load_again = False  # a load that has begun may lack what was required since
        self._load_from: list[int] | None = None  # the earliest windows that callers wait for
        # Since the last time that all usage was in the log; None: not needed.
        self._settled: deque[_Settlement] | None = deque(maxlen=ACCOUNTS_MAX)

    async def hold(
        self,
        name: str,
        subjects: Sequence[QuotaSubject],
        *,
        tokens: int,
        nano_usd: int | None,
        created_at: float | None = None,
    ) -> None:
        """Hold for the answer `name`, for all subjects or none.

        `created_at` decides about the windows; default: now. Raises `QuotaExceeded`,
        `BeyondQuota`, `UnpricedModel`, `Overloaded` and `DatabaseUnavailable`.
        """
        starts = compute_starts(self._clock() if created_at is None else created_at)
        await self._wait_known(subjects, starts)
        self.expire()
        amount = (1, tokens, nano_usd or 0)
        accounts = [self._get_account(subject) for subject in subjects]
        hold = _Hold(name, subjects, accounts, starts, amount, 0, [])
        self._checker.check_hold(subjects, accounts, starts, amount, nano_usd)
        self._add_hold(hold)

    async def grow(self, name: str, *, tokens: int, nano_usd: int | None) -> None:
        """Change the amount of a hold. Raises like `hold`; the hold is then unchanged.

        An expired hold is made again, if there is still room for it.
        """
        hold = self._holds.get(name)
        amount = (1, tokens, nano_usd or 0)
        if hold is None:
            expired = self._expired_holds.get(name)
            if expired is None:
                raise Overloaded("the quota hold of this answer has expired")
            await self._wait_known(expired.subjects, expired.starts)
            renewed = msgspec.structs.replace(expired, amount=amount)
            self._checker.check_hold(
                renewed.subjects, renewed.accounts, renewed.starts, amount, nano_usd
            )
            if self._expired_holds.pop(name, None) is not None:
                self._add_hold(renewed)
            return
        increase = (0, tokens - hold.amount[TOKENS], amount[COST] - hold.amount[COST])
        for subject, account in zip(hold.subjects, hold.accounts, strict=True):
            if subject.limits is not None:
                self._checker.check_limits(
                    subject, account, hold.starts, amount, increase, nano_usd
                )
        self._change_held(hold, increase)
        hold.amount = amount

    def settle(
        self,
        name: str,
        *,
        tokens: int,
        nano_usd: int,
        shares: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """Replace a hold by the actual usage. Idempotent; unknown names are ignored."""
        hold = self._holds.pop(name, None)
        if hold is None:
            hold = self._expired_holds.pop(name, None)
            if hold is None:
                return
            self._late_count += 1
        else:
            self._return_hold(hold)
        amounts = [(1, tokens, nano_usd)] * len(hold.accounts)
        if shares is not None:
            whole = (tokens, nano_usd)
            amounts = [(1, *shares.get(subject.name, whole)) for subject in hold.subjects]
        for account, amount in zip(hold.accounts, amounts, strict=True):
            self._add_used(account, hold.starts, amount)
        if self._settled is not None:
            names = [subject.name for subject in hold.subjects]
            self._settled.append(_Settlement(name, names, hold.starts, amounts))
        if name in self._earlier_holds:
            self._earlier_holds.remove(name)
            self._require_load()

    def release(self, name: str) -> None:
        """Drop the hold of a refused answer. Idempotent."""
        if (hold := self._holds.pop(name, None)) is not None:
            self._return_hold(hold)
        self._expired_holds.pop(name, None)
        self._earlier_holds.discard(name)

    def remove_written(self, names: Iterable[str]) -> None:
        """Nothing: `settle` has removed the holds of rows that are written now."""

    def expire(self) -> int:
        """Expire overdue holds and return their number."""
        count, now = 0, self._monotonic()
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
        return list(iterate_windows(subjects, self._accounts, self._clock()))

    async def refresh(self, subjects: Sequence[QuotaSubject]) -> None:
        """The state in memory is always current."""

    def get_usage(self, subject: str) -> Mapping[str, tuple[int, int]]:
        """(used, held) of a subject by the names of `LIMITS` and `concurrent`, limited or not."""
        return read_account(self._accounts.get(subject), self._clock())

    def statistics(self) -> LocalQuotaStatistics:
        """An immutable snapshot of the counters."""
        return LocalQuotaStatistics(
            loaded=self._loaded.is_set(),
            accounts=len(self._accounts),
            holds=len(self._holds),
            expired=self._expired_count,
            late=self._late_count,
        )

    # Loading, by `history.rebuild_usage`.

    async def wait_load_requested(self) -> None:
        """Wait until usage must be loaded again, because the clock jumped to an unknown window."""
        await self._load_requested.wait()
        self._load_again = False

    def reload_usage(self) -> None:
        """Load usage again, because the log has usage of subjects that were not held for.

        Callers with limits wait until it is loaded. Answers in progress are charged to these
        subjects when they have ended: then usage is loaded once more.
        """
        self._earlier_holds = {*self._holds, *self._expired_holds}
        self._require_load()

    def _require_load(self) -> None:
        self._known_from, self._load_again = [_NEVER] * 3, True
        self._request_load(compute_starts(self._clock()))

    def get_load_starts(self) -> Starts:
        """The windows to load: these and all later ones."""
        minute, day, month = compute_starts(self._clock())
        if self._load_from is None:
            return minute, day, month
        earliest = self._load_from
        return min(minute, earliest[0]), min(day, earliest[1]), min(month, earliest[2])

    def list_settled(self) -> list[str]:
        """The answers settled since usage had to be loaded: the log may contain them or not."""
        return [settlement.name for settlement in self._settled or ()]

    def load(
        self,
        starts: Starts,
        usage: LoadedUsage,
        logged: Collection[str] = (),
        *,
        minutes_until: int = _NEVER,
    ) -> None:
        """Replace the usage of the windows from `starts` by that of the log.

        `logged`: those of `list_settled` that the usage includes; the others are added.
        `minutes_until`: minutes from here on have usage that was not read.
        """
        self._reset_used(starts)
        for kind, amounts in enumerate(usage):
            for (subject, start), amount in amounts.items():
                if subject not in self._accounts:
                    if len(self._accounts) >= ACCOUNTS_MAX:
                        continue
                    self._accounts[subject] = UsageAccount()
                self._accounts[subject].open_window(kind, start).used = list(amount)
        self._known_from, self._known_until = list(starts), [minutes_until, _NEVER, _NEVER]
        for settlement in self._settled or ():
            if settlement.name not in logged:
                self._add_settlement(settlement)
        self._load_from = self._settled = None
        self._load_requested.clear()
        self._loaded.set()
        if self._load_again:
            self._require_load()

    def _reset_used(self, starts: Starts) -> None:
        for account in self._accounts.values():
            for kind, start in enumerate(starts):
                for at in account.list_starts(kind):
                    if at >= start:
                        account.open_window(kind, at).used = [0, 0, 0]

    def _add_settlement(self, settlement: _Settlement) -> None:
        for subject, amount in zip(settlement.subjects, settlement.amounts, strict=True):
            if subject in self._accounts:
                self._add_used(self._accounts[subject], settlement.starts, amount)

    async def _wait_known(self, subjects: Sequence[QuotaSubject], starts: Starts) -> None:
        """Wait until the usage of these windows is known, if there are limits."""
        if self._is_known(starts) or all(subject.limits is None for subject in subjects):
            return
        try:
            async with asyncio.timeout(self._load_seconds):
                while not self._is_known(starts):
                    self._request_load(starts)
                    await self._loaded.wait()
        except TimeoutError as error:
            raise DatabaseUnavailable("earlier usage has not been loaded yet") from error

    def _is_known(self, starts: Starts) -> bool:
        intervals = zip(starts, self._known_from, self._known_until, strict=True)
        return all(first <= start < end for start, first, end in intervals)

    def _request_load(self, starts: Starts) -> None:
        earliest = self._load_from or list(starts)
        self._load_from = [min(pair) for pair in zip(earliest, starts, strict=True)]
        self._loaded.clear()
        if self._settled is None:
            self._settled = deque(maxlen=ACCOUNTS_MAX)
        self._load_requested.set()

    def _get_account(self, subject: QuotaSubject) -> UsageAccount:
        account = self._accounts.get(subject.name)
        if account is None:
            account = UsageAccount()
            if len(self._accounts) >= ACCOUNTS_MAX:
                self._remove_inactive()
            if len(self._accounts) < ACCOUNTS_MAX:
                self._accounts[subject.name] = account
            elif subject.limits is not None:
                raise Overloaded("too many users and keys are active this month")
        return account

    def _remove_inactive(self) -> None:
        """Drop accounts that were last active in an earlier month."""
        month = compute_starts(self._clock())[MONTH]
        for name, account in list(self._accounts.items()):
            if not account.open and all(start < month for start in account.list_starts(MONTH)):
                del self._accounts[name]
                for kind in range(3):
                    self._forget_window(kind, max(account.list_starts(kind), default=0))

    def _forget_window(self, kind: int, start: int) -> None:
        """Note that this window was dropped: it and earlier ones are no longer known."""
        self._known_from[kind] = max(self._known_from[kind], start + 1)

    def _add_hold(self, hold: _Hold) -> None:
        hold.expires_at = self._monotonic() + self._ttl_seconds
        self._holds[hold.name] = hold
        hold.windows = []
        for account in hold.accounts:
            account.open += 1
            for kind, start in enumerate(hold.starts):
                hold.windows.append(
                    account.windows[kind].get(start) or self._open_window(account, kind, start)
                )
        self._change_held(hold, hold.amount)

    def _return_hold(self, hold: _Hold) -> None:
        for account in hold.accounts:
            account.open -= 1
        self._change_held(hold, [-part for part in hold.amount])

    def _change_held(self, hold: _Hold, change: Sequence[int]) -> None:
        requests, tokens, nano_usd = change
        for window in hold.windows:
            held = window.held
            held[0] += requests
            held[1] += tokens
            held[2] += nano_usd

    def _add_used(
        self, account: UsageAccount, starts: Sequence[int], amount: Sequence[int]
    ) -> None:
        """Add usage to the windows that are known; others will be loaded from the log."""
        for kind, start in enumerate(starts):
            window = account.windows[kind].get(start)
            if window is None:
                if not self._known_from[kind] <= start < self._known_until[kind]:
                    continue
                window = self._open_window(account, kind, start)
            add_amount(window.used, amount)

    def _open_window(self, account: UsageAccount, kind: int, start: int) -> UsageWindow:
        """Create a window, and drop others beyond the maximum."""
        window = account.open_window(kind, start)
        if (earlier := account.drop_earlier(kind, start)) is not None:
            self._forget_window(kind, earlier)
        if (later := account.drop_later(kind, start)) is not None:
            self._known_until[kind] = min(self._known_until[kind], later)
        return window
