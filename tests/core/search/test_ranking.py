"""Ranking, fusion with cosines, and abstention."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from service.core.search.bm25 import TermCounts, count_terms, encode_chunks
from service.core.search.ranking import (
    FOREIGN_COSINE_MIN,
    LATIN_COMBINED_MIN,
    CollectionStatistics,
    Query,
    RankedChunk,
    Ranking,
    Thresholds,
    add_support,
    fuse_scores,
    merge_rankings,
    parse_query,
    rank_chunks,
)
from service.core.text.tokenizer import get_tokenizer
from tests.core.search.test_embeddings import TEXTS

TOKENIZER = get_tokenizer("auto")


def encode(query: Query, *texts: str) -> TermCounts:
    """Count the terms of a query in texts, which are numbered from 0."""
    terms = [TOKENIZER.extract_terms(text) for text in texts]
    rows = [(n, "d", " ".join(found.words), " ".join(found.grams)) for n, found in enumerate(terms)]
    return count_terms(query.codes, encode_chunks(rows))


def parse(text: str, chunks: int) -> tuple[Query, CollectionStatistics]:
    """Return a query whose terms each occur in one of `chunks` chunks, and its statistics."""
    query = parse_query(text, TOKENIZER)
    return query, CollectionStatistics(
        chunks, dict.fromkeys(query.words, 1), dict.fromkeys(query.grams, 1)
    )


def test_a_missing_cosine_counts_as_the_mean() -> None:
    """Chunks nearer than the mean rise, others fall; a low one without a vector keeps its value."""
    values = fuse_scores([0.6] * 10 + [0.3], [0.9, 0.7] * 5 + [None], [False] * 11)
    assert values[:2] == [pytest.approx(0.675), pytest.approx(0.525)]
    assert values[10] == 0.3


def test_chunks_that_wait_for_a_vector_are_not_passed() -> None:
    """While one of the best by words has no vector, words decide."""
    assert fuse_scores([0.5, 0.4, 0.2], [None, 0.9, 0.7], [True] * 3) == [0.5, 0.4, 0.2]


def test_another_language_is_no_disadvantage() -> None:
    """A near chunk in another language, without common words, passes those that share a few."""
    cosines = [0.9, 0.8, 0.8, 0.8]
    coverages = [0.0, 0.25, 0.2, 0.1]
    local = fuse_scores(coverages, cosines, [False] * 4)
    across = fuse_scores(coverages, cosines, [True, False, False, False])
    assert max(local) == local[1]
    assert max(across) == across[0]
    assert across[1:] == local[1:]


@given(st.lists(st.floats(0, 1), max_size=20))
def test_words_decide_without_distinct_cosines(coverages: list[float]) -> None:
    """No vector, one vector and equal vectors change nothing."""
    for near in (
        [None] * len(coverages),
        [0.8, *[None] * 20][: len(coverages)],
        [0.8] * len(coverages),
    ):
        assert fuse_scores(coverages, near, [True] * len(coverages)) == coverages


def test_the_cosine_adjusts_the_thresholds() -> None:
    """Near the thresholds, a far nearest chunk causes a refusal, and a near one an answer."""
    query, statistics = parse("Who polishes the lens of the lighthouse?", 1)
    chunk = encode(query, TEXTS[0])
    words_only = rank_chunks(query, chunk, statistics, limit=5, thresholds=Thresholds(0, 0))
    assert words_only.cosine is UNSET
    for margin, even, cosine, answerable in (
        (0.99, 0.0, 0.5, True),
        (0.99, 0.85, 0.86, True),
        (0.99, 0.85, 0.80, False),
        (1.01, 0.0, 0.9, False),
        (1.01, 0.85, 0.84, False),
        (1.01, 0.85, 0.90, True),
    ):
        least = Thresholds(
            words_only.share * margin / LATIN_COMBINED_MIN, words_only.terms * margin, even
        )
        ranking = rank_chunks(
            query, chunk, statistics, limit=5, thresholds=least, cosines={0: cosine}
        )
        assert ranking.answerable is answerable
        assert (ranking.share, ranking.terms, ranking.cosine) == (
            words_only.share,
            words_only.terms,
            cosine if even else UNSET,
        )
        assert ranking.chunks[0].cosine == cosine


def test_a_near_meaning_replaces_no_missing_word() -> None:
    """A near chunk lowers the thresholds only if each word occurs in a visible chunk."""
    query, known = parse("Who polishes the lens of the lighthouse?", 1)
    missing = CollectionStatistics(1, known.words | {query.words[0]: 0}, known.grams)
    chunk = encode(query, TEXTS[0])
    for statistics, cosine, answerable in (
        (known, 0.9, True),
        (missing, 0.9, False),
    ):
        words_only = rank_chunks(query, chunk, statistics, limit=5, thresholds=Thresholds(0, 0))
        least = Thresholds(words_only.share * 1.01 / LATIN_COMBINED_MIN, words_only.terms, 0.85)
        ranking = rank_chunks(
            query, chunk, statistics, limit=5, thresholds=least, cosines={0: cosine}
        )
        assert ranking.answerable is answerable
        assert ranking.cosine == cosine


def test_a_near_chunk_in_another_language_answers() -> None:
    """Where words do not suffice, near chunks in another language answer and come first."""
    query, statistics = parse("Who polishes the lens of the lighthouse?", 1)
    for text, cosine, foreign, first in (
        ("polishes", FOREIGN_COSINE_MIN + 0.02, {1}, 1),
        ("polishes", FOREIGN_COSINE_MIN - 0.02, {1}, None),
        ("polishes", FOREIGN_COSINE_MIN + 0.02, set[int](), None),
        (TEXTS[0], FOREIGN_COSINE_MIN + 0.02, {1}, 0),
    ):
        ranking = rank_chunks(
            query,
            encode(query, text, "Die Linse wird geputzt."),
            statistics,
            limit=5,
            thresholds=Thresholds(0.5, 1, 0.835),
            cosines={0: 0.84, 1: cosine},
            foreign=foreign,
        )
        assert ranking.answerable is (first is not None)
        if first is not None:
            assert ranking.chunks[0].id == first


def test_bare_words_are_exempt_from_the_cosine() -> None:
    """One or two bare words suffice as without a cosine, however far their meaning is."""
    query, statistics = parse("lighthouse lens", 1)
    assert rank_chunks(
        query,
        encode(query, TEXTS[0]),
        statistics,
        limit=5,
        thresholds=Thresholds(0.27, 1.55, 0.9),
        cosines={0: 0.1},
    ).answerable


def test_incomplete_cosines_do_not_count() -> None:
    """While one of the best chunks has no vector, the thresholds are those of words."""
    query, statistics = parse("Who polishes the lens of the lighthouse?", 2)
    candidates = encode(query, TEXTS[0], TEXTS[1])
    ranking = rank_chunks(
        query,
        candidates,
        statistics,
        limit=5,
        thresholds=Thresholds(0.1, 0.1, 0.99),
        cosines={0: 0.1},
    )
    assert ranking.answerable
    assert ranking.cosine is UNSET


def encode_words(query: Query, *words: str) -> TermCounts:
    """Count the terms of a query in chunks with these words, numbered from 1."""
    return count_terms(
        query.codes, encode_chunks([(n, f"d{n}", text, "") for n, text in enumerate(words, 1)])
    )


def test_candidates_of_the_same_document_support_each_other() -> None:
    """A fifth of the next best one of the document is added, and half of that for each further."""
    values = add_support([0.8, 0.8, 0.4, 0.2, 0.1, 0.3], ["a", "a", "a", "a", "a", "b"])
    assert values[0] == values[1] == pytest.approx(0.8 + 0.2 * (0.8 + 0.4 / 2 + 0.2 / 4))
    assert values[4] == pytest.approx(0.1 + 0.2 * (0.8 + 0.8 / 2 + 0.4 / 4))
    assert values[5] == 0.3


def test_words_of_the_form_of_a_question_are_not_terms() -> None:
    """They are terms only if there are no others."""
    assert parse_query("What does WAL stand for?", TOKENIZER).words == ["wal"]
    assert parse_query("stand for", TOKENIZER).words == ["stand"]


def test_a_definition_needs_all_words_only() -> None:
    """What is asked for a frequent word is answered as in a search box."""
    for text, answerable in (("What is a lens?", True), ("Is a lens there?", False)):
        query = parse_query(text, TOKENIZER)
        ranking = rank_chunks(
            query,
            encode(query, TEXTS[0]),
            CollectionStatistics(1000, {"len": 500}, {}),
            limit=1,
            thresholds=Thresholds(0.27, 1.1),
        )
        assert ranking.answerable is answerable


def test_ranking_prefers_more_and_rarer_words() -> None:
    """More words of the query, rarer ones and adjacent ones rank higher."""
    query = parse_query("common rare", get_tokenizer("auto"))
    candidates = encode_words(
        query, "common x y z", "rare x y z", "rare x y common", "x common rare y"
    )
    ranking = rank_chunks(
        query,
        candidates,
        CollectionStatistics(1000, {"common": 500, "rare": 3}, {}),
        limit=10,
        thresholds=Thresholds(0.27, 0),
    )
    assert [chunk.id for chunk in ranking.chunks] == [4, 3, 2, 1]
    assert ranking.answerable


def test_words_near_each_other_rank_higher() -> None:
    """Of chunks with the same words, the one with nearby words has a higher score and coverage."""
    query = parse_query("oak elm ash", get_tokenizer("auto"))
    far = " ".join(["oak", *["x"] * 9, "elm", *["x"] * 9, "ash"])
    near = " ".join([*["x"] * 12, "oak", "x", "ash", "x", "elm", *["x"] * 6])
    statistics = CollectionStatistics(1000, dict.fromkeys(query.words, 3), {})
    ranking = rank_chunks(
        query, encode_words(query, far, near), statistics, limit=2, thresholds=Thresholds(0, 0)
    )
    assert [chunk.id for chunk in ranking.chunks] == [2, 1]
    assert ranking.chunks[0].score > ranking.chunks[1].score
    assert ranking.chunks[0].coverage > ranking.chunks[1].coverage


def test_the_thresholds_decide() -> None:
    """A long query needs both numbers and their combination to reach the thresholds."""
    query = parse_query("oak elm ash fir", get_tokenizer("auto"))
    statistics = CollectionStatistics(1000, dict.fromkeys(query.words, 3), {})

    def rank_with(share_min: float, terms_min: float, *, empty: bool = False) -> Ranking:
        candidates = encode_words(query) if empty else encode_words(query, "oak elm x y")
        return rank_chunks(
            query, candidates, statistics, limit=1, thresholds=Thresholds(share_min, terms_min)
        )

    ranking = rank_with(0.2, 0.5)
    assert ranking.answerable
    assert not rank_with(ranking.share + 0.01, 0).answerable
    assert not rank_with(0, ranking.terms + 0.01).answerable
    assert not rank_with(0, 0, empty=True).answerable
    share, terms = ranking.share - 0.0001, ranking.terms - 0.0001  # rounding
    assert rank_with(share / LATIN_COMBINED_MIN - 0.01, terms).answerable
    assert not rank_with(share / LATIN_COMBINED_MIN + 0.01, terms).answerable
    assert rank_with(share, terms / LATIN_COMBINED_MIN**2 - 0.01).answerable
    assert not rank_with(share, terms / LATIN_COMBINED_MIN**2 + 0.01).answerable


def build_ranking(values: dict[int, float], *, answerable: bool, share: float) -> Ranking:
    """Build a ranking of chunks with these values."""
    chunks = [
        RankedChunk(id_, value, value * 10, value, [f"of {share}"], None, {})
        for id_, value in values.items()
    ]
    return Ranking(chunks=chunks, answerable=answerable, share=share, terms=1, cosine=UNSET)


def test_a_question_within_a_prompt_decides() -> None:
    """The most relevant question decides; chunks are ordered by both, with its numbers."""
    whole = build_ranking({1: 0.2, 2: 0.18}, answerable=False, share=0.1)
    question = build_ranking({2: 0.8, 3: 0.4}, answerable=True, share=0.6)
    other = build_ranking({}, answerable=False, share=0.0)

    merged = merge_rankings(whole, [question, other], 5)

    assert (merged.answerable, merged.share) == (True, 0.6)
    assert [(chunk.id, chunk.matched) for chunk in merged.chunks] == [
        (2, ["of 0.6"]),
        (1, ["of 0.1"]),
        (3, ["of 0.6"]),
    ]
    assert [chunk.id for chunk in merge_rankings(whole, [question], 1).chunks] == [2]


def test_a_prompt_that_is_answerable_as_a_whole_is_answered() -> None:
    """Questions that are not answerable by themselves do not refuse it."""
    whole = build_ranking({1: 0.5}, answerable=True, share=0.4)
    question = build_ranking({1: 0.2}, answerable=False, share=0.5)

    assert merge_rankings(whole, [question], 5).answerable
