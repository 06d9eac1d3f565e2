"""BM25 in arrays says what the formula says, term by term."""

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.search import bm25
from service.core.search.bm25 import (
    K1,
    Digest,
    Occurrences,
    digests,
    heaviest,
    idf,
    numbered,
    numbers,
    observed,
    weighed,
)

TERM = st.text("abcあ漢", min_size=1, max_size=3)
TERMS = st.lists(TERM, max_size=30)


def digested(*chunks: tuple[list[str], list[str]]) -> dict[int, Digest]:
    """Of chunks with these words and grams."""
    return digests(
        [(n, " ".join(words), " ".join(grams), None) for n, (words, grams) in enumerate(chunks)]
    )


def occurrences(
    words: list[str], phrases: list[tuple[str, str]], grams: list[str], chunks: dict[int, Digest]
) -> Occurrences:
    """Of a question's terms in some chunks."""
    return Occurrences(words, phrases, grams, observed(numbered(words, phrases, grams), chunks))


def plainly(
    asked: list[object], worth: list[float], there: list[object], length: float, b: float
) -> float:
    """BM25 of one kind of term in one chunk."""
    often = Counter(there)
    return sum(
        worth[n] * often[term] * (K1 + 1) / (often[term] + K1 * (1 - b + b * length))
        for n, term in enumerate(asked)
        if often[term]
    )


@given(
    st.lists(st.tuples(TERMS, TERMS), min_size=1, max_size=30),
    st.lists(TERM, unique=True),
    st.lists(TERM, unique=True),
)
def test_scores_are_those_of_the_formula(
    chunks: list[tuple[list[str], list[str]]], words: list[str], grams: list[str]
) -> None:
    """Of words, phrases and grams together, in each chunk, however many chunks there are."""
    phrases = [(a, b) for a, b in pairwise(words) if a != b]
    worth = [1 + n / 7 for n in range(len(words) + len(phrases) + len(grams))]
    found = occurrences(words, phrases, grams, digested(*chunks))
    means = [max(sum(len(chunk[kind]) for chunk in chunks) / len(chunks), 1e-9) for kind in (0, 1)]
    first, second = len(words), len(words) + len(phrases)
    wanted = [
        plainly(list(words), worth[:first], list(w), len(w) / means[0], 0.75)
        + plainly(list(phrases), worth[first:second], list(pairwise(w)), len(w) / means[0], 0.75)
        + plainly(list(grams), worth[second:], list(g), len(g) / means[1], 0.75)
        for w, g in chunks
    ]
    assert found.scores(worth, 0.75) == pytest.approx(wanted)
    assert found.whole() == [set(words) <= set(w) for w, _ in chunks]
    there = [
        ([word for word in words if word in w], [gram for gram in grams if gram in g])
        for w, g in chunks
    ]
    assert [found.standing(n) for n in range(len(chunks))] == there
    assert found.of_phrases() == [
        sum(Counter(pairwise(w))[phrase] for w, _ in chunks) for phrase in phrases
    ]


def test_the_same_letters_are_other_terms_as_word_phrase_and_gram() -> None:
    """A gram of a chunk is not taken for a word of the question."""
    found = occurrences(["abc"], [], [], digested((["xyz"], ["abc"])))
    assert found.scores([1.0], 0.75) == [0.0]


def test_nothing_asked_or_nothing_to_look_at_is_no_error() -> None:
    """No candidates: no scores. No terms: scores of 0."""
    assert occurrences(["a"], [], [], {}).scores([1.0], 0.75) == []
    assert occurrences([], [], [], digested((["a", "b"], []))).scores([], 0.75) == [0.0]


@given(
    st.lists(st.tuples(st.sets(st.integers(1, 60), max_size=20), st.floats(0.1, 5)), max_size=8),
    st.integers(1, 20),
    st.booleans(),
)
def test_the_heaviest_chunks_come_first_and_the_older_of_equals(
    postings: list[tuple[set[int], float]], most: int, far_apart: bool
) -> None:
    """Whether their numbers lie close together or millions apart."""
    step = 10 * bm25.DENSE_MAX if far_apart else 1
    found = heaviest(
        *weighed(
            (numbers(str([step * n for n in sorted(some)])), weight) for some, weight in postings
        ),
        most,
    )
    ids, weights = list(found), list(found.values())
    sums: Counter[int] = Counter()
    for some, weight in postings:
        for n in some:
            sums[step * n] += weight  # type: ignore[assignment]
    assert weights == pytest.approx(sorted(sums.values(), reverse=True)[:most])
    assert [sums[n] for n in ids] == pytest.approx(weights)
    assert len(found) == min(len(sums), most)
    assert all(a < b for (a, x), (b, y) in pairwise(zip(ids, weights, strict=True)) if x == y)


def test_idf_is_never_negative_and_falls_with_frequency() -> None:
    """Also of a term that stands everywhere, or in more chunks than there are."""
    assert idf(0, 1000) == pytest.approx(math.log(2002))
    assert idf(3, 1000) > idf(500, 1000) > idf(1000, 1000) == idf(2000, 1000) > 0
