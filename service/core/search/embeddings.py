"""Vectors of chunks: kept by the hash of the text, made in the background, compared in memory.

A text has one vector for each model, however many documents contain it (`vectors`), and keeps it when documents are cut
anew. All of the model in use are also one matrix in memory (`matrix.py`), so that a question costs one product: about
0.1 ms for 1,000 chunks of 384 numbers, 1.5 KB of memory each. What is found is looked up in `chunks` by the search itself:
a deleted document is not there, whatever the matrix still has; `sweep` takes it out of there.

A call that may be billed has a row in the log: endpoint `/v1/embeddings`, of the user `EMBEDDER`, with the usage as the
provider said it and without the texts. Nobody's quota is charged for it. Retried is what surely was not billed.

Limits: `TEXTS_MAX` vectors in memory (what is beyond them is ranked by words), `QUERY_SECONDS` for a question's vector.
"""

import asyncio
import time
from collections.abc import Awaitable, Sequence

import anyio.to_thread
import msgspec
import sqlalchemy as sa

from service.core.accounting.outcomes import AnswerAccount
from service.core.accounting.recorder import Recorder
from service.core.database.engine import Database
from service.core.database.tables import chunks, vectors
from service.core.encoding import create_id, utc_now
from service.core.errors import KotaeError, ProviderError, ProviderTimeout, retry_delay
from service.core.ports import Embedder, EmbeddingResult, Message, Similarities
from service.core.pricing import PriceBook
from service.core.records import Intent, Status
from service.core.search import fts5_merge
from service.core.search.vector_matrix import VectorMatrix, unit
from service.core.telemetry import log

EMBEDDER = "kotae.embeddings"  # whose the rows are
ENDPOINT = "/v1/embeddings"
TEXTS_MAX = 200_000
QUERY_SECONDS = 3
RETRY_SECONDS = 0.3  # after the first attempt, doubled after each further one
RETRY_SECONDS_MAX = 3
AT_ONCE = 1000  # vectors loaded, or looked for, by one statement


class MissingText(msgspec.Struct, frozen=True):
    """A text that has no vector yet."""

    content_hash: str
    text: str


class EmbeddingStore:
    """The vectors of one model. See `Near`."""

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
        """Most texts of one `make`."""
        return self._embedder.at_once

    async def find_similar(self, query: str) -> Similarities | None:
        """See `Near.near`."""
        if not len(self._matrix):
            return None
        try:
            made = await self._embed([query], query=True)
        except KotaeError as error:
            log.warning("vector.missed", code=error.code, error=str(error))
            return None
        return await anyio.to_thread.run_sync(self._matrix.near, made.vectors[0])

    async def load_vectors(self) -> None:
        """Bring what is in the database into memory, in place of what is there."""
        mine, after = VectorMatrix(TEXTS_MAX), ""
        while len(mine) < TEXTS_MAX and (found := await self._page(after)):
            mine.keep(found)
            after = max(found)
        self._matrix = mine

    async def delete_unused(self) -> int:
        """Drop from memory what is not in the database any more, and say how many that were."""
        count = sa.select(sa.func.count()).where(vectors.c.model == self._embedder.model)
        async with self._database.read_session() as session:
            there = int((await session.execute(count)).scalar_one())
        names, gone = self._matrix.names() if there < len(self._matrix) else [], 0
        for begin in range(0, len(names), AT_ONCE):
            some = names[begin : begin + AT_ONCE]
            missing = set(some) - await self._known(some)
            self._matrix.drop(missing)
            gone += len(missing)
        return gone

    async def list_missing(self, after: str) -> list[MissingText]:
        """Texts of chunks that have no vector, in the order of their hash, behind `after`: as many as one call takes."""
        has = sa.exists().where(
            vectors.c.model == self._embedder.model, vectors.c.content_hash == chunks.c.content_hash
        )
        query = (
            sa.select(chunks.c.content_hash, sa.func.min(chunks.c.text).label("text"))
            .where(chunks.c.content_hash > after, ~has)
            .group_by(chunks.c.content_hash)
            .order_by(chunks.c.content_hash)
            .limit(self.at_once)
        )
        async with self._database.read_session() as session:
            return [MissingText(row[0], row[1]) for row in await session.execute(query)]

    async def read_version(self) -> int:
        """Of the index: it changes with every chunk."""
        return await fts5_merge.read_version(self._database)

    async def read_progress(self) -> tuple[int, int]:
        """(texts that should have a vector, those that have one)."""
        wanted = (
            sa.select(chunks.c.content_hash).where(chunks.c.content_hash.is_not(None)).distinct()
        )
        mine = sa.select(vectors.c.content_hash).where(vectors.c.model == self._embedder.model)
        texts, done = wanted.subquery(), wanted.where(chunks.c.content_hash.in_(mine)).subquery()
        counts = [
            sa.select(sa.func.count()).select_from(each).scalar_subquery() for each in (texts, done)
        ]
        async with self._database.read_session() as session:
            found = (await session.execute(sa.select(*counts))).one()
            return found[0], found[1]

    async def embed_texts(self, texts: Sequence[MissingText]) -> None:
        """Embed and keep. What was deleted meanwhile is not kept. Raises `KotaeError`s."""
        made = await self._embed([each.text for each in texts], query=False)
        hashes = [each.content_hash for each in texts]
        async with self._database.transaction() as session:
            there = set(
                (
                    await session.execute(
                        sa.select(chunks.c.content_hash).where(chunks.c.content_hash.in_(hashes))
                    )
                ).scalars()
            )
            kept = {
                name: unit(vector)
                for name, vector in zip(hashes, made.vectors, strict=True)
                if name in there
            }
            if kept:
                rows = [
                    {"model": self._embedder.model, "content_hash": name, "vector": vector}
                    for name, vector in kept.items()
                ]
                await session.execute(sa.insert(vectors).prefix_with("OR REPLACE"), rows)
        self._matrix.keep(kept)

    async def _known(self, hashes: list[str]) -> set[str]:
        """Those of these texts that have a vector in the database."""
        query = sa.select(vectors.c.content_hash).where(
            vectors.c.model == self._embedder.model, vectors.c.content_hash.in_(hashes)
        )
        async with self._database.read_session() as session:
            return set((await session.execute(query)).scalars())

    async def _page(self, after: str) -> dict[str, bytes]:
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
            return await _in_time(self._embedder.embed(texts, query=query), seconds)
        account = self._open_account(self._recorder, self._prices, texts)
        try:
            await account.wait_synced()
            embedded = await _in_time(self._call(account, texts, query=query), seconds)
        except KotaeError as error:
            status = Status.TIMEOUT if isinstance(error, ProviderTimeout) else Status.PROVIDER_ERROR
            account.finish(status, error_code=error.code)
            raise
        except BaseException:  # the process ends
            account.finish(Status.INTERRUPTED)
            raise
        account.usage, account.finish_reason = embedded.usage, "stop"
        account.finish(Status.COMPLETED)
        return embedded

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

    async def _call(
        self, account: AnswerAccount, texts: list[str], *, query: bool
    ) -> EmbeddingResult:
        """Call the provider until it answers. Only an attempt that was surely not billed is retried."""
        while True:
            account.attempts += 1
            try:
                embedded = await self._embedder.embed(texts, query=query)
            except ProviderError as error:
                account.end_attempt(error)
                if not error.may_retry or account.attempts >= self._attempts_max:
                    raise
            else:
                account.end_attempt()
                return embedded
            await asyncio.sleep(
                retry_delay(
                    account.attempts, first_seconds=RETRY_SECONDS, seconds_max=RETRY_SECONDS_MAX
                )
            )


async def _in_time(made: Awaitable[EmbeddingResult], seconds: float | None) -> EmbeddingResult:
    try:
        async with asyncio.timeout(seconds):
            return await made
    except TimeoutError as error:
        raise ProviderTimeout(f"no vector within {seconds} seconds") from error
