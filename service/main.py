"""Creates the service from settings. Everything is opened in one order and closed in reverse."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, TypedDict

import anyio
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.types import ASGIApp

from service import __version__
from service.api import (
    analytics,
    answers,
    audit_log,
    billing,
    budgets,
    conversations,
    documents,
    health,
    keys,
    logs,
    mcp,
    pages,
    problems,
    quotas,
    receipts,
    sessions,
    uploads,
    wallets,
)
from service.api.body_budget import BodyBudget
from service.api.dependencies import Services
from service.api.middleware import RequestMiddleware
from service.api.openai import chat, models, responses
from service.api.openai import embeddings as openai_embeddings
from service.api.openapi import build_openapi
from service.api.relaying import PeerApplication
from service.core import tokens
from service.core.accounting.analytics import ANALYTICS_MAX, OPEN_MAX, WAIT_SECONDS_MAX
from service.core.accounting.journal import Journal, choose_spool, find_spool
from service.core.accounting.queue import JournaledQueue
from service.core.accounting.receipt_log import ReceiptLog
from service.core.accounting.recorder import Recorder
from service.core.answering.answers import Answers
from service.core.answering.embedding_calls import EmbeddingCalls
from service.core.audit_log import ReadRecorder
from service.core.auth.authenticator import Authenticator
from service.core.auth.jwts import JwtVerifier
from service.core.auth.revocation import RevocationMonitor
from service.core.auth.tickets import SignedTickets
from service.core.billing.checkout import Checkout, TopUpOptions
from service.core.billing.credit import CreditQuota
from service.core.billing.reconciliation import RecentReconciliation
from service.core.budgets.enforcement import BudgetEnforcer
from service.core.budgets.webhooks import WebhookReceiver
from service.core.database.engine import Database, open_database
from service.core.database.files import restrict_database_files
from service.core.database.instance_lock import SERVE, lock_instance
from service.core.documents.library import ChunkWorkers, FileReaders
from service.core.errors import KotaeError, SettingsInvalid
from service.core.fair_share import BoundedTurns, SharedLimit
from service.core.lazy import LazyModule, load_module
from service.core.limits import ServiceLimits
from service.core.ports import AnswerTracer, Embedder, Peers, VectorSearch, Worker
from service.core.pricing import PriceBook, to_nano_usd
from service.core.provider_file import ModelPrice
from service.core.providers.embedders import create_embedder
from service.core.providers.extractive import ExtractiveTransport
from service.core.providers.openai import OpenAIProvider, create_openai_provider, load_sdk
from service.core.providers.routes import Endpoint, Routes, create_routes
from service.core.quota.local import LocalQuota
from service.core.quota.shared import SharedQuota
from service.core.redaction import add_secrets
from service.core.replicas.peers import NoPeers
from service.core.replicas.signatures import PeerVerifier
from service.core.search.service import SearchService
from service.core.settings import EXTRACTIVE, Settings
from service.core.telemetry import Metrics, log
from service.http_server.listener import Listener
from service.replication import (
    HOLD_SECONDS,
    JoinedReplica,
    join_replicas,
    open_claims,
    open_wallets,
    start_shared_quota,
    start_singleton_tasks,
)
from service.workers.background import start_worker
from service.workers.billing import BillingWorker
from service.workers.budgets import BudgetEvaluator, BudgetRefresher
from service.workers.integrity import IntegrityChecker
from service.workers.local_model import ALIAS as LOCAL_MODEL
from service.workers.local_model import LocalModel
from service.workers.merging import IndexMerger
from service.workers.open_answers import OpenAnswersKeeper
from service.workers.reaper import Reaper
from service.workers.recovery import JournalRecovery
from service.workers.reindexing import Reindexer
from service.workers.retention import TextRetention
from service.workers.trimming import MemoryTrimmer
from service.workers.webhooks import WebhookSender
from service.workers.writer import Writer

if TYPE_CHECKING:
    from service.core import tracing
    from service.core.billing import stripe
    from service.core.search import embeddings
    from service.workers import embedding
else:
    stripe = LazyModule("service.core.billing.stripe")
    tracing = LazyModule("service.core.tracing")
    embeddings = LazyModule("service.core.search.embeddings")
    embedding = LazyModule("service.workers.embedding")

SDK_SECONDS = 0.1  # delay of importing the SDK, after everything else has started
JOURNAL_SECONDS = 1  # maximum wait for the last sync at shutdown
WRITE_OUT_SECONDS = 1.5  # maximum wait for the database at shutdown, which takes at most 2 s

DESCRIPTION = (
    "Answers questions from uploaded documents, streams the answers, and accounts for every answer."
)


class State(TypedDict):
    """The state of every request."""

    services: Services


def create_app(
    settings: Settings, limits: ServiceLimits | None = None, *, locked: bool = False
) -> FastAPI:
    """Create the ASGI application. Its lifespan opens and closes all services.

    With `locked`, the caller holds the lock of the data directory and the database.
    """
    limits = limits or ServiceLimits()
    metrics = Metrics()
    add_secrets(settings.secrets)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[State]:
        async with AsyncExitStack() as stack:
            try:
                if not locked:
                    lock = await anyio.to_thread.run_sync(lock_instance, settings, SERVE)
                    stack.callback(lock.close)
                services, listener = await _open_services(settings, limits, metrics, stack)
                if listener is not None and services.peers.slot is not None:
                    verifier = PeerVerifier(services.peers.slot, settings.secret_keys)
                    await listener.start(PeerApplication(app, services, verifier))
            except KotaeError as error:
                app.state.refusal = error  # the server prints it as one line
                raise
            app.state.services = services  # the server starts the shutdown before the lifespan does
            yield {"services": services}

    app = _Application(
        title="Kotae",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # asks for each request
    )
    # In the order of their frequency: the routes of a request are searched from the first.
    for router in (
        chat.router,
        responses.router,
        answers.router,
        conversations.router,
        uploads.router,
        documents.router,
        logs.router,
        analytics.router,
        receipts.router,
        audit_log.router,
        keys.router,
        quotas.router,
        budgets.router,
        billing.router,
        wallets.router,
        sessions.router,
        health.router,
        models.router,
        responses.stored,
        openai_embeddings.router,
        mcp.router,
    ):
        # Copied, because an included router adds a lookup to every request.
        app.router.routes += router.routes
    pages.mount_pages(app)
    problems.install_error_handlers(app)
    app.add_middleware(RequestMiddleware, settings=settings, limits=limits, metrics=metrics)
    app.openapi = lambda: build_openapi(app)  # type: ignore[method-assign]  # the documented way to replace it
    return app


class _Application(FastAPI):
    """FastAPI without its layers outside of `RequestMiddleware`, which does what they do."""

    def build_middleware_stack(self) -> ASGIApp:
        """Return the outermost layer of the application."""
        layer: Any = super().build_middleware_stack()
        while not isinstance(layer, RequestMiddleware):
            layer = layer.app
        return layer


async def _open_services(
    settings: Settings, limits: ServiceLimits, metrics: Metrics, stack: AsyncExitStack
) -> tuple[Services, Listener | None]:
    """Open all services, and the listener for other replicas, which is to be started.

    The stack stops answers, then writes records, then closes the database.
    """
    workers: dict[str, Worker] = {}
    database = open_database(settings)
    stack.push_async_callback(database.close)
    if database.file:
        restrict_database_files(database.file)
    await database.require_current_schema()
    replica: JoinedReplica | None = None
    if database.dialect == "postgresql":
        replica = await join_replicas(settings, database, workers, stack)
    else:
        start_worker("integrity", IntegrityChecker(database), workers, stack)
    quota: SharedQuota | LocalQuota = LocalQuota(settings.answer_seconds_max + HOLD_SECONDS)
    if replica is not None:
        quota = await start_shared_quota(
            settings, database.health, replica.lease.slot, workers, stack
        )
    queue, recovery, credit = _start_accounting(
        settings, limits, metrics, database, quota, workers, stack
    )
    if replica is not None:
        replica.queue = queue
        keeper = OpenAnswersKeeper(database, queue, replica.lease, recovery.wait_done)
        start_worker("open_answers", keeper, workers, stack)
    singleton_database = replica.leader_database if replica else database
    peers: Peers = replica.peers if replica else NoPeers()
    authenticator, revocation = _start_access_control(
        settings, database, queue, recovery, metrics, quota, workers, stack
    )
    chunk_workers = ChunkWorkers()
    stack.callback(chunk_workers.close)
    workers |= {
        "reindexing": Reindexer(singleton_database, settings, chunk_workers),
        "merging": IndexMerger(singleton_database),
        **_create_alert_workers(settings, singleton_database, metrics),
    }
    if settings.text_days is not None:
        workers["retention"] = TextRetention(singleton_database, settings.text_days)
    checkout, reconciliation = await _open_stripe(
        settings, database, singleton_database, metrics, workers, stack
    )
    start_worker("trimming", MemoryTrimmer(), workers, stack)
    if settings.local_model:
        settings = await _start_local_model(settings, workers, stack)
    catalog = settings.catalog
    prices = PriceBook(
        settings.prices,
        {config.name: config.base_url for config in catalog.providers},
        catalog.prices,
        settings.customer_prices,
    )
    await anyio.to_thread.run_sync(_preload_prices, prices, settings)
    tracer = await _open_tracer(stack) if settings.tracing else None
    budgets = await _open_budgets(database, quota, workers, stack)
    recorder = Recorder(queue, quota, metrics, replica.lease.slot if replica else None, budgets)
    embedder = create_embedder(settings)
    vector_search = (
        await _open_embedding(
            embedder, limits, singleton_database, recorder, prices, workers, stack
        )
        if embedder
        else None
    )
    routes = _create_routes(settings, vector_search, stack)
    search_service = SearchService(database, settings, vector_search)
    answering = Answers(
        settings,
        database,
        queue,
        recorder,
        search_service,
        routes=routes,
        prices=prices,
        metrics=metrics,
        limits=limits,
        quota=credit,
        revocation=revocation,
        wait_recovered=recovery.wait_done,
        peers=peers,
        claims=open_claims(settings, database, stack),
        budgets=budgets,
        tracer=tracer,
    )
    stack.push_async_callback(answering.stop)
    embedding_calls = EmbeddingCalls(
        settings,
        recorder,
        routes=routes,
        embedder=None if embedder is None or embedder.metered else embedder,
        prices=prices,
        limits=limits,
        quota=credit,
        revocation=revocation,
        budgets=budgets,
    )
    stack.push_async_callback(embedding_calls.stop)
    await start_singleton_tasks(settings, replica, workers, stack)
    share = settings.user_share
    log.info("service.started", model=settings.default_model, auth=settings.auth)
    services = Services(
        settings=settings,
        limits=limits,
        database=database,
        reads=ReadRecorder(database),
        queue=queue,
        workers=workers,
        chunk_workers=chunk_workers,
        file_readers=FileReaders(),
        body_budget=BodyBudget(
            max(limits.bodies_bytes_max, 12 * settings.upload_file_bytes_max), share
        ),
        upload_budget=BodyBudget(
            limits.uploads_max * limits.upload_files_max * settings.upload_file_bytes_max, share
        ),
        uploads=SharedLimit(limits.uploads_at_once_max, "uploads in progress", share),
        searches=SharedLimit(limits.searches_max, "searches in progress", share),
        analytics=BoundedTurns(
            ANALYTICS_MAX, OPEN_MAX, "analytics requests", 0.25, wait_seconds=WAIT_SECONDS_MAX
        ),
        open_requests=SharedLimit(settings.connections_max, "open requests for answers", share),
        authenticator=authenticator,
        revocation=revocation,
        quota=quota,
        budgets=budgets,
        answers=answering,
        receipts=ReceiptLog(database, settings.data_dir),
        checkout=checkout,
        reconciliation=reconciliation,
        credit=credit,
        routes=routes,
        embedding_calls=embedding_calls,
        tickets=SignedTickets(
            seconds=settings.ticket_seconds,
            resume_seconds=settings.resume_seconds,
            user_share=share,
            keys=settings.secret_keys,
        ),
        peers=peers,
        metrics=metrics,
        retrieval=search_service,
    )
    return services, replica.listener if replica else None


async def _open_tracer(stack: AsyncExitStack) -> AnswerTracer:
    """Create the exporter of traces, closed after the last answer. Raises `SettingsInvalid`."""
    try:
        await anyio.to_thread.run_sync(load_module, tracing)
    except ImportError as error:
        raise SettingsInvalid("KOTAE_TRACING needs pip install 'kotae[otel]'") from error
    tracer = tracing.OpenTelemetryTracer()
    stack.push_async_callback(tracer.aclose)
    return tracer


async def _open_budgets(
    database: Database,
    quota: SharedQuota | LocalQuota,
    workers: dict[str, Worker],
    stack: AsyncExitStack,
) -> BudgetEnforcer:
    """Read the budgets that refuse requests, and keep reading them."""
    on_added = quota.reload_usage if isinstance(quota, LocalQuota) else lambda: None
    enforcer = BudgetEnforcer(database, on_added)
    await enforcer.refresh()
    start_worker("budget_refresh", BudgetRefresher(enforcer), workers, stack)
    return enforcer


def _create_alert_workers(
    settings: Settings, database: Database, metrics: Metrics
) -> dict[str, Worker]:
    """The workers that create the alerts of budgets, and deliver them if there is a receiver."""
    usd = settings.credit_alert_usd
    create_evaluator = partial(
        BudgetEvaluator,
        database,
        metrics,
        credit_nano_usd=None if usd is None else to_nano_usd(usd),
    )
    if settings.webhook_url is None or settings.webhook_secret is None:
        return {"budgets": create_evaluator(deliver=False)}
    receiver = WebhookReceiver(
        settings.webhook_url.get_secret_value(),
        settings.webhook_secret.get_secret_value(),
        allow_private=settings.webhook_private_addresses,
    )
    return {
        "budgets": create_evaluator(deliver=True),
        "webhooks": WebhookSender(database, receiver, metrics),
    }


async def _open_stripe(
    settings: Settings,
    database: Database,
    singleton_database: Database,
    metrics: Metrics,
    workers: dict[str, Worker],
    stack: AsyncExitStack,
) -> tuple[Checkout | None, RecentReconciliation | None]:
    """Create the worker that bills usage and credits payments, top-ups, and the reconciliation.

    Each only if it is enabled. Raises `SettingsInvalid` without the library.
    """
    if settings.stripe_key is None:
        return None, None
    try:
        await anyio.to_thread.run_sync(load_module, stripe)
    except ImportError as error:
        raise SettingsInvalid("KOTAE_STRIPE_KEY needs pip install 'kotae[stripe]'") from error
    connection = stripe.StripeConnection(
        settings.stripe_key.get_secret_value(), base_url=settings.stripe_base_url
    )
    stack.push_async_callback(connection.aclose)
    workers["billing"] = BillingWorker(
        singleton_database, connection, settings.stripe_meter, metrics
    )
    meter, reconciliation = settings.stripe_meter, None
    if meter is not None:
        reconciliation = RecentReconciliation(database, connection, meter)
    if settings.public_url is None:
        return None, reconciliation
    options = TopUpOptions(
        public_url=settings.public_url,
        usd_min=settings.top_up_usd_min,
        usd_max=settings.top_up_usd_max,
        has_tax=settings.stripe_tax,
        has_invoices=settings.stripe_invoices,
    )
    checkout = Checkout(database, connection, options, user_share=settings.user_share)
    return checkout, reconciliation


def _start_accounting(
    settings: Settings,
    limits: ServiceLimits,
    metrics: Metrics,
    database: Database,
    quota: SharedQuota | LocalQuota,
    workers: dict[str, Worker],
    stack: AsyncExitStack,
) -> tuple[JournaledQueue, JournalRecovery, CreditQuota]:
    """Start journal, queue and writer, and the recovery of records of earlier processes.

    Also returns the quota with the wallets, whose holds end when the rows are written.
    """
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
    start_worker("recovery", recovery, workers, stack)
    journal = workers["journal"] = Journal(
        folder, spool, sync_ms=settings.journal_sync_ms, bytes_max=journal_bytes_max
    )
    journal.start()
    stack.push_async_callback(anyio.to_thread.run_sync, journal.stop, JOURNAL_SECONDS)
    queue = JournaledQueue(limits.queue_records_max, journal, settings.user_share)
    credit = CreditQuota(quota, open_wallets(settings, database, recovery.wait_done, stack))

    def remove_written(names: list[str]) -> None:
        quota.remove_written(names)
        credit.remove_written(names)

    writer = workers["writer"] = Writer(
        database, queue, metrics, quarantine=quarantine, on_written=remove_written
    )
    writer.start()
    stack.push_async_callback(_stop_writer, writer)
    return queue, recovery, credit


def _start_access_control(
    settings: Settings,
    database: Database,
    queue: JournaledQueue,
    recovery: JournalRecovery,
    metrics: Metrics,
    quota: SharedQuota | LocalQuota,
    workers: dict[str, Worker],
    stack: AsyncExitStack,
) -> tuple[Authenticator, RevocationMonitor]:
    """Create authentication and revocation, and start the reaper."""
    jwts = JwtVerifier(settings) if settings.jwt_algorithm else None
    if jwts:
        stack.push_async_callback(jwts.aclose)
    authenticator = Authenticator(settings, database, jwts=jwts)
    revocation = RevocationMonitor()
    start_worker(
        "reaper",
        Reaper(
            authenticator,
            revocation,
            quota if isinstance(quota, LocalQuota) else None,
            database,
            recovery.wait_done,
            queue.wait_committed,
            metrics,
        ),
        workers,
        stack,
    )
    return authenticator, revocation


def _preload_prices(prices: PriceBook, settings: Settings) -> None:
    """Look up the default model in the price list, which takes half a second."""
    route = settings.catalog.routes.get(settings.default_model)
    target = route.targets[0] if route else None
    prices.preload(
        target.model if target else settings.default_model, target.provider if target else None
    )


def _create_routes(
    settings: Settings, vectors: VectorSearch | None, stack: AsyncExitStack
) -> Routes:
    """Create the extractive and the configured providers. Their imports do not delay the start."""
    extractive = OpenAIProvider(
        base_url="http://extractive.invalid/v1",
        api_key=None,
        idle_seconds=settings.provider_idle_seconds,
        answer_bytes_max=settings.answer_bytes_max,
        transport=ExtractiveTransport(settings.dictionary, vectors),
    )
    stack.push_async_callback(extractive.aclose)
    may_name_extractive = not settings.models or EXTRACTIVE in (
        settings.default_model,
        *settings.models,
    )
    routes = create_routes(
        settings.catalog,
        partial(create_openai_provider, answer_bytes_max=settings.answer_bytes_max),
        user_share=settings.user_share,
        extractive=Endpoint(EXTRACTIVE, extractive) if may_name_extractive else None,
    )
    stack.push_async_callback(routes.aclose)
    # The first answer needs the SDK. Importing it now would delay the start and the first requests.
    asyncio.get_running_loop().call_later(
        SDK_SECONDS, Thread(target=load_sdk, name="sdk", daemon=True).start
    )
    if settings.default_model == EXTRACTIVE:
        # The extractive model counts tokens in every answer; loading the encoding takes a second.
        Thread(target=tokens.load_encoding, name="tokens", daemon=True).start()
    return routes


async def _stop_writer(writer: Writer) -> None:
    if not await writer.stop(WRITE_OUT_SECONDS):
        log.warning(
            "records.kept",
            remedy="the database was too slow: the next start writes them from the journal",
        )


async def _open_embedding(
    embedder: Embedder,
    limits: ServiceLimits,
    database: Database,
    recorder: Recorder,
    prices: PriceBook,
    workers: dict[str, Worker],
    stack: AsyncExitStack,
) -> VectorSearch:
    """Create the embedding store, and the worker that fills it."""
    await anyio.to_thread.run_sync(load_module, embedding)
    stack.push_async_callback(embedder.aclose)
    vectors = embeddings.EmbeddingStore(
        database, embedder, recorder, prices, attempts_max=limits.attempts_max
    )
    workers["embedding"] = embedding.EmbeddingWorker(vectors)
    return vectors


async def _start_local_model(
    settings: Settings, workers: dict[str, Worker], stack: AsyncExitStack
) -> Settings:
    """Start the local model and return settings with its URL, and a price of 0."""
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
