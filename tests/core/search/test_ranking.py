"""Ranking, fusion with cosines, and abstention."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from service.core.search.bm25 import Observed, digests, observed
from service.core.search.ranking import (
    TOGETHER,
    Counts,
    Query,
    Ranked,
    Thresholds,
    fuse,
    parse,
    rank,
)
from service.core.text.tokenizer import get_tokenizer
from tests.core.search.test_embeddings import TEXTS

MADE = get_tokenizer("auto")


def seen(query: Query, **texts: str) -> Observed:
    """Chunks as a question sees them, by the hash of their content."""
    known = [(content_hash, MADE.extract_terms(text)) for content_hash, text in texts.items()]
    rows = [
        (n, " ".join(terms.words), " ".join(terms.grams), content_hash)
        for n, (content_hash, terms) in enumerate(known)
    ]
    return observed(query.codes, digests(rows))


def asked(text: str, chunks: int) -> tuple[Query, Counts]:
    """A question, each of whose terms stands in one of so many chunks."""
    query = parse(text, MADE)
    return query, Counts(chunks, dict.fromkeys(query.words, 1), dict.fromkeys(query.grams, 1))


def test_a_missing_cosine_is_the_mean_one() -> None:
    """Nearer than the mean rises, farther falls; a low candidate without a vector keeps its place by words."""
    placed = fuse([0.6] * 10 + [0.3], [0.9, 0.7] * 5 + [None])
    assert placed[:2] == [pytest.approx(0.675), pytest.approx(0.525)]
    assert placed[10] == 0.3


def test_what_waits_for_its_vector_is_not_passed() -> None:
    """While one of the best by words has no vector, words alone decide."""
    assert fuse([0.5, 0.4, 0.2], [None, 0.9, 0.7]) == [0.5, 0.4, 0.2]


@given(st.lists(st.floats(0, 1), max_size=20))
def test_without_any_cosine_words_decide(coverages: list[float]) -> None:
    """No vector, one vector, and equal vectors change nothing."""
    for near in (
        [None] * len(coverages),
        [0.8, *[None] * 20][: len(coverages)],
        [0.8] * len(coverages),
    ):
        assert fuse(coverages, near) == coverages


def test_a_cosine_eases_and_tightens() -> None:
    """What the words barely answer is refused when even the nearest chunk is far; what they barely refuse is answered near."""
    query, counts = asked("Who polishes the lens of the lighthouse?", 1)
    chunk = seen(query, h=TEXTS[0])
    alone = rank(query, chunk, counts, limit=5, thresholds=Thresholds(0, 0))
    assert alone.cosine is UNSET
    for margin, even, cosine, answerable in (
        (0.99, 0.0, 0.5, True),
        (0.99, 0.85, 0.86, True),
        (0.99, 0.85, 0.80, False),
        (1.01, 0.0, 0.9, False),
        (1.01, 0.85, 0.84, False),
        (1.01, 0.85, 0.90, True),
    ):
        least = Thresholds(alone.share * margin / TOGETHER, alone.terms * margin, even)
        found = rank(query, chunk, counts, limit=5, thresholds=least, cosines={"h": cosine})
        assert found.answerable is answerable
        assert (found.share, found.terms, found.cosine) == (
            alone.share,
            alone.terms,
            cosine if even else UNSET,
        )
        assert found.places[0].cosine == cosine


def test_words_alone_are_not_asked_for_more() -> None:
    """One or two words as typed into a search box are enough as without a cosine, however far their meaning is."""
    query, counts = asked("lighthouse lens", 1)
    assert rank(
        query,
        seen(query, h=TEXTS[0]),
        counts,
        limit=5,
        thresholds=Thresholds(0.27, 1.55, 0.9),
        cosines={"h": 0.1},
    ).answerable


def test_a_cosine_that_waits_does_not_count() -> None:
    """While one of the best chunks has no vector, its question is judged by words alone."""
    query, counts = asked("Who polishes the lens of the lighthouse?", 2)
    candidates = seen(query, one=TEXTS[0], two=TEXTS[1])
    found = rank(
        query,
        candidates,
        counts,
        limit=5,
        thresholds=Thresholds(0.1, 0.1, 0.99),
        cosines={"one": 0.1},
    )
    assert found.answerable
    assert found.cosine is UNSET


def chunks(query: Query, *words: str) -> Observed:
    """Chunks with these words, numbered from 1, as a question sees them."""
    return observed(query.codes, digests([(n, each, "", None) for n, each in enumerate(words, 1)]))


def test_ranking_prefers_more_and_rarer_words() -> None:
    """More of the question's words, rarer ones, and words side by side rank higher."""
    query = parse("common rare", get_tokenizer("auto"))
    some = chunks(query, "common x y z", "rare x y z", "rare x y common", "x common rare y")
    found = rank(
        query,
        some,
        Counts(1000, {"common": 500, "rare": 3}, {}),
        limit=10,
        thresholds=Thresholds(0.27, 0),
    )
    assert [place.id for place in found.places] == [4, 3, 2, 1]
    assert found.answerable


def test_words_near_each_other_rank_higher() -> None:
    """Of chunks that have the same words the one that has them together; its score and its coverage say so."""
    query = parse("oak elm ash", get_tokenizer("auto"))
    far = " ".join(["oak", *["x"] * 9, "elm", *["x"] * 9, "ash"])
    near = " ".join([*["x"] * 12, "oak", "x", "ash", "x", "elm", *["x"] * 6])
    counts = Counts(1000, dict.fromkeys(query.words, 3), {})
    found = rank(query, chunks(query, far, near), counts, limit=2, thresholds=Thresholds(0, 0))
    assert [place.id for place in found.places] == [2, 1]
    assert found.places[0].score > found.places[1].score
    assert found.places[0].coverage > found.places[1].coverage


def test_the_thresholds_decide() -> None:
    """A long question is answerable only if the share and the rare terms reach their least, and both together more."""
    query = parse("oak elm ash fir", get_tokenizer("auto"))
    counts = Counts(1000, dict.fromkeys(query.words, 3), {})

    def judged(share_min: float, terms_min: float, *, empty: bool = False) -> Ranked:
        some = chunks(query) if empty else chunks(query, "oak elm x y")
        return rank(query, some, counts, limit=1, thresholds=Thresholds(share_min, terms_min))

    found = judged(0.2, 0.5)
    assert found.answerable
    assert not judged(found.share + 0.01, 0).answerable
    assert not judged(0, found.terms + 0.01).answerable
    assert not judged(0, 0, empty=True).answerable
    share, terms = found.share - 0.0001, found.terms - 0.0001  # they are rounded
    assert judged(share / TOGETHER - 0.01, terms).answerable
    assert not judged(share / TOGETHER + 0.01, terms).answerable
    assert judged(share, terms / TOGETHER**2 - 0.01).answerable
    assert not judged(share, terms / TOGETHER**2 + 0.01).answerable
