"""Streams by the id of their answer: all that run, and for `keep_seconds` those that ended and can be resumed.

What is kept is bounded, in number and, through `Buffers`, in bytes; of the ended the oldest gives way, which costs
nothing but a look into the log: its row says the same. When what *runs* fills the buffers, nothing gives way any more:
then a new stream is not one that outlives its reader (`has_room`).
"""

import asyncio
from collections.abc import Iterator
from functools import partial

from service.core.answering.streams import BufferBudget, Stream


class StreamRegistry:
    """See the module."""

    def __init__(self, buffers: BufferBudget, *, kept_max: int, keep_seconds: float) -> None:
        self.buffers = buffers
        self._kept_max = kept_max
        self._keep_seconds = keep_seconds
        self._streams: dict[str, Stream] = {}
        self._kept: dict[str, asyncio.TimerHandle] = {}  # the ended ones, oldest first

    def __iter__(self) -> Iterator[Stream]:
        """All of them."""
        return iter(list(self._streams.values()))

    @property
    def stream_count(self) -> int:
        """How many ended streams are kept."""
        return len(self._kept)

    def add_stream(self, stream: Stream) -> None:
        """Take a stream, from its beginning on."""
        self._streams[stream.intent.id] = stream
        stream.when_finished(partial(self._ended, stream))

    def find_stream(self, answer_id: str) -> Stream | None:
        """The stream of an answer, if it runs or has just ended."""
        return self._streams.get(answer_id)

    def has_capacity(self) -> bool:
        """Whether another stream may outlive its reader."""
        while self.buffers.is_full and self._kept:
            self._forget_oldest()
        return not self.buffers.is_full

    def _ended(self, stream: Stream) -> None:
        answer_id = stream.intent.id
        self._kept[answer_id] = asyncio.get_running_loop().call_later(
            self._keep_seconds if stream.kept else 0, self._forget, answer_id
        )
        while len(self._kept) > self._kept_max or (self.buffers.is_full and len(self._kept) > 1):
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        self._forget(next(iter(self._kept)))

    def _forget(self, answer_id: str) -> None:
        timer = self._kept.pop(answer_id, None)
        if timer:
            timer.cancel()
            self._streams.pop(answer_id).release()
