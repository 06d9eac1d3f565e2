"""The request flow: admit → hold → search → refuse or stream → account.

`Answers.answer` reads from top to bottom. The quota is held for the prompt and the longest answer
before the search, and grown to the context after it; the outcome settles it. All rejections happen
before `answer` returns, which is before the first byte; later errors are events of the stream. No
session and no lock is held while the provider is called.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from service.core import tokens
from service.core.accounting.outcomes import AnswerAccount
from service.core.accounting.recorder import Recorder
from service.core.accounting.retention import erase_texts_before
from service.core.answering.chat_calls import cap_by_amount, cap_completion, ground_call
from service.core.answering.claiming import AnswerClaims
from service.core.answering.conversations import ConversationRegistry
from service.core.answering.events import parse_event_id
from service.core.answering.idempotency import (
    IdempotencyKey,
    IdempotencyRegistry,
    StartedAnswer,
    hash_request,
    require_same_request,
)
from service.core.answering.pump import ATTACH_SECONDS, Pump, PumpLimits
from service.core.answering.refusals import Refusal, RefusalComposer
from service.core.answering.registry import StreamRegistry
from service.core.answering.replay import ReplayLookup
from service.core.answering.retries import RetryRegistry
from service.core.answering.rewriting import Rewriter
from service.core.answering.streams import (
    SHUTDOWN_NOTICE,
    BufferBudget,
    Stream,
    create_problem,
    replay_stream,
)
from service.core.answering.transcripts import ChatTranscript
from service.core.auth.principals import Principal
from service.core.auth.revocation import RevocationMonitor
from service.core.billing.credit import CreditQuota
from service.core.budgets.enforcement import BudgetEnforcer
from service.core.database.engine import Database
from service.core.documents.library import list_tagged
from service.core.encoding import create_id, read_id_time, sanitize_text, utc_now
from service.core.errors import (
    Erased,
    IdempotencyConflict,
    KotaeError,
    NotFound,
    OutOfCredit,
    QuotaExceeded,
    ShuttingDown,
    build_owned_elsewhere,
)
from service.core.fair_share import SharedLimit
from service.core.grounding import prompt
from service.core.grounding.citations import read_citations
from service.core.grounding.history import join_questions, select_history
from service.core.grounding.refusals import NEAREST_MAX, classify_prompt
from service.core.limits import ServiceLimits
from service.core.ports import (
    AnswerTrace,
    AnswerTracer,
    ChatCall,
    IdempotencyClaims,
    PeerRequest,
    Peers,
    ProviderRequest,
    QuotaSubject,
    RecordQueue,
)
from service.core.pricing import PriceBook, Usage
from service.core.providers.routes import (
    Route,
    RoutePlan,
    Routes,
    Target,
    compute_route_charge,
    compute_route_nano_usd,
)
from service.core.records import Intent, Message, Outcome, Passage, Status
from service.core.search.results import SearchResults
from service.core.search.service import SearchService
from service.core.settings import EXTRACTIVE, Settings
from service.core.telemetry import Metrics, log, set_trace_ids

# The public interface of this package; its other modules are internal.
__all__ = [
    "ATTACH_SECONDS",
    "SHUTDOWN_NOTICE",
    "AnswerRequest",
    "Answers",
    "AnswersStatistics",
    "ChatTranscript",
    "StartedAnswer",
    "Stream",
    "create_problem",
    "parse_event_id",
]

ID_CHARACTERS = 36
STOP_SECONDS = 1  # maximum wait of shutdown for stopped pumps


class AnswerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request for an answer.

    `sees`: the user whose documents may be context; None: the documents of all users. `documents`:
    restricts the context to these documents, `tags` to those with one of these tags; None: no
    restriction. `history`: the messages before the prompt; `conversation_id`: the conversation that
    the answer continues, with its own history; None: it begins one. `resumable`: the answer
    continues for a while without a reader, and waits up to `attach_seconds` for its first one.
    `chat`: a chat completion request, whose last user message is the prompt. `retry_seconds`: how
    long the answer continues for a client that may retry; None: the client does not. `body`: of a
    response that can be retrieved. `stored` False: its row has no texts. `background`: it continues
    without a reader.
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
    tags: list[str] | None = None
    chat: ChatCall | None = None
    retry_seconds: float | None = None
    body: dict[str, Any] | None = None
    stored: bool = True
    background: bool = False
    history: list[Message] = []
    conversation_id: str | None = None
    idempotency_key: str | None = None  # set by `answer_once`, with `body_hash`
    body_hash: str | None = None
    answer_id: str | None = None  # of a claimed key; None: a new one
    key_id: str | None = None
    asked_by: str | None = None
    subjects: tuple[QuotaSubject, ...] = ()  # charged for the answer
    principal: Principal | None = None  # its revocation ends the answer
    trace_headers: dict[str, str] = {}  # of the request


class AnswersStatistics(msgspec.Struct, frozen=True):
    """An immutable snapshot of the counters.

    `in_progress`: answers that call a provider. `kept`: ended streams in memory. `keyed`:
    idempotency keys whose answer is not in the database yet.
    """

    in_progress: int
    kept: int
    keyed: int
    stopping: bool


class Answers:
    """Answers prompts. One per process; call `stop` before the event loop ends.

    `wait_recovered` waits until the rows of earlier processes are in the database.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queue: RecordQueue,
        recorder: Recorder,
        search_service: SearchService,
        *,
        routes: Routes,
        prices: PriceBook,
        metrics: Metrics,
        limits: ServiceLimits,
        quota: CreditQuota,
        revocation: RevocationMonitor,
        wait_recovered: Callable[[], Awaitable[None]] | None = None,
        peers: Peers | None = None,
        claims: IdempotencyClaims | None = None,
        tracer: AnswerTracer | None = None,
        budgets: BudgetEnforcer | None = None,
    ) -> None:
        self._tracer, self._budgets = tracer, budgets
        self._peers = peers
        self._settings = settings
        self._limits = limits
        self._recorder = recorder
        self._search_service = search_service
        self._routes = routes
        self._prices = prices
        self._metrics = metrics
        self._quota = quota
        self._revocation = revocation
        self._database = database
        self._refusals = RefusalComposer(database, search_service)
        self._replay = ReplayLookup(database, queue, wait_recovered, peers=peers)
        self._idempotency = IdempotencyRegistry(queue)
        self._claims = AnswerClaims(claims, peers, self._replay, recorder.slot)
        self._retries = RetryRegistry()
        # Strong references: the event loop keeps weak ones.
        self._pumps: dict[asyncio.Task[None], Pump] = {}
        self._in_progress = SharedLimit(
            settings.answers_max, "answers in progress", settings.user_share
        )
        self._registry = StreamRegistry(
            BufferBudget(settings.resume_bytes_max, settings.user_share),
            ended_max=settings.answers_max,
            keep_seconds=settings.resume_seconds,
        )
        self._rewriter = Rewriter(recorder, prices, quota)
        self._conversations = ConversationRegistry(database, self._replay, self._registry, peers)
        self._stopping = False

    async def answer(self, request: AnswerRequest, *, started: float | None = None) -> Stream:
        """Start an answer and return its stream. Raises the `KotaeError` that rejects it."""
        started = started or time.perf_counter()
        if self._stopping:
            raise ShuttingDown("this process is shutting down")
        trace = None if self._tracer is None else self._begin_trace(self._tracer, request)
        try:
            self._in_progress.take(request.user_id)
            release = partial(self._in_progress.release, request.user_id)
            try:
                stream = await self._start_answer(request, started, trace)
            except BaseException:
                release()
                raise
        except BaseException as error:
            if trace is not None:
                trace.refuse(error.code if isinstance(error, KotaeError) else type(error).__name__)
            raise
        stream.add_finish_callback(release)
        return stream

    def _begin_trace(self, tracer: AnswerTracer, request: AnswerRequest) -> AnswerTrace:
        trace = tracer.begin_answer(
            request.trace_headers, endpoint=request.endpoint, stored=request.stored
        )
        set_trace_ids(*trace.ids)
        return trace

    async def _start_answer(
        self, request: AnswerRequest, started: float, trace: AnswerTrace | None
    ) -> Stream:
        route = self._routes.find_chat_route(request.model or self._settings.default_model)
        if self._budgets and self._budgets.is_active:
            models = [target.model for target in route.targets]
            subjects = await self._budgets.extend_subjects(request.subjects, models)
            request = msgspec.structs.replace(request, subjects=subjects)
        history = await self._read_history(request)
        intent = self._build_intent(request, route)
        context: list[Passage] = []
        refusal: Refusal | None = None
        messages = self._build_first_messages(request, intent, history)
        chat = request.chat
        capped, limited, credit = chat is not None and request.max_tokens is None, False, None
        if chat is not None and capped:
            limited, credit = await self._read_remaining(request, intent)
            request = self._cap_tokens(request, chat, intent, route, limited=limited, credit=credit)
        rewritten = await self._rewrite_question(request, intent, history, route)
        intent = await self._hold_quota(request, intent, route, messages)
        try:
            if request.grounded:
                previous = "" if rewritten else join_questions(history)
                intent, context, refusal = await self._find_context(
                    request, intent, rewritten or intent.prompt, previous, trace
                )
                request, messages = self._add_context(request, intent, context, history)
                if request.chat is not None and capped:
                    request = self._cap_tokens(
                        request, request.chat, intent, route, limited=limited, credit=credit
                    )
                intent = await self._hold_quota(request, intent, route, messages, grow=True)
            degraded = request.resumable and not self._registry.has_capacity(intent.user_id)
            if degraded:  # not resumable: ends with its reader
                self._metrics.streams_degraded.inc()
                request = msgspec.structs.replace(request, resumable=False)
            self._conversations.require_open(intent.conversation_id)
            plan = RoutePlan(route, self._limits.attempts_max)
            if plan.others and not refusal:
                intent = _name_provider(intent, plan.begin())
            self._recorder.record_intent(intent)  # from here on there will be a row
        except BaseException:
            self._quota.release(intent.id)
            raise
        stream = Stream(
            intent,
            context,
            resumable=request.resumable,
            degraded=degraded,
            buffers=self._registry.buffers,
        )
        if chat is not None:
            stream.transcript = self._create_transcript(request, intent)
            stream.completion_tokens_max = request.max_tokens if capped else None
        self._registry.add_stream(stream)
        account = self._open_account(stream, request, messages, started, trace)
        if refusal:
            await self._send_refusal(stream, account, refusal)
        else:
            self._start_pump(stream, account, request, messages, plan)
        return stream

    async def answer_or_attach(
        self, request: AnswerRequest, fingerprint: bytes, *, is_retry: bool
    ) -> StartedAnswer:
        """Start an answer, or return the one that a client's retry repeats.

        Raises the errors of `answer`, and `OwnedElsewhere` if another replica has that one.
        """
        retriable = self._retries.attach(fingerprint) if is_retry else None
        if retriable is not None:
            return StartedAnswer(retriable.stream, replayed=True, retriable=retriable)
        if is_retry and self._peers is not None:
            await self._require_not_elsewhere(self._peers, fingerprint)
        stream = await self.answer(request)
        retriable = self._retries.register(fingerprint, stream)
        return StartedAnswer(stream, replayed=False, retriable=retriable)

    async def _require_not_elsewhere(self, peers: Peers, fingerprint: bytes) -> None:
        """Raise `OwnedElsewhere` if a retry repeats an answer of another replica."""
        target = f"/peer/retries/{fingerprint.hex()}"
        replies = await peers.ask_all(PeerRequest(method="GET", target=target, headers={}))
        for reply in replies:
            if (answer_id := msgspec.json.decode(reply, type=str | None)) is not None:
                raise build_owned_elsewhere(answer_id)

    def find_retriable(self, fingerprint: bytes) -> str | None:
        """Return the id of the answer that a retry with this fingerprint repeats, if any."""
        return self._retries.find_answer(fingerprint)

    async def answer_once(self, request: AnswerRequest, idempotency_key: str) -> StartedAnswer:
        """Start the answer of an idempotency key, or return the existing one.

        Raises the errors of `answer`, and `IdempotencyConflict`.
        """
        body_hash = request.body_hash or hash_request(
            stream=request.stream,
            prompt=request.prompt,
            grounded=request.grounded,
            model=request.model,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            documents=request.documents,
            tags=request.tags,
            history=request.history,
            conversation_id=request.conversation_id,
        )
        request = msgspec.structs.replace(
            request, idempotency_key=idempotency_key, body_hash=body_hash
        )
        start = partial(
            self._find_or_start, request, idempotency_key, body_hash, time.perf_counter()
        )
        try:
            started_answer = await self._idempotency.start_once(
                IdempotencyKey(request.user_id, idempotency_key), body_hash, start
            )
        except IdempotencyConflict as error:
            if self._tracer is not None:
                self._begin_trace(self._tracer, request).refuse(error.code)
            raise
        self._require_not_erased(started_answer.stream)
        started_answer.stream.restart_leave_timer()
        return started_answer

    async def find_stream(self, answer_id: str, user_id: str | None) -> Stream:
        """Return the stream of an answer, running or ended, that this user may read.

        `user_id` None: an admin, who may read every stream. Raises `NotFound`, also for answers of
        other users, `Erased`, `OwnerUnavailable` and `DatabaseUnavailable`.
        """
        stream = self._registry.find_stream(answer_id)
        if stream is None and len(answer_id) == ID_CHARACTERS:
            stream = await self._replay.find_by_id(answer_id)
            if stream is None and self._peers is not None:
                self._peers.require_written(answer_id)
        if stream is None or user_id not in {None, stream.intent.user_id}:
            raise NotFound("no answer has this id")
        if stream.outcome and stream.outcome.was_not_stored:
            raise NotFound("this answer was not stored")
        self._require_not_erased(stream)
        return stream

    async def stop_answer(self, answer_id: str, user_id: str | None) -> None:
        """Stop an answer: close the provider call, keep the text received. Idempotent.

        Raises the errors of `find_stream`.
        """
        (await self.find_stream(answer_id, user_id)).on_stop()

    async def wait_written(self) -> None:
        """Wait for the rows of all answers that have ended, of all replicas.

        Raises `DatabaseUnavailable` and `OwnerUnavailable`.
        """
        await self._replay.wait_all_written()

    async def wait_own_written(self) -> None:
        """The same for the answers of this replica. Raises `DatabaseUnavailable`."""
        await self._replay.wait_written()

    async def wait_others_written(self) -> None:
        """The same for the answers of other replicas. Raises `OwnerUnavailable`."""
        await self._replay.wait_others_written()

    async def list_conversation_users(self, conversation_id: str) -> list[str]:
        """Return the users of running answers of a conversation here, for another replica.

        The rows of those that have ended are written. Raises `DatabaseUnavailable`.
        """
        return await self._conversations.list_users(conversation_id)

    async def stop_conversation(self, conversation_id: str) -> None:
        """Stop the answers of a conversation here, because another replica erases it. Idempotent.

        Raises `Overloaded` and `DatabaseUnavailable`.
        """
        await self._conversations.stop_erased(conversation_id)

    async def erase_conversation(self, conversation_id: str, by: Principal) -> None:
        """Stop the running answers of a conversation and erase its texts. Idempotent.

        Raises `NotFound`, `Overloaded` and `DatabaseUnavailable`.
        """
        await self._conversations.erase(conversation_id, by)

    async def erase_user(self, user_id: str, by: Principal) -> int:
        """Erase the texts of a user's answers that have ended. Idempotent.

        The audit log has one entry of it, in the transaction that erases the first rows.
        Returns the number of rows that were not erased before. Raises `DatabaseUnavailable`.
        """
        await self._replay.wait_written()
        now, position, erased = utc_now(), "", 0
        while True:
            batch = await erase_texts_before(
                self._database, now, position, user_id=user_id, actor=None if erased else by.actor
            )
            if not batch.ids:
                return erased
            self._registry.evict_streams(batch.ids)
            position, erased = batch.ids[-1], erased + batch.erased

    def statistics(self) -> AnswersStatistics:
        """Return an immutable snapshot of the counters."""
        return AnswersStatistics(
            in_progress=len(self._pumps),
            kept=self._registry.ended_count,
            keyed=len(self._idempotency),
            stopping=self._stopping,
        )

    def refuse_new(self) -> None:
        """Reject new answers; those in progress continue, and their readers are notified."""
        self._stopping = True
        for stream in self._registry:
            stream.announce_shutdown()

    def interrupt_all(self) -> None:
        """End all answers in progress as `interrupted`."""
        for pump in self._pumps.values():
            pump.stop(Status.INTERRUPTED)

    async def stop(self) -> None:
        """Interrupt the answers in progress and wait until they are recorded. Idempotent."""
        self.refuse_new()
        await self._idempotency.stop()
        self.interrupt_all()
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=STOP_SECONDS)
        tasks = list(self._pumps)
        for task in tasks:
            task.cancel()  # its provider does not close: the pump records at once
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _find_or_start(
        self, request: AnswerRequest, idempotency_key: str, body_hash: str, started: float
    ) -> StartedAnswer:
        """Return the logged answer of this key, or start a new one.

        Raises the errors of `answer`, and `IdempotencyConflict`.
        """
        outcome = await self._replay.find_by_key(request.user_id, idempotency_key)
        if outcome is None:
            return await self._start_claimed(request, idempotency_key, body_hash, started)
        return _replay_outcome(outcome, body_hash)

    async def _start_claimed(
        self, request: AnswerRequest, key: str, body_hash: str, started: float
    ) -> StartedAnswer:
        """Start the answer of a key, unless a request to another replica was the first.

        Raises `OwnedElsewhere` if another replica answers it, and the errors of `answer`.
        """
        claimed = await self._claims.claim(request.user_id, key, body_hash)
        if isinstance(claimed, Outcome):
            return _replay_outcome(claimed, body_hash)
        request = msgspec.structs.replace(request, answer_id=claimed)
        try:
            return StartedAnswer(await self.answer(request, started=started), replayed=False)
        except BaseException:
            await asyncio.shield(self._claims.free(request.user_id, key, claimed))
            raise

    def _require_not_erased(self, stream: Stream) -> None:
        """Raise `Erased` if the texts of an answer were erased."""
        self._conversations.require_open(stream.intent.conversation_id)
        if stream.outcome and stream.outcome.erased_at:
            raise Erased("this answer was erased")

    async def _read_history(self, request: AnswerRequest) -> list[Message]:
        """Return the messages before the prompt that are given to the model.

        Raises the errors of `ConversationRegistry.read_history`.
        """
        history = request.history
        if request.conversation_id is not None:
            history = await self._conversations.read_history(
                request.conversation_id, request.user_id
            )
        return select_history(history)

    def _build_intent(self, request: AnswerRequest, route: Route) -> Intent:
        terms = request.subjects[0].terms if request.subjects else None
        if self._prices.has_customer_prices:
            terms = self._prices.build_terms(terms, [target.model for target in route.targets])
        answer_id = request.answer_id
        created_at = utc_now() if answer_id is None else read_id_time(answer_id) or utc_now()
        answer_id = answer_id or create_id(created_at, self._recorder.slot)
        text = sanitize_text(request.prompt)
        return Intent(
            id=answer_id,
            created_at=created_at,
            endpoint=request.endpoint,
            model=route.name,
            user_id=request.user_id,
            request_id=request.request_id,
            prompt=text,
            grounded=request.grounded,
            idempotency_key=request.idempotency_key,
            body_hash=request.body_hash,
            key_id=request.key_id,
            asked_by=request.asked_by,
            # The client of a chat completion keeps its conversation.
            conversation_id=request.conversation_id
            or (None if request.chat and request.body is None else answer_id),
            messages=_list_messages(request, text),
            request_body=request.body if request.stored else None,
            stored=request.stored,
            provider=(target := route.targets[0]).endpoint.name,
            provider_model=target.get_other_name(route.name),
            terms=terms,
        )

    def _build_first_messages(
        self, request: AnswerRequest, intent: Intent, history: list[Message]
    ) -> list[Message]:
        """Return the messages of the first hold, before the search."""
        if request.chat is not None:
            return request.chat.texts
        if request.grounded:
            return [*history, Message("user", intent.prompt)]
        return prompt.build_free_messages(intent.prompt, history)

    def _add_context(
        self,
        request: AnswerRequest,
        intent: Intent,
        context: list[Passage],
        history: list[Message],
    ) -> tuple[AnswerRequest, list[Message]]:
        """Return the request with the context, and its messages; none if it is refused."""
        if not context:
            return request, []
        # A language model understands misspelled words; the extractive one compares terms.
        corrected = intent.searched_for if intent.model == EXTRACTIVE else None
        messages = prompt.build_grounded_messages(corrected or intent.prompt, context, history)
        if request.chat is None:
            return request, messages
        chat = ground_call(request.chat, messages[0].content, messages[-1].content)
        return msgspec.structs.replace(request, chat=chat), chat.texts

    async def _read_remaining(
        self, request: AnswerRequest, intent: Intent
    ) -> tuple[bool, int | None]:
        """Read what is left. Returns whether a quota is limited, and the credit of prepaid users.

        Raises the errors of `Quota.refresh` and `Wallets.read_funds`.
        """
        if limited := any(subject.limits for subject in request.subjects):
            await self._quota.refresh(request.subjects)
        if intent.terms is None or not intent.terms.prepaid:
            return limited, None
        return limited, await self._quota.read_available(intent.user_id)

    def _cap_tokens(
        self,
        request: AnswerRequest,
        chat: ChatCall,
        intent: Intent,
        route: Route,
        *,
        limited: bool,
        credit: int | None,
    ) -> AnswerRequest:
        """Limit the completion to what the model and the remaining quota allow, at least 1.

        `credit`: what the wallet had before this request held any; None: it is not prepaid.
        """
        limit = cap_completion(
            chat,
            self._quota.windows(request.subjects) if limited else [],
            partial(self._compute_nano_usd, intent, route),
            tokens_max=route.limit_completion(self._settings.max_tokens_max),
            calls_max=route.billed_calls_max,
            held_tokens=intent.held_tokens or 0,
            held_nano_usd=intent.held_nano_usd or 0,
        )
        if credit is not None:
            compute_charge = partial(self._compute_charge, intent, route)
            affordable = cap_by_amount(chat, credit, compute_charge)
            limit = limit if affordable is None else max(min(limit, affordable), 1)
        return msgspec.structs.replace(request, max_tokens=limit)

    def _compute_nano_usd(self, intent: Intent, route: Route, usage: Usage) -> int | None:
        return compute_route_nano_usd(self._prices, route, usage, intent.created_at)

    def _compute_charge(self, intent: Intent, route: Route, usage: Usage) -> int | None:
        terms = intent.terms
        if terms is None or not terms.prepaid:
            return None
        return compute_route_charge(self._prices, route, usage, intent.created_at, terms)

    def _create_transcript(self, request: AnswerRequest, intent: Intent) -> ChatTranscript:
        return ChatTranscript(
            stream=request.stream,
            model=intent.model,
            created=int(intent.created_at.timestamp()),
            answer_bytes_max=self._settings.answer_bytes_max,
        )

    async def _hold_quota(
        self,
        request: AnswerRequest,
        intent: Intent,
        route: Route,
        messages: list[Message],
        *,
        grow: bool = False,
    ) -> Intent:
        """Hold, or grow the hold to, the upper bound of the cost, and note it in the intent.

        Raises the errors of `CreditQuota.hold`.
        """
        tokens_held, nano_usd, charge = self._compute_upper_bound(request, intent, route, messages)
        try:
            if grow:
                await self._quota.grow(
                    intent.id, tokens=tokens_held, nano_usd=nano_usd, charge_nano_usd=charge
                )
            else:
                await self._quota.hold(
                    intent.id,
                    request.subjects,
                    tokens=tokens_held,
                    nano_usd=nano_usd,
                    created_at=intent.created_at.timestamp(),
                    charge_nano_usd=charge,
                )
        except QuotaExceeded as error:
            self._metrics.quota_refusals.labels(error.extra["of"], error.extra["limit"]).inc()
            raise
        except OutOfCredit:
            self._metrics.quota_refusals.labels("wallet", "credit").inc()
            raise
        return msgspec.structs.replace(intent, held_tokens=tokens_held, held_nano_usd=nano_usd)

    def _compute_upper_bound(
        self, request: AnswerRequest, intent: Intent, route: Route, messages: list[Message]
    ) -> tuple[int, int | None, int | None]:
        """Return (tokens, cost, charge), the upper bound for these messages and the longest answer.

        In nano-dollars. The cost is computed only if a subject has a cost limit, the charge only if
        the user is prepaid.
        """
        chat = request.chat
        usage_max = Usage(
            prompt_tokens=tokens.bound_tokens(messages)
            if chat is None or not messages
            else chat.prompt_tokens_max,
            completion_tokens=self._get_completion_max(request),
        )
        tokens_held = usage_max.total_tokens * route.billed_calls_max
        charge: int | None = None
        if intent.terms is not None:
            charge = self._compute_charge(intent, route, usage_max)
        if not any(
            subject.limits is not None and subject.limits.limits_cost
            for subject in request.subjects
        ):
            return tokens_held, None, charge
        return tokens_held, self._compute_nano_usd(intent, route, usage_max), charge

    async def _rewrite_question(
        self, request: AnswerRequest, intent: Intent, history: list[Message], route: Route
    ) -> str | None:
        """Return a follow-up question as a complete one, if that is enabled; None if not."""
        if not (self._settings.rewrite_questions and request.grounded and history):
            return None
        if route.name == EXTRACTIVE or classify_prompt(intent.prompt):
            return None
        target = RoutePlan(route, attempts_max=1).target
        return await self._rewriter.rewrite(intent, history, request.subjects, target)

    async def _find_context(
        self,
        request: AnswerRequest,
        intent: Intent,
        question: str,
        previous: str,
        trace: AnswerTrace | None,
    ) -> tuple[Intent, list[Passage], Refusal | None]:
        """Return the intent with its relevance, and either the context or the refusal.

        `question`: to search for; `previous`: the questions that it may refer to.
        """
        user_id, within = request.sees, request.documents
        if request.tags:
            within = await list_tagged(self._database, request.tags, user_id=user_id, within=within)
        reply = await self._refusals.reply_without_search(
            intent.prompt, user_id=user_id, within=within
        )
        if reply:
            return intent, [], reply
        if trace is None:
            results = await self._search_documents(request, question, previous, within)
        else:
            with trace.search(question) as span:
                results = await self._search_documents(request, question, previous, within)
                span.passages, span.answerable = len(results.items), results.answerable
        intent = msgspec.structs.replace(
            intent,
            relevance_share=results.share,
            relevance_terms=results.terms,
            relevance_cosine=results.cosine or None,
            searched_for=results.searched_for or None,
        )
        context = self._build_context(results) if results.answerable else []
        if context:
            return intent, context, None
        refusal = await self._refusals.refuse(
            intent.prompt, results, user_id=user_id, within=within
        )
        return intent, [], refusal

    async def _search_documents(
        self, request: AnswerRequest, question: str, previous: str, within: list[str] | None
    ) -> SearchResults:
        """`previous`: the questions that this one may refer to; empty without a history."""
        service = self._search_service
        search = (
            partial(service.search_follow_up, previous=previous) if previous else service.search
        )
        results = await search(
            question,
            user_id=request.sees,
            limit=max(self._settings.context_chunks_max, NEAREST_MAX),
            within=within,
        )
        self._metrics.searches.labels(str(results.answerable).lower()).inc()
        return results

    def _build_context(self, results: SearchResults) -> list[Passage]:
        return prompt.build_context(
            results.items, self._settings.context_tokens_max, self._settings.context_chunks_max
        )

    def _open_account(
        self,
        stream: Stream,
        request: AnswerRequest,
        messages: list[Message],
        started: float,
        trace: AnswerTrace | None,
    ) -> AnswerAccount:
        if trace is not None:
            trace.describe(stream.intent)
        return AnswerAccount(
            stream.intent,
            messages,
            self._recorder,
            self._prices,
            completion_tokens_max=self._get_completion_max(request),
            started=started,
            find_sources=partial(self._find_sources, stream.context, stream.intent.prompt)
            if stream.context
            else None,
            trace=trace,
        )

    def _get_completion_max(self, request: AnswerRequest) -> int:
        """The upper bound of the completion tokens, of all choices together."""
        limit, chat = request.max_tokens or self._settings.max_tokens, request.chat
        return limit if chat is None else limit * chat.choices + chat.prediction_tokens_max

    def _find_sources(self, context: list[Passage], question: str, text: str) -> list[Passage]:
        """Return the passages that a text cites, and count its citations."""
        citations = read_citations(text, context, question)
        self._metrics.citations.labels("real").inc(citations.real)
        self._metrics.citations.labels("dropped").inc(citations.dropped)
        self._metrics.citations.labels("unsupported").inc(citations.unsupported)
        return citations.sources

    async def _send_refusal(self, stream: Stream, account: AnswerAccount, refusal: Refusal) -> None:
        """Send a refusal: no provider call, no tokens, no cost, one row."""
        stream.append_texts([refusal.text])
        account.first_text_at = time.perf_counter()
        outcome = account.finish(Status.NO_CONTEXT, refusal.text, nearest=refusal.nearest)
        stream.finish(outcome, None)
        await account.wait_synced()

    def _start_pump(
        self,
        stream: Stream,
        account: AnswerAccount,
        request: AnswerRequest,
        messages: list[Message],
        plan: RoutePlan,
    ) -> None:
        settings, intent = self._settings, stream.intent
        provider_request = ProviderRequest(
            model=intent.model,
            messages=messages,
            max_tokens=request.max_tokens or settings.max_tokens,
            temperature=request.temperature,
            stream=request.stream,
            chat=request.chat,
        )
        limits = PumpLimits(
            answer_seconds_max=settings.answer_seconds_max,
            leave_seconds=self._compute_leave_seconds(request),
            leave_nano_usd_max=None
            if request.resumable or request.idempotency_key or request.retry_seconds
            else self._limits.drain_nano_usd_max,
            attach_seconds=request.attach_seconds,
        )
        pump = Pump(stream, account, provider_request, plan, limits)
        unwatch = self._revocation.watch_principal(
            request.principal, partial(pump.stop, Status.STOPPED)
        )
        task = asyncio.create_task(pump.run(), name=f"pump {intent.id}")
        task.add_done_callback(lambda _: unwatch())
        self._pumps[task] = pump
        task.add_done_callback(self._discard_pump)

    def _compute_leave_seconds(self, request: AnswerRequest) -> float | None:
        """Return how long an answer continues without a reader; None: it needs no reader."""
        settings = self._settings
        if request.background:
            return None
        if request.resumable:
            return settings.resume_seconds
        if request.idempotency_key and not request.stream:
            return None
        if request.idempotency_key:
            return max(settings.resume_seconds, settings.drain_seconds, request.attach_seconds)
        return max(settings.drain_seconds, request.retry_seconds or 0)

    def _discard_pump(self, task: asyncio.Task[None]) -> None:
        del self._pumps[task]
        if not task.cancelled() and (error := task.exception()):
            log.error("pump.broken", task=task.get_name(), exc_info=error)


def _replay_outcome(outcome: Outcome, body_hash: str) -> StartedAnswer:
    """Return the logged answer of a key. Raises `Erased` and `IdempotencyConflict`."""
    if outcome.erased_at:
        raise Erased("this answer was erased")
    require_same_request(outcome.intent.body_hash, body_hash)
    return StartedAnswer(replay_stream(outcome), replayed=True)


def _name_provider(intent: Intent, target: Target) -> Intent:
    """Note the first target: the row has it if the process dies during the call."""
    return msgspec.structs.replace(
        intent,
        provider=target.endpoint.name,
        provider_model=target.get_other_name(intent.model),
    )


def _list_messages(request: AnswerRequest, prompt_text: str) -> list[Message] | None:
    """Return the messages as sent, if there are more than the prompt."""
    if request.body is not None:  # it contains them
        return None
    if request.chat is not None:
        texts = request.chat.texts[: len(request.chat.messages)]
        return texts if len(texts) > 1 else None
    return [*request.history, Message("user", prompt_text)] if request.history else None
