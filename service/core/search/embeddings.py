"""Vectors of chunks: stored by scope and content hash, computed in the background.

A text has one vector per model in each scope, however many documents of the scope contain it
(`vectors`), and keeps it when documents are re-indexed. Scopes do not share vectors: otherwise the
time when a text has its vector would reveal whether another user has the same text. Searches read
the vectors of a scope from the database as a whole and keep them in memory (`index.py`); so that
they do not do so after each batch, new vectors become visible every `PUBLISH_SECONDS` and at the
end of a pass.

A call that may be billed has a row in the log: endpoint `/v1/embeddings`, user `EMBEDDER`, with
the usage reported by the provider and without the texts. It is charged to no quota. Only attempts
that were certainly not billed are retried.

Limits: `QUERY_SECONDS` for the vector of a query; `COMPARE_SECONDS`, `COMPARED_TEXTS_MAX` and
`COMPARED_CHARACTERS_MAX` for the sentences of an answer; `VECTORS_MAX` of `index.py`.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence

import msgspec
import sqlalchemy as sa

from service.core.accounting.outcomes import AnswerAccount
from service.core.accounting.recorder import Recorder
from service.core.database.engine import Database
from service.core.database.tables import chunks, index_scopes, vectors
from service.core.database.upserts import insert_into
from service.core.encoding import create_id, utc_now
from service.core.errors import KotaeError, ProviderError, ProviderTimeout, retry_delay
from service.core.ports import Embedder, EmbeddingResult, QueryVector
from service.core.pricing import PriceBook
from service.core.records import Intent, Message, Status
from service.core.search import fts5_merge
from service.core.search.vector_matrix import compare_texts, normalize_vector
from service.core.telemetry import log

EMBEDDER = "kotae.embeddings"  # user id of the log rows
ENDPOINT = "/v1/embeddings"
QUERY_SECONDS = 3
COMPARE_SECONDS = 2.5  # of an answer, for the sentences that can be embedded until then
COMPARED_TEXTS_MAX, COMPARED_CHARACTERS_MAX = 16, 300
COMPARISONS_AT_ONCE = 2  # others wait, and may run out of time
PUBLISH_SECONDS = 5  # reading the vectors of 20,000 chunks takes about 0.1 s
RETRY_SECONDS = 0.3  # after the first attempt, doubled after each further one
RETRY_SECONDS_MAX = 3


class MissingText(msgspec.Struct, frozen=True):
    """A text that has no vector yet."""

    scope: int
    content_hash: str
    text: str


class ScopeProgress(msgspec.Struct, frozen=True):
    """The number of distinct texts of a scope, and of those that have a vector."""

    scope: int
    texts: int
    done: int


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
        compare_seconds: float = COMPARE_SECONDS,
    ) -> None:
        self._database, self._embedder = database, embedder
        self._recorder, self._prices, self._attempts_max = recorder, prices, attempts_max
        self._unpublished: set[int] = set()  # scopes with new vectors that searches do not see yet
        self._published_at = time.monotonic()
        self._compare_seconds = compare_seconds
        self._comparisons = asyncio.Semaphore(COMPARISONS_AT_ONCE)

    @property
    def at_once(self) -> int:
        """The maximum number of texts of one call."""
        return self._embedder.at_once

    async def embed_query(self, query: str) -> QueryVector | None:
        """See `VectorSearch.embed_query`."""
        try:
            result = await self._embed([query], query=True)
        except KotaeError as error:
            log.warning("vector.missed", code=error.code, error=str(error))
            return None
        return QueryVector(self._embedder.model, normalize_vector(result.vectors[0]))

    async def compare_texts(self, question: str, texts: Sequence[str]) -> list[float]:
        """See `VectorSearch.compare_texts`.

        Texts are embedded one by one, so that concurrent comparisons and the back-fill take turns.
        Their vectors are not kept: otherwise the time of an answer would reveal whether another
        user's document has the same sentence.
        """
        if self._embedder.metered:
            return []
        computed: list[bytes] = []
        query: QueryVector | None = None
        try:
            async with asyncio.timeout(self._compare_seconds), self._comparisons:
                query = await self.embed_query(question)
                for text in texts[: COMPARED_TEXTS_MAX if query else 0]:
                    result = await self._embedder.embed(
                        [text[:COMPARED_CHARACTERS_MAX]], query=False
                    )
                    computed += result.vectors
        except (KotaeError, TimeoutError) as error:
            log.info("sentences.missed", compared=len(computed), error=repr(error))
        return compare_texts(query, question, texts, computed) if query else []

    async def read_version(self) -> int:
        """Return the version of the index, which changes with every chunk."""
        return await fts5_merge.read_version(self._database)

    async def read_progress(self) -> list[ScopeProgress]:
        """Return the progress in each scope."""
        texts = sa.select(chunks.c.scope, chunks.c.content_hash).where(
            chunks.c.content_hash.is_not(None)
        )
        distinct = texts.distinct().subquery()
        query = (
            sa.select(distinct.c.scope, sa.func.count(), sa.func.count(vectors.c.scope))
            .select_from(distinct.outerjoin(vectors, self._matches(distinct)))
            .group_by(distinct.c.scope)
            .order_by(distinct.c.scope)
        )
        async with self._database.read_session() as session:
            return [ScopeProgress(*row) for row in await session.execute(query)]

    async def list_missing(
        self, progress: Sequence[ScopeProgress]
    ) -> AsyncGenerator[list[MissingText]]:
        """Yield the texts without a vector, at most `at_once` at a time, the size of one call.

        The scopes take turns, so that many texts of one owner do not delay those of others, also
        of an owner whose texts are added meanwhile.
        """
        positions = {scope.scope: "" for scope in progress if scope.done < scope.texts}
        versions = await self._read_versions()
        while positions:
            for scope, after in list(positions.items()):
                if texts := await self._read_missing(scope, after):
                    positions[scope] = texts[-1].content_hash
                    yield texts
                else:
                    del positions[scope]
            earlier, versions = versions, await self._read_versions()
            positions |= {
                scope: "" for scope, version in versions.items() if earlier.get(scope) != version
            }

    async def _read_versions(self) -> dict[int, int]:
        """Return the versions of all scopes, which change with their chunks."""
        query = sa.select(index_scopes.c.id, index_scopes.c.version)
        async with self._database.read_session() as session:
            return {row[0]: row[1] for row in await session.execute(query)}

    async def _read_missing(self, scope: int, after: str) -> list[MissingText]:
        """Return texts of a scope whose hash follows `after`, ordered by hash."""
        query = (
            sa.select(chunks.c.content_hash, sa.func.min(chunks.c.text))
            .where(
                chunks.c.scope == scope,
                chunks.c.content_hash > after,
                ~sa.exists().where(self._matches(chunks)),
            )
            .group_by(chunks.c.content_hash)
            .order_by(chunks.c.content_hash)
            .limit(self.at_once)
        )
        async with self._database.read_session() as session:
            return [MissingText(scope, row[0], row[1]) for row in await session.execute(query)]

    def _matches(self, texts: sa.FromClause) -> sa.ColumnElement[bool]:
        """Return the condition that joins the vectors of texts."""
        return sa.and_(
            vectors.c.scope == texts.c.scope,
            vectors.c.content_hash == texts.c.content_hash,
            vectors.c.model == self._embedder.model,
        )

    async def embed_texts(self, texts: Sequence[MissingText]) -> None:
        """Compute and store vectors of one scope, except of texts deleted since.

        Raises `KotaeError`s.
        """
        result = await self._embed([text.text for text in texts], query=False)
        scope, hashes = texts[0].scope, [text.content_hash for text in texts]
        stored = sa.select(chunks.c.content_hash).where(
            chunks.c.scope == scope, chunks.c.content_hash.in_(hashes)
        )
        async with self._database.transaction() as session:
            present = set((await session.execute(stored)).scalars())
            rows = [
                {
                    "scope": scope,
                    "content_hash": content_hash,
                    "model": self._embedder.model,
                    "vector": normalize_vector(vector),
                }
                for content_hash, vector in zip(hashes, result.vectors, strict=True)
                if content_hash in present
            ]
            if rows:
                insert = insert_into(session, vectors)
                statement = insert.on_conflict_do_update(
                    index_elements=["scope", "content_hash", "model"],
                    set_={"vector": insert.excluded.vector},
                )
                await session.execute(statement, rows)
        self._unpublished.add(scope)
        if time.monotonic() - self._published_at >= PUBLISH_SECONDS:
            await self.publish_vectors()

    async def publish_vectors(self) -> None:
        """Make searches read the vectors that were stored since the last call."""
        if self._unpublished:
            change = sa.update(index_scopes).values(vectors=index_scopes.c.vectors + 1)
            async with self._database.transaction() as session:
                await session.execute(change.where(index_scopes.c.id.in_(self._unpublished)))
            self._unpublished.clear()
        self._published_at = time.monotonic()

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
        answer_id = create_id(created_at, recorder.slot)
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
            account.begin_attempt(self._embedder.provider, self._embedder.provider_model)
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
