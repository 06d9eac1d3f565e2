"""The plot: admit → hold → retrieve → refuse or stream → account.

`Answers.answer` reads top to bottom. The question and the longest answer are held of the quota before anything is looked
up, the context when it is known; the outcome settles it.
Everything that can refuse does so before it returns, which is before byte one;
after that an error is an event of the stream. No session and no lock is held while the provider is called.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from functools import partial

import msgspec

from service.core import tokens
from service.core.accounting.outcomes import AnswerAccount
from service.core.accounting.recorder import Recorder
from service.core.answering.events import parse_event_id
from service.core.answering.idempotency import (
    IdempotencyKey,
    IdempotencyRegistry,
    StartedAnswer,
    hash_request,
    require_same_request,
)
from service.core.answering.pump import ATTACH_SECONDS, Pump, PumpLimits
from service.core.answering.registry import StreamRegistry
from service.core.answering.replay import ReplayLookup
from service.core.answering.streams import (
    SHUTDOWN_NOTICE,
    BufferBudget,
    Stream,
    create_problem,
    replay_stream,
)
from service.core.auth.principals import Principal
from service.core.auth.revocation import RevocationMonitor
from service.core.database.engine import Database
from service.core.encoding import create_id, replace_surrogates, utc_now
from service.core.errors import NotFound, Overloaded, QuotaExceeded, ShuttingDown, UnknownModel
from service.core.grounding import prompt
from service.core.grounding.citations import read_citations
from service.core.limits import ServiceLimits
from service.core.ports import Message, Provider, ProviderRequest, Quota, QuotaSubject, RecordQueue
from service.core.pricing import PriceBook, Usage
from service.core.records import Intent, Passage, Status
from service.core.search.results import SearchResults
from service.core.search.service import SearchService
from service.core.settings import EXTRACTIVE, Settings
from service.core.telemetry import Metrics, log

# The public interface of this package: its other modules are imported here only.
__all__ = [
    "ATTACH_SECONDS",
    "SHUTDOWN_NOTICE",
    "AnswerRequest",
    "Answers",
    "AnswersStatistics",
    "StartedAnswer",
    "Stream",
    "create_problem",
    "parse_event_id",
]

ID_CHARACTERS = 36
STOP_SECONDS = 1  # how long shutdown waits for pumps that it has stopped


class AnswerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request for an answer, as the edge understood it. `sees` is whose documents may be context: None is everyone's.

    `documents`: of these alone; None is all of them.
    `resumable`: it goes on for a while without a reader, and its first one may take `attach_seconds` to come.
    """

    prompt: str
    grounded: bool
    endpoint: str
    user_id: str
    sees: str | None
    request_id: str
    stream: bool
    resumable: bool = False
    attach_seconds: float = ATTACH_SECONDS
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    documents: list[str] | None = None
    idempotency_key: str | None = None  # given with `body_hash`, by `answer_once`
    body_hash: str | None = None
    key_id: str | None = None
    asked_by: str | None = None
    subjects: tuple[QuotaSubject, ...] = ()  # who is charged
    principal: Principal | None = None  # by whose credential; should it be revoked, the answer ends


class AnswersStatistics(msgspec.Struct, frozen=True):
    """`in_progress`: answers that call a provider now. `kept`: streams that a client may come back to.

    `keyed`: idempotency keys whose answer is not yet in the database.
    """

    in_progress: int
    kept: int
    keyed: int
    stopping: bool


class Answers:
    """Answers prompts. One per process; `stop` before the event loop ends.

    `wait_recovered` waits until the rows of earlier processes are in the database.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queue: RecordQueue,
        recorder: Recorder,
        retrieval: SearchService,
        *,
        extractive: Provider,
        provider: Provider | None,
        prices: PriceBook,
        metrics: Metrics,
        limits: ServiceLimits,
        quota: Quota,
        revocation: RevocationMonitor,
        wait_recovered: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._recorder = recorder
        self._retrieval = retrieval
        self._extractive = extractive
        self._provider = provider
        self._prices = prices
        self._metrics = metrics
        self._quota = quota
        self._revocation = revocation
        self._recall = ReplayLookup(database, queue, wait_recovered)
        self._keys = IdempotencyRegistry(queue)
        self._pumps: dict[
            asyncio.Task[None], Pump
        ] = {}  # the strong references that the event loop does not keep
        self._shelf = StreamRegistry(
            BufferBudget(settings.resume_bytes_max),
            kept_max=settings.answers_max,
            keep_seconds=settings.resume_seconds,
        )
        self._turns = asyncio.Semaphore(settings.provider_calls_max)  # who came first is first
        self._stopping = False

    async def answer(self, ask: AnswerRequest, *, started: float | None = None) -> Stream:
        """Begin an answer and return its stream. Raises any `KotaeError` that refuses it before the first byte."""
        started = started or time.perf_counter()
        self._admit()
        model, provider = self._choose(ask.model)
        intent = self._intent(ask, model)
        context: list[Passage] = []
        messages = (
            [Message("user", intent.prompt)]
            if ask.grounded
            else prompt.build_free_messages(intent.prompt)
        )
        intent = await self._hold(ask, intent, messages)
        try:
            if ask.grounded:
                found = await self._search(ask)
                intent = msgspec.structs.replace(
                    intent,
                    relevance_share=found.share,
                    relevance_terms=found.terms,
                    relevance_cosine=found.cosine or None,
                )
                context = self._context(found) if found.answerable else []
                messages = prompt.build_grounded_messages(intent.prompt, context) if context else []
                intent = await self._hold(ask, intent, messages, grow=True)
            degraded = ask.resumable and not self._shelf.has_capacity()
            if degraded:  # it ends when its reader leaves, and says so
                self._metrics.streams_degraded.inc()
                ask = msgspec.structs.replace(ask, resumable=False)
            self._recorder.begin(intent)  # from here on there will be a row
        except BaseException:
            self._quota.release(intent.id)
            raise
        stream = Stream(
            intent, context, kept=ask.resumable, degraded=degraded, buffers=self._shelf.buffers
        )
        self._shelf.add_stream(stream)
        account = self._open_account(stream, ask, messages, started)
        if ask.grounded and not context:
            await self._refuse(stream, account)
        else:
            self._start_pump(stream, account, ask, messages, provider)
        return stream

    async def answer_once(self, ask: AnswerRequest, idempotency_key: str) -> StartedAnswer:
        """Begin the answer of this key, or return the one that it has. Raises what `answer` does, and `IdempotencyConflict`."""
        body_hash = hash_request(
            stream=ask.stream,
            prompt=ask.prompt,
            grounded=ask.grounded,
            model=ask.model,
            max_tokens=ask.max_tokens,
            temperature=ask.temperature,
            documents=ask.documents,
        )
        ask = msgspec.structs.replace(ask, idempotency_key=idempotency_key, body_hash=body_hash)
        begin = partial(self._find_or_begin, ask, idempotency_key, body_hash, time.perf_counter())
        begun = await self._keys.start_once(
            IdempotencyKey(ask.user_id, idempotency_key), body_hash, begin
        )
        begun.stream.touch()
        return begun

    async def find_stream(self, answer_id: str, user_id: str | None) -> Stream:
        """The stream of an answer, running, just ended or long ended, if it is this user's; None may see every one.

        Raises `NotFound`, also for somebody else's, and `DatabaseUnavailable`.
        """
        stream = self._shelf.find_stream(answer_id)
        if stream is None and len(answer_id) == ID_CHARACTERS:
            stream = await self._recall.find_by_id(answer_id)
        if stream is None or user_id not in {None, stream.intent.user_id}:
            raise NotFound("no answer has this id")
        return stream

    async def stop_answer(self, answer_id: str, user_id: str | None) -> None:
        """Stop an answer on purpose: the provider is left at once, the text so far kept. One that has ended stays as it is.

        Raises what `find` does.
        """
        (await self.find_stream(answer_id, user_id)).on_stop()

    def statistics(self) -> AnswersStatistics:
        """A frozen look at what is going on."""
        return AnswersStatistics(
            in_progress=len(self._pumps),
            kept=self._shelf.stream_count,
            keyed=len(self._keys),
            stopping=self._stopping,
        )

    def refuse_new(self) -> None:
        """From now on every new answer is refused; those in progress go on, and their readers know."""
        self._stopping = True
        for stream in self._shelf:
            stream.announce_shutdown()

    def interrupt_all(self) -> None:
        """End every answer in progress as `interrupted`; each says so to its readers."""
        for pump in self._pumps.values():
            pump.stop(Status.INTERRUPTED)

    async def stop(self) -> None:
        """Interrupt what is still in progress and wait until all of it is recorded. Idempotent."""
        self.refuse_new()
        await self._keys.stop()
        self.interrupt_all()
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=STOP_SECONDS)
        tasks = list(self._pumps)
        for task in tasks:
            task.cancel()  # a provider that does not even close: the pump records at once
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _find_or_begin(
        self, ask: AnswerRequest, idempotency_key: str, body_hash: str, started: float
    ) -> StartedAnswer:
        """What the log has for this key, or else a new answer. Raises `IdempotencyConflict`, and what `answer` does."""
        found = await self._recall.find_by_key(ask.user_id, idempotency_key)
        if found is None:
            return StartedAnswer(await self.answer(ask, started=started), replayed=False)
        require_same_request(found.intent.body_hash, body_hash)
        return StartedAnswer(replay_stream(found), replayed=True)

    def _admit(self) -> None:
        if self._stopping:
            raise ShuttingDown("this process is ending")
        if len(self._pumps) >= self._settings.answers_max:
            raise Overloaded(f"{self._settings.answers_max} answers are in progress")

    def _choose(self, asked: str | None) -> tuple[str, Provider]:
        model = asked or self._settings.default_model
        if (
            asked
            and self._settings.models
            and asked not in {*self._settings.models, self._settings.default_model}
        ):
            raise UnknownModel(f"configured are: {', '.join(self._settings.models)}")
        if model == EXTRACTIVE:
            return model, self._extractive
        if self._provider is None:
            raise UnknownModel(
                f"only {EXTRACTIVE!r} answers here: no provider is configured (OPENAI_API_KEY, OPENAI_BASE_URL)"
            )
        return model, self._provider

    def _intent(self, ask: AnswerRequest, model: str) -> Intent:
        created_at = utc_now()
        return Intent(
            id=create_id(created_at),
            created_at=created_at,
            endpoint=ask.endpoint,
            model=model,
            user_id=ask.user_id,
            request_id=ask.request_id,
            prompt=replace_surrogates(ask.prompt),
            grounded=ask.grounded,
            idempotency_key=ask.idempotency_key,
            body_hash=ask.body_hash,
            key_id=ask.key_id,
            asked_by=ask.asked_by,
        )

    async def _hold(
        self, ask: AnswerRequest, intent: Intent, messages: list[Message], *, grow: bool = False
    ) -> Intent:
        """Hold, or grow the hold to, the upper bound of what the provider may bill for these; the intent says it.

        Raises what `Quota.hold` does.
        """
        tokens_held, nano_usd = self._upper_bound(ask, intent, messages)
        try:
            if grow:
                await self._quota.grow(intent.id, tokens=tokens_held, nano_usd=nano_usd)
            else:
                await self._quota.hold(
                    intent.id, ask.subjects, tokens=tokens_held, nano_usd=nano_usd
                )
        except QuotaExceeded as error:
            self._metrics.quota_refusals.labels(error.extra["of"], error.extra["limit"]).inc()
            raise
        return msgspec.structs.replace(intent, held_tokens=tokens_held, held_nano_usd=nano_usd)

    def _upper_bound(
        self, ask: AnswerRequest, intent: Intent, messages: list[Message]
    ) -> tuple[int, int | None]:
        """(tokens, nano-dollars) that these messages and the longest answer cost at most. Money only where it has a limit."""
        most = Usage(
            prompt_tokens=tokens.bound_tokens(messages),
            completion_tokens=ask.max_tokens or self._settings.max_tokens,
        )
        if not any(
            subject.limits is not None and subject.limits.limits_cost for subject in ask.subjects
        ):
            return most.total_tokens, None
        cost = self._prices.compute_cost(intent.model, most, intent.created_at)
        return most.total_tokens, None if cost is None else cost.nano_usd

    async def _search(self, ask: AnswerRequest) -> SearchResults:
        limit = self._settings.context_chunks_max
        found = await self._retrieval.search(
            replace_surrogates(ask.prompt), user_id=ask.sees, limit=limit, within=ask.documents
        )
        self._metrics.searches.labels(str(found.answerable).lower()).inc()
        return found

    def _context(self, found: SearchResults) -> list[Passage]:
        return prompt.build_context(
            found.items, self._settings.context_tokens_max, self._settings.context_chunks_max
        )

    def _open_account(
        self, stream: Stream, ask: AnswerRequest, messages: list[Message], started: float
    ) -> AnswerAccount:
        return AnswerAccount(
            stream.intent,
            messages,
            self._recorder,
            self._prices,
            completion_tokens_max=ask.max_tokens or self._settings.max_tokens,
            started=started,
            read_sources=partial(self._read_sources, stream.context) if stream.context else None,
        )

    def _read_sources(self, context: list[Passage], text: str) -> list[Passage]:
        """The passages of the context that a text cites. Citations of anything else are counted and dropped."""
        citations = read_citations(text, context)
        self._metrics.citations.labels("real").inc(citations.real)
        self._metrics.citations.labels("dropped").inc(citations.dropped)
        return citations.sources

    async def _refuse(self, stream: Stream, account: AnswerAccount) -> None:
        """The fixed refusal: no provider, no tokens, no cost, still a row."""
        text = prompt.refusal_text(stream.intent.prompt)
        stream.append_texts([text])
        account.first_text_at = time.perf_counter()
        stream.finish(account.finish(Status.NO_CONTEXT, text), None)
        await account.wait_synced()

    def _start_pump(
        self,
        stream: Stream,
        account: AnswerAccount,
        ask: AnswerRequest,
        messages: list[Message],
        provider: Provider,
    ) -> None:
        settings, intent = self._settings, stream.intent
        request = ProviderRequest(
            model=intent.model,
            messages=messages,
            max_tokens=ask.max_tokens or settings.max_tokens,
            temperature=ask.temperature,
            stream=ask.stream,
        )
        limits = PumpLimits(
            answer_seconds_max=settings.answer_seconds_max,
            attempts_max=self._limits.attempts_max,
            leave_seconds=self._leave_seconds(ask),
            leave_nano_usd_max=None
            if ask.resumable or ask.idempotency_key
            else self._limits.drain_nano_usd_max,
            attach_seconds=ask.attach_seconds,
        )
        turn = nullcontext() if provider is self._extractive else self._turns
        pump = Pump(stream, account, request, provider, limits, turn)
        left = self._revocation.watch_principal(ask.principal, partial(pump.stop, Status.STOPPED))
        task = asyncio.create_task(pump.run(), name=f"pump {intent.id}")
        task.add_done_callback(lambda _: left())
        self._pumps[task] = pump
        task.add_done_callback(self._pump_ended)

    def _leave_seconds(self, ask: AnswerRequest) -> float | None:
        """How long an answer goes on without a reader; None: it needs none. Who sent a key may come back with it."""
        settings = self._settings
        if not ask.stream:
            return None
        if ask.resumable:
            return settings.resume_seconds
        if ask.idempotency_key:
            return max(settings.resume_seconds, settings.drain_seconds, ask.attach_seconds)
        return settings.drain_seconds

    def _pump_ended(self, task: asyncio.Task[None]) -> None:
        del self._pumps[task]
        if not task.cancelled() and (error := task.exception()):
            log.error("pump.broken", task=task.get_name(), exc_info=error)
