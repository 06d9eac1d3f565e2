"""Evaluation of retrieval on a corpus with questions (`kotae eval`).

Texts are indexed as by the service, in a separate database; each question is searched as by the
service. Metrics (Manning, Raghavan and Schütze, "Introduction to Information Retrieval", 2008, ch.
8): recall at k (is a relevant text among the first k), mean reciprocal rank, and nDCG with binary
relevance, both of the first ten. A text with several hits counts at its first one.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread
import msgspec
import sqlalchemy as sa

from service.core.database import tables
from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.library import ChunkWorkers
from service.core.errors import SettingsInvalid
from service.core.grounding import prompt
from service.core.grounding.extraction import quote_answer
from service.core.grounding.meaning import quote_by_meaning
from service.core.lazy import LazyModule, load_module
from service.core.ports import Embedder, VectorSearch
from service.core.records import Passage
from service.core.search import fts5_merge
from service.core.search.service import SearchService
from service.core.settings import Settings

if TYPE_CHECKING:
    from service.core.search import embeddings
else:
    embeddings = LazyModule("service.core.search.embeddings")

UPLOADED_AT_ONCE = 50
HITS = 30  # per search; enough for ten texts
RANKS = 10
USER = "eval"


class EvaluationText(msgspec.Struct, frozen=True):
    """A line of the corpus file."""

    id: str
    text: str
    title: str | None = None


class EvaluationQuestion(msgspec.Struct, frozen=True):
    """A line of the question file.

    `relevant`: ids of the texts that answer it. `answers`: acceptable substrings of the answer.
    """

    question: str
    relevant: list[str] = []
    answers: list[str] = []
    kind: str = "off-topic"


class EvaluationReport(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics between 0 and 1, and times.

    `contained`: share of extractive answers that contain a reference answer.
    """

    texts: int
    chunks: int
    chunks_per_second: float
    questions: int
    recall_at_1: float
    recall_at_3: float
    recall_at_5: float
    mrr_at_10: float
    ndcg_at_10: float
    answerable: float
    contained: float | None
    off_topic_answered: dict[str, float]
    ms_median: float
    ms_p95: float

    def format_lines(self) -> list[str]:
        """Return the report as lines of text."""
        return [
            (
                f"{self.texts} texts, {self.chunks} chunks, indexed at"
                f" {self.chunks_per_second:.0f} chunks/s; {self.questions} questions"
            ),
            f"R@1 {self.recall_at_1:.4f}  R@3 {self.recall_at_3:.4f}  R@5 {self.recall_at_5:.4f}",
            f"MRR {self.mrr_at_10:.4f}  nDCG@10 {self.ndcg_at_10:.4f}",
            f"answerable questions answered {self.answerable:.4f}",
            *(
                f"{kind} answered anyway {rate:.4f}"
                for kind, rate in self.off_topic_answered.items()
            ),
            *(
                []
                if self.contained is None
                else [f"extractive answer contains the known one {self.contained:.4f}"]
            ),
            f"ms per search: median {self.ms_median:.1f}, 95 % within {self.ms_p95:.1f}",
        ]


T = TypeVar("T")
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Displays the progress of a step of this name and length, and yields a function to advance it."""


@contextmanager
def no_progress(_label: str, _length: int) -> Iterator[Callable[[int], None]]:
    """Display no progress."""
    yield lambda _: None


def read_lines(path: Path, line_type: type[T]) -> list[T]:
    """Read a JSONL file. Raises `SettingsInvalid` with the number of an invalid line."""
    lines = []
    for n, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                lines.append(msgspec.json.decode(line, type=line_type))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise SettingsInvalid(f"{path}, line {n}: {error}") from error
    return lines


async def evaluate(
    settings: Settings,
    folder: Path,
    corpus: Sequence[EvaluationText],
    questions: Sequence[EvaluationQuestion],
    others: Sequence[EvaluationQuestion],
    progress: Progress = no_progress,
    *,
    embedder: Embedder | None = None,
) -> EvaluationReport:
    """Index a corpus, search it, and compute the metrics. The database is created in `folder`.

    `others` are questions that the corpus does not answer. With an `embedder`, all texts are
    embedded before the first search, without log rows. Of an existing database, only the vectors
    are reused.
    """
    database = Database(f"sqlite+aiosqlite:///{folder / 'eval.db'}")
    try:
        await database.migrate()
        async with database.transaction() as session:
            await session.execute(sa.delete(tables.documents))
        began = time.perf_counter()
        with closing(ChunkWorkers()) as chunk_workers:
            ids, chunks = await _index_corpus(database, settings, chunk_workers, corpus, progress)
        seconds = time.perf_counter() - began
        vectors = await _embed_corpus(database, embedder, chunks, progress) if embedder else None
        evaluator = _Evaluator(database, settings, vectors, ids)
        with progress("questions", len(questions)) as advance:
            for question in questions:
                await evaluator.ask_question(question)
                advance(1)
        answered: dict[str, list[bool]] = {}
        with progress("off-topic", len(others)) as advance:
            for question in others:
                results = await evaluator.search.search(question.question, user_id=USER, limit=1)
                answered.setdefault(question.kind, []).append(results.answerable)
                advance(1)
    finally:
        await database.close()
    return evaluator.create_report(
        texts=len(corpus),
        chunks=chunks,
        seconds=seconds,
        off_topic={kind: compute_mean(rates) for kind, rates in sorted(answered.items())},
    )


async def _index_corpus(
    database: Database,
    settings: Settings,
    chunk_workers: ChunkWorkers,
    corpus: Sequence[EvaluationText],
    progress: Progress,
) -> tuple[dict[str, str], int]:
    ids: dict[str, str] = {}
    chunks = 0
    with progress("texts", len(corpus)) as advance:
        for begin in range(0, len(corpus), UPLOADED_AT_ONCE):
            part = corpus[begin : begin + UPLOADED_AT_ONCE]
            new = [library.NewDocument(text.title or "", text.text, "utf-8") for text in part]
            stored = await library.store_documents(
                database, settings, chunk_workers, new, user_id=USER
            )
            for text, document in zip(part, stored, strict=True):
                ids.setdefault(document.document_id, text.id)
                chunks += document.chunks if document.created else 0
            advance(len(part))
    # As the service does when uploads pause.
    await fts5_merge.merge_segments(database, pause_seconds=0)
    return ids, chunks


async def _embed_corpus(
    database: Database, embedder: Embedder, texts_max: int, progress: Progress
) -> VectorSearch:
    await anyio.to_thread.run_sync(load_module, embeddings)
    vectors = embeddings.EmbeddingStore(database, embedder, None, None)
    with progress("vectors", texts_max) as advance:
        async for texts in vectors.list_missing(await vectors.read_progress()):
            await vectors.embed_texts(texts)
            advance(len(texts))
    await vectors.publish_vectors()
    return vectors


class _Evaluator:
    """Searches for questions and collects the results."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        vectors: VectorSearch | None,
        ids: dict[str, str],
    ) -> None:
        self.search = SearchService(database, settings, vectors)
        self._settings, self._vectors, self._ids = settings, vectors, ids
        self._ranks: list[int | None] = []
        self._answerable: list[bool] = []
        self._contained: list[bool] = []
        self._ms: list[float] = []

    async def ask_question(self, question: EvaluationQuestion) -> None:
        began = time.perf_counter()
        results = await self.search.search(question.question, user_id=USER, limit=HITS)
        self._ms.append((time.perf_counter() - began) * 1000)
        texts = list(dict.fromkeys(self._ids[hit.document_id] for hit in results.items))
        self._ranks.append(
            next((n for n, text in enumerate(texts[:RANKS], 1) if text in question.relevant), None)
        )
        self._answerable.append(results.answerable)
        context = prompt.build_context(
            results.items, self._settings.context_tokens_max, self._settings.context_chunks_max
        )
        if (
            question.answers
            and results.answerable
            and any(self._ids[passage.document_id] in question.relevant for passage in context)
        ):
            answer = await self._answer(results.searched_for or question.question, context)
            self._contained.append(any(reference in answer for reference in question.answers))

    async def _answer(self, question: str, context: list[Passage]) -> str:
        """Return the answer of the extractive model."""
        dictionary = self._settings.dictionary
        answer = await anyio.to_thread.run_sync(quote_answer, question, context, dictionary)
        if self._vectors is None:
            return answer
        nearest = await quote_by_meaning(
            question, context, answer, self._vectors, dictionary=dictionary
        )
        return nearest or answer

    def create_report(
        self, *, texts: int, chunks: int, seconds: float, off_topic: dict[str, float]
    ) -> EvaluationReport:
        def compute_recall(k: int) -> float:
            return compute_mean(rank is not None and rank <= k for rank in self._ranks)

        times = sorted(self._ms) or [0.0]
        return EvaluationReport(
            texts=texts,
            chunks=chunks,
            chunks_per_second=chunks / seconds if seconds else 0.0,
            questions=len(self._ranks),
            recall_at_1=compute_recall(1),
            recall_at_3=compute_recall(3),
            recall_at_5=compute_recall(5),
            mrr_at_10=compute_mean(1 / rank if rank else 0 for rank in self._ranks),
            ndcg_at_10=compute_mean(1 / math.log2(rank + 1) if rank else 0 for rank in self._ranks),
            answerable=compute_mean(self._answerable),
            contained=compute_mean(self._contained) if self._contained else None,
            off_topic_answered=off_topic,
            ms_median=times[len(times) // 2],
            ms_p95=times[int(len(times) * 0.95)],
        )


def compute_mean(values: Iterable[float]) -> float:
    """Return the mean, or 0 if there are no values."""
    collected = list(values)
    return sum(collected) / len(collected) if collected else 0.0
