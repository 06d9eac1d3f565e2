"""Selects the chunks with the largest sums of weights, and reads long posting lists only in part.

A term has the same weight in every chunk that contains it. The *bound* of a chunk is its sum if it
contained every term whose list is long. A chunk whose bound is not among the largest sums is never
looked up in the long lists, nor are most of the chunks that have frequent terms only: if enough
chunks with all of those are known, the others, whose ids are larger, cannot come before them. This
is the idea of MaxScore (Turtle and Flood, 1995); the selection is exactly that of all postings.

Weights are added in the order of the terms, so that a sum never exceeds its bound, and chunks with
the same terms have the same sum, also after rounding.
"""

import math
from collections.abc import Sequence
from itertools import islice
from operator import attrgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.core.search.bm25 import (
    Ids,
    Numbers,
    Span,
    are_within,
    build_ids,
    find_distinct,
)

OPEN_AT_ONCE = 250  # chunks that are looked up in the long lists by one statement
GAP_MAX = 500  # between the ids of two chunks that are looked up as one interval
WINDOW_FACTOR = 4  # of the interval in which enough chunks are expected, and of each further one
ID_MAX = 2**62


class SpanReader(Protocol):
    """What is used of an `IndexReader`."""

    def read_within(self, tokens: Sequence[str], spans: Sequence[Span]) -> list[Ids]:
        """See `IndexReader.read_within`."""
        ...

    def read_bounds(self, tokens: Sequence[str]) -> Span:
        """See `IndexReader.read_bounds`."""
        ...


class WeightedPostings:
    """A term: its postings as far as they are known, and its tokens whose lists are long."""

    def __init__(self, weight: float) -> None:
        self.weight, self.ids = weight, build_ids([])
        self.tokens: list[str] = []
        self.frequency = 0  # of these tokens

    def add(self, ids: Ids) -> None:
        """Add distinct ids."""
        self.ids = np.concatenate([self.ids, ids]) if len(self.ids) else ids

    def add_long(self, token: str, frequency: int) -> None:
        """Add a token whose list is read in part."""
        self.tokens.append(token)
        self.frequency += frequency


def select_heaviest_pruned(
    terms: Sequence[WeightedPostings], reader: SpanReader, limit: int
) -> dict[int, float]:
    """Return what `select_heaviest` returns for all postings. Adds those that are read to `terms`.

    At least one of the terms has a token whose list is long.
    """
    search = _Search(terms, reader, limit)
    while spans := search.list_missing():
        search.read(spans)
    return search.best


class _Search:
    """What is known of the long lists, and what is not but matters."""

    def __init__(self, terms: Sequence[WeightedPostings], reader: SpanReader, limit: int) -> None:
        self._terms, self._reader, self._limit = terms, reader, limit
        self._long = [term for term in terms if term.tokens]
        self._frequent_sum = 0.0  # of a chunk with all long lists and nothing else
        for term in self._long:
            self._frequent_sum += term.weight
        self.best: dict[int, float] = {}
        self._spans: list[Span] = []  # that have been read
        self._read_to = -1  # all ids up to this one
        self._window = self._end = self._last = 0

    def list_missing(self) -> list[Span]:
        """Return the intervals to read next; none if `best` is the selection."""
        ids = _merge_ids([term.ids for term in self._terms])
        is_exact = are_within(ids, self._spans)
        sums, bounds = self._compute_sums(ids, is_exact)
        order = np.argsort(-sums, kind="stable")[: self._limit]
        self.best = dict(zip(ids[order].tolist(), sums[order].tolist(), strict=True))
        least, least_id = -math.inf, -1
        if len(order) == self._limit:
            least, least_id = float(sums[order[-1]]), int(ids[order[-1]])
        is_open = ~is_exact & ((bounds > least) | ((bounds == least) & (ids < least_id)))
        candidates = ids[is_open][np.argsort(-bounds[is_open], kind="stable")[:OPEN_AT_ONCE]]
        spans = _join_near(np.sort(candidates))
        others_matter = self._frequent_sum > least or (
            self._frequent_sum == least and least_id > self._read_to
        )
        if others_matter and len(candidates) < self._limit:
            spans += self._list_window()
        return _join_overlapping(spans)

    def read(self, spans: Sequence[Span]) -> None:
        """Read intervals of the long lists."""
        tokens = [token for term in self._long for token in term.tokens]
        lists = iter(self._reader.read_within(tokens, spans))
        for term in self._long:
            for ids in islice(lists, len(term.tokens)):
                term.add(ids[~are_within(ids, self._spans)])
        self._spans = _join_overlapping([*self._spans, *spans])

    def _compute_sums(self, ids: Ids, is_exact: NDArray[np.bool_]) -> tuple[Numbers, Numbers]:
        """Return the sum of each of these chunks as far as it is known, and its bound."""
        sums, bounds = np.zeros(len(ids)), np.zeros(len(ids))
        for term in self._terms:
            positions = np.searchsorted(ids, term.ids)
            sums[positions] += term.weight
            if term.tokens:
                bounds[~is_exact] += term.weight
                positions = positions[is_exact[positions]]
            bounds[positions] += term.weight
        return sums, bounds

    def _list_window(self) -> list[Span]:
        """Return the next window of ids, each larger than the one before; none after the last."""
        if self._read_to >= ID_MAX:
            return []
        if not self._window:
            shortest = min(self._long, key=attrgetter("frequency"))
            self._end, self._last = self._reader.read_bounds(shortest.tokens)
            share = shortest.frequency / (self._last - self._end + 1)
            self._window = math.ceil(self._limit / share)
        self._window *= WINDOW_FACTOR
        begin, self._end = self._read_to + 1, self._end + self._window
        self._read_to = self._end if self._end < self._last else ID_MAX
        return [(begin, self._read_to)]


def _merge_ids(lists: Sequence[Ids]) -> Ids:
    """Return the distinct ids of these lists, ascending."""
    return find_distinct(np.sort(np.concatenate(lists)))


def _join_near(ids: Ids) -> list[Span]:
    """Return intervals that contain these ascending ids."""
    if not len(ids):
        return []
    ends = np.flatnonzero(np.diff(ids) > GAP_MAX)
    firsts = ids[np.concatenate([[0], ends + 1])]
    lasts = ids[np.concatenate([ends, [len(ids) - 1]])]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _join_overlapping(spans: Sequence[Span]) -> list[Span]:
    """Return the same ids as disjoint, ascending intervals."""
    joined: list[Span] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return joined
