"""Latencies as counts in fixed logarithmic bins, whose sums have percentiles.

Bins have the same bounds everywhere and forever, so counts of any answers can be added. Up to 25 ms
each millisecond is a bin; then a bin is 4 % wide, so a percentile differs from the exact one by at
most 2 %. The last bin has no end.
"""

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate

WIDTH = 1.04
LIMIT_MS = 10_000_000


def _list_bounds() -> list[int]:
    """The first millisecond of each bin."""
    bounds = list(range(26))
    while bounds[-1] < LIMIT_MS:
        bounds.append(max(bounds[-1] + 1, int(bounds[-1] * WIDTH)))
    return bounds


BOUNDS_MS = _list_bounds()


def find_bin(milliseconds: int) -> int:
    """The bin of a latency."""
    return bisect_right(BOUNDS_MS, max(0, milliseconds)) - 1


def compute_percentile(counts: Mapping[int, int], percent: float) -> float | None:
    """The latency in milliseconds that `percent` of the answers do not exceed (nearest rank).

    None without answers. Within a bin it is the value whose relative error is the smallest.
    """
    bins = sorted(n for n, count in counts.items() if count > 0)
    sums = list(accumulate(counts[n] for n in bins))
    if not sums:
        return None
    rank = max(1, -(-sums[-1] * percent // 100))
    n = next(n for n, total in zip(bins, sums, strict=True) if total >= rank)
    first = BOUNDS_MS[n]
    last = BOUNDS_MS[n + 1] - 1 if n + 1 < len(BOUNDS_MS) else first
    return 2 * first * last / (first + last) if last else 0.0
