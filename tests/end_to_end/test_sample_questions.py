"""A hundred questions in each language, as people ask them about the sample documents.

The files have a question and the strings one of which the answer contains, separated by tabs; `-`
stands for a refusal.
"""

from pathlib import Path

import pytest

from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.library import ChunkWorkers
from service.core.grounding.extraction import quote_answer
from service.core.grounding.prompt import build_context
from service.core.search.service import SearchService
from service.core.settings import Settings

QUESTIONS_MIN, CORRECT_MIN = 100, 0.95
REFUSED = "-"
SETTINGS = Settings(_env_file=None)


async def answer_question(search: SearchService, question: str) -> str:
    """The answer of the extractive model, or `REFUSED`."""
    results = await search.search(question, user_id="u", limit=SETTINGS.context_chunks_max)
    if not results.answerable:
        return REFUSED
    context = build_context(results.items, SETTINGS.context_tokens_max, SETTINGS.context_chunks_max)
    return quote_answer(question, context, SETTINGS.dictionary)


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "ja"])
async def test_questions_about_the_samples(database: Database, language: str) -> None:
    """At least 95 of 100 answers contain what was asked for, or refuse what is not there."""
    workers = ChunkWorkers()
    await library.seed_documents(database, SETTINGS, workers, user_id="u")
    workers.close()
    search = SearchService(database, SETTINGS)
    path = Path(__file__).parent / "sample_questions" / f"{language}.tsv"
    lines = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    wrong = {}
    for question, *expected in lines:
        answer = await answer_question(search, question)
        if not any(string in answer for string in expected) or (
            expected == [REFUSED] and answer != REFUSED
        ):
            wrong[question] = answer
    assert len(lines) >= QUESTIONS_MIN
    assert len(wrong) <= (1 - CORRECT_MIN) * len(lines), wrong
