"""Percentiles from counts in bins are close to the exact ones."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from service.core.accounting.latency_bins import BOUNDS_MS, compute_percentile, find_bin


def test_bins_cover_every_latency_once() -> None:
    """Bins are contiguous and, above 25 ms, at most 4 % wide."""
    assert sorted(set(BOUNDS_MS)) == BOUNDS_MS
    assert all(
        after - before == 1 or after <= before * 1.04 for before, after in pairwise(BOUNDS_MS)
    )
    for n, first in enumerate(BOUNDS_MS):
        assert find_bin(first) == n
        assert n == 0 or find_bin(first - 1) == n - 1
    assert (find_bin(-5), find_bin(10**12)) == (0, len(BOUNDS_MS) - 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("percent", [1, 50, 95, 99, 100])
def test_percentile_is_within_two_percent(seed: int, percent: int) -> None:
    """A percentile differs from the exact nearest rank by at most 2 %."""
    choose = random.Random(seed)
    latencies = sorted(int(choose.lognormvariate(5, 2)) for _ in range(choose.choice([1, 7, 1000])))
    counts = Counter(find_bin(value) for value in latencies)
    exact = latencies[max(1, -(-len(latencies) * percent // 100)) - 1]

    assert compute_percentile(counts, percent) == pytest.approx(exact, rel=0.02)


def test_no_answers_have_no_percentile() -> None:
    """Without counts, or with counts that were subtracted again, there is no percentile."""
    assert compute_percentile({}, 50) is None
    assert compute_percentile({3: 0}, 50) is None
