"""Evaluation of retrieval."""

import math
from pathlib import Path

import pytest

from service.core.errors import SettingsInvalid
from service.core.evaluation import (
    EvaluationQuestion,
    EvaluationReport,
    EvaluationText,
    evaluate,
    read_lines,
)
from service.core.settings import Settings
from tests.core.search.test_embeddings import TEXTS, Letters

ANIMALS = ("Penguins sleep in caves.", "Ospreys catch herring.", "Badgers dig burrows at dusk.")


async def evaluate_animals(
    folder: Path, *questions: EvaluationQuestion, others: tuple[EvaluationQuestion, ...] = ()
) -> EvaluationReport:
    """Evaluate questions about the animals."""
    corpus = [EvaluationText(str(n), text) for n, text in enumerate(ANIMALS)]
    return await evaluate(Settings(_env_file=None), folder, corpus, questions, others)


async def test_metrics_follow_their_definitions(tmp_path: Path) -> None:
    """A text ranked first, one ranked second and a missing one give the defined metrics."""
    report = await evaluate_animals(
        tmp_path,
        EvaluationQuestion("Where do penguins sleep?", ["0"], ["caves"]),
        EvaluationQuestion("Do penguins dig burrows at dusk?", ["0"]),
        EvaluationQuestion("Who sings opera?", ["1"]),
        others=(
            EvaluationQuestion("Who sings opera?", kind="far"),
            EvaluationQuestion("Where do penguins sleep?", kind="near"),
        ),
    )
    assert (report.texts, report.chunks, report.questions) == (3, 3, 3)
    assert (report.recall_at_1, report.recall_at_3, report.recall_at_5) == (1 / 3, 2 / 3, 2 / 3)
    assert report.mrr_at_10 == pytest.approx((1 + 1 / 2) / 3)
    assert report.ndcg_at_10 == pytest.approx((1 + 1 / math.log2(3)) / 3)
    assert report.contained == 1
    assert report.off_topic_answered == {"far": 0, "near": 1}


def test_an_invalid_line_is_reported(tmp_path: Path) -> None:
    """The error names the file and the number of the line."""
    (tmp_path / "bad.jsonl").write_text('{"id": "1", "text": "x"}\n{"id": 2}\n')
    with pytest.raises(SettingsInvalid, match=r"bad\.jsonl, line 2"):
        read_lines(tmp_path / "bad.jsonl", EvaluationText)


SETTINGS = Settings(_env_file=None)


async def test_evaluation_ranks_with_vectors(tmp_path: Path) -> None:
    """With an embedder, all texts are embedded before the first search."""
    embedder = Letters()
    corpus = [EvaluationText(id=str(n), text=text) for n, text in enumerate(TEXTS)]
    questions = [EvaluationQuestion(question="Who built the clock?", relevant=["2"])]
    report = await evaluate(SETTINGS, tmp_path, corpus, questions, [], embedder=embedder)
    assert report.recall_at_1 == 1
    assert sorted(embedder.embedded) == sorted([*TEXTS, questions[0].question])


async def test_evaluation_reuses_vectors(tmp_path: Path) -> None:
    """In an existing folder only the new corpus is searched, and only new texts are embedded."""
    embedder = Letters()
    for n, texts in enumerate((TEXTS[:2], TEXTS[1:])):
        corpus = [EvaluationText(id=text, text=text) for text in texts]
        questions = [EvaluationQuestion(question="Who built the clock?", relevant=[TEXTS[2]])]
        report = await evaluate(SETTINGS, tmp_path, corpus, questions, [], embedder=embedder)
        assert (report.chunks, report.recall_at_1) == (2, n)
    assert sorted(embedder.embedded) == sorted([*TEXTS, *2 * [questions[0].question]])
