"""Who may search when: one search at a time, of the documents that one may see (`search.py` does it).

All of a search is one visit of a thread: it computes for a few milliseconds, and its statements are many and short. One
computes at a time, and others wait: of several that compute side by side none is quicker, but the event loop, which runs every
stream, would have to wait for each of them whenever its turn comes (docs/decisions/0014).

Limits: `WORDS_MAX` and `GRAMS_MAX` distinct terms of a question, those of `index.py` and `fts5.py` on what is looked at and remembered,
`LIMIT_MAX` chunks returned.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import anyio
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.lazy import LazyModule
from service.core.ports import VectorSearch
from service.core.search.results import SearchResults
from service.core.settings import Settings
from service.core.text.tokenizer import get_tokenizer

if TYPE_CHECKING:
    from service.core.search import engine
else:
    engine = LazyModule("service.core.search.engine")

QUERY_CHARACTERS_MAX = 20_000
SEARCHES_AT_ONCE = 1


class SearchService:
    """Searches one database. Made once: it remembers what it read of the index."""

    def __init__(
        self, database: Database, settings: Settings, near: VectorSearch | None = None
    ) -> None:
        self._database = database
        self._near = near
        self._settings = settings
        self._turn = anyio.Semaphore(SEARCHES_AT_ONCE, fast_acquire=True)

    @property
    def waiting_searches(self) -> int:
        """How many searches wait for their turn."""
        return self._turn.statistics().tasks_waiting

    async def search(
        self, query: str, *, user_id: str | None, limit: int, within: Sequence[str] | None = None
    ) -> SearchResults:
        """The chunks that answer a question, of the documents that `user_id` may see: its own and shared ones; None sees all.

        `within`: of these documents alone. Any text is a question. Raises `DatabaseUnavailable` only.
        """
        query = query[:QUERY_CHARACTERS_MAX]
        nearness = await self._near.find_similar(query) if self._near and query.strip() else None

        def look(connection: sa.Connection) -> SearchResults:
            return self._search.search(
                connection, query, user_id=user_id, within=within, limit=limit, nearness=nearness
            )

        async with self._turn:
            return await self._database.run_blocking_read(look)

    @cached_property
    def _search(self) -> "engine.SearchEngine":
        return engine.SearchEngine(get_tokenizer(self._settings.dictionary), self._settings)
