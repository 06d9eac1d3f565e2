"""One search, from query to results. Blocking.

    query → terms → statistics → candidates (`index.py`) → ranking and abstention (`ranking.py`)

Of a long prompt the questions within it are ranked as well (`questions.py`): they decide whether it
is answered, and contribute to the order.

With embeddings, the chunks nearest in meaning join the candidates, and their cosines the ranking.
If the embedder does not answer, or a chunk has no vector yet, words decide.
"""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import sqlalchemy as sa

from service.core.ports import QueryVector
from service.core.search.index import SearchIndex, Snapshot, Visibility
from service.core.search.missing_words import list_candidates, select_missing
from service.core.search.query_terms import create_query_tokenizer
from service.core.search.questions import find_questions
from service.core.search.ranking import (
    LIMIT_MAX,
    NO_RANKING,
    Ranking,
    Thresholds,
    build_hit,
    merge_rankings,
    parse_query,
    rank_chunks,
)
from service.core.search.results import SearchResults
from service.core.search.spelling import apply_corrections, correct_question, may_have_variants
from service.core.search.vector_matrix import ChunkSimilarities
from service.core.search.versions import order_versions
from service.core.settings import Settings
from service.core.text.tokenizer import TermExtractor, Tokenizer


class SearchEngine:
    """Searches one database. Its index has caches, so it is created once."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        self._tokenizer = tokenizer
        self._thresholds = Thresholds(
            settings.relevance_share_min, settings.relevance_terms_min, settings.cosine_even
        )
        self._index = SearchIndex()

    def search(
        self,
        connection: sa.Connection,
        text: str,
        *,
        user_id: str | None,
        within: Sequence[str] | None,
        limit: int,
        vector: QueryVector | None,
        as_whole: bool,
        pause: Callable[[], None],
    ) -> SearchResults:
        """See `SearchService.search`. `pause` may block; it is called between some owners."""
        snapshot = self._index.open_snapshot(connection, Visibility(user_id, within), pause)
        similarities = snapshot.compare_vectors(vector, text) if vector else None
        rank = partial(self._rank_text, snapshot, similarities)
        questions = [] if as_whole else find_questions(text, self._tokenizer)
        ranking = (
            merge_rankings(
                rank(text, LIMIT_MAX), [rank(question, LIMIT_MAX) for question in questions], limit
            )
            if questions
            else rank(text, limit)
        )
        chunks = snapshot.read_chunks([ranked.id for ranked in ranking.chunks])
        return SearchResults(
            items=order_versions(
                [build_hit(ranked, chunks[ranked.id]) for ranked in ranking.chunks],
                text,
                snapshot.read_dates,
            ),
            answerable=ranking.answerable,
            share=ranking.share,
            terms=ranking.terms,
            cosine=ranking.cosine,
            searched_for=ranking.searched_for,
        )

    def _rank_text(
        self, snapshot: Snapshot, similarities: ChunkSimilarities | None, text: str, limit: int
    ) -> Ranking:
        """Rank the visible chunks for a text."""
        tokenizer = self._create_tokenizer(text, snapshot)
        query = parse_query(text, tokenizer)
        if not query.words and not query.grams:
            return NO_RANKING
        statistics = snapshot.read_statistics(query)
        searched_for: str | msgspec.UnsetType = msgspec.UNSET
        if (not all(statistics.words.values()) or may_have_variants(text)) and (
            corrections := correct_question(text, tokenizer, snapshot)
        ):
            text = searched_for = apply_corrections(text, corrections)
            replaced = [correction.text for correction in corrections]
            query = parse_query(text, tokenizer, replaced)
            statistics = snapshot.read_statistics(query)
        ids = snapshot.select_candidates(statistics)
        if similarities:
            ids = list(dict.fromkeys([*ids, *snapshot.select_nearest(similarities)]))
        candidates = snapshot.count_terms(query, ids)
        ranking = rank_chunks(
            query,
            candidates,
            statistics,
            limit=limit,
            thresholds=self._thresholds,
            cosines=similarities.get_cosines(candidates.ids) if similarities else None,
            foreign=similarities.select_foreign(candidates.ids) if similarities else frozenset(),
        )
        return msgspec.structs.replace(ranking, searched_for=searched_for)

    def _create_tokenizer(self, text: str, snapshot: Snapshot) -> TermExtractor:
        return create_query_tokenizer(
            text, self._tokenizer, snapshot.count_languages(), snapshot.select_absent
        )

    def find_missing_words(
        self,
        connection: sa.Connection,
        text: str,
        *,
        user_id: str | None,
        within: Sequence[str] | None,
        pause: Callable[[], None],
    ) -> list[str]:
        """See `SearchService.find_missing_words`."""
        if not text.strip():
            return []
        snapshot = self._index.open_snapshot(connection, Visibility(user_id, within), pause)
        candidates = list_candidates(text, self._create_tokenizer(text, snapshot))
        terms = dict.fromkeys(term for candidate in candidates for term in candidate.terms)
        return select_missing(text, candidates, snapshot.find_absent(list(terms)))
