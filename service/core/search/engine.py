"""One search, from a question to what is found. All of it blocks.

    question → terms → counts → candidates (`index.py`) → one re-ranker and the abstention (`ranking.py`)

With embeddings the chunks nearest in meaning join the candidates, and their cosines the ranking; without an answer from
whoever embeds, or where a chunk has no vector yet, words alone decide.
"""

from collections.abc import Sequence

import sqlalchemy as sa

from service.core.ports import Similarities
from service.core.search.index import Index, Visibility
from service.core.search.ranking import Thresholds, hit, parse, rank
from service.core.search.results import NOTHING, SearchResults
from service.core.settings import Settings
from service.core.text.tokenizer import Tokenizer


class SearchEngine:
    """Made once for a database: its index remembers."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        self._tokenizer = tokenizer
        self._thresholds = Thresholds(
            settings.relevance_share_min, settings.relevance_terms_min, settings.cosine_even
        )
        self._index = Index()

    def search(
        self,
        connection: sa.Connection,
        query: str,
        *,
        user_id: str | None,
        within: Sequence[str] | None,
        limit: int,
        nearness: Similarities | None,
    ) -> SearchResults:
        """See `Retrieval.search`."""
        asked = parse(query, self._tokenizer)
        if not asked.words and not asked.grams:
            return NOTHING
        index, seen = self._index.at(connection, asked), Visibility(user_id, within)
        counts = index.counts()
        ids = index.candidates(counts, seen)
        if nearness:
            ids = list(dict.fromkeys([*ids, *index.nearest(nearness, seen)]))
        chunks = index.observed(ids)
        cosines = (
            nearness.get_cosines(name or "" for name in chunks.content_hashes) if nearness else None
        )
        ranked = rank(
            asked, chunks, counts, limit=limit, thresholds=self._thresholds, cosines=cosines
        )
        rows = index.rows([place.id for place in ranked.places])
        hits = [hit(place, rows[place.id]) for place in ranked.places]
        return SearchResults(
            items=hits,
            answerable=ranked.answerable,
            share=ranked.share,
            terms=ranked.terms,
            cosine=ranked.cosine,
        )
