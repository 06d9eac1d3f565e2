"""The stream registry: running streams, and ended ones that can still be resumed.

Ended streams are kept for `keep_seconds`, bounded in number and, through `BufferBudget`, in bytes.
The oldest ended streams are evicted first; reading them again costs one lookup in the log, whose
row has the same content. If running streams fill the buffers, nothing can be evicted and new
streams are not resumable (`has_capacity`). A user whose streams fill the share of one user evicts
their own streams only.
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
        self._ended_by_user: dict[str, dict[str, None]] = {}

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

    def has_capacity(self, user_id: str) -> bool:
        """Return whether another stream may be resumable; evicts ended ones first."""
        while (oldest := self._find_excess(user_id)) is not None:
            self._evict_stream(oldest)
        return not (self.buffers.is_full or self.buffers.is_share_full(user_id))

    def _find_excess(self, user_id: str) -> str | None:
        """The ended stream that another stream of this user evicts, if any."""
        if self.buffers.is_share_full(user_id):
            return next(iter(self._ended_by_user.get(user_id, ())), None)
        return next(iter(self._ended_timers), None) if self.buffers.is_full else None

    def evict_streams(self, answer_ids: Iterable[str]) -> None:
        """Evict ended streams before their time. Their readers finish reading."""
        for answer_id in answer_ids:
            self._evict_stream(answer_id)

    def _retain_stream(self, stream: Stream) -> None:
        answer_id, user_id = stream.intent.id, stream.intent.user_id
        self._ended_by_user.setdefault(user_id, {})[answer_id] = None
        self._ended_timers[answer_id] = asyncio.get_running_loop().call_later(
            self._keep_seconds if stream.resumable else 0, self._evict_stream, answer_id
        )
        while len(self._ended_timers) > self._ended_max:
            self._evict_stream(next(iter(self._ended_timers)))
        while (oldest := self._find_excess(user_id)) not in {None, answer_id}:
            self._evict_stream(str(oldest))

    def _evict_stream(self, answer_id: str) -> None:
        timer = self._ended_timers.pop(answer_id, None)
        if timer:
            timer.cancel()
            stream = self._streams.pop(answer_id)
            stream.release_buffers()
            ended = self._ended_by_user[stream.intent.user_id]
            del ended[answer_id]
            if not ended:
                del self._ended_by_user[stream.intent.user_id]
