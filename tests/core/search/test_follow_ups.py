"""Follow-up questions: the development set, fusion, and the decision whether they are answerable.

`follow_ups.jsonl` has threads about the sample documents: a question with its answer, follow-up
questions with their stand-alone form, and a text of the paragraph that answers them. Some change
the subject.
"""

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.grounding.history import join_questions
from service.core.records import Message
from service.core.search.follow_ups import fuse_results
from service.core.search.results import Hit, SearchResults
from service.core.search.service import SearchService
from service.core.settings import Settings

THREADS = [
    json.loads(line)
    for line in (Path(__file__).with_name("follow_ups.jsonl")).read_text("utf-8").splitlines()
]
FIRST_MIN = 0.85  # of what the stand-alone questions find
OFF_TOPIC = {
    "en": ["What about nginx?", "And in Germany?", "Who is the president?", "And the weather?"],
    "ja": ["nginxは？", "フランスの首都は？", "プールはありますか？", "大統領は誰ですか？"],
}
PARAGRAPHS = {"chunk_characters": 120, "chunk_overlap_characters": 0}


@asynccontextmanager
async def open_search(
    migrated: Path, folder: Path, **settings: Any
) -> AsyncIterator[SearchService]:
    """Yield a search over the sample documents."""
    shutil.copy(migrated, folder / "kotae.db")
    database = Database(f"sqlite+aiosqlite:///{folder / 'kotae.db'}")
    values = Settings(_env_file=None, **settings)
    await library.seed_documents(database, values, ChunkWorkers(), user_id="local")
    yield SearchService(database, values)
    await database.close()


async def search_thread(
    search: SearchService, questions: list[str], question: str
) -> SearchResults:
    """Return the results of a question after these."""
    previous = join_questions([Message("user", text) for text in questions])
    return await search.search_follow_up(question, previous, user_id=None, limit=5)


def select_threads(language: str) -> list[dict[str, Any]]:
    """Return the threads in a language."""
    return [thread for thread in THREADS if thread["language"] == language]


def has_first(results: SearchResults, text: str) -> bool:
    """Whether the first hit has a text."""
    return bool(results.items) and text in results.items[0].text


def test_the_development_set_has_two_hundred_questions() -> None:
    """One hundred follow-up questions for each language."""
    counts = {
        language: sum(len(thread["follow_ups"]) for thread in select_threads(language))
        for language in ("en", "ja")
    }

    assert counts == {"en": 100, "ja": 100}


def test_the_development_set_quotes_the_samples() -> None:
    """A paragraph is recognized by a text that a sample document contains."""
    samples = "".join(path.read_text("utf-8") for path in library.SAMPLES.glob("*.md"))

    texts = [item["text"] for thread in THREADS for item in thread["follow_ups"]]

    assert [text for text in texts if text not in samples] == []


@pytest.mark.slow
@pytest.mark.parametrize("chunking", [{}, PARAGRAPHS], ids=["default", "paragraphs"])
@pytest.mark.parametrize("language", ["en", "ja"])
async def test_follow_ups_find_the_paragraph_of_the_stand_alone_question(
    migrated: Path, tmp_path: Path, language: str, chunking: dict[str, int]
) -> None:
    """The right paragraph is first for at least 85 % of what the stand-alone questions find.

    Each follow-up question comes directly after the first one, and after the one before it.
    """
    comparable, first, chained, answered = 0, 0, 0, 0
    async with open_search(migrated, tmp_path, **chunking) as search:
        for thread in select_threads(language):
            questions = [thread["question"]]
            for item in thread["follow_ups"]:
                alone = await search.search(item["stand_alone"], user_id=None, limit=5)
                if has_first(alone, item["text"]):
                    comparable += 1
                    results = await search_thread(search, questions[:1], item["prompt"])
                    first += has_first(results, item["text"])
                    answered += results.answerable
                    results = await search_thread(search, questions, item["prompt"])
                    chained += has_first(results, item["text"])
                questions.append(item["prompt"])

    assert comparable >= 90
    assert min(first, chained) / comparable >= FIRST_MIN, (first, chained, comparable)
    assert answered / comparable >= FIRST_MIN


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "ja"])
async def test_previous_questions_do_not_answer_for_the_last_one(
    migrated: Path, tmp_path: Path, language: str
) -> None:
    """An off-topic follow-up question is not answerable, whatever was asked before."""
    async with open_search(migrated, tmp_path) as search:
        for thread in select_threads(language):
            for question in OFF_TOPIC[language]:
                results = await search_thread(search, [thread["question"]], question)
                assert not results.answerable, (thread["question"], question)


NOTHING = SearchResults(items=[], answerable=False, share=0, terms=0)


def build_results(coverages: dict[str, float], *, answerable: bool = True) -> SearchResults:
    """Build results with these chunks."""
    items = [
        Hit(
            document_id=chunk,
            chunk_id=chunk,
            start=0,
            end=1,
            title=chunk,
            text=chunk,
            score=coverage,
            coverage=coverage,
            matched=[],
            sentence=(0, 1),
        )
        for chunk, coverage in coverages.items()
    ]
    return SearchResults(items=items, answerable=answerable, share=coverages["a"], terms=1.0)


def test_chunks_are_ranked_by_the_sum_of_both_coverages() -> None:
    """A chunk that covers the thread and the question precedes one that covers only one of them."""
    alone = build_results({"a": 0.5, "b": 0.4})
    together = build_results({"c": 0.6, "b": 0.3, "a": 0.1})

    results = fuse_results("?", alone, together, missing=[], limit=2)

    assert [hit.chunk_id for hit in results.items] == ["b", "a"]


@pytest.mark.parametrize(
    ("alone", "together", "missing", "share"),
    [
        (True, True, [], 0.1),
        (False, True, [], 0.2),
        (False, True, ["nginx"], None),
        (False, False, [], None),
        (True, False, ["nginx"], 0.1),
    ],
)
def test_the_question_is_judged_alone_or_with_the_previous_ones(
    alone: bool, together: bool, missing: list[str], share: float | None
) -> None:
    """A missing word makes a question unanswerable that is not answerable alone."""
    results = fuse_results(
        "?",
        build_results({"a": 0.1}, answerable=alone),
        build_results({"a": 0.2}, answerable=together),
        missing=missing,
        limit=5,
    )

    assert results.answerable is (share is not None)
    assert results.share == (share or 0.1)


def test_a_question_without_words_takes_the_results_of_the_thread() -> None:
    """The question "Why?" has no words to search for, so only the previous questions rank."""
    together = build_results({"a": 0.2})

    results = fuse_results("Why?", NOTHING, together, missing=[], limit=5)

    assert results == msgspec.structs.replace(together)
