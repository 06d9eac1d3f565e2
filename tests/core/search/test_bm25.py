"""BM25 with arrays, compared with the formula."""

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.search import bm25
from service.core.search.bm25 import (
    K1,
    Bm25Scorer,
    ChunkTerms,
    compute_idf,
    count_terms,
    decode_ids,
    encode_chunks,
    encode_query,
    find_distinct,
    join_postings,
    select_heaviest,
    sort_ids,
)

TERM = st.text("abcあ漢", min_size=1, max_size=3)
TERMS = st.lists(TERM, max_size=30)


def encode(*chunks: tuple[list[str], list[str]]) -> dict[int, ChunkTerms]:
    """Encode chunks with these words and grams."""
    return encode_chunks(
        [(n, "d", " ".join(words), " ".join(grams)) for n, (words, grams) in enumerate(chunks)]
    )


def create_scorer(
    words: list[str],
    phrases: list[tuple[str, str]],
    grams: list[str],
    chunks: dict[int, ChunkTerms],
) -> Bm25Scorer:
    """Return the scorer of a query for ids chunks."""
    return Bm25Scorer(
        words, phrases, grams, count_terms(encode_query(words, phrases, grams), chunks)
    )


def compute_bm25(
    query: list[object], weights: list[float], terms: list[object], length: float, b: float
) -> float:
    """Return BM25 of one kind of terms in one chunk."""
    counts = Counter(terms)
    return sum(
        weights[n] * counts[term] * (K1 + 1) / (counts[term] + K1 * (1 - b + b * length))
        for n, term in enumerate(query)
        if counts[term]
    )


@given(
    st.lists(st.tuples(TERMS, TERMS), min_size=1, max_size=30),
    st.lists(TERM, unique=True),
    st.lists(TERM, unique=True),
)
def test_scores_equal_the_formula(
    chunks: list[tuple[list[str], list[str]]], words: list[str], grams: list[str]
) -> None:
    """Words, phrases and grams are summed for each of any number of chunks."""
    phrases = [(a, b) for a, b in pairwise(words) if a != b]
    weights = [1 + n / 7 for n in range(len(words) + len(phrases) + len(grams))]
    scorer = create_scorer(words, phrases, grams, encode(*chunks))
    means = [max(sum(len(chunk[kind]) for chunk in chunks) / len(chunks), 1e-9) for kind in (0, 1)]
    first, second = len(words), len(words) + len(phrases)
    wanted = [
        compute_bm25(list(words), weights[:first], list(w), len(w) / means[0], 0.75)
        + compute_bm25(
            list(phrases), weights[first:second], list(pairwise(w)), len(w) / means[0], 0.75
        )
        + compute_bm25(list(grams), weights[second:], list(g), len(g) / means[1], 0.75)
        for w, g in chunks
    ]
    assert scorer.compute_scores(weights, 0.75) == pytest.approx(wanted)
    assert scorer.have_all_words() == [set(words) <= set(w) for w, _ in chunks]
    terms = [
        ([word for word in words if word in w], [gram for gram in grams if gram in g])
        for w, g in chunks
    ]
    assert [scorer.list_matches(n) for n in range(len(chunks))] == terms
    assert scorer.count_phrases() == [
        sum(Counter(pairwise(w))[phrase] for w, _ in chunks) for phrase in phrases
    ]


def test_words_and_grams_of_the_same_letters_differ() -> None:
    """A gram of a chunk does not match a word of the query."""
    scorer = create_scorer(["abc"], [], [], encode((["xyz"], ["abc"])))
    assert scorer.compute_scores([1.0], 0.75) == [0.0]


def test_empty_queries_and_candidates_are_scored() -> None:
    """Without candidates terms are no scores; without terms they are 0."""
    assert create_scorer(["a"], [], [], {}).compute_scores([1.0], 0.75) == []
    assert create_scorer([], [], [], encode((["a", "b"], []))).compute_scores([], 0.75) == [0.0]


@given(
    st.lists(st.tuples(st.sets(st.integers(1, 60), max_size=20), st.floats(0.1, 5)), max_size=8),
    st.integers(1, 20),
    st.booleans(),
)
def test_heaviest_chunks_come_first(
    postings: list[tuple[set[int], float]], limit: int, far_apart: bool
) -> None:
    """Chunks are ordered by weight, then by id, whether their ids are adjacent or far apart."""
    step = 10 * bm25.DENSE_MAX if far_apart else 1
    lists = [([step * n for n in sorted(numbers)], weight) for numbers, weight in postings]
    heaviest = select_heaviest(
        *join_postings((decode_ids(str(numbers)), weight) for numbers, weight in lists), limit
    )
    ids, weights = list(heaviest), list(heaviest.values())
    sums: Counter[int] = Counter()
    for numbers, weight in lists:
        for n in numbers:
            sums[n] += weight  # type: ignore[assignment]
    assert weights == pytest.approx(sorted(sums.values(), reverse=True)[:limit])
    assert [sums[n] for n in ids] == pytest.approx(weights)
    assert len(heaviest) == min(len(sums), limit)
    assert all(a < b for (a, x), (b, y) in pairwise(zip(ids, weights, strict=True)) if x == y)


def test_idf_is_positive_and_falls_with_frequency() -> None:
    """Terms that occur in every chunk, or in more than the total, have a positive idf."""
    assert compute_idf(0, 1000) == pytest.approx(math.log(2002))
    assert (
        compute_idf(3, 1000)
        > compute_idf(500, 1000)
        > compute_idf(1000, 1000)
        == compute_idf(2000, 1000)
        > 0
    )


@given(st.lists(st.integers(0, 20)))
def test_ids_are_sorted_and_distinct(ids: list[int]) -> None:
    """As Python does it, also without ids."""
    in_order = sort_ids(bm25.build_ids(ids))

    assert in_order.tolist() == sorted(ids)
    assert find_distinct(in_order).tolist() == sorted(set(ids))
