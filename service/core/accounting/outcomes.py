"""Outcomes: what an answer used, what that costs, and the one record of it.

The only module that constructs an `Outcome`. Where the tokens come from is decided in this order:

1. the provider reported them, and sent no text afterwards: `provider`;
2. no request was sent to a provider: `none`, 0 tokens, cost 0;
3. nothing was received that could be counted: `unknown`, no tokens, no cost;
4. they are counted here, from the prompt, the text received and the last report: `estimated`.

Unknown is never written as zero, and the cost of a model without a price is None.
`AnswerAccount.finish` is synchronous and idempotent: an answer may end where no await is possible.
"""

import time
from collections.abc import Callable
from typing import Any

import anyio.to_thread
import msgspec

from service.core import tokens
from service.core.accounting.recorder import Recorder
from service.core.errors import ProviderError, ProviderUnreachable, ShuttingDown
from service.core.pricing import Cost, PriceBook, Usage, combine_usage
from service.core.records import Intent, Message, Outcome, Passage, Status, UsageSource
from service.core.telemetry import log

INLINE_CHARACTERS = 4_000  # of a text whose sources are read without a thread
_NO_USAGE = Usage(prompt_tokens=0, completion_tokens=0)


class AnswerAccount:
    """The account of one answer or embedding call: the usage of its attempts, and its outcome.

    The caller of the provider increments `attempts` before each attempt, calls `mark_sent` when the
    request is sent and `end_attempt` after the attempt, sets `first_text_at` (of
    `time.perf_counter`) when the first text arrives, calls `report_usage` and sets `finish_reason`
    as the provider reports them, clears `usage_is_current` at text after a report, and appends to
    `other_texts` what is generated beside the text.

    `messages`: the request to the provider. `completion_tokens_max`: the limit of the response.
    `started`: the time of the request, of `time.perf_counter`. `find_sources`: returns the passages
    that a text cites; it is called in a thread for long texts.
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
    ) -> None:
        self._intent, self._messages = intent, messages
        self._recorder, self._prices = recorder, prices
        self._completion_tokens_max = completion_tokens_max
        self._started = started
        self._find_sources = find_sources
        self._sources: list[Passage] | None = None
        self._sent = False
        self._outcome: Outcome | None = None
        self.attempts = 0
        self.first_text_at: float | None = None
        self.usage: Usage | None = None
        self.usage_is_current = True
        self.finish_reason: str | None = None
        self.other_texts: list[str] = []

    async def wait_synced(self) -> None:
        """See `Recorder.wait_synced`."""
        await self._recorder.wait_synced()

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
        self._recorder.count_attempt(error.code if error else "ok")

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
            source = self._decide_source(status, text)
            usage = self._decide_usage(source, text, estimate)
            free = source is UsageSource.NONE  # also without a price
            cost = self._price_usage(usage) if usage and not free else None
            self._outcome = Outcome(
                intent=self._intent,
                status=status,
                usage_source=source,
                usage=usage,
                response=text,
                finish_reason=self.finish_reason,
                error_code=error_code,
                cost_nano_usd=0 if free else cost.nano_usd if cost else None,
                price=cost.price if cost else None,
                response_time_ms=self._measure_ms(time.perf_counter()),
                first_token_ms=self._measure_ms(self.first_text_at) if self.first_text_at else None,
                attempts=self.attempts,
                sources=self._get_sources(text),
                nearest=nearest,
                choices=choices,
            )
            self._recorder.record_outcome(self._outcome)
        return self._outcome

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

    def _price_usage(self, usage: Usage) -> Cost | None:
        return self._prices.compute_cost(self._intent.model, usage, self._intent.created_at)

    async def _count_tokens(self, text: str) -> Usage | None:
        """Count with the model's tokenizer; None if that fails."""
        try:
            return await tokens.estimate_usage(self._messages, text, self._intent.model)
        except Exception:  # noqa: BLE001 - every answer ends with an outcome
            log.exception("estimate.failed", answer_id=self._intent.id)
            return None

    def _measure_ms(self, end: float) -> int:
        return round((end - self._started) * 1000)


def build_interrupted(intent: Intent) -> Outcome:
    """The outcome of an intent whose process died: how far the provider came is unknown."""
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
        attempts=1,
        sources=[],
    )
