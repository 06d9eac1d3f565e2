"""Search: the chunks that a question would be answered from, and whether it can be answered from them at all.

    question → terms → counts → candidates (`index.py`) → one re-ranker and the abstention (`ranking.py`)

With embeddings the chunks nearest in meaning join the candidates, and their cosines the ranking; without an answer from
whoever embeds, or where a chunk has no vector yet, words alone decide.

All of it is one visit of a thread: it computes for a few milliseconds, and its statements are many and short. One search
computes at a time, and others wait: of several that compute side by side none is quicker, but the event loop, which runs every
stream, would have to wait for each of them whenever its turn comes (docs/decisions/0014).

Limits: `WORDS_MAX` and `GRAMS_MAX` distinct terms of a question, those of `index.py` on what is looked at and remembered,
`LIMIT_MAX` chunks returned.
"""

from collections.abc import Sequence

import anyio
import sqlalchemy as sa

from service.core.db import Database
from service.core.index import Index, Seen
from service.core.ports import Near
from service.core.ranking import NOTHING, Found, Thresholds, hit, parse, rank
from service.core.settings import Settings
from service.core.terms import tokenizer

QUERY_CHARACTERS_MAX = 20_000
SEARCHES_AT_ONCE = 1


class Retrieval:
    """Searches one database. Made once: it remembers what it read of the index."""

    def __init__(self, database: Database, settings: Settings, near: Near | None = None) -> None:
        self._database = database
        self._near = near
        self._tokenizer = tokenizer(settings.dictionary)
        self._thresholds = Thresholds(settings.relevance_share_min, settings.relevance_terms_min, settings.cosine_even)
        self._index = Index()
        self._turn = anyio.CapacityLimiter(SEARCHES_AT_ONCE)

    @property
    def waiting(self) -> int:
        """How many searches wait for their turn."""
        return self._turn.statistics().tasks_waiting

    async def search(self, query: str, *, user_id: str | None, limit: int, within: Sequence[str] | None = None) -> Found:
        """The chunks that answer a question, of the documents that `user_id` may see: its own and shared ones; None sees all.

        `within`: of these documents alone. Any text is a question. Raises `DatabaseUnavailable` only.
        """
        query = query[:QUERY_CHARACTERS_MAX]
        nearness = await self._near.near(query) if self._near and query.strip() else None

        def look(connection: sa.Connection) -> Found:
            asked = parse(query, self._tokenizer)
            if not asked.words and not asked.grams:
                return NOTHING
            index, seen = self._index.at(connection), Seen(user_id, within)
            counts = index.counts(asked)
            ids = index.candidates(counts, seen)
            if nearness:
                ids = list(dict.fromkeys([*ids, *index.nearest(nearness, seen)]))
            chunks = index.digests(ids)
            cosines = nearness.of(one.content_hash or "" for one in chunks.values()) if nearness else None
            ranked = rank(asked, chunks, counts, limit=limit, thresholds=self._thresholds, cosines=cosines)
            rows = index.rows([place.id for place in ranked.places])
            hits = [hit(place, rows[place.id]) for place in ranked.places]
            return Found(items=hits, answerable=ranked.answerable, share=ranked.share, terms=ranked.terms, cosine=ranked.cosine)

        async with self._turn:
            return await self._database.look(look)
