"""Search: runs one search at a time over the documents that the caller may see (`engine.py`).

A search runs in a thread as a whole: it computes for a few milliseconds and consists of many short
statements. One computes at a time and others wait: concurrent searches would not be faster, but
the event loop, which serves all streams, would compete with each of them for the interpreter lock
(docs/decisions/0014). Users who search take turns (`fair_share.py`).

A search of all owners' documents takes longer than others, in proportion to the number of owners.
Such searches take separate turns, and pause between some owners while another search is in
progress.

Limits: `QUERY_CHARACTERS_MAX`; `WORDS_MAX`, `GRAMS_MAX` and `LIMIT_MAX` in `ranking.py`; the
postings and caches of `index.py` and `postings/fts5.py`.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING

import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.fair_share import FairTurns, Precedence
from service.core.lazy import LazyModule
from service.core.ports import VectorSearch
from service.core.search.follow_ups import FUSED_MAX, fuse_results
from service.core.search.results import SearchResults
from service.core.settings import Settings
from service.core.text.tokenizer import get_tokenizer

if TYPE_CHECKING:
    from service.core.search import engine
else:
    engine = LazyModule("service.core.search.engine")

QUERY_CHARACTERS_MAX = 20_000
SEARCHES_AT_ONCE = 1
PAUSE_SECONDS = 0.1  # maximum pause of a search of all owners before it reads further ones
VECTORS_AT_ONCE = 64  # of questions; the model in this process computes one at a time


class SearchService:
    """Searches one database. Created once, since it caches parts of the index."""

    def __init__(
        self, database: Database, settings: Settings, vectors: VectorSearch | None = None
    ) -> None:
        self._database = database
        self._vectors = vectors
        self._settings = settings
        self._turns, self._turns_of_all = FairTurns(SEARCHES_AT_ONCE), FairTurns(SEARCHES_AT_ONCE)
        self._precedence = Precedence(PAUSE_SECONDS)
        self._vector_turns = FairTurns(VECTORS_AT_ONCE, settings.user_share)

    @property
    def waiting_searches(self) -> int:
        """The number of searches that wait for their turn."""
        return self._turns.waiting + self._turns_of_all.waiting

    async def search(
        self,
        query: str,
        *,
        user_id: str | None,
        limit: int,
        within: Sequence[str] | None = None,
        as_whole: bool = False,
    ) -> SearchResults:
        """Return the chunks that answer a query, from the documents that `user_id` may see.

        Those are the user's own and shared documents; None sees all. `within` restricts the search
        to documents with these ids. Any text is a query. `as_whole` disregards the questions within
        it (`questions.py`). Raises `DatabaseUnavailable` only.
        """
        query = query[:QUERY_CHARACTERS_MAX]
        vector = None
        if self._vectors and query.strip():
            async with self._vector_turns.turn():
                vector = await self._vectors.embed_query(query)

        def run_search(connection: sa.Connection) -> SearchResults:
            return self._engine.search(
                connection,
                query,
                user_id=user_id,
                within=within,
                limit=limit,
                vector=vector,
                as_whole=as_whole,
                pause=self._precedence.pause,
            )

        async with self._turn(user_id):
            return await self._database.run_blocking_read(run_search)

    async def search_follow_up(
        self,
        question: str,
        previous: str,
        *,
        user_id: str | None,
        limit: int,
        within: Sequence[str] | None = None,
    ) -> SearchResults:
        """Like `search`, for a question that may refer to previous ones; see `follow_ups.py`."""
        search = partial(self.search, user_id=user_id, limit=max(limit, FUSED_MAX), within=within)
        alone = await search(question)
        together = await search(f"{question}\n{previous}", as_whole=True)
        missing: list[str] = []
        if together.answerable and not alone.answerable:
            missing = await self.find_missing_words(
                alone.searched_for or question, user_id=user_id, within=within
            )
        return fuse_results(question, alone, together, missing=missing, limit=limit)

    async def find_missing_words(
        self, question: str, *, user_id: str | None, within: Sequence[str] | None = None
    ) -> list[str]:
        """Return the decisive words of a question that no visible document contains, as written.

        A few at most; see `missing_words.py`. Raises `DatabaseUnavailable` only.
        """

        def find_words(connection: sa.Connection) -> list[str]:
            return self._engine.find_missing_words(
                connection,
                question,
                user_id=user_id,
                within=within,
                pause=self._precedence.pause,
            )

        async with self._turn(user_id):
            return await self._database.run_blocking_read(find_words)

    @asynccontextmanager
    async def _turn(self, user_id: str | None) -> AsyncGenerator[None]:
        """A turn for a search of the documents that `user_id` may see; None: of all owners'."""
        if user_id is None:
            async with self._turns_of_all.turn():
                yield
        else:
            with self._precedence.short_work():
                async with self._turns.turn():
                    yield

    @cached_property
    def _engine(self) -> "engine.SearchEngine":
        return engine.SearchEngine(get_tokenizer(self._settings.dictionary), self._settings)
