"""What an answer has said so far, for any number of readers.

A `Stream` is a text that grows, with one writer, the pump, and readers that each keep a position in it. Nothing is
copied per reader and nothing waits for one: a reader that does not read holds up neither the provider nor the account,
and since the text of an answer is bounded, so is the stream. A reader that is behind gets what is ready in one batch, a
bounded one, encoded when it is taken: what nobody reads is never encoded.

A position, the `seq` of an event's id, counts characters: 0 is the `start` event, a piece of text has the number of
characters up to its end, the terminal event comes one after the last. So a reader can go on after any event, from this
buffer or from the row of the log alone, which has the text and not the pieces in which it came (`replay`, decision 8).

When the last reader has gone before the end, `on_abandoned` is called: it is for the answer to decide what that means.
`on_stop` ends the answer on purpose.
`Buffers` counts what all streams of a process hold.
"""

import asyncio
import sys
from array import array
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable

from service.core.answering.events import (
    Event,
    done_event,
    encode_delta,
    encode_event,
    failure_event,
    start_event,
)
from service.core.errors import KotaeError, get_error_class
from service.core.records import Intent, Outcome, Passage

PIECE_CHARACTERS_MAX = 8192  # a longer piece of text leaves as several events
BATCH_BYTES = 16_384  # a batch ends with the piece that reaches this: what one slow reader may hold
PIECES_MAX = 1024  # of more pieces the older half becomes one, which only a reader that is far behind will notice
SHUTDOWN_NOTICE = b""  # the batch that says that the process is ending


class BufferBudget:
    """How much all streams hold, in bytes, and how much they may."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held = 0

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another stream that outlives its reader."""
        return self.held >= self.bytes_max


class Stream:
    """The events of one answer.

    `kept`: it goes on for a while without a reader, and is kept for a while after its end. `degraded`: it would be, had
    there been room; its `start` says so.
    """

    def __init__(
        self,
        intent: Intent,
        context: list[Passage],
        *,
        kept: bool = False,
        degraded: bool = False,
        buffers: BufferBudget | None = None,
    ) -> None:
        self.intent = intent
        self.context = context
        self.kept = kept
        self.degraded = degraded
        self.outcome: Outcome | None = None
        self.error: KotaeError | None = None
        self.on_abandoned: Callable[[], None] = _nothing
        self.on_reader: Callable[[], None] = _nothing
        self.on_stop: Callable[[], None] = _nothing
        self._finished: list[Callable[[], None]] = []
        self._texts: list[str] = []
        self._ends = array("I")  # where each text ends, in characters
        self._waiters: set[asyncio.Future[None]] = set()
        self._readers = 0
        self._was_read = False
        self._leaving = False
        self._buffers = buffers
        self._held = 0
        self._hold(sum(sys.getsizeof(passage.text) for passage in context))

    @property
    def readers(self) -> int:
        """How many read now."""
        return self._readers

    @property
    def characters(self) -> int:
        """How long the text is so far; the seq of the newest piece."""
        return self._ends[-1] if self._ends else 0

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    @property
    def last_seq(self) -> int:
        """The seq of the newest event."""
        return self.characters + (self.outcome is not None)

    def append_texts(self, texts: list[str]) -> None:
        """Append pieces of text, none of them empty, and wake the readers once."""
        end = self.characters
        for text in texts:
            self._ends.append(end := end + len(text))
        self._texts += texts
        self._hold(sum(map(sys.getsizeof, texts)))
        if len(self._texts) > PIECES_MAX:
            self._join(len(self._texts) - PIECES_MAX // 2)
        self._wake()

    def finish(self, outcome: Outcome, error: KotaeError | None) -> None:
        """Append the terminal event. The outcome must have been recorded before this call."""
        self.outcome, self.error = outcome, error
        self._wake()
        self._join_read()
        for call in self._finished:
            call()
        self._finished.clear()
        self.on_abandoned = self.on_reader = self.on_stop = (
            _nothing  # else stream and pump keep each other until a collection
        )

    def when_finished(self, call: Callable[[], None]) -> None:
        """Call this at the end, after the outcome is there; now, if it is."""
        if self.outcome is None:
            self._finished.append(call)
        else:
            call()

    def touch(self) -> None:
        """Somebody has looked: without a reader, the time until the answer is given up begins anew."""
        if self.outcome is None and not self._readers:
            self.on_abandoned()

    def announce_shutdown(self) -> None:
        """Tell every reader, by a batch `GOODBYE`, that this process ends."""
        self._leaving = True
        self._wake()

    def release(self) -> None:
        """Give back what was counted in the buffers: nobody finds this stream any more. Idempotent."""
        self._hold(-self._held)

    async def wait_finished(self) -> Outcome:
        """Wait for the end and return the outcome. Raises the answer's `KotaeError`, if it failed."""
        while self.outcome is None:
            await self._wait()
        if self.error:
            raise self.error
        return self.outcome

    async def read_events(self, after: int = -1) -> AsyncGenerator[bytes, None]:
        """Yield what comes after the event `after`, as bytes of an event stream, in batches of what is ready, to the end.

        Close it (`contextlib.aclosing`) to leave: the closing is what tells the pump that this reader has gone.
        """
        self._readers += 1
        self._was_read = True
        self.on_reader()
        greeted = False
        try:
            position = after
            while True:
                batch, position = self._take(position)
                if batch:
                    yield batch
                elif self.outcome is not None:
                    return
                elif self._leaving and not greeted:
                    greeted = True
                    yield SHUTDOWN_NOTICE
                else:
                    await self._wait()
        finally:
            self._readers -= 1
            if self._readers == 0:
                self._join_read()
                if self.outcome is None:
                    self.on_abandoned()

    def _take(self, position: int) -> tuple[bytes, int]:
        """The next batch after a position, and the position after it."""
        out = bytearray()
        if position < 0:
            out += encode_event(
                self.intent.id, start_event(self.intent, self.context, degraded=self.degraded)
            )
            position = 0
        for n in range(bisect_right(self._ends, position), len(self._texts)):
            end, text = self._ends[n], self._texts[n]
            if (
                position + len(text) == end and len(text) <= PIECE_CHARACTERS_MAX
            ):  # nearly always: the next piece, whole
                position = end
                out += encode_delta(self.intent.id, end, text)
                if len(out) >= BATCH_BYTES:
                    return bytes(out), position
                continue
            while position < end:
                begin = len(text) - (end - position)
                piece = text[begin : begin + PIECE_CHARACTERS_MAX]
                position += len(piece)
                out += encode_delta(self.intent.id, position, piece)
                if len(out) >= BATCH_BYTES:
                    return bytes(out), position
        if self.outcome is not None and position == self.characters:
            position += 1
            out += encode_event(self.intent.id, self._terminal(position))
        return bytes(out), position

    def _terminal(self, seq: int) -> Event:
        assert self.outcome is not None  # noqa: S101 - the caller has looked
        if self.error:
            return failure_event(
                seq,
                create_problem(self.error, self.intent.request_id) | {"answer_id": self.intent.id},
            )
        return done_event(seq, self.outcome)

    def _join_read(self) -> None:
        """After the end the pieces of a long text, and of one that all have read, give way to the text that the outcome has."""
        ended = self.outcome
        if ended is not None and (
            len(self._texts) > PIECES_MAX // 2
            or (self._was_read and not self._readers and len(self._texts) > 1)
        ):
            self._texts, self._ends = [ended.response], array("I", [len(ended.response)])

    def _join(self, count: int) -> None:
        """Make the first `count` pieces one: positions do not mind."""
        if count > 1:
            self._texts[:count] = ["".join(self._texts[:count])]
            del self._ends[: count - 1]

    def _hold(self, size: int) -> None:
        self._held += size
        if self._buffers:
            self._buffers.held += size

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


def replay_stream(outcome: Outcome) -> Stream:
    """The stream of an answer that has long ended, from its row: its cited sources, its text in one piece, its end."""
    stream = Stream(outcome.intent, outcome.sources)
    if outcome.response:
        stream.append_texts([outcome.response])
    failed = get_error_class(outcome.error_code) if outcome.error_code else None
    detail = "this is how the answer ended; to ask again, send a new request (with another key, if it has an Idempotency-Key)"
    stream.finish(outcome, failed(detail) if failed else None)
    return stream


def create_problem(error: KotaeError, request_id: str) -> dict[str, object]:
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
