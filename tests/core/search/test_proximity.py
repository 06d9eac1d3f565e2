"""Proximity with arrays, compared with an enumeration of all windows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.search.bm25 import encode_chunks, encode_query
from service.core.search.proximity import WINDOW, score_windows

WORDS = st.lists(st.sampled_from("abcdefgh"), max_size=40)


def score(query: list[str], weights: list[float], chunks: list[list[str]]) -> list[float]:
    """Return the scores of chunks given as words."""
    encoded = encode_chunks(
        [(n, "d", " ".join(words), "") for n, words in enumerate(chunks)]
    ).values()
    codes = [chunk.codes[: chunk.word_count] for chunk in encoded]
    scores: list[float] = score_windows(encode_query(query, [], []), weights, codes).tolist()
    return scores


@given(st.lists(WORDS, max_size=30), st.lists(st.sampled_from("abcxyz"), unique=True))
def test_the_best_window_of_each_chunk_counts(chunks: list[list[str]], query: list[str]) -> None:
    """A word counts once per window, and no window reaches into the next chunk."""
    weights = {word: 1 + n / 7 for n, word in enumerate(query)}
    windows = [
        [set(words[begin : begin + WINDOW]) for begin in range(len(words))] for words in chunks
    ]
    wanted = [
        max((sum(weights.get(word, 0) for word in window) for window in some), default=0)
        for some in windows
    ]
    assert score(query, list(weights.values()), chunks) == pytest.approx(wanted)


def test_words_farther_apart_than_a_window_score_separately() -> None:
    """The last position of a window counts, the one after it does not."""
    for between, weights in ((WINDOW - 2, 3.0), (WINDOW - 1, 2.0)):
        assert score(["a", "b"], [1.0, 2.0], [["a", *["x"] * between, "b"]]) == [weights]
