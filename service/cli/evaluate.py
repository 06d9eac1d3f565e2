"""`kotae eval`: measure retrieval on the user's own texts and questions."""

import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from service.core.evaluation import Progress, Question, Report, Text, read
from service.core.evaluation import evaluate as measure
from service.core.providers.embedders import embedder_of
from service.core.settings import Settings, load_settings


def evaluate(
    corpus: Annotated[Path, typer.Option(help="JSONL: {id, text, title?} a line.")],
    queries: Annotated[Path, typer.Option(help="JSONL: {question, relevant: [ids], answers?: [texts]} a line.")],
    offtopic: Annotated[Path | None, typer.Option(help="JSONL: {question, kind?}: what the corpus does not answer.")] = None,
    keep: Annotated[Path | None, typer.Option(help="A folder for the vectors of texts: the next run does not make them again.")] = None,
) -> None:
    """Measure the retrieval on texts of your own: recall, abstention, speed. Settings apply, such as the thresholds."""
    loaded = load_settings()
    texts, questions = read(corpus, Text), read(queries, Question)
    others = read(offtopic, Question) if offtopic else []
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kotae-eval-") as folder, _bar() as progress:
        report = asyncio.run(_measured(loaded, keep or Path(folder), texts, questions, others, progress))
    print("\n".join(report.lines()))


async def _measured(
    loaded: Settings, folder: Path, texts: list[Text], questions: list[Question], others: list[Question], progress: Progress
) -> Report:
    embedder = embedder_of(loaded)
    try:
        return await measure(loaded, folder, texts, questions, others, progress, embedder=embedder)
    finally:
        if embedder:
            await embedder.aclose()


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A line on standard error that tells how far it is, if somebody looks at it."""

    def show(what: str, done: int, of: int) -> None:
        if sys.stderr.isatty() and (done == of or done % 20 == 0):
            filled = 30 * done // of
            print(
                f"\r{what:<10} [{'#' * filled}{'.' * (30 - filled)}] {done}/{of}",
                end="\n" if done == of else "",
                file=sys.stderr,
                flush=True,
            )

    yield show
