"""`kotae eval`: measure retrieval on your texts and questions."""

import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from service.core.evaluation import EvaluationQuestion, EvaluationReport, EvaluationText, read_lines
from service.core.evaluation import evaluate as measure
from service.core.providers.embedders import create_embedder
from service.core.settings import Settings, load_settings


def _lines_file(content: str) -> Any:
    return typer.Option(help=f"JSONL file of {content}.", exists=True, dir_okay=False)


def evaluate(
    corpus: Annotated[Path, _lines_file("{id, text, title?}")],
    queries: Annotated[Path, _lines_file("{question, relevant: \\[ids], answers?: \\[texts]}")],
    offtopic: Annotated[
        Path | None,
        _lines_file("{question, kind?}: questions without an answer"),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Directory to keep embedding vectors in; the next run reuses them."),
    ] = None,
) -> None:
    """Measure recall, abstention and speed of retrieval on your texts, with your settings."""
    loaded = load_settings()
    texts, questions = read_lines(corpus, EvaluationText), read_lines(queries, EvaluationQuestion)
    others = read_lines(offtopic, EvaluationQuestion) if offtopic else []
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kotae-eval-") as folder:
        report = asyncio.run(
            _run_evaluation(loaded, keep or Path(folder), texts, questions, others)
        )
    print("\n".join(report.format_lines()))


async def _run_evaluation(
    loaded: Settings,
    folder: Path,
    texts: list[EvaluationText],
    questions: list[EvaluationQuestion],
    others: list[EvaluationQuestion],
) -> EvaluationReport:
    embedder = create_embedder(loaded)
    try:
        return await measure(
            loaded, folder, texts, questions, others, _show_progress, embedder=embedder
        )
    finally:
        if embedder:
            await embedder.aclose()


@contextmanager
def _show_progress(label: str, length: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error if that is a terminal and there is something to do."""
    hidden = length == 0 or not sys.stderr.isatty()
    with typer.progressbar(length=length, label=label, file=sys.stderr, hidden=hidden) as bar:
        yield bar.update
