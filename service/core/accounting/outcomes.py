"""Outcomes: what an answer used, what that costs, and the one record of it.

The only module that constructs an `Outcome`. Where the tokens come from is decided in this order:

1. the provider reported them, and sent no text afterwards: `provider`;
2. no request was sent to a provider: `none`, 0 tokens, cost 0;
3. nothing was received that could be counted: `unknown`, no tokens, no cost;
4. they are counted here, from the prompt, the text received and the last report: `estimated`.

Unknown is never written as zero, and the cost of a model without a price is None.

Several attempts each have an account, priced at their own model, and the answer is their sum
(`records.sum_attempts`). An attempt that may have been billed and is followed by another one is
estimated instead of unknown, so that what was billed without an answer is part of the sum.
`AnswerAccount.finish` is synchronous and idempotent: an answer may end where no await is possible.
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import anyio.to_thread
import msgspec

from service.core import tokens
from service.core.accounting.recorder import Recorder
from service.core.errors import (
    ProviderError,
    ProviderTimeout,
    ProviderUnreachable,
    ShuttingDown,
)
from service.core.ports import AnswerTrace, AttemptUsage
from service.core.pricing import Cost, PriceBook, Usage, combine_usage
from service.core.records import (
    Attempt,
    EndedAttempt,
    Intent,
    Message,
    Outcome,
    Passage,
    Status,
    UsageSource,
    sum_attempts,
    sum_charges,
)
from service.core.telemetry import log

INLINE_CHARACTERS = 4_000  # of a text whose sources are read without a thread
_NO_USAGE = Usage(prompt_tokens=0, completion_tokens=0)


class AnswerAccount:
    """The account of one answer or embedding call: the usage of its attempts, and its outcome.

    The caller of the provider calls `begin_attempt` before each attempt, `mark_sent` when the
    request is sent and `end_attempt` after the attempt, sets `first_text_at` (of
    `time.perf_counter`) when the first text arrives, calls `report_usage` and sets `finish_reason`
    as the provider reports them, clears `usage_is_current` at text after a report, and appends to
    `other_texts` what is generated beside the text.

    `messages`: the request to the provider. `completion_tokens_max`: the limit of the response.
    `started`: the time of the request, of `time.perf_counter`. `find_sources`: returns the passages
    that a text cites; it is called in a thread for long texts. `trace`: the answer's span, which
    ends with the outcome; None: it is not traced.
    """

    def __init__(
        self,
        intent: Intent,
        messages: list[Message],
        recorder: Recorder,
        prices: PriceBook,
        *,
        completion_tokens_max: int,
        started: float,
        find_sources: Callable[[str], list[Passage]] | None = None,
        trace: AnswerTrace | None = None,
    ) -> None:
        self.trace = trace
        self._intent, self._messages = intent, messages
        self._recorder, self._prices = recorder, prices
        self._completion_tokens_max = completion_tokens_max
        self._started = started
        self._find_sources = find_sources
        self._sources: list[Passage] | None = None
        self._sent = False
        self._outcome: Outcome | None = None
        # How the current attempt failed. The error itself would keep its traceback.
        self._failed: Status | None = None
        self._failed_code: str | None = None
        self._unbilled = False
        self._began = self._ended = started
        self._earlier: list[Attempt] = []  # before the current one
        self.attempts = 0
        self.provider: str | None = None
        self.model = intent.model
        self.first_text_at: float | None = None
        self.usage: Usage | None = None
        self.usage_is_current = True
        self.finish_reason: str | None = None
        self.other_texts: list[str] = []

    async def wait_synced(self) -> None:
        """See `Recorder.wait_synced`."""
        await self._recorder.wait_synced()

    def begin_attempt(self, provider: str, model: str) -> None:
        """Note that the provider is about to be called for this model."""
        began = time.perf_counter()
        if self.attempts:
            self._supersede_attempt(provider, model)
        self.attempts += 1
        self.provider, self.model, self._began = provider, model, began

    def mark_sent(self) -> None:
        """Note that a request may have reached the provider, and may be billed."""
        self._sent = True

    def report_usage(self, usage: Usage) -> None:
        """Update the usage by a report of the provider. Reports are cumulative."""
        self.usage, self.usage_is_current = combine_usage(self.usage, usage), True

    def end_attempt(self, error: ProviderError | None = None) -> None:
        """Count how an attempt ended. Only one without a connection was not sent."""
        if not isinstance(error, ProviderUnreachable):
            self.mark_sent()
        if error is not None:
            is_timeout = isinstance(error, ProviderTimeout)
            self._failed = Status.TIMEOUT if is_timeout else Status.PROVIDER_ERROR
            self._failed_code, self._unbilled = error.code, error.certainly_unbilled
            self._ended = time.perf_counter()
        self._recorder.count_attempt(self.provider or "", error.code if error else "ok")

    @property
    def follows_billed(self) -> bool:
        """Whether an attempt before the current one may have been billed."""
        return any(not attempt.unbilled for attempt in self._earlier)

    def count_fallback(self, error: ProviderError) -> None:
        """Count that another provider is called because of this error."""
        self._recorder.count_fallback(self.provider or "", error.code)

    def remaining_cost_max(self, text: str) -> int | None:
        """Return the upper bound of the remaining cost, in nano-dollars; None without a price."""
        generated = tokens.approximate_tokens(self._join_generated(text))
        rest = max(self._completion_tokens_max - generated, 0)
        cost = self._price_usage(Usage(prompt_tokens=0, completion_tokens=rest))
        return None if cost is None else cost.nano_usd

    async def estimate_usage(self, status: Status, text: str) -> Usage | None:
        """Count the tokens of an answer whose usage must be estimated; None for others.

        Also None for an interrupted answer: loading a tokenizer takes a second.
        """
        if (
            status is Status.INTERRUPTED
            or self._decide_source(status, text) is not UsageSource.ESTIMATED
        ):
            return None
        return await self._count_tokens(self._join_generated(text))

    async def read_sources(self, text: str) -> None:
        """Read the sources of the text, in a thread if it is long."""
        if self._find_sources and len(text) > INLINE_CHARACTERS:
            self._sources = await anyio.to_thread.run_sync(self._find_sources, text)

    def finish(
        self,
        status: Status,
        text: str = "",
        error_code: str | None = None,
        *,
        estimate: Usage | None = None,
        nearest: list[Passage] | None = None,
        choices: list[dict[str, Any]] | None = None,
    ) -> Outcome:
        """Record the outcome, once, and return it.

        An estimate that is missing is computed from the length of the texts, and sources that were
        not read are those of the beginning of the text.
        """
        if self._outcome is None:
            intent = self._intent
            attempts: list[Attempt] | None = None
            last: Attempt | None = None
            if not self._earlier:
                source = self._decide_source(status, text)
                usage = self._decide_usage(source, text, estimate)
                nano_usd, price = self._price_used(source, usage)
            else:
                counted = any(attempt.usage is not None for attempt in self._earlier)
                last = self._build_attempt(status, error_code, text, estimate, summed=counted)
                attempts = [*self._earlier, last]
                source, usage, nano_usd, price = sum_attempts(attempts)
            charge: int | None = None
            if intent.terms is not None and usage is not None:
                charge = (
                    0
                    if source is UsageSource.NONE
                    else intent.terms.compute_charge(self.model, usage, nano_usd)
                    if attempts is None
                    else sum_charges(intent.terms, attempts)
                )
            self._outcome = Outcome(
                intent=intent,
                status=status,
                usage_source=source,
                usage=usage,
                response=text,
                finish_reason=self.finish_reason,
                error_code=error_code,
                cost_nano_usd=nano_usd,
                price=price,
                response_time_ms=self._measure_ms(time.perf_counter()),
                first_token_ms=self._measure_ms(self.first_text_at) if self.first_text_at else None,
                attempts=self.attempts,
                sources=self._get_sources(text),
                nearest=nearest,
                choices=choices,
                provider=self.provider,
                provider_model=None if self.model == intent.model else self.model,
                attempt_list=attempts,
                charge_nano_usd=charge,
            )
            self._recorder.record_outcome(self._outcome)
            if self.trace is not None:
                self.trace.finish(self._outcome, self._describe_usage(last or self._outcome))
        return self._outcome

    def end_attempt_span(self) -> None:
        """End the span of a failed attempt that another one will follow."""
        if self.trace is not None:
            self.trace.end_attempt(self._describe_usage(self._build_failed_attempt()))

    def _describe_usage(self, used: Attempt | Outcome) -> AttemptUsage:
        return AttemptUsage(
            status=used.status,
            error_code=used.error_code,
            usage_source=used.usage_source,
            usage=used.usage,
            cost_nano_usd=used.cost_nano_usd,
            finish_reason=self.finish_reason,
        )

    def _build_failed_attempt(self) -> Attempt:
        status = self._failed or Status.PROVIDER_ERROR
        return self._build_attempt(status, self._failed_code, "", None, summed=True)

    def _supersede_attempt(self, next_provider: str, next_model: str) -> None:
        """Close the account of the attempt that another one follows."""
        attempt = self._build_failed_attempt()
        self._earlier.append(attempt)
        self._recorder.record_attempt(
            EndedAttempt(
                answer_id=self._intent.id,
                attempt=attempt,
                next_provider=next_provider,
                next_model=next_model,
            )
        )
        self._sent, self._failed, self._failed_code, self._unbilled = False, None, None, False
        self.usage, self.usage_is_current = None, True
        self.finish_reason, self.other_texts = None, []

    def _build_attempt(
        self,
        status: Status,
        error_code: str | None,
        text: str,
        estimate: Usage | None,
        *,
        summed: bool,
    ) -> Attempt:
        """Build the account of the current attempt.

        `summed`: there is other usage to add, so usage that may be billed is not left unknown.
        """
        source = self._decide_source(status, text)
        unbilled = source is UsageSource.NONE or (source is UsageSource.UNKNOWN and self._unbilled)
        if source is UsageSource.UNKNOWN and not unbilled and summed:
            source = UsageSource.ESTIMATED
        usage = self._decide_usage(source, text, estimate)
        nano_usd, price = self._price_used(source, usage)
        return Attempt(
            provider=self.provider or "",
            model=self.model,
            status=status,
            error_code=error_code,
            unbilled=unbilled,
            usage_source=source,
            usage=usage,
            cost_nano_usd=nano_usd,
            price=price,
            started_at=self._compute_time(self._began),
            ended_at=self._compute_time(self._ended if self._failed else time.perf_counter()),
        )

    def _compute_time(self, moment: float) -> datetime:
        """The time of a moment of `time.perf_counter`."""
        return self._intent.created_at + timedelta(seconds=max(0.0, moment - self._started))

    def _get_sources(self, text: str) -> list[Passage]:
        if self._sources is None and self._find_sources:
            return self._find_sources(text[:INLINE_CHARACTERS])
        return self._sources or []

    def _decide_source(self, status: Status, text: str) -> UsageSource:
        if self.usage is not None and self.usage_is_current:
            return UsageSource.PROVIDER
        if not self._sent:
            return UsageSource.NONE
        if not text and not self.other_texts and status is not Status.COMPLETED:
            return UsageSource.UNKNOWN
        return UsageSource.ESTIMATED

    def _join_generated(self, text: str) -> str:
        """The text with everything else that was generated."""
        return text + "".join(self.other_texts) if self.other_texts else text

    def _decide_usage(self, source: UsageSource, text: str, estimate: Usage | None) -> Usage | None:
        if source is not UsageSource.ESTIMATED:
            return _NO_USAGE if source is UsageSource.NONE else self.usage
        estimate = estimate or Usage(
            prompt_tokens=sum(
                tokens.approximate_tokens(message.content) for message in self._messages
            ),
            completion_tokens=tokens.approximate_tokens(self._join_generated(text)),
        )
        completion_tokens = min(estimate.completion_tokens, self._completion_tokens_max)
        estimate = msgspec.structs.replace(estimate, completion_tokens=completion_tokens)
        if self.usage is None:
            return estimate
        completion_tokens = max(completion_tokens, self.usage.completion_tokens)
        return msgspec.structs.replace(
            combine_usage(estimate, self.usage), completion_tokens=completion_tokens
        )

    def _price_used(
        self, source: UsageSource, usage: Usage | None
    ) -> tuple[int | None, str | None]:
        """Return (nano-dollars, price). Without a call the cost is 0, also without a price."""
        if source is UsageSource.NONE:
            return 0, None
        cost = self._price_usage(usage) if usage else None
        return (cost.nano_usd, cost.price) if cost else (None, None)

    def _price_usage(self, usage: Usage) -> Cost | None:
        created_at = self._intent.created_at
        return self._prices.compute_cost(self.model, usage, created_at, self.provider)

    async def _count_tokens(self, text: str) -> Usage | None:
        """Count with the model's tokenizer; None if that fails."""
        try:
            return await tokens.estimate_usage(self._messages, text, self.model)
        except Exception:  # noqa: BLE001 - every answer ends with an outcome
            log.exception("estimate.failed", answer_id=self._intent.id)
            return None

    def _measure_ms(self, end: float) -> int:
        return round((end - self._started) * 1000)


def build_interrupted(intent: Intent, ended: Sequence[EndedAttempt] = ()) -> Outcome:
    """The outcome of an intent whose process died: how far the provider came is unknown.

    `ended`: the attempts before the one that was in progress.
    """
    provider, provider_model = intent.provider, intent.provider_model
    attempts: list[Attempt] | None = None
    if ended:
        provider, model = ended[-1].next_provider, ended[-1].next_model
        provider_model = None if model == intent.model else model
        last = _build_lost_attempt(provider, model, ended[-1].attempt.ended_at)
        attempts = [*(record.attempt for record in ended), last]
    return Outcome(
        intent=intent,
        status=Status.INTERRUPTED,
        usage_source=UsageSource.UNKNOWN,
        usage=None,
        response="",
        finish_reason=None,
        error_code=ShuttingDown.code,
        cost_nano_usd=None,
        price=None,
        response_time_ms=0,
        first_token_ms=None,
        attempts=len(ended) + 1,
        sources=[],
        provider=provider,
        provider_model=provider_model,
        attempt_list=attempts,
    )


def _build_lost_attempt(provider: str, model: str, began: datetime) -> Attempt:
    """An attempt whose process died."""
    return Attempt(
        provider=provider,
        model=model,
        status=Status.INTERRUPTED,
        error_code=ShuttingDown.code,
        unbilled=False,
        usage_source=UsageSource.UNKNOWN,
        usage=None,
        cost_nano_usd=None,
        price=None,
        started_at=began,
        ended_at=began,
    )
