"""Measuring the retrieval."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.app import app
from service.core.errors import SettingsInvalid
from service.core.evaluation import Question, Report, Text, evaluate, read
from service.core.settings import Settings

ANIMALS = ("Penguins sleep in caves.", "Ospreys catch herring.", "Badgers dig burrows at dusk.")


async def measured(folder: Path, *questions: Question, others: tuple[Question, ...] = ()) -> Report:
    """A report on the animals."""
    corpus = [Text(str(n), text) for n, text in enumerate(ANIMALS)]
    return await evaluate(Settings(_env_file=None), folder, corpus, questions, others, lambda *_: None)


async def test_the_measures(tmp_path: Path) -> None:
    """A text found first, one found second and one not found give what the definitions say."""
    report = await measured(
        tmp_path,
        Question("Where do penguins sleep?", ["0"], ["caves"]),
        Question("Do penguins dig burrows at dusk?", ["0"]),
        Question("Who sings opera?", ["1"]),
        others=(Question("Who sings opera?", kind="far"), Question("Where do penguins sleep?", kind="near")),
    )
    assert (report.texts, report.chunks, report.questions) == (3, 3, 3)
    assert (report.recall_at_1, report.recall_at_3, report.recall_at_5) == (1 / 3, 2 / 3, 2 / 3)
    assert report.mrr_at_10 == pytest.approx((1 + 1 / 2) / 3)
    assert report.ndcg_at_10 == pytest.approx((1 + 1 / math.log2(3)) / 3)
    assert report.contained == 1
    assert report.off_topic_answered == {"far": 0, "near": 1}


def test_the_command(tmp_path: Path) -> None:
    """`kotae eval` reads JSONL and prints the report."""
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(ANIMALS)))
    (tmp_path / "queries.jsonl").write_text(json.dumps({"question": "What do ospreys catch?", "relevant": ["1"], "more": 1}) + "\n\n")
    result = CliRunner().invoke(app, ["eval", "--corpus", "corpus.jsonl", "--queries", "queries.jsonl"])
    assert result.exit_code == 0, result.output
    assert "R@1 1.0000" in result.output


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    """A line that is not what it should be is told by file and number."""
    (tmp_path / "bad.jsonl").write_text('{"id": "1", "text": "x"}\n{"id": 2}\n')
    with pytest.raises(SettingsInvalid, match=r"bad\.jsonl, line 2"):
        read(tmp_path / "bad.jsonl", Text)
