"""Selections that read long posting lists in part, compared with selections from whole lists."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.search.bm25 import (
    Ids,
    Span,
    are_within,
    build_ids,
    join_postings,
    select_heaviest,
)
from service.core.search.pruning import WeightedPostings, select_heaviest_pruned

WEIGHTS = st.sampled_from([1e-7, 0.1, 0.3, 0.3000001, 1.0, 4.0])
SHARES = st.sampled_from([0.0005, 0.01, 0.2, 0.7, 1.0])  # of the chunks


class ListReader:
    """Posting lists in memory; counts what is read."""

    def __init__(self, lists: dict[str, Ids]) -> None:
        self._lists = lists
        self.postings = 0

    def read_within(self, tokens: Sequence[str], spans: Sequence[Span]) -> list[Ids]:
        """See `SpanReader`."""
        lists = [self._lists[token][are_within(self._lists[token], spans)] for token in tokens]
        self.postings += sum(map(len, lists))
        return lists

    def read_bounds(self, tokens: Sequence[str]) -> Span:
        """See `SpanReader`."""
        ids = [id_ for token in tokens for id_ in self._lists[token].tolist()]
        return min(ids), max(ids)


def choose_ids(choose: random.Random, chunks: range, share: float) -> Ids:
    """Choose a share of the chunks, and at least one."""
    return build_ids(sorted(choose.sample(chunks, max(1, int(share * len(chunks))))))


def select_both(
    lists: list[tuple[float, Ids, Ids]], limit: int
) -> tuple[dict[int, float], dict[int, float], int]:
    """Select from terms with a weight, a whole and a long list; returns the postings read too."""
    reader = ListReader({str(n): long for n, (_, _, long) in enumerate(lists)})
    terms = []
    for n, (weight, whole, long) in enumerate(lists):
        term = WeightedPostings(weight)
        term.add(whole)
        if len(long):
            term.add_long(str(n), len(long))
        terms.append(term)
    expected = select_heaviest(
        *join_postings((ids, weight) for weight, *both in lists for ids in both), limit
    )
    return select_heaviest_pruned(terms, reader, limit), expected, reader.postings


@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(WEIGHTS, SHARES, st.booleans()), min_size=1, max_size=6),
    st.sampled_from([1, 3, 71, 4_000]),
    st.sampled_from([1, 40]),
)
def test_the_selection_is_that_of_whole_lists(
    seed: int, terms: list[tuple[float, float, bool]], limit: int, step: int
) -> None:
    """Chunks, their sums and their order are those of all postings, also if ids have gaps."""
    choose, empty = random.Random(seed), build_ids([])
    chunks = range(5, 5 + 3_000 * step, step)
    lists = [
        (weight, empty, ids) if is_long or not n else (weight, ids, empty)
        for n, (weight, share, is_long) in enumerate(terms)
        for ids in [choose_ids(choose, chunks, share)]
    ]
    selected, expected, _ = select_both(lists, limit)

    assert list(selected.items()) == list(expected.items())


def test_a_term_may_have_a_whole_and_a_long_list() -> None:
    """The list of a term in one scope may be whole, and in another scope long."""
    small, large = build_ids(list(range(0, 4_000, 2))), build_ids(list(range(1, 90_001, 2)))
    lists = [(1.0, small, large), (0.5, small[::3], large[::2])]
    selected, expected, postings = select_both(lists, 71)

    assert list(selected.items()) == list(expected.items())
    assert postings < len(large) / 10


@pytest.mark.parametrize("rare", [3, 500])
def test_frequent_terms_are_read_in_part(rare: int) -> None:
    """Beside a rare term, a few percent of the lists of frequent terms are read."""
    choose = random.Random(1)
    chunks = range(200_000)
    lists = [(5.0, choose_ids(choose, chunks, rare / len(chunks)), build_ids([]))]
    lists += [
        (w, build_ids([]), choose_ids(choose, chunks, s)) for w, s in ((0.5, 0.6), (0.1, 0.9))
    ]
    selected, expected, postings = select_both(lists, 71)

    assert list(selected.items()) == list(expected.items())
    assert postings < 0.3 * 300_000
