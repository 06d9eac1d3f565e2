"""Reading other users' documents from the numbers of a search."""

import pytest

from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.documents.library import NewDocument
from service.core.search.results import SearchResults
from service.core.search.service import SearchService
from service.core.settings import Settings

SETTINGS = Settings(_env_file=None)
CANDIDATES = [f"{4000 + n}" for n in range(1_000)]
PIN = CANDIDATES[271]
MEMO = "The boiler room is on the lower floor. Its door code changes on the first Monday."
QUESTION = "When does the door code of the boiler room change?"


async def store_texts(database: Database, user_id: str, *texts: str) -> None:
    """Store texts of a user."""
    new = [NewDocument("Note", text, "utf-8") for text in texts]
    await library.store_documents(database, SETTINGS, ChunkWorkers(), new, user_id=user_id)


@pytest.mark.slow
async def test_candidates_do_not_reveal_a_secret(database: Database) -> None:
    """Among 1,000 uploaded candidates, that of another user's document is like all others."""
    await store_texts(database, "victim", f"My PIN is {PIN}.")
    await store_texts(
        database, "attacker", *(f"My PIN is {candidate}." for candidate in CANDIDATES)
    )
    service = SearchService(database, SETTINGS)

    def list_numbers(results: SearchResults) -> str:
        hits = [(hit.score, hit.coverage, len(hit.matched)) for hit in results.items]
        return repr((hits, results.answerable, results.share, results.terms))

    results = {
        candidate: list_numbers(await service.search(candidate, user_id="attacker", limit=5))
        for candidate in [*CANDIDATES[260:280], PIN]
    }
    assert len(set(results.values())) == 1


async def test_uploads_of_others_refuse_no_question(database: Database) -> None:
    """30 documents of another user that contain all words of a question do not change its share."""
    await store_texts(database, "victim", MEMO)
    service = SearchService(database, SETTINGS)
    before = await service.search(QUESTION, user_id="victim", limit=5)

    await store_texts(database, "attacker", *(f"{n}. {QUESTION} {MEMO}" for n in range(30)))
    after = await service.search(QUESTION, user_id="victim", limit=5)

    assert before.answerable
    assert after == before
