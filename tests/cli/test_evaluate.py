"""`kotae eval`."""

import json
from pathlib import Path

from typer.testing import CliRunner

from service.cli.app import app
from tests.core.test_evaluation import ANIMALS


def test_the_command(tmp_path: Path) -> None:
    """`kotae eval` reads JSONL and prints the report."""
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(ANIMALS))
    )
    (tmp_path / "queries.jsonl").write_text(
        json.dumps({"question": "What do ospreys catch?", "relevant": ["1"], "more": 1}) + "\n\n"
    )
    result = CliRunner().invoke(
        app, ["eval", "--corpus", "corpus.jsonl", "--queries", "queries.jsonl"]
    )
    assert result.exit_code == 0, result.output
    assert "R@1 1.0000" in result.output
