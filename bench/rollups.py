"""The rollups of generated rows, computed while they are generated.

Computing them with the service, from the rows, takes several times as long as writing the rows.
`kotae audit` compares both.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from service.core.accounting.latency_bins import find_bin
from service.core.accounting.rollups import (
    COUNTS,
    DIMENSIONS,
    LATENCIES,
    TOKENS,
    Group,
    compute_group_id,
)
from service.core.encoding import find_quarter

# The tables with their columns, in the order of `RollupSums.take`.
TABLES = {
    "rollup_groups": ("id", *DIMENSIONS),
    "rollups": ("quarter", "group_id", *COUNTS),
    "latency_counts": ("quarter", "group_id", "kind", "bin", "answers"),
}
_find_bin = lru_cache(10_000)(find_bin)


class RollupSums:
    """Sums of rows in the order of their times, whose answers have one attempt each."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self._position = {name: columns.index(name) for name in columns}
        self._groups: dict[Group, int] = {}
        self._written = 0  # groups
        self._minute, self._quarter = "", 0
        self._counts: dict[int, list[int]] = {}
        self._bins: dict[tuple[int, int, int], int] = {}
        self._finished: dict[str, list[tuple[Any, ...]]] = {name: [] for name in TABLES}

    def follow(self, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Yield the rows, and add each of them."""
        for row in rows:
            self._add(row)
            yield row

    def take(self, *, last: bool = False) -> Mapping[str, list[tuple[Any, ...]]]:
        """Return the rows of `TABLES` that are complete; with `last`, all others too."""
        if last:
            self._finish_quarter()
        self._finished["rollup_groups"] = [
            (group_id, *group) for group, group_id in list(self._groups.items())[self._written :]
        ]
        self._written = len(self._groups)
        finished, self._finished = self._finished, {name: [] for name in TABLES}
        return finished

    def _add(self, row: tuple[Any, ...]) -> None:
        at = self._position
        minute = row[at["created_at"]][:16]
        if minute != self._minute:
            self._minute = minute
            quarter = find_quarter(datetime.fromisoformat(minute).replace(tzinfo=UTC))
            if quarter != self._quarter:
                self._finish_quarter()
                self._quarter = quarter
        group = tuple(row[at[name]] if name in at else "" for name in DIMENSIONS)
        group_id = self._groups.get(group)
        if group_id is None:
            group_id = self._groups[group] = compute_group_id(group)
        counts = self._counts.get(group_id)
        if counts is None:
            counts = self._counts[group_id] = [0] * len(COUNTS)
        cost = row[at["cost_nano_usd"]]
        used = [row[at[name]] or 0 for name in TOKENS]
        for n, value in enumerate((1, row[at["attempts"]], *used, cost or 0, int(cost is None))):
            counts[n] += value
        for kind, name in enumerate(LATENCIES):
            key = group_id, kind, _find_bin(row[at[name]])
            self._bins[key] = self._bins.get(key, 0) + 1

    def _finish_quarter(self) -> None:
        quarter = self._quarter
        self._finished["rollups"] += [
            (quarter, group_id, *counts) for group_id, counts in sorted(self._counts.items())
        ]
        self._finished["latency_counts"] += [
            (quarter, *key, count) for key, count in sorted(self._bins.items())
        ]
        self._counts, self._bins = {}, {}
