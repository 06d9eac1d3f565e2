"""Windows of usage: fixed minutes, days and months (UTC), and the amounts used and held in them.

An account has several windows of each kind, by their start, because the clock of the machine may
jump: after a jump forwards and back, the usage of the first window is still there. Otherwise a
window is dropped a few windows later.
"""

import calendar
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

from service.core.ports import QuotaLimits

MINUTE, DAY, MONTH = 0, 1, 2
REQUESTS, TOKENS, COST = 0, 1, 2
WINDOWS_KEPT = 4  # of each kind; earlier ones are dropped
WINDOWS_MAX = 100  # of each kind, if the clock has jumped back; later ones are dropped
LIMITS = (  # field of QuotaLimits, window, kind, unit
    ("requests_per_minute", MINUTE, REQUESTS, "requests"),
    ("tokens_per_minute", MINUTE, TOKENS, "tokens"),
    ("tokens_per_day", DAY, TOKENS, "tokens"),
    ("tokens_per_month", MONTH, TOKENS, "tokens"),
    ("cost_nano_usd_per_day", DAY, COST, "nano-usd"),
    ("cost_nano_usd_per_month", MONTH, COST, "nano-usd"),
)
CONCURRENT = ("concurrent", "concurrent-requests")
Starts = tuple[int, int, int]


class UsageWindow:
    """Usage and holds of one window: requests, tokens, nano-dollars."""

    __slots__ = ("held", "used")

    def __init__(self) -> None:
        self.used = [0, 0, 0]
        self.held = [0, 0, 0]


_EMPTY = UsageWindow()


class UsageAccount:
    """One user or key: the number of open holds, and windows by kind and start."""

    __slots__ = ("open", "windows")

    def __init__(self) -> None:
        self.open = 0
        self.windows: tuple[dict[int, UsageWindow], ...] = ({}, {}, {})

    def get_window(self, kind: int, start: int) -> UsageWindow:
        """The window with this start, which must not be changed."""
        return self.windows[kind].get(start, _EMPTY)

    def open_window(self, kind: int, start: int) -> UsageWindow:
        """The window with this start, created if necessary."""
        window = self.windows[kind].get(start)
        if window is None:
            window = self.windows[kind][start] = UsageWindow()
        return window

    def drop_earlier(self, kind: int, start: int) -> int | None:
        """Drop windows before `start` and beyond `WINDOWS_KEPT`, the earliest first.

        Windows with holds are kept. Returns the last start that was dropped.
        """
        excess = len(self.windows[kind]) - WINDOWS_KEPT
        if excess <= 0:
            return None
        dropped = sorted(at for at in self._list_droppable(kind) if at < start)[:excess]
        for at in dropped:
            del self.windows[kind][at]
        return dropped[-1] if dropped else None

    def drop_later(self, kind: int, start: int) -> int | None:
        """Drop windows after `start` and beyond `WINDOWS_MAX`, the latest first.

        Windows with holds are kept. Returns the last start that was dropped.
        """
        excess = len(self.windows[kind]) - WINDOWS_MAX
        if excess <= 0:
            return None
        later = sorted((at for at in self._list_droppable(kind) if at > start), reverse=True)
        for at in later[:excess]:
            del self.windows[kind][at]
        return later[:excess][-1] if later else None

    def _list_droppable(self, kind: int) -> list[int]:
        return [at for at, window in self.windows[kind].items() if not any(window.held)]

    def list_starts(self, kind: int) -> list[int]:
        """The starts of the windows of a kind."""
        return list(self.windows[kind])


def compute_starts(at: float) -> Starts:
    """The starts of the minute, day and month of a time, in seconds since 1970."""
    seconds = int(at)
    day = seconds - seconds % 86_400
    return seconds - seconds % 60, day, _compute_month_start(day)


@lru_cache(maxsize=64)
def _compute_month_start(day: int) -> int:
    return int(datetime.fromtimestamp(day, UTC).replace(day=1).timestamp())


def compute_end(kind: int, start: int) -> int:
    """The end of a window, in seconds since 1970."""
    if kind != MONTH:
        return start + (60, 86_400)[kind]
    first = datetime.fromtimestamp(start, UTC)
    return start + calendar.monthrange(first.year, first.month)[1] * 86_400


def add_amount(total: list[int], amount: Sequence[int]) -> None:
    """Add requests, tokens and nano-dollars."""
    total[0] += amount[0]
    total[1] += amount[1]
    total[2] += amount[2]


def get_wire_name(name: str) -> str:
    """The name of a limit in the API."""
    return name.replace("nano_usd", "usd")


def get_unit(name: str) -> str:
    """The unit of a limit in messages."""
    if name.startswith("cost"):
        return "nano-dollars"
    return "tokens" if name.startswith("tokens") else "requests"


@lru_cache(maxsize=1024)
def list_limits(limits: QuotaLimits) -> tuple[tuple[str, int, int, int, str, str], ...]:
    """The limits that are set: (name, window, kind, limit, name on the wire, unit)."""
    return tuple(
        (name, window, kind, limit, get_wire_name(name), unit)
        for name, window, kind, unit in LIMITS
        if (limit := getattr(limits, name)) is not None
    )
