"""Wires a service from settings, in one place and one order, and takes it apart in the reverse one."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from threading import Thread
from typing import TYPE_CHECKING, TypedDict

import anyio
from fastapi import FastAPI
from pydantic import SecretStr

from service import __version__
from service.api import answers, documents, health, keys, logs, pages, problems, quotas, sessions
from service.api.dependencies import Services
from service.api.middleware import RequestMiddleware
from service.api.schemas import build_openapi
from service.core import tokens
from service.core.accounting.journal import Journal, choose_spool, find_spool
from service.core.accounting.queue import JournaledQueue
from service.core.accounting.recorder import Recorder
from service.core.answering.answers import Answers
from service.core.auth.authenticator import Authenticator
from service.core.auth.jwts import JwtVerifier
from service.core.auth.revocation import RevocationMonitor
from service.core.auth.tickets import SignedTickets, load_ticket_key
from service.core.database.engine import Database
from service.core.documents.library import ChunkWorkers
from service.core.errors import KotaeError
from service.core.lazy import LazyModule, load_module
from service.core.limits import ServiceLimits
from service.core.ports import Embedder, VectorSearch, Worker
from service.core.pricing import PriceBook
from service.core.providers.embedders import create_embedder
from service.core.providers.extractive import ExtractiveTransport
from service.core.providers.openai import OpenAIProvider, load_sdk
from service.core.quota.local import LocalQuota
from service.core.search.service import SearchService
from service.core.settings import EXTRACTIVE, ModelPrice, Settings
from service.core.telemetry import Metrics, log
from service.workers.background import BackgroundWorker
from service.workers.local_model import ALIAS as LOCAL_MODEL
from service.workers.local_model import LocalModel
from service.workers.merging import IndexMerger
from service.workers.reaper import Reaper
from service.workers.recovery import JournalRecovery
from service.workers.reindexing import Reindexer
from service.workers.writer import Writer

if TYPE_CHECKING:
    from service.core.search import embeddings
    from service.workers import embedding
else:
    embeddings = LazyModule("service.core.search.embeddings")
    embedding = LazyModule("service.workers.embedding")

HOLD_SECONDS = 30  # how long a quota is held beyond the deadline of its answer, should nobody say how that ended
SDK_SECONDS = 0.1  # after everything else
JOURNAL_SECONDS = 1  # how long the end of the process waits for the last sync
TICKET_RESUME_SECONDS = 3600  # how long after its answer a ticket still serves a reconnect: a laptop that was closed meanwhile
WRITE_OUT_SECONDS = (
    1.5  # how long the end of the process waits for the database; together with the rest under 2 s
)

DESCRIPTION = "Answers prompts from the texts it was given, streams the answer, and keeps an exact account of every answer."


class State(TypedDict):
    """What every request finds in its state."""

    services: Services


def create_app(settings: Settings, limits: ServiceLimits | None = None) -> FastAPI:
    """The service as an ASGI application. Its lifespan opens and closes everything."""
    limits = limits or ServiceLimits()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[State]:
        async with AsyncExitStack() as stack:
            try:
                services = await _open_services(settings, limits, metrics, stack)
            except KotaeError as error:
                app.state.refusal = error  # for the server, which says it in one line
                raise
            app.state.services = (
                services  # for the server, which has to begin the end before the lifespan does
            )
            yield {"services": services}

    app = FastAPI(
        title="Kotae",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    for room in (answers, documents, logs, keys, quotas, sessions, health):
        app.router.routes += (
            room.router.routes
        )  # as they are: an included router is walked through at every request
    pages.mount_pages(app)
    problems.install_error_handlers(app)
    app.add_middleware(RequestMiddleware, settings=settings, limits=limits, metrics=metrics)
    app.openapi = lambda: build_openapi(app)  # type: ignore[method-assign]  # the documented way to replace it
    return app


async def _open_services(
    settings: Settings, limits: ServiceLimits, metrics: Metrics, stack: AsyncExitStack
) -> Services:
    """Open what a service needs; the stack ends the answers, then writes what waits, then closes the database."""
    workers: dict[str, Worker] = {}
    database = Database(settings.database)
    stack.push_async_callback(database.close)
    await database.require_current_schema()
    queue, recovery = _record(settings, limits, metrics, database, workers, stack)
    door, ledger, watch = _let_in(settings, database, recovery, workers, stack)
    chunk_workers = ChunkWorkers()
    stack.callback(chunk_workers.close)
    _start("reindexing", Reindexer(database, settings, chunk_workers), workers, stack)
    _start("merging", IndexMerger(database), workers, stack)
    if settings.local_model:
        settings = await _with_local_model(settings, workers, stack)
    prices = PriceBook(settings.prices, settings.openai_base_url)
    await anyio.to_thread.run_sync(prices.preload, settings.default_model)
    extractive, provider = _providers(settings, stack)
    recorder = Recorder(queue, ledger, metrics)
    embedder = create_embedder(settings)
    near = (
        await _vectors(embedder, limits, database, recorder, prices, workers, stack)
        if embedder
        else None
    )
    retrieval = SearchService(database, settings, near)
    answering = Answers(
        settings,
        database,
        queue,
        recorder,
        retrieval,
        extractive=extractive,
        provider=provider,
        prices=prices,
        metrics=metrics,
        limits=limits,
        quota=ledger,
        revocation=watch,
        wait_recovered=recovery.wait_done,
    )
    stack.push_async_callback(answering.stop)
    log.info("service.started", model=settings.default_model, auth=settings.auth)
    return Services(
        settings=settings,
        limits=limits,
        database=database,
        queue=queue,
        workers=workers,
        chunk_workers=chunk_workers,
        authenticator=door,
        revocation=watch,
        quota=ledger,
        answers=answering,
        tickets=SignedTickets(
            load_ticket_key(settings.data_dir / "tickets.key"),
            seconds=settings.ticket_seconds,
            resume_seconds=settings.answer_seconds_max + TICKET_RESUME_SECONDS,
        ),
        metrics=metrics,
        retrieval=retrieval,
    )


def _record(
    settings: Settings,
    limits: ServiceLimits,
    metrics: Metrics,
    database: Database,
    workers: dict[str, Worker],
    stack: AsyncExitStack,
) -> tuple[JournaledQueue, JournalRecovery]:
    """Where records go: the journal, the queue, the writer; and what brings in those of earlier processes."""
    folder, quarantine = settings.data_dir / "journal", settings.data_dir / "quarantine"
    spool, journal_bytes_max = choose_spool(
        settings.data_dir, settings.journal_spool, settings.journal_bytes_max
    )
    recovery = JournalRecovery(
        database,
        folder,
        find_spool(settings.data_dir, settings.journal_spool),
        quarantine=quarantine,
    )
    _start("recovery", recovery, workers, stack)
    journal = workers["journal"] = Journal(
        folder, spool, sync_ms=settings.journal_sync_ms, bytes_max=journal_bytes_max
    )
    journal.start()
    stack.push_async_callback(anyio.to_thread.run_sync, journal.stop, JOURNAL_SECONDS)
    queue = JournaledQueue(limits.queue_records_max, journal)
    writer = workers["writer"] = Writer(database, queue, metrics, quarantine=quarantine)
    writer.start()
    stack.push_async_callback(_write_out, writer)
    return queue, recovery


def _let_in(
    settings: Settings,
    database: Database,
    recovery: JournalRecovery,
    workers: dict[str, Worker],
    stack: AsyncExitStack,
) -> tuple[Authenticator, LocalQuota, RevocationMonitor]:
    """Who may ask, and how much."""
    door = Authenticator(
        settings, database, jwts=JwtVerifier(settings) if settings.jwt_algorithm else None
    )
    ledger, watch = LocalQuota(settings.answer_seconds_max + HOLD_SECONDS), RevocationMonitor()
    _start("reaper", Reaper(door, watch, ledger, database, recovery.wait_done), workers, stack)
    return door, ledger, watch


def _providers(
    settings: Settings, stack: AsyncExitStack
) -> tuple[OpenAIProvider, OpenAIProvider | None]:
    """The embedded provider, and the configured one. What they load is loaded in threads, for which no start waits."""
    extractive = _provider(
        settings, "http://extractive.invalid/v1", None, ExtractiveTransport(settings.dictionary)
    )
    stack.push_async_callback(extractive.aclose)
    provider = None
    if settings.has_provider:
        key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else None
        provider = _provider(settings, settings.openai_base_url, key)
        stack.push_async_callback(provider.aclose)
    # The first answer needs it. Nobody waits for it before, and the first requests are not slowed down by it.
    asyncio.get_running_loop().call_later(
        SDK_SECONDS, Thread(target=load_sdk, name="sdk", daemon=True).start
    )
    if settings.default_model == EXTRACTIVE:
        # It counts tokens in every answer, and loading takes a second: not in the first answer, and nobody waits for it.
        Thread(target=tokens.load_encoding, name="tokens", daemon=True).start()
    return extractive, provider


def _start(
    name: str, worker: BackgroundWorker, workers: dict[str, Worker], stack: AsyncExitStack
) -> None:
    """Start a worker that health reports by this name; the stack stops it."""
    worker.start()
    workers[name] = worker
    stack.push_async_callback(worker.stop)


async def _write_out(writer: Writer) -> None:
    if not await writer.stop(WRITE_OUT_SECONDS):
        log.warning(
            "records.kept",
            remedy="the database did not take them in time: the next start brings them in from the journal",
        )


async def _vectors(
    embedder: Embedder,
    limits: ServiceLimits,
    database: Database,
    recorder: Recorder,
    prices: PriceBook,
    workers: dict[str, Worker],
    stack: AsyncExitStack,
) -> VectorSearch:
    """The vectors that find chunks by meaning, and the worker that fills them."""
    await anyio.to_thread.run_sync(load_module, embedding)
    stack.push_async_callback(embedder.aclose)
    vectors = embeddings.EmbeddingStore(
        database, embedder, recorder, prices, attempts_max=limits.attempts_max
    )
    _start("embedding", embedding.EmbeddingWorker(vectors), workers, stack)
    return vectors


async def _with_local_model(
    settings: Settings, workers: dict[str, Worker], stack: AsyncExitStack
) -> Settings:
    """The settings with the local model's address, its child process started. What is computed here is free."""
    model = LocalModel()
    stack.push_async_callback(model.stop)
    url = await model.start()
    workers["local_model"] = model
    free = ModelPrice(input=Decimal(0), output=Decimal(0))
    return settings.model_copy(
        update={
            "openai_base_url": url,
            "openai_api_key": SecretStr(model.api_key),
            "model": LOCAL_MODEL,
            "prices": {LOCAL_MODEL: free} | settings.prices,
        }
    )


def _provider(
    settings: Settings,
    base_url: str | None,
    api_key: str | None,
    transport: ExtractiveTransport | None = None,
) -> OpenAIProvider:
    return OpenAIProvider(
        base_url=base_url,
        api_key=api_key,
        idle_seconds=settings.provider_idle_seconds,
        answer_bytes_max=settings.answer_bytes_max,
        transport=transport,
    )
