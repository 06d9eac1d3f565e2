"""Answers without a provider call: greetings, the list of documents, and refusals.

A refusal comes with the passages nearest to the question, which are not an answer, and names the
words that decide: those that no document contains. Everything is read from the documents that the
caller can see.
"""

from collections.abc import Sequence

import msgspec

from service.core.database.engine import Database
from service.core.documents.library import list_titles
from service.core.grounding.prompt import build_passage
from service.core.grounding.refusals import (
    NEAREST_MAX,
    TITLES_MAX,
    PromptKind,
    classify_prompt,
    compose_refusal,
    compose_reply,
)
from service.core.records import Passage
from service.core.search.results import SearchResults
from service.core.search.service import SearchService


class Refusal(msgspec.Struct, frozen=True):
    """A text that is sent instead of an answer, and the passages shown with it."""

    text: str
    nearest: list[Passage]


class RefusalComposer:
    """See the module. All methods raise `DatabaseUnavailable` only.

    `user_id`, `within`: the visible documents, as in `SearchService.search`.
    """

    def __init__(self, database: Database, search_service: SearchService) -> None:
        self._database, self._search_service = database, search_service

    async def reply_without_search(
        self, prompt: str, *, user_id: str | None, within: Sequence[str] | None
    ) -> Refusal | None:
        """Return the reply to a greeting or a question about the collection; None for others."""
        kind = classify_prompt(prompt)
        if kind is None:
            return None
        titles: list[str] = []
        total = 0
        if kind is PromptKind.COLLECTION:
            titles, total = await self._list_titles(user_id, within, TITLES_MAX)
        return Refusal(compose_reply(kind, prompt, titles, total), [])

    async def refuse(
        self,
        prompt: str,
        results: SearchResults,
        *,
        user_id: str | None,
        within: Sequence[str] | None,
    ) -> Refusal:
        """Return the refusal of a question that these results do not answer."""
        nearest = [build_passage(n, hit) for n, hit in enumerate(results.items[:NEAREST_MAX], 1)]
        missing = await self._search_service.find_missing_words(
            results.searched_for or prompt, user_id=user_id, within=within
        )
        is_empty = not nearest and not (await self._list_titles(user_id, within, 1))[1]
        return Refusal(compose_refusal(prompt, missing, is_empty=is_empty), nearest)

    async def _list_titles(
        self, user_id: str | None, within: Sequence[str] | None, limit: int
    ) -> tuple[list[str], int]:
        async with self._database.read_session() as session:
            return await list_titles(session, user_id=user_id, within=within, limit=limit)
