"""The stream registry: running streams, and ended ones that can still be resumed.

Ended streams are kept for `keep_seconds`, bounded in number and, through `BufferBudget`, in bytes.
The oldest ended streams are evicted first; reading them again costs one lookup in the log, whose
row has the same content. If running streams fill the buffers, nothing can be evicted and new
streams are not resumable (`has_capacity`).
"""

import asyncio
from collections.abc import Iterable, Iterator
from functools import partial

from service.core.answering.streams import BufferBudget, Stream


class StreamRegistry:
    """Streams by the id of their answer; see the module."""

    def __init__(self, buffers: BufferBudget, *, ended_max: int, keep_seconds: float) -> None:
        self.buffers = buffers
        self._ended_max = ended_max
        self._keep_seconds = keep_seconds
        self._streams: dict[str, Stream] = {}
        self._ended_timers: dict[str, asyncio.TimerHandle] = {}  # of ended streams, oldest first

    def __iter__(self) -> Iterator[Stream]:
        """Iterate over a snapshot of all streams."""
        return iter(list(self._streams.values()))

    @property
    def ended_count(self) -> int:
        """The number of ended streams."""
        return len(self._ended_timers)

    def add_stream(self, stream: Stream) -> None:
        """Add a new stream."""
        self._streams[stream.intent.id] = stream
        stream.add_finish_callback(partial(self._retain_stream, stream))

    def find_stream(self, answer_id: str) -> Stream | None:
        """Return the stream of an answer, if it is running or has just ended."""
        return self._streams.get(answer_id)

    def has_capacity(self) -> bool:
        """Return whether another stream may be resumable; evicts ended ones first."""
        while self.buffers.is_full and self._ended_timers:
            self._evict_oldest()
        return not self.buffers.is_full

    def evict_streams(self, answer_ids: Iterable[str]) -> None:
        """Evict ended streams before their time. Their readers finish reading."""
        for answer_id in answer_ids:
            self._evict_stream(answer_id)

    def _retain_stream(self, stream: Stream) -> None:
        answer_id = stream.intent.id
        self._ended_timers[answer_id] = asyncio.get_running_loop().call_later(
            self._keep_seconds if stream.resumable else 0, self._evict_stream, answer_id
        )
        while len(self._ended_timers) > self._ended_max or (
            self.buffers.is_full and len(self._ended_timers) > 1
        ):
            self._evict_oldest()

    def _evict_oldest(self) -> None:
        self._evict_stream(next(iter(self._ended_timers)))

    def _evict_stream(self, answer_id: str) -> None:
        timer = self._ended_timers.pop(answer_id, None)
        if timer:
            timer.cancel()
            self._streams.pop(answer_id).release_buffers()
