"""The pump: the task that owns one answer's calls to the provider.

A response generator may end by cancellation, by being closed, or may never start, and an `await` in its `finally` does
not run once cancelled. So the generator owns nothing: the pump does. It reads the provider, feeds the `Stream`, counts
the attempts, and ends in exactly one `Outcome`, recorded before the terminal event is said, whatever happens: the end,
a failure, a caller who left, a deadline, or the end of the process (where the task is cancelled and recording is the
one synchronous call left).

One `asyncio.timeout` bounds the whole and is at the same time the way to stop it from outside: `stop` moves the
deadline to now. That leaves nothing cancelled behind, so the pump may still close the connection and count tokens.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial

import msgspec

from service.core import tokens
from service.core.answering.streams import Stream
from service.core.errors import KotaeError, ProviderError, ProviderTimeout, ProviderUnreachable, ShuttingDown
from service.core.grounding.citations import read_citations
from service.core.ports import Delta, Provider, ProviderRequest
from service.core.pricing import PriceBook, Usage
from service.core.records import Outcome, Passage, Status, UsageSource
from service.core.telemetry import Metrics, log

ATTACH_SECONDS = 5  # how long a new stream may wait for its first reader
RETRY_SECONDS_MAX = 3  # a provider that asks for a longer wait is not waited for
_NOTHING = Usage(prompt_tokens=0, completion_tokens=0)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """`leave_seconds`: how long the pump goes on without a reader; None: a reader is not expected.

    `attach_seconds`: how long it waits for the first one, at the least. `leave_nano_usd_max`: it goes on only if the rest
    of the answer can cost no more than this.
    """

    answer_seconds_max: float
    attempts_max: int
    leave_seconds: float | None
    leave_nano_usd_max: int | None
    attach_seconds: float = ATTACH_SECONDS


class Pump:
    """Runs one answer. `record` takes the outcome; it must not wait and must not fail. `turn` is entered for each attempt."""

    def __init__(
        self,
        stream: Stream,
        request: ProviderRequest,
        provider: Provider,
        limits: Limits,
        *,
        started: float,
        prices: PriceBook,
        metrics: Metrics,
        record: Callable[[Outcome], None],
        wait_synced: Callable[[], Awaitable[None]],
        turn: AbstractAsyncContextManager[None],
    ) -> None:
        self.stream = stream
        self._request = request
        self._provider = provider
        self._limits = limits
        self._started = started
        self._prices = prices
        self._metrics = metrics
        self._record = record
        self._wait_synced = wait_synced
        self._turn = turn
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._first_token: float | None = None
        self._attempts = 0
        self._sent = False  # whether a request may have reached the provider
        self._ending: Status | None = None
        self._scope: asyncio.Timeout | None = None
        self._outcome: Outcome | None = None
        self._leave: asyncio.TimerHandle | None = None
        stream.on_stop = partial(self.stop, Status.STOPPED)
        if limits.leave_seconds is not None:
            stream.on_reader, stream.on_abandoned = self._stay, self._leave_soon
            self._leave_in(max(limits.leave_seconds, limits.attach_seconds))

    def stop(self, status: Status) -> None:
        """End the answer with this status, now. Does nothing to one that has ended, or is being stopped already."""
        if self._ending is None:
            self._ending = status
            if self._scope and not self._scope.expired():
                self._scope.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Run to the end. Never raises; the outcome says how it ended."""
        error: KotaeError | None = None
        try:
            async with asyncio.timeout(self._limits.answer_seconds_max) as self._scope:
                if self._ending is None:
                    await self._call()
        except TimeoutError:
            if self._ending is None:
                error = ProviderTimeout(f"the answer was not finished within {self._limits.answer_seconds_max:g} seconds")
        except KotaeError as caught:
            error = caught
        except asyncio.CancelledError:  # the process ends, and its patience with it
            error = ShuttingDown("the service was stopped in the middle of the answer")
            self.stream.finish(self._recorded(Status.INTERRUPTED, error, *self._rough_usage()), error)
            raise
        except Exception:  # noqa: BLE001 - an answer ends in an outcome, whatever happens
            log.exception("answer.broken", answer_id=self.stream.intent.id)
            error = KotaeError("something went wrong in the service; the request id finds it in the log")
        finally:
            self._scope = None
            self._stay()
        status = self._status(error)
        if error and status is not Status.COMPLETED:
            cause = type(error.__cause__).__name__ if error.__cause__ else None
            log.warning("answer.failed", answer_id=self.stream.intent.id, code=error.code, attempts=self._attempts, cause=cause)
        if status is Status.INTERRUPTED:
            error = ShuttingDown("the service was stopped in the middle of the answer")
        error = None if status is Status.COMPLETED else error
        outcome = self._recorded(status, error, *await self._account(status))
        await self._wait_synced()
        self.stream.finish(outcome, error)

    async def _call(self) -> None:
        """Call the provider until it answers, or surely will not. Only what it surely did not bill is tried again."""
        await self._wait_synced()
        for attempt in range(1, self._limits.attempts_max + 1):
            try:
                async with self._turn:  # until it comes nobody was called
                    self._attempts = attempt
                    await self._attempt()
            except ProviderError as error:
                self._metrics.attempts.labels(error.code).inc()
                self._sent = self._sent or not isinstance(error, ProviderUnreachable)
                wait = _retry_wait(error, attempt)
                if not error.may_retry or self.stream.characters or attempt == self._limits.attempts_max or wait is None:
                    raise
                log.info("attempt.failed", answer_id=self.stream.intent.id, attempt=attempt, code=error.code)
                await asyncio.sleep(wait)
            else:
                self._metrics.attempts.labels("ok").inc()
                return

    async def _attempt(self) -> None:
        async with aclosing(self._provider.stream(self._request)) as batches:
            async for deltas in batches:
                self._take(deltas)

    def _take(self, deltas: list[Delta]) -> None:
        self._sent = True
        texts = [delta.text for delta in deltas if delta.text]
        if texts:
            self._first_token = self._first_token or time.perf_counter()
            self.stream.say(texts)
        for delta in deltas:
            self._finish_reason = delta.finish_reason or self._finish_reason
            self._usage = delta.usage or self._usage

    def _status(self, error: KotaeError | None) -> Status:
        if self._finish_reason and (error is None or self._usage):
            return Status.COMPLETED  # all was said: a caller who left after that, or a torn tail, changes nothing
        if error is not None:
            return Status.TIMEOUT if isinstance(error, ProviderTimeout) else Status.PROVIDER_ERROR
        return self._ending or Status.COMPLETED

    async def _account(self, status: Status) -> tuple[Usage | None, UsageSource]:
        """What the answer used, as the provider said; else estimated from what came; else honestly unknown."""
        if self._usage:
            return self._usage, UsageSource.PROVIDER
        if not self._attempts or (not self._sent and status is Status.PROVIDER_ERROR):
            return _NOTHING, UsageSource.NONE
        if not self.stream.characters and status is not Status.COMPLETED:
            return None, UsageSource.UNKNOWN
        if status is Status.INTERRUPTED:
            return self._rough_usage()
        try:
            usage = await tokens.estimate(self._request.messages, self.stream.text, self._request.model)
        except Exception:  # noqa: BLE001 - an answer ends in an outcome, whatever happens
            log.exception("estimate.failed", answer_id=self.stream.intent.id)
            return self._rough_usage()
        return self._clamped(usage), UsageSource.ESTIMATED

    def _rough_usage(self) -> tuple[Usage | None, UsageSource]:
        """The account when there is no time for the tokenizer, which takes a second to load: the process ends."""
        if self._usage or not self.stream.characters:
            return self._usage, UsageSource.PROVIDER if self._usage else UsageSource.UNKNOWN
        usage = Usage(
            prompt_tokens=sum(tokens.rough(message.content) for message in self._request.messages),
            completion_tokens=tokens.rough(self.stream.text),
        )
        return self._clamped(usage), UsageSource.ESTIMATED

    def _clamped(self, usage: Usage) -> Usage:
        return msgspec.structs.replace(usage, completion_tokens=min(usage.completion_tokens, self._request.max_tokens))

    def _recorded(self, status: Status, error: KotaeError | None, usage: Usage | None, source: UsageSource) -> Outcome:
        """Record the outcome, once, and return it. Synchronous: at the end of the process nothing can be awaited."""
        if self._outcome is not None:
            return self._outcome
        intent, text = self.stream.intent, self.stream.text
        cost = self._prices.cost(intent.model, usage, intent.created_at) if usage else None
        free = source is UsageSource.NONE  # nothing was used, so even a model without a price cost nothing
        self._outcome = Outcome(
            intent=intent,
            status=status,
            usage_source=source,
            usage=usage,
            response=text,
            finish_reason=self._finish_reason,
            error_code=error.code if error else None,
            cost_nano_usd=0 if free else cost.nano_usd if cost else None,
            price=cost.price if cost else None,
            response_time_ms=_milliseconds(self._started, time.perf_counter()),
            first_token_ms=_milliseconds(self._started, self._first_token) if self._first_token else None,
            attempts=self._attempts,
            sources=self._sources(text),
        )
        self._record(self._outcome)
        return self._outcome

    def _sources(self, text: str) -> list[Passage]:
        """What the answer cites of its context. Citations of nothing are counted."""
        if not self.stream.context:
            return []
        citations = read_citations(text, self.stream.context)
        self._metrics.citations.labels("real").inc(citations.real)
        self._metrics.citations.labels("dropped").inc(citations.dropped)
        return citations.sources

    def _stay(self) -> None:
        if self._leave:
            self._leave.cancel()
            self._leave = None

    def _leave_soon(self) -> None:
        self._leave_in((self._limits.leave_seconds or 0) if self._rest_is_cheap() else 0)

    def _rest_is_cheap(self) -> bool:
        """Whether the tokens that may still come cost no more than draining them is worth. Without a price: yes."""
        if self._limits.leave_nano_usd_max is None:
            return True
        rest = max(self._request.max_tokens - tokens.rough(self.stream.text), 0)
        cost = self._prices.cost(self.stream.intent.model, Usage(prompt_tokens=0, completion_tokens=rest), self.stream.intent.created_at)
        return cost is None or cost.nano_usd <= self._limits.leave_nano_usd_max

    def _leave_in(self, seconds: float) -> None:
        self._stay()
        self._leave = asyncio.get_running_loop().call_later(seconds, self.stop, Status.CLIENT_GONE)


def _retry_wait(error: ProviderError, attempt: int) -> float | None:
    """Seconds to wait before the next attempt: what the provider asks for, else 0.2, 0.4, … with jitter. None: too long."""
    asked = error.retry_after_asked
    wait = float(asked) if asked is not None else 0.2 * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311 - not for secrets
    return wait if wait <= RETRY_SECONDS_MAX else None


def _milliseconds(start: float, end: float) -> int:
    return round((end - start) * 1000)
