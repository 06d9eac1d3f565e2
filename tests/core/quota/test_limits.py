"""Checks of limits: what the implementations of `Quota` share."""

import pytest

from service.core.errors import QuotaExceeded
from service.core.ports import QuotaLimits, QuotaSubject, QuotaWindow
from service.core.quota.limits import LimitChecker, iterate_windows, read_account
from service.core.quota.windows import DAY, UsageAccount, compute_starts

NOON = 1_806_000_000.0


def user(**limits: int) -> QuotaSubject:
    """A user with these limits."""
    return QuotaSubject.for_user("alice", QuotaLimits(**limits))


def create_account(*, used: int, held: int) -> UsageAccount:
    """An account with these tokens today, and one open hold."""
    account = UsageAccount()
    window = account.open_window(DAY, compute_starts(NOON)[DAY])
    window.used[1], window.held[1], account.open = used, held, 1
    return account


def list_none(_subjects: object) -> list[QuotaWindow]:
    """No windows."""
    return []


@pytest.mark.parametrize(("used", "soon"), [(10, True), (91, False)])
def test_the_retry_delay_depends_on_holds(used: int, soon: bool) -> None:
    """If only holds are in the way the delay is a second, otherwise the rest of the window."""
    account = create_account(used=used, held=100 - used)
    checker = LimitChecker(lambda: NOON, list_none)
    starts, amount = compute_starts(NOON), (1, 10, 0)
    with pytest.raises(QuotaExceeded) as caught:
        checker.check_hold([user(tokens_per_day=100)], [account], starts, amount, None)

    assert (caught.value.retry_after_seconds == 1) is soon


def test_windows_have_used_and_held_amounts() -> None:
    """The state of a limit is that of its current window."""
    accounts = {"user:alice": create_account(used=10, held=20)}
    (window,) = iterate_windows([user(tokens_per_day=100)], accounts, NOON)

    assert (window.limit, window.used, window.held) == (100, 10, 20)


def test_an_unknown_account_is_empty() -> None:
    """A subject without an account has used nothing."""
    usage = read_account(None, NOON)

    assert usage["tokens_per_day"] == usage["concurrent"] == (0, 0)
