"""The pump: the task that owns one answer's calls to the provider.

A response generator may end by cancellation, by being closed, or may never start, and an `await`
in its `finally` does not run after a cancellation. Therefore the generator owns nothing: the pump
does. It calls the provider, feeds the `Stream`, and finishes the answer's account before the
terminal event is sent, whatever happens: a failure, a client that disconnected, a deadline, or the
end of the process, where the task is cancelled and only a synchronous call is possible.

One `asyncio.timeout` bounds the answer and also stops it from outside: `stop` moves the deadline to
now. That cancels nothing, so the pump can still close the connection and count tokens.
"""

import asyncio
import time
from contextlib import aclosing
from functools import partial

import msgspec

from service.core.accounting.outcomes import AnswerAccount
from service.core.answering.streams import Stream
from service.core.errors import (
    KotaeError,
    ProviderError,
    ProviderTimeout,
    ShuttingDown,
)
from service.core.ports import AnswerTrace, Delta, ProviderRequest
from service.core.providers.routes import EndpointCall, RoutePlan, Target
from service.core.records import Status
from service.core.telemetry import log

ATTACH_SECONDS = 5  # maximum wait of a new stream for its first reader


class PumpLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one answer.

    `leave_seconds`: how long the pump continues without a reader; None: a reader is not expected.
    `attach_seconds`: minimum time it waits for the first one. `leave_nano_usd_max`: it continues
    without a reader only if the rest of the answer cannot cost more.
    """

    answer_seconds_max: float
    leave_seconds: float | None
    leave_nano_usd_max: int | None
    attach_seconds: float = ATTACH_SECONDS


class Pump:
    """Runs one answer and finishes its account and stream. `plan`: the attempts to make."""

    def __init__(
        self,
        stream: Stream,
        account: AnswerAccount,
        request: ProviderRequest,
        plan: RoutePlan,
        limits: PumpLimits,
    ) -> None:
        self.stream = stream
        self._account = account
        self._request = request
        self._plan = plan
        self._limits = limits
        self._ending: Status | None = None
        self._scope: asyncio.Timeout | None = None
        self._leave_timer: asyncio.TimerHandle | None = None
        stream.on_stop = partial(self.stop, Status.STOPPED)
        if limits.leave_seconds is not None:
            stream.on_reader, stream.on_abandoned = (
                self._cancel_leave_timer,
                self._start_leave_timer,
            )
            self._set_leave_timer(max(limits.leave_seconds, limits.attach_seconds))

    def stop(self, status: Status) -> None:
        """End the answer now, with this status. The first call decides."""
        if self._ending is None:
            self._ending = status
            if self._scope and not self._scope.expired():
                self._scope.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Run to the end and record the outcome. Raises only its own cancellation."""
        try:
            error = await self._call_within_deadline()
            status = self._decide_status(error)
            await self._finish(
                status, None if status is Status.COMPLETED else self._explain_failure(status, error)
            )
        except asyncio.CancelledError:  # the process ends: no await is possible
            if self.stream.outcome is None:
                error = _build_shutting_down()
                self.stream.finish(
                    self._account.finish(Status.INTERRUPTED, self.stream.text, error.code), error
                )
            raise

    async def _call_within_deadline(self) -> KotaeError | None:
        """Call the provider until it answers, the deadline or a stop. Returns the error, if any."""
        try:
            async with asyncio.timeout(self._limits.answer_seconds_max) as self._scope:
                if self._ending is None:
                    await self._call_provider()
        except TimeoutError:
            if self._ending is None:
                return ProviderTimeout(
                    "the answer was not finished within"
                    f" {self._limits.answer_seconds_max:g} seconds"
                )
        except KotaeError as error:
            return error
        except Exception:  # noqa: BLE001 - every answer ends with an outcome
            log.exception("answer.broken", answer_id=self.stream.intent.id)
            return KotaeError(
                "unexpected error in the service; the log has it under the request id"
            )
        finally:
            self._scope = None
            self._cancel_leave_timer()
        return None

    async def _call_provider(self) -> None:
        """Call providers as planned until one answers. Nothing is repeated after any output."""
        account, plan = self._account, self._plan
        await account.wait_synced()
        while True:
            if plan.others and account.attempts:  # the intent names the first target
                plan.skip_unavailable()
            target, request = plan.target, self._request
            if target.model != request.model:
                request = msgspec.structs.replace(request, model=target.model)
            try:
                async with EndpointCall(target.endpoint, self.stream.intent.user_id):
                    account.begin_attempt(target.endpoint.name, target.model)
                    if account.attempts > 1:  # the previous one is recorded
                        await account.wait_synced()
                    request = (
                        request
                        if account.trace is None
                        else _begin_span(account.trace, request, target)
                    )
                    async with aclosing(
                        target.endpoint.provider.stream(request, account.mark_sent)
                    ) as batches:
                        async for deltas in batches:
                            self._take_deltas(deltas)
            except ProviderError as error:
                account.end_attempt(error)
                wait = self._plan_next(error, target)
                if wait is None:
                    raise
                await asyncio.sleep(wait)
            except Exception:
                account.mark_sent()  # unknown
                raise
            else:
                account.end_attempt()
                return

    def _plan_next(self, error: ProviderError, failed: Target) -> float | None:
        """Seconds until the next attempt; None: the answer ends with this error."""
        account, plan = self._account, self._plan
        wait = None if self._has_output() else plan.plan_next(error, account.attempts)
        if wait is None:
            error.follows_billed = account.follows_billed
            return None
        log.info(
            "attempt.failed",
            answer_id=self.stream.intent.id,
            attempt=account.attempts,
            provider=failed.endpoint.name,
            code=error.code,
            next_provider=plan.target.endpoint.name,
        )
        if plan.target.endpoint is not failed.endpoint:
            account.count_fallback(error)
        account.end_attempt_span()
        return wait

    def _take_deltas(self, deltas: list[Delta]) -> None:
        account = self._account
        texts = [delta.text for delta in deltas if delta.text]
        if account.first_text_at is None and (texts or any(d.other_text for d in deltas)):
            account.first_text_at = time.perf_counter()
            if account.trace is not None and self._request.stream:
                account.trace.record_first_output()
            if (health := self._plan.target.endpoint.health).failures:
                health.record_success()  # the probe
        if self.stream.transcript is not None:
            self.stream.append_chunks(deltas)
            self.stream.append_texts(texts)
        elif texts:
            self.stream.append_texts(texts)
        for delta in deltas:
            account.finish_reason = delta.finish_reason or account.finish_reason
            if delta.other_text:
                account.other_texts.append(delta.other_text)
            if delta.usage:
                account.report_usage(delta.usage)
            elif delta.text or delta.other_text:
                account.usage_is_current = False

    def _has_output(self) -> bool:
        return bool(self.stream.characters or self.stream.has_chunks)

    def _decide_status(self, error: KotaeError | None) -> Status:
        if self._account.finish_reason and (error is None or self._account.usage):
            return Status.COMPLETED  # errors after the finish reason do not matter
        if error is not None:
            return Status.TIMEOUT if isinstance(error, ProviderTimeout) else Status.PROVIDER_ERROR
        return self._ending or Status.COMPLETED

    def _explain_failure(self, status: Status, error: KotaeError | None) -> KotaeError | None:
        """The error that the readers of an incomplete answer get."""
        if error is not None:
            cause = type(error.__cause__).__name__ if error.__cause__ else None
            log.warning(
                "answer.failed",
                answer_id=self.stream.intent.id,
                code=error.code,
                attempts=self._account.attempts,
                cause=cause,
            )
        return _build_shutting_down() if status is Status.INTERRUPTED else error

    async def _finish(self, status: Status, error: KotaeError | None) -> None:
        """Record the outcome, then send the terminal event."""
        account, text = self._account, self.stream.text
        estimate = await account.estimate_usage(status, text)
        await account.read_sources(text)
        transcript = self.stream.transcript
        choices = None if transcript is None else await transcript.read_choices()
        outcome = account.finish(
            status, text, error.code if error else None, estimate=estimate, choices=choices
        )
        await account.wait_synced()
        self.stream.finish(outcome, error)

    def _cancel_leave_timer(self) -> None:
        if self._leave_timer:
            self._leave_timer.cancel()
            self._leave_timer = None

    def _start_leave_timer(self) -> None:
        self._set_leave_timer((self._limits.leave_seconds or 0) if self._rest_is_cheap() else 0)

    def _rest_is_cheap(self) -> bool:
        """Whether the rest costs no more than draining it is worth. Without a price: yes."""
        cost_max = self._limits.leave_nano_usd_max
        rest = None if cost_max is None else self._account.remaining_cost_max(self.stream.text)
        return cost_max is None or rest is None or rest <= cost_max

    def _set_leave_timer(self, seconds: float) -> None:
        self._cancel_leave_timer()
        self._leave_timer = asyncio.get_running_loop().call_later(
            seconds, self.stop, Status.CLIENT_GONE
        )


def _begin_span(trace: AnswerTrace, request: ProviderRequest, target: Target) -> ProviderRequest:
    """Begin the span of an attempt, and let the request name it."""
    headers = trace.begin_attempt(target.endpoint.name, request)
    return msgspec.structs.replace(request, trace_headers=headers)


def _build_shutting_down() -> ShuttingDown:
    return ShuttingDown("the service was stopped during the answer")
