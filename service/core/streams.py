"""What an answer has said so far, for any number of readers.

A `Stream` is an append-only list of events with one writer, the pump, and readers that each keep a position. Nothing
is copied per reader and nothing waits for one: a reader that does not read holds up neither the provider nor the
account, and since the text of an answer is bounded, so is the stream. Readers that are behind get everything that is
ready in one batch, and a batch costs one wake-up, however many events it has.

When the last reader has gone before the end, `on_abandoned` is called: it is for the answer to decide what that means.
What this does not do: survive the process, or bound the sum of all streams.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable

from service.core.errors import KotaeError
from service.core.events import Event, Intent, Outcome, Passage, delta_event, done_event, failure_event, start_event


class Stream:
    """The events of one answer."""

    def __init__(self, intent: Intent, context: list[Passage]) -> None:
        self.intent = intent
        self.context = context
        self.outcome: Outcome | None = None
        self.error: KotaeError | None = None
        self.on_abandoned: Callable[[], None] = _nothing
        self.on_reader: Callable[[], None] = _nothing
        self.on_finished: Callable[[], None] = _nothing
        self._events: list[Event] = [start_event(intent, context)]
        self._waiters: set[asyncio.Future[None]] = set()
        self._readers = 0

    @property
    def readers(self) -> int:
        """How many read now."""
        return self._readers

    @property
    def last_seq(self) -> int:
        """The seq of the newest event."""
        return len(self._events) - 1

    def say(self, texts: list[str]) -> None:
        """Append pieces of text, one event each, and wake the readers once."""
        self._events.extend(delta_event(seq, text) for seq, text in enumerate(texts, len(self._events)))
        self._wake()

    def finish(self, outcome: Outcome, error: KotaeError | None) -> None:
        """Append the terminal event. The outcome must have been recorded before this call."""
        self.outcome, self.error = outcome, error
        seq = len(self._events)
        self._events.append(failure_event(seq, self._problem(error)) if error else done_event(seq, outcome))
        self._wake()
        self.on_finished()

    def _problem(self, error: KotaeError) -> dict[str, object]:
        return problem(error, self.intent.request_id) | {"answer_id": self.intent.id}

    async def wait_finished(self) -> Outcome:
        """Wait for the end and return the outcome. Raises the answer's `KotaeError`, if it failed."""
        while self.outcome is None:
            await self._wait()
        if self.error:
            raise self.error
        return self.outcome

    async def read(self, after: int = -1) -> AsyncGenerator[list[Event], None]:
        """Yield what comes after the event `after`, in batches of what is ready, to the end.

        Close it (`contextlib.aclosing`) to leave: the closing is what tells the pump that this reader has gone.
        """
        self._readers += 1
        self.on_reader()
        try:
            position = after + 1
            while True:
                if batch := self._events[position:]:
                    position += len(batch)
                    yield batch
                elif self.outcome is not None:
                    return
                else:
                    await self._wait()
        finally:
            self._readers -= 1
            if self._readers == 0 and self.outcome is None:
                self.on_abandoned()

    async def _wait(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _nothing() -> None:
    """Nobody wants to know."""


def problem(error: KotaeError, request_id: str) -> dict[str, object]:
    """The problem object of an error (RFC 9457): what `application/problem+json` and a `failure` event carry."""
    return {
        "type": f"urn:kotae:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
        **({"retry_after": error.retry_after_seconds} if error.retry_after_seconds else {}),
        **error.extra,
    }
