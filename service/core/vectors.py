"""Vectors of chunks: kept by the hash of the text, made in the background, compared in memory. The door to numpy.

A text has one vector for each model, however many documents contain it (`vectors`), and keeps it when documents are cut
anew. All of the model in use are also one matrix in memory, of unit length, so that a question costs one product: about
0.1 ms for 1,000 chunks of 384 numbers, 1.5 KB of memory each. What is found is looked up in `chunks` by the search itself:
a deleted document is not there, whatever the matrix still has.

A call that may be billed has a row in the log: endpoint `/v1/embeddings`, of the user `EMBEDDER`, with the usage as the
provider said it and without the texts. Nobody's quota is charged for it. Retried is what surely was not billed.

Limits: `TEXTS_MAX` vectors in memory, those deleted since the start included (what is beyond them is ranked by words),
`QUERY_SECONDS` for a question's vector.
"""

import asyncio
import time
from collections.abc import Awaitable, Sequence

import anyio.to_thread
import msgspec
import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from service.core import tokens
from service.core.db import Database
from service.core.errors import KotaeError, ProviderError, ProviderTimeout, ProviderUnreachable
from service.core.events import Intent, Outcome, Status, UsageSource, new_id, now
from service.core.ports import Embedded, Embedder, RecordQueue
from service.core.pricing import PriceBook, Usage
from service.core.tables import chunks, vectors
from service.core.telemetry import log

EMBEDDER = "kotae.embeddings"  # whose the rows are
ENDPOINT = "/v1/embeddings"
TEXTS_MAX = 200_000
QUERY_SECONDS = 3
RETRY_SECONDS = 0.3
GROWTH = 1024  # rows that the matrix grows by, at the least


class Text(msgspec.Struct, frozen=True):
    """A text that has no vector yet."""

    content_hash: str
    text: str


class Vectors:
    """The vectors of one model. See `Near`."""

    def __init__(
        self, database: Database, embedder: Embedder, queue: RecordQueue | None, prices: PriceBook | None, *, attempts_max: int = 3
    ) -> None:
        self._database, self._embedder = database, embedder
        self._queue, self._prices, self._attempts_max = queue, prices, attempts_max
        self._rows: dict[str, int] = {}  # by content hash, the row of the matrix
        self._matrix = np.zeros((0, 0), dtype=np.float32)

    @property
    def at_once(self) -> int:
        """Most texts of one `make`."""
        return self._embedder.at_once

    async def near(self, query: str) -> dict[str, float] | None:
        """See `Near.near`."""
        if not self._rows:
            return None
        try:
            made = await self._embed([query], query=True)
        except KotaeError as error:
            log.warning("vector.missed", code=error.code, error=str(error))
            return None
        return await anyio.to_thread.run_sync(self._cosines, made.vectors[0])

    async def load(self) -> None:
        """Bring what is in the database into memory, in place of what is there."""
        query = sa.select(vectors.c.content_hash, vectors.c.vector).where(vectors.c.model == self._embedder.model).limit(TEXTS_MAX)
        found = await self._database.look(lambda connection: connection.execute(query).all())
        self._rows, self._matrix = {}, np.zeros((0, 0), dtype=np.float32)
        self._keep([row.content_hash for row in found], [row.vector for row in found])

    async def missing(self, after: str) -> list[Text]:
        """Texts of chunks that have no vector, in the order of their hash, behind `after`: as many as one call takes."""
        has = sa.exists().where(vectors.c.model == self._embedder.model, vectors.c.content_hash == chunks.c.content_hash)
        query = (
            sa.select(chunks.c.content_hash, sa.func.min(chunks.c.text).label("text"))
            .where(chunks.c.content_hash > after, ~has)
            .group_by(chunks.c.content_hash)
            .order_by(chunks.c.content_hash)
            .limit(self.at_once)
        )
        return await self._database.look(lambda connection: [Text(row[0], row[1]) for row in connection.execute(query)])

    async def version(self) -> int:
        """Of the index: it changes with every chunk."""
        return await self._database.look(lambda connection: int(connection.exec_driver_sql("SELECT version FROM index_state").scalar_one()))

    async def progress(self) -> tuple[int, int]:
        """(texts that should have a vector, those that have one)."""
        wanted = sa.select(chunks.c.content_hash).where(chunks.c.content_hash.is_not(None)).distinct()
        mine = sa.select(vectors.c.content_hash).where(vectors.c.model == self._embedder.model)
        texts, done = wanted.subquery(), wanted.where(chunks.c.content_hash.in_(mine)).subquery()
        counts = [sa.select(sa.func.count()).select_from(each).scalar_subquery() for each in (texts, done)]

        def look(connection: sa.Connection) -> tuple[int, int]:
            found = connection.execute(sa.select(*counts)).one()
            return found[0], found[1]

        return await self._database.look(look)

    async def make(self, texts: Sequence[Text]) -> None:
        """Embed and keep. What was deleted meanwhile is not kept. Raises `KotaeError`s."""
        made = await self._embed([each.text for each in texts], query=False)
        hashes = [each.content_hash for each in texts]
        unit = [_unit(np.frombuffer(vector, dtype="<f4")[None, :])[0].astype("<f4").tobytes() for vector in made.vectors]
        async with self._database.transaction() as session:
            there = set((await session.execute(sa.select(chunks.c.content_hash).where(chunks.c.content_hash.in_(hashes)))).scalars())
            rows = [
                {"model": self._embedder.model, "content_hash": content_hash, "vector": vector}
                for content_hash, vector in zip(hashes, unit, strict=True)
                if content_hash in there
            ]
            if rows:
                await session.execute(sa.insert(vectors).prefix_with("OR REPLACE"), rows)
        self._keep([str(row["content_hash"]) for row in rows], [row["vector"] for row in rows])

    def _cosines(self, vector: bytes) -> dict[str, float] | None:
        rows, matrix = dict(self._rows), self._matrix
        asked = _unit(np.frombuffer(vector, dtype="<f4")[None, :])[0]
        if len(asked) != matrix.shape[1]:
            return None
        found = (matrix @ asked).tolist()
        return {content_hash: found[row] for content_hash, row in rows.items() if row < len(found)}

    def _keep(self, hashes: list[str], made: list[bytes]) -> None:
        fitting = [(content_hash, vector) for content_hash, vector in zip(hashes, made, strict=True) if self._fits(vector)]
        if not fitting:
            return
        new = _unit(np.stack([np.frombuffer(vector, dtype="<f4") for _, vector in fitting]))
        for (content_hash, _), vector in zip(fitting, new, strict=True):
            row = self._rows.get(content_hash, len(self._rows))
            if row >= TEXTS_MAX:
                return
            if row >= len(self._matrix):
                grown = np.zeros((max(len(self._matrix) * 2, row + GROWTH, len(new)), new.shape[1]), dtype=np.float32)
                if len(self._matrix):
                    grown[: len(self._matrix)] = self._matrix
                self._matrix = grown
            self._matrix[row] = vector
            self._rows[content_hash] = row

    def _fits(self, vector: bytes) -> bool:
        return len(self._matrix) == 0 or len(vector) == self._matrix.shape[1] * 4

    async def _embed(self, texts: list[str], *, query: bool) -> Embedded:
        seconds = QUERY_SECONDS if query else None
        if not self._embedder.metered or self._queue is None:
            return await _in_time(self._embedder.embed(texts, query=query), seconds)
        created_at = now()
        answer_id = new_id(created_at)
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
        self._queue.begin(intent)
        call = _Call(intent, self._queue, self._prices)
        try:
            await self._queue.wait_synced()
            made = await _in_time(self._tried(call, texts, query=query), seconds)
        except BaseException as error:
            call.failed(error)
            raise
        call.done(made, texts)
        return made

    async def _tried(self, call: "_Call", texts: list[str], *, query: bool) -> Embedded:
        while True:
            call.attempts += 1
            try:
                return await self._embedder.embed(texts, query=query)
            except ProviderError as error:
                call.sent = call.sent or not isinstance(error, ProviderUnreachable)
                if not error.may_retry or call.attempts >= self._attempts_max:
                    raise
            await asyncio.sleep(RETRY_SECONDS * 2 ** (call.attempts - 1))


class _Call:
    """One call that may be billed, on its way to its row."""

    def __init__(self, intent: Intent, queue: RecordQueue, prices: PriceBook | None) -> None:
        self._intent, self._queue, self._prices = intent, queue, prices
        self._started = time.perf_counter()
        self.attempts = 0
        self.sent = False

    def done(self, made: Embedded, texts: Sequence[str]) -> None:
        if made.usage:
            self._record(Status.COMPLETED, UsageSource.PROVIDER, made.usage, "stop", None)
        else:
            rough = Usage(prompt_tokens=sum(map(tokens.rough, texts)), completion_tokens=0)
            self._record(Status.COMPLETED, UsageSource.ESTIMATED, rough, "stop", None)

    def failed(self, error: BaseException) -> None:
        if isinstance(error, KotaeError):
            status, code = Status.TIMEOUT if isinstance(error, ProviderTimeout) else Status.PROVIDER_ERROR, error.code
        else:  # the process ends
            status, code = Status.INTERRUPTED, None
        # As for an answer: whatever may have reached the provider may have been billed.
        if self.sent or (self.attempts and not isinstance(error, ProviderUnreachable)):
            self._record(status, UsageSource.UNKNOWN, None, None, code)
        else:
            self._record(status, UsageSource.NONE, Usage(prompt_tokens=0, completion_tokens=0), None, code)

    def _record(self, status: Status, source: UsageSource, usage: Usage | None, reason: str | None, code: str | None) -> None:
        cost = self._prices.cost(self._intent.model, usage, self._intent.created_at) if self._prices and usage else None
        free = source is UsageSource.NONE
        self._queue.finish(
            Outcome(
                intent=self._intent,
                status=status,
                usage_source=source,
                usage=usage,
                response="",
                finish_reason=reason,
                error_code=code,
                cost_nano_usd=0 if free else cost.nano_usd if cost else None,
                price=cost.price if cost else None,
                response_time_ms=round((time.perf_counter() - self._started) * 1000),
                first_token_ms=None,
                attempts=self.attempts,
                sources=[],
            )
        )


async def _in_time(made: Awaitable[Embedded], seconds: float | None) -> Embedded:
    try:
        async with asyncio.timeout(seconds):
            return await made
    except TimeoutError as error:
        raise ProviderTimeout(f"no vector within {seconds} seconds") from error


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit
