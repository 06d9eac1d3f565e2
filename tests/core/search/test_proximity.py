"""How near to each other words stand: the arrays say what looking at every window says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.search.bm25 import digests, numbered
from service.core.search.proximity import WINDOW, gathered

WORDS = st.lists(st.sampled_from("abcdefgh"), max_size=40)


def found(asked: list[str], worth: list[float], chunks: list[list[str]]) -> list[float]:
    """By the numbers of the words."""
    known = digests([(n, " ".join(words), "", None) for n, words in enumerate(chunks)]).values()
    codes = [one.codes[: one.words] for one in known]
    most: list[float] = gathered(numbered(asked, [], []), worth, codes).tolist()
    return most


@given(st.lists(WORDS, max_size=30), st.lists(st.sampled_from("abcxyz"), unique=True))
def test_the_best_window_of_each_chunk_counts(chunks: list[list[str]], asked: list[str]) -> None:
    """Each word once in a window, and no window reaches into the next chunk."""
    worth = {word: 1 + n / 7 for n, word in enumerate(asked)}
    windows = [
        [set(words[begin : begin + WINDOW]) for begin in range(len(words))] for words in chunks
    ]
    wanted = [
        max((sum(worth.get(word, 0) for word in window) for window in some), default=0)
        for some in windows
    ]
    assert found(asked, list(worth.values()), chunks) == pytest.approx(wanted)


def test_words_farther_apart_than_a_window_are_not_together() -> None:
    """The last place of a window counts, the one behind it does not."""
    for between, worth in ((WINDOW - 2, 3.0), (WINDOW - 1, 2.0)):
        assert found(["a", "b"], [1.0, 2.0], [["a", *["x"] * between, "b"]]) == [worth]
