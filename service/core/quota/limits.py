"""Checks of holds against limits, and the state of limits, from the accounts of subjects.

Every implementation of `Quota` uses these, so refusals have the same details everywhere. A store
outside of this process decides by itself whether a hold fits, and returns the accounts that it
compared; the error is created here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from service.core.errors import BeyondQuota, QuotaExceeded, UnpricedModel
from service.core.ports import BUDGET, QuotaLimits, QuotaSubject, QuotaWindow
from service.core.quota.windows import (
    CONCURRENT,
    COST,
    LIMITS,
    Starts,
    UsageAccount,
    compute_end,
    compute_starts,
    get_unit,
    get_wire_name,
    list_limits,
)

SOON_SECONDS = 1  # retry delay if only holds are in the way: they end with their answers


class LimitChecker:
    """Raises the errors of holds that do not fit. `list_windows`: the state, for the errors."""

    def __init__(
        self,
        clock: Callable[[], float],
        list_windows: Callable[[Sequence[QuotaSubject]], list[QuotaWindow]],
    ) -> None:
        self._clock, self._list_windows = clock, list_windows

    def check_hold(
        self,
        subjects: Sequence[QuotaSubject],
        accounts: Sequence[UsageAccount],
        starts: Starts,
        amount: Sequence[int],
        nano_usd: int | None,
    ) -> None:
        """Raise if a new hold does not fit. `accounts`: those of the subjects."""
        for subject, account in zip(subjects, accounts, strict=True):
            limits = subject.limits
            if limits is None:
                continue
            self.check_limits(subject, account, starts, amount, amount, nano_usd)
            if (concurrent_max := limits.concurrent) is not None and account.open >= concurrent_max:
                self._raise_exceeded(
                    subject, CONCURRENT[0], concurrent_max, 1, subjects, SOON_SECONDS
                )

    def check_limits(
        self,
        subject: QuotaSubject,
        account: UsageAccount,
        starts: Starts,
        bound: Sequence[int],
        increase: Sequence[int],
        nano_usd: int | None,
    ) -> None:
        """Raise if `bound` can never fit a limit, or `increase` does not fit now."""
        limits = subject.limits or QuotaLimits()
        for name, kind, amount, limit, wire_name, _ in list_limits(limits):
            if amount == COST and nano_usd is None:
                raise UnpricedModel(f"{wire_name} is limited, and the model has no known price")
            window = account.get_window(kind, starts[kind])
            used, held = window.used[amount], window.held[amount]
            if bound[amount] > limit:
                raise BeyondQuota(
                    f"the request needs up to {bound[amount]} {get_unit(name)}, more than the "
                    f"{_describe_limit(subject, wire_name, limit)} allows",
                    extra={"limit": wire_name, "of": subject.of} | _name_budget(subject),
                )
            if increase[amount] > 0 and used + held + increase[amount] > limit:
                wait = (
                    SOON_SECONDS
                    if used + bound[amount] <= limit
                    else _round_up(compute_end(kind, starts[kind]) - self._clock())
                )
                self._raise_exceeded(subject, name, limit, increase[amount], [subject], wait)

    def _raise_exceeded(
        self,
        subject: QuotaSubject,
        name: str,
        limit: int,
        needed: int,
        subjects: Sequence[QuotaSubject],
        retry_after_seconds: int,
    ) -> None:
        wire_name = get_wire_name(name)
        error = QuotaExceeded(
            f"{needed} more would exceed the {_describe_limit(subject, wire_name, limit)}",
            retry_after_seconds=retry_after_seconds,
            extra={
                "limit": wire_name,
                "of": subject.of,
                "violated-policies": [format_policy(subject.of, name)],
                **_name_budget(subject),
            },
        )
        error.windows = self._list_windows([other for other in subjects if other.of != BUDGET])
        raise error


def iterate_windows(
    subjects: Sequence[QuotaSubject], accounts: Mapping[str, UsageAccount], now: float
) -> Iterator[QuotaWindow]:
    """The state of every limit of these subjects in the windows of a time."""
    starts = compute_starts(now)
    for subject in subjects:
        if subject.limits is None:
            continue
        account = accounts.get(subject.name) or UsageAccount()
        for _, kind, amount, limit, wire_name, unit in list_limits(subject.limits):
            window = account.get_window(kind, starts[kind])
            end = compute_end(kind, starts[kind])
            yield QuotaWindow(
                name=wire_name,
                of=subject.of,
                unit=unit,
                limit=limit,
                used=window.used[amount],
                held=window.held[amount],
                seconds=end - starts[kind],
                reset_seconds=_round_up(end - now),
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


def read_account(account: UsageAccount | None, now: float) -> dict[str, tuple[int, int]]:
    """(used, held) in the windows of a time, by the names of `LIMITS` and `concurrent`."""
    account = account or UsageAccount()
    starts = compute_starts(now)
    usage = {}
    for name, kind, amount, _ in LIMITS:
        window = account.get_window(kind, starts[kind])
        usage[name] = (window.used[amount], window.held[amount])
    return usage | {CONCURRENT[0]: (0, account.open)}


def format_policy(of: str, name: str) -> str:
    """The name of a limit in the `RateLimit` headers, such as `user-tokens-per-day`."""
    return f"{of}-{get_wire_name(name).replace('_', '-')}"


def _describe_limit(subject: QuotaSubject, wire_name: str, limit: int) -> str:
    """A limit in messages. That of a budget is not told: others share it."""
    if subject.of == BUDGET:
        return f"{wire_name} of the budget {subject.title}"
    return f"{wire_name} of this {subject.of} ({limit})"


def _name_budget(subject: QuotaSubject) -> dict[str, str]:
    return {"budget": subject.title} if subject.of == BUDGET and subject.title else {}


def _round_up(seconds: float) -> int:
    return max(1, int(seconds) + (seconds % 1 > 0))
