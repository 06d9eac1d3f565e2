"""`kotae eval`: measure retrieval on the user's own texts and questions."""

import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from service.core.evaluation import EvaluationQuestion, EvaluationReport, EvaluationText, read_lines
from service.core.evaluation import evaluate as measure
from service.core.providers.embedders import create_embedder
from service.core.settings import Settings, load_settings


def evaluate(
    corpus: Annotated[Path, typer.Option(help="JSONL: {id, text, title?} a line.")],
    queries: Annotated[
        Path, typer.Option(help="JSONL: {question, relevant: [ids], answers?: [texts]} a line.")
    ],
    offtopic: Annotated[
        Path | None, typer.Option(help="JSONL: {question, kind?}: what the corpus does not answer.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="A folder for the vectors of texts: the next run does not make them again."
        ),
    ] = None,
) -> None:
    """Measure the retrieval on texts of your own: recall, abstention, speed. Settings apply, such as the thresholds."""
    loaded = load_settings()
    texts, questions = read_lines(corpus, EvaluationText), read_lines(queries, EvaluationQuestion)
    others = read_lines(offtopic, EvaluationQuestion) if offtopic else []
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kotae-eval-") as folder:
        report = asyncio.run(_measured(loaded, keep or Path(folder), texts, questions, others))
    print("\n".join(report.format_lines()))


async def _measured(
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
