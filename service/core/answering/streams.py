"""Streams: the text of one answer so far, for any number of readers.

A `Stream` is a growing text with one writer, the pump, and readers that each keep a position.
Nothing is copied per reader and the writer never waits for a reader, so a slow reader delays
neither the provider nor accounting. The length of an answer is bounded, and so is the stream. A
reader that is behind gets the available text in bounded batches, which are encoded when they are
read.

A position, the `seq` of an event id, counts characters: 0 is the `start` event, a delta has the
number of characters up to its end, the terminal event comes one after the last. A reader can
therefore continue after any event, from this buffer or from the log row, which has the text but not
its deltas (`replay_stream`, decision 8).

`on_abandoned` is called when the last reader leaves before the end; `on_stop` ends the answer.
`BufferBudget` counts the bytes that all streams of a process hold.
"""

import asyncio
import sys
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

from service.core.answering.events import (
    Event,
    build_done_event,
    build_failure_event,
    build_start_event,
    encode_delta,
    encode_event,
)
from service.core.answering.transcripts import ChatTranscript
from service.core.errors import KotaeError, get_error_class
from service.core.fair_share import compute_user_max
from service.core.ports import Delta
from service.core.records import Intent, Outcome, Passage

PIECE_CHARACTERS_MAX = 8192  # longer texts are sent as several events
BATCH_BYTES = 16_384  # a batch ends with the delta that reaches this size
PIECES_MAX = 1024  # beyond this, the older half is joined; only a slow reader gets fewer deltas
SHUTDOWN_NOTICE = b""  # the batch that announces the shutdown of this process


class BufferBudget:
    """The bytes that all streams hold, and their limit.

    A user's streams count up to the share of one user: more of them, which are not resumable, take
    nothing from others.
    """

    def __init__(self, bytes_max: int, user_share: float = 1.0) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0
        self._user_max = compute_user_max(bytes_max, user_share)
        self._by_user: Counter[str] = Counter()
        self._counted_bytes = 0

    def add_bytes(self, user_id: str, size: int) -> None:
        """Add to the bytes of a user; a negative size subtracts."""
        most, before = self._user_max, self._by_user[user_id]
        after = self._by_user[user_id] = before + size
        if not after:
            del self._by_user[user_id]
        self.held_bytes += size
        if after <= most and before <= most:  # the usual case without calls: for every delta
            self._counted_bytes += size
        else:
            self._counted_bytes += min(after, most) - min(before, most)

    @property
    def is_full(self) -> bool:
        """True when no further stream may be resumable."""
        return self._counted_bytes >= self.bytes_max

    def is_share_full(self, user_id: str) -> bool:
        """True when no further stream of this user may be resumable."""
        return self._by_user[user_id] >= self._user_max


class Stream:
    """The events of one answer.

    `resumable`: the answer continues for a while without a reader, and is kept for a while after
    its end. `degraded`: it would be resumable, but the buffers were full; its `start` event reports
    it.
    """

    def __init__(
        self,
        intent: Intent,
        context: list[Passage],
        *,
        resumable: bool = False,
        degraded: bool = False,
        buffers: BufferBudget | None = None,
    ) -> None:
        self.intent = intent
        self.context = context
        self.resumable = resumable
        self.degraded = degraded
        self.outcome: Outcome | None = None
        self.error: KotaeError | None = None
        self.transcript: ChatTranscript | None = None  # of a chat completion
        self.completion_tokens_max: int | None = None  # the limit, if the client sent none
        self.on_abandoned: Callable[[], None] = _ignore_event
        self.on_reader: Callable[[], None] = _ignore_event
        self.on_stop: Callable[[], None] = _ignore_event
        self._finish_callbacks: dict[Callable[[], None], None] = {}
        self._output_callbacks: dict[Callable[[], None], None] = {}
        self._texts: list[str] = []
        self._ends = array("I")  # the end of each text, in characters
        self._waiters: set[asyncio.Future[None]] = set()
        self._readers = 0
        self._was_read = False
        self._shutting_down = False
        self._buffers = buffers
        self._held_bytes = 0
        if context:
            self._count_bytes(sum(sys.getsizeof(passage.text) for passage in context))

    @property
    def readers(self) -> int:
        """The number of current readers."""
        return self._readers

    @property
    def characters(self) -> int:
        """The length of the text so far; the seq of the newest delta."""
        return self._ends[-1] if self._ends else 0

    @property
    def has_chunks(self) -> bool:
        """Whether the provider has sent chunks of a chat completion."""
        return self.transcript is not None and bool(self.transcript.chunks)

    @property
    def has_output(self) -> bool:
        """Whether there are chunks, or the answer is over."""
        return self.has_chunks or self.outcome is not None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    @property
    def last_seq(self) -> int:
        """The seq of the newest event."""
        return self.characters + (self.outcome is not None)

    def append_texts(self, texts: list[str]) -> None:
        """Append non-empty texts, if there are any, and wake the readers once."""
        end = self.characters
        for text in texts:
            self._ends.append(end := end + len(text))
        self._texts += texts
        self._count_bytes(sum(map(sys.getsizeof, texts)))
        if len(self._texts) > PIECES_MAX:
            self._join_pieces(len(self._texts) - PIECES_MAX // 2)
        self._wake_waiters()

    def append_chunks(self, deltas: list[Delta]) -> None:
        """Append the chunks of a chat completion; wakes no readers.

        Raises `ProviderInvalid` if they are too long.
        """
        if (transcript := self.transcript) is not None:
            size = 0
            for delta in deltas:
                if delta.raw is not None:
                    size += transcript.add_delta(delta)
            self._count_bytes(size)
            if self._output_callbacks and transcript.chunks:
                self._call_output_callbacks()

    def finish(self, outcome: Outcome, error: KotaeError | None) -> None:
        """Append the terminal event. The outcome must have been recorded before this call."""
        self.outcome, self.error = outcome, error
        if error is not None:  # its frames refer to this stream: a reference cycle
            error.__traceback__ = error.__cause__ = error.__context__ = None
        self._wake_waiters()
        self._compact_text()
        self._call_output_callbacks()
        for callback in self._finish_callbacks:
            callback()
        self._finish_callbacks.clear()
        self.on_abandoned = self.on_reader = self.on_stop = (
            _ignore_event  # breaks the reference cycle of stream and pump
        )

    def add_finish_callback(self, callback: Callable[[], None]) -> None:
        """Call this once the outcome is set; immediately if it is."""
        if self.outcome is None:
            self._finish_callbacks[callback] = None
        else:
            callback()

    def add_output_callback(self, callback: Callable[[], None]) -> None:
        """Call this at the first chunk or the end; immediately if it is over."""
        if self.has_output:
            callback()
        else:
            self._output_callbacks[callback] = None

    def remove_output_callback(self, callback: Callable[[], None]) -> None:
        """Do not call this any more. Idempotent."""
        self._output_callbacks.pop(callback, None)

    def _call_output_callbacks(self) -> None:
        callbacks, self._output_callbacks = self._output_callbacks, {}
        for callback in callbacks:
            callback()

    def remove_finish_callback(self, callback: Callable[[], None]) -> None:
        """Do not call this any more. Idempotent."""
        self._finish_callbacks.pop(callback, None)

    @contextmanager
    def attach_reader(self) -> Iterator[None]:
        """Count a reader within the block. An answer without readers may be abandoned."""
        self._readers += 1
        self._was_read = True
        self.on_reader()
        try:
            yield
        finally:
            self._readers -= 1
            if self._readers == 0:
                self._compact_text()
                if self.outcome is None:
                    self.on_abandoned()

    def restart_leave_timer(self) -> None:
        """Restart the time that the answer continues without a reader, if it has none."""
        if self.outcome is None and not self._readers:
            self.on_abandoned()

    def announce_shutdown(self) -> None:
        """Send every reader the batch `SHUTDOWN_NOTICE`."""
        self._shutting_down = True
        self._wake_waiters()

    def release_buffers(self) -> None:
        """Subtract this stream from the buffer budget after its eviction. Idempotent."""
        self._count_bytes(-self._held_bytes)

    async def wait_finished(self) -> Outcome:
        """Wait for the end and return the outcome. Raises the `KotaeError` of a failed answer."""
        with self.attach_reader():
            while self.outcome is None:
                await self._wait_change()
        if self.error:
            raise self.error
        return self.outcome

    def read_events(
        self, after: int = -1, on_batch: Callable[[int], None] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the events after `after` as bytes of an event stream, in batches, to the end.

        `on_batch` is called with the position at the end of each batch, before it is yielded.
        Close the generator (`contextlib.aclosing`) to leave: closing notifies the pump.
        """
        return self.read_batches(self._encode_batch, after, on_batch)

    async def read_batches(
        self,
        encode_batch: Callable[[int], tuple[bytes, int]],
        after: int = -1,
        on_batch: Callable[[int], None] | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Like `read_events`, in another encoding.

        `encode_batch`: returns the next batch after a position, empty if there is none yet, and
        the position after it.
        """
        notice_sent, position = False, after
        with self.attach_reader():
            while True:
                batch, position = encode_batch(position)
                if batch:
                    if on_batch is not None:
                        on_batch(position)
                    yield batch
                elif self.outcome is not None:
                    return
                elif self._shutting_down and not notice_sent:
                    notice_sent = True
                    yield SHUTDOWN_NOTICE
                else:
                    await self._wait_change()

    def _encode_batch(self, position: int) -> tuple[bytes, int]:
        """Return the next batch after a position, and the position after it."""
        out = bytearray()
        if position < 0:
            out += encode_event(
                self.intent.id, build_start_event(self.intent, self.context, degraded=self.degraded)
            )
            position = 0
        for n in range(bisect_right(self._ends, position), len(self._texts)):
            end, text = self._ends[n], self._texts[n]
            if (
                position + len(text) == end and len(text) <= PIECE_CHARACTERS_MAX
            ):  # the common case: a complete text
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
            out += encode_event(self.intent.id, self._build_terminal_event(position))
        return bytes(out), position

    def _build_terminal_event(self, seq: int) -> Event:
        assert self.outcome is not None  # noqa: S101 - the caller has checked it
        if self.error:
            return build_failure_event(
                seq,
                create_problem(self.error, self.intent.request_id) | {"answer_id": self.intent.id},
            )
        return build_done_event(seq, self.outcome)

    def _compact_text(self) -> None:
        """Replace the deltas of an ended answer by its text: they are long, or were read."""
        outcome = self.outcome
        if outcome is not None and (
            len(self._texts) > PIECES_MAX // 2
            or (self._was_read and not self._readers and len(self._texts) > 1)
        ):
            self._texts, self._ends = [outcome.response], array("I", [len(outcome.response)])

    def _join_pieces(self, count: int) -> None:
        """Join the first `count` texts. Positions do not change."""
        if count > 1:
            self._texts[:count] = ["".join(self._texts[:count])]
            del self._ends[: count - 1]

    def _count_bytes(self, size: int) -> None:
        self._held_bytes += size
        if self._buffers:
            self._buffers.add_bytes(self.intent.user_id, size)

    async def _wait_change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _ignore_event() -> None:
    """Do nothing: the default callback."""


def replay_stream(outcome: Outcome) -> Stream:
    """Build the stream of an ended answer from its row: sources, text in one delta, end."""
    stream = Stream(outcome.intent, outcome.sources)
    if outcome.response:
        stream.append_texts([outcome.response])
    error_class = get_error_class(outcome.error_code) if outcome.error_code else None
    detail = (
        "the answer ended with this error; to try again, send a new request"
        " (with another key, if it has an Idempotency-Key)"
    )
    stream.finish(outcome, error_class(detail) if error_class else None)
    return stream


def create_problem(error: KotaeError, request_id: str) -> dict[str, object]:
    """Build the problem object (RFC 9457) of an error response or a `failure` event."""
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
