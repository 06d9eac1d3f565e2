"""Windows: their starts and ends, and which are kept."""

from datetime import UTC, datetime

import pytest

from service.core.quota.windows import (
    DAY,
    MINUTE,
    MONTH,
    WINDOWS_KEPT,
    WINDOWS_MAX,
    UsageAccount,
    compute_end,
    compute_starts,
)


def seconds(*parts: int) -> int:
    """Seconds since 1970 of a date."""
    return int(datetime(*parts, tzinfo=UTC).timestamp())  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("at", "starts", "month_end"),
    [
        ((2027, 3, 9, 9, 59, 59), ((2027, 3, 9, 9, 59), (2027, 3, 9), (2027, 3, 1)), (2027, 4, 1)),
        ((2028, 2, 29, 0, 0, 0), ((2028, 2, 29), (2028, 2, 29), (2028, 2, 1)), (2028, 3, 1)),
        ((2026, 12, 1, 0, 1, 0), ((2026, 12, 1, 0, 1), (2026, 12, 1), (2026, 12, 1)), (2027, 1, 1)),
    ],
)  # fmt: skip
def test_starts_and_ends(
    at: tuple[int, ...], starts: tuple[tuple[int, ...], ...], month_end: tuple[int, ...]
) -> None:
    """Minutes, days and months begin and end in UTC."""
    computed = compute_starts(seconds(*at) + 0.5)

    assert computed == tuple(seconds(*start) for start in starts)
    assert compute_end(MINUTE, computed[MINUTE]) == computed[MINUTE] + 60
    assert compute_end(DAY, computed[DAY]) == computed[DAY] + 86_400
    assert compute_end(MONTH, computed[MONTH]) == seconds(*month_end)


def test_earlier_windows_are_dropped() -> None:
    """A few windows before the current one are kept, and those with holds."""
    account = UsageAccount()
    account.open_window(MINUTE, 0).held = [1, 5, 0]
    dropped = []
    for start in range(60, 1_200, 60):
        account.open_window(MINUTE, start)
        dropped.append(account.drop_earlier(MINUTE, start))

    assert sorted(account.list_starts(MINUTE)) == [0, 1_020, 1_080, 1_140]
    assert dropped[-1] == 960
    assert len(account.list_starts(MINUTE)) == WINDOWS_KEPT


def test_later_windows_are_bounded() -> None:
    """Windows after the current one are kept up to a maximum; the latest are dropped."""
    account = UsageAccount()
    for start in range(60, 60 * (WINDOWS_MAX + 3), 60):
        account.open_window(MINUTE, start)
    account.open_window(MINUTE, 0)

    assert account.drop_earlier(MINUTE, 0) is None
    assert account.drop_later(MINUTE, 0) == 60 * WINDOWS_MAX
    assert len(account.list_starts(MINUTE)) == WINDOWS_MAX
