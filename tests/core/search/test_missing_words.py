"""The words of a question that no document contains: candidates and their choice."""

import pytest

from service.core.search.missing_words import (
    CANDIDATES_MAX,
    QUESTION_CHARACTERS_MAX,
    list_candidates,
    select_missing,
)
from service.core.search.ranking import Term
from service.core.text.tokenizer import get_tokenizer

TOKENIZER = get_tokenizer("auto")


def find_missing(question: str, text: str) -> list[str]:
    """Return the missing words of a question, for a collection with this text only."""
    terms = TOKENIZER.extract_terms(text)
    known: set[Term] = {("words", word) for word in terms.words}
    known |= {("grams", gram) for gram in terms.grams}
    candidates = list_candidates(question, TOKENIZER)
    asked = {term for candidate in candidates for term in candidate.terms}
    return select_missing(question, candidates, asked - known)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How do I configure nginx?", ["nginx"]),
        ("How do I configure a reverse proxy with nginx?", ["reverse proxy", "nginx"]),
        ("How do I set worker_processes in nginx?", ["worker_processes", "nginx"]),
        ("What does a parcel to France cost?", ["France"]),
        ("Does the Mercurial parcel need a bookmark?", ["Mercurial"]),
        ("WHO IS ELON MUSK", ["ELON MUSK"]),
        ("How long does delivery take?", []),
        ("nginxの設定方法は？", ["nginx"]),
        ("ｎｇｉｎｘの設定は？", ["nginx"]),
        ("富士山の高さは？", ["富士山"]),
        ("コーヒーの送料は？", ["コーヒー"]),
        ("ディズニーランドへの配送は？", ["ディズニーランド"]),
        ("配送の送料はいくらですか", []),
    ],
)
def test_the_decisive_words_are_named(question: str, expected: list[str]) -> None:
    """Names come before identifiers and other words, as written; words that occur are not named."""
    text = "Delivery of parcels takes two days and the cost is low. 配送の送料は六百円です。"

    assert find_missing(question, text) == expected


@pytest.mark.parametrize(
    "question", ["Explain the difference, please", "What does this mean?", "方法を説明してください"]
)
def test_words_of_the_form_of_a_question_are_never_named(question: str) -> None:
    """Words like "explain" say nothing about the subject."""
    assert find_missing(question, "") == []


def test_a_word_that_is_segmented_differently_is_not_missing() -> None:
    """A Japanese word counts as missing only if its characters do not occur together either."""
    candidates = list_candidates("東京都庁はどこですか", TOKENIZER)
    words = {term for candidate in candidates for term in candidate.terms if term[0] == "words"}

    assert candidates
    assert select_missing("東京都庁はどこですか", candidates, words) == []


def test_candidates_are_bounded() -> None:
    """A long question has no candidates, and every other one a bounded number."""
    words = [f"Word{n}" for n in range(40)]

    assert len(list_candidates(" ".join(words), TOKENIZER)) == CANDIDATES_MAX
    assert list_candidates("nginx " * QUESTION_CHARACTERS_MAX, TOKENIZER) == []
