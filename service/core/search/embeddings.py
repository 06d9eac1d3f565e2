"""Vectors of chunks: stored by content hash, computed in the background, compared in memory.

A text has one vector per model, however many documents contain it (`vectors`), and keeps it when
documents are re-indexed. The vectors of the model in use are also in memory (`vector_matrix.py`),
so that a query costs one matrix product: about 0.1 ms for 1,000 chunks of 384 dimensions, 1.5 KB
of memory each. A search looks up the results in `chunks`, so a deleted document is never returned,
even while its vectors are still in memory; `delete_unused` removes them.

A call that may be billed has a row in the log: endpoint `/v1/embeddings`, user `EMBEDDER`, with
the usage reported by the provider and without the texts. It is charged to no quota. Only attempts
that were certainly not billed are retried.

Limits: `TEXTS_MAX` vectors in memory (further texts are ranked by words), `QUERY_SECONDS` for the
vector of a query.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Sequence
from itertools import islice

import anyio.to_thread
import msgspec
import sqlalchemy as sa

from service.core.accounting.outcomes import AnswerAccount
from service.core.accounting.recorder import Recorder
from service.core.database.engine import Database
from service.core.database.tables import chunks, documents, vectors
from service.core.encoding import create_id, utc_now
from service.core.errors import KotaeError, ProviderError, ProviderTimeout, retry_delay
from service.core.ports import Embedder, EmbeddingResult, Message, Similarities
from service.core.pricing import PriceBook
from service.core.records import Intent, Status
from service.core.search import fts5_merge
from service.core.search.vector_matrix import VectorMatrix, normalize_vector
from service.core.telemetry import log

EMBEDDER = "kotae.embeddings"  # user id of the log rows
ENDPOINT = "/v1/embeddings"
TEXTS_MAX = 200_000
QUERY_SECONDS = 3
RETRY_SECONDS = 0.3  # after the first attempt, doubled after each further one
RETRY_SECONDS_MAX = 3
AT_ONCE = 1000  # vectors loaded or looked up by one statement
DOCUMENTS_AT_ONCE = 50  # searched for missing texts by one statement


class MissingText(msgspec.Struct, frozen=True):
    """A text that has no vector yet."""

    content_hash: str
    text: str


class EmbeddingStore:
    """The vectors of one model. Implements `VectorSearch`."""

    def __init__(
        self,
        database: Database,
        embedder: Embedder,
        recorder: Recorder | None,
        prices: PriceBook | None,
        *,
        attempts_max: int = 3,
    ) -> None:
        self._database, self._embedder = database, embedder
        self._recorder, self._prices, self._attempts_max = recorder, prices, attempts_max
        self._matrix = VectorMatrix(TEXTS_MAX)  # by content hash

    @property
    def at_once(self) -> int:
        """The maximum number of texts of one call."""
        return self._embedder.at_once

    async def find_similar(self, query: str) -> Similarities | None:
        """See `VectorSearch.find_similar`."""
        if not len(self._matrix):
            return None
        try:
            result = await self._embed([query], query=True)
        except KotaeError as error:
            log.warning("vector.missed", code=error.code, error=str(error))
            return None
        return await anyio.to_thread.run_sync(self._matrix.compare, result.vectors[0])

    async def load_vectors(self) -> None:
        """Replace the vectors in memory by those in the database."""
        matrix, after = VectorMatrix(TEXTS_MAX), ""
        while len(matrix) < TEXTS_MAX and (page := await self._read_page(after)):
            matrix.store(page)
            after = max(page)
        self._matrix = matrix

    async def delete_unused(self) -> int:
        """Remove vectors from memory that are no longer in the database. Returns their number."""
        count = sa.select(sa.func.count()).where(vectors.c.model == self._embedder.model)
        async with self._database.read_session() as session:
            stored = int((await session.execute(count)).scalar_one())
        names = self._matrix.list_names() if stored < len(self._matrix) else []
        removed = 0
        for begin in range(0, len(names), AT_ONCE):
            batch = names[begin : begin + AT_ONCE]
            missing = set(batch) - await self._read_stored(batch)
            self._matrix.remove(missing)
            removed += len(missing)
        return removed

    async def list_missing_batches(self) -> AsyncGenerator[list[MissingText]]:
        """Yield texts without a vector in batches of at most `at_once`, until there are none.

        The owners of documents take turns, so that a small document does not wait for all texts of
        another owner. The caller embeds each batch before the next. Includes texts added meanwhile.
        """
        backlog: dict[str, deque[str]] = {}
        last_chunk = 0
        while True:
            last_chunk = await self._extend_backlog(backlog, last_chunk)
            if not backlog:
                return
            for owner in list(backlog):
                texts = await self._take_missing(backlog[owner])
                if not backlog[owner]:
                    del backlog[owner]
                if texts:
                    yield texts

    async def _extend_backlog(self, backlog: dict[str, deque[str]], last_chunk: int) -> int:
        """Add the documents of later chunks without a vector, by owner. Returns the last chunk."""
        newest = sa.select(sa.func.max(chunks.c.id))
        first = sa.func.min(chunks.c.id)
        query = (
            sa.select(documents.c.user_id, documents.c.id)
            .join(chunks, chunks.c.document_id == documents.c.id)
            .where(chunks.c.id > last_chunk, self._is_missing())
            .group_by(documents.c.user_id, documents.c.id)
            .order_by(first)
        )
        async with self._database.read_session() as session:
            end = (await session.execute(newest)).scalar() or 0
            if end > last_chunk:
                for owner, document_id in await session.execute(query):
                    backlog.setdefault(owner, deque()).append(document_id)
        return int(end)

    async def _take_missing(self, document_ids: deque[str]) -> list[MissingText]:
        """Return a batch of texts of the first documents; remove those without further texts."""
        ids = list(islice(document_ids, DOCUMENTS_AT_ONCE))
        query = (
            sa.select(chunks.c.content_hash, chunks.c.text)
            .where(chunks.c.document_id.in_(ids), self._is_missing())
            .order_by(chunks.c.document_id, chunks.c.n)
            .limit(self.at_once)
        )
        async with self._database.read_session() as session:
            rows = [(row[0], row[1]) for row in await session.execute(query)]
        if len(rows) < self.at_once:
            for _ in ids:
                document_ids.popleft()
        return [MissingText(*row) for row in dict(rows).items()]

    def _is_missing(self) -> sa.ColumnElement[bool]:
        has_vector = sa.exists().where(
            vectors.c.model == self._embedder.model, vectors.c.content_hash == chunks.c.content_hash
        )
        return sa.and_(chunks.c.content_hash.is_not(None), ~has_vector)

    async def read_version(self) -> int:
        """Return the version of the index, which changes with every chunk."""
        return await fts5_merge.read_version(self._database)

    async def read_progress(self) -> tuple[int, int]:
        """Return the number of distinct texts, and of those that have a vector."""
        hashes = (
            sa.select(chunks.c.content_hash).where(chunks.c.content_hash.is_not(None)).distinct()
        )
        with_vector = sa.select(vectors.c.content_hash).where(
            vectors.c.model == self._embedder.model
        )
        done = hashes.where(chunks.c.content_hash.in_(with_vector))
        counts = [
            sa.select(sa.func.count()).select_from(query.subquery()).scalar_subquery()
            for query in (hashes, done)
        ]
        async with self._database.read_session() as session:
            row = (await session.execute(sa.select(*counts))).one()
            return row[0], row[1]

    async def embed_texts(self, texts: Sequence[MissingText]) -> None:
        """Compute and store vectors, except of texts deleted since. Raises `KotaeError`s."""
        result = await self._embed([text.text for text in texts], query=False)
        hashes = [text.content_hash for text in texts]
        async with self._database.transaction() as session:
            present = set(
                (
                    await session.execute(
                        sa.select(chunks.c.content_hash).where(chunks.c.content_hash.in_(hashes))
                    )
                ).scalars()
            )
            new = {
                content_hash: normalize_vector(vector)
                for content_hash, vector in zip(hashes, result.vectors, strict=True)
                if content_hash in present
            }
            if new:
                rows = [
                    {"model": self._embedder.model, "content_hash": content_hash, "vector": vector}
                    for content_hash, vector in new.items()
                ]
                await session.execute(sa.insert(vectors).prefix_with("OR REPLACE"), rows)
        self._matrix.store(new)

    async def _read_stored(self, hashes: list[str]) -> set[str]:
        """Return those of these texts that have a vector in the database."""
        query = sa.select(vectors.c.content_hash).where(
            vectors.c.model == self._embedder.model, vectors.c.content_hash.in_(hashes)
        )
        async with self._database.read_session() as session:
            return set((await session.execute(query)).scalars())

    async def _read_page(self, after: str) -> dict[str, bytes]:
        query = (
            sa.select(vectors.c.content_hash, vectors.c.vector)
            .where(vectors.c.model == self._embedder.model, vectors.c.content_hash > after)
            .order_by(vectors.c.content_hash)
            .limit(AT_ONCE)
        )
        async with self._database.read_session() as session:
            return {row[0]: row[1] for row in await session.execute(query)}

    async def _embed(self, texts: list[str], *, query: bool) -> EmbeddingResult:
        seconds = QUERY_SECONDS if query else None
        if not self._embedder.metered or self._recorder is None or self._prices is None:
            return await _limit_time(self._embedder.embed(texts, query=query), seconds)
        account = self._open_account(self._recorder, self._prices, texts)
        try:
            await account.wait_synced()
            result = await _limit_time(self._call_provider(account, texts, query=query), seconds)
        except KotaeError as error:
            status = Status.TIMEOUT if isinstance(error, ProviderTimeout) else Status.PROVIDER_ERROR
            account.finish(status, error_code=error.code)
            raise
        except BaseException:  # cancelled: the process ends
            account.finish(Status.INTERRUPTED)
            raise
        account.usage, account.finish_reason = result.usage, "stop"
        account.finish(Status.COMPLETED)
        return result

    def _open_account(
        self, recorder: Recorder, prices: PriceBook, texts: list[str]
    ) -> AnswerAccount:
        created_at = utc_now()
        answer_id = create_id(created_at)
        intent = Intent(
            id=answer_id,
            created_at=created_at,
            endpoint=ENDPOINT,
            model=self._embedder.model,
            user_id=EMBEDDER,
            request_id=answer_id,
            prompt="",
            grounded=False,
        )
        recorder.record_intent(intent)
        messages = [Message("user", text) for text in texts]
        return AnswerAccount(
            intent, messages, recorder, prices, completion_tokens_max=0, started=time.perf_counter()
        )

    async def _call_provider(
        self, account: AnswerAccount, texts: list[str], *, query: bool
    ) -> EmbeddingResult:
        """Call the provider, retrying attempts that were certainly not billed."""
        while True:
            account.attempts += 1
            try:
                result = await self._embedder.embed(texts, query=query)
            except ProviderError as error:
                account.end_attempt(error)
                if not error.may_retry or account.attempts >= self._attempts_max:
                    raise
            except BaseException:  # the process ends, or the time for a question
                account.mark_sent()  # unknown
                raise
            else:
                account.end_attempt()
                return result
            await asyncio.sleep(
                retry_delay(
                    account.attempts, first_seconds=RETRY_SECONDS, seconds_max=RETRY_SECONDS_MAX
                )
            )


async def _limit_time(call: Awaitable[EmbeddingResult], seconds: float | None) -> EmbeddingResult:
    try:
        async with asyncio.timeout(seconds):
            return await call
    except TimeoutError as error:
        raise ProviderTimeout(f"no vector within {seconds} seconds") from error
