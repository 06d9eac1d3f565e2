"""Retries by clients: a retry attaches to the answer of the request that it repeats.

SDKs repeat a request whose connection broke or that took too long, and the answer would be billed
again. A request that announces retries is therefore remembered by its fingerprint (the caller, the
route, the body, and the headers). A retry with the same fingerprint gets that answer, running or
ended, if its reader has left or received a failure that may have been billed. It never gets an
answer that was delivered or is being read: equal requests are separate questions. When in doubt,
the question is asked again: after `RETRY_WINDOW_SECONDS`, if the answer was cancelled, or if
nothing was billed.

Answers in progress are bounded elsewhere. Of those whose reader has left, `LEFT_MAX` are
remembered, `LEFT_USER_MAX` of them of one user, and `LEFT_BYTES_MAX` of their chunks; the oldest
are forgotten first.
"""

import time
from collections.abc import Callable

from service.core.answering.streams import Stream
from service.core.errors import ProviderError
from service.core.records import Status, UsageSource

RETRY_WINDOW_SECONDS = 600
LEFT_MAX, LEFT_USER_MAX = 1_000, 100
LEFT_BYTES_MAX = 67_108_864
_ENDED_WITHOUT_ANSWER = (Status.CLIENT_GONE, Status.STOPPED, Status.INTERRUPTED)


class RetriableAnswer:
    """An answer with one reader at a time, who must call `end_reading`."""

    def __init__(
        self, registry: "RetryRegistry", fingerprint: bytes, stream: Stream, started_at: float
    ) -> None:
        self._registry = registry
        self.fingerprint, self.stream, self.started_at = fingerprint, stream, started_at

    @property
    def size(self) -> int:
        """The bytes that it holds, approximately."""
        transcript = self.stream.transcript
        return self.stream.characters + (0 if transcript is None else transcript.size)

    def end_reading(self, *, delivered: bool) -> None:
        """The reader has received the whole answer, or has left or received a failure."""
        if not delivered:
            self._registry.add_left(self)

    def is_repeatable(self, now: float) -> bool:
        """Whether a retry gets this answer instead of asking again."""
        outcome, error = self.stream.outcome, self.stream.error
        if now - self.started_at > RETRY_WINDOW_SECONDS:
            return False
        if outcome is None:
            return True
        if outcome.status in _ENDED_WITHOUT_ANSWER:
            return False
        if error is None:
            return True
        if isinstance(error, ProviderError) and error.certainly_unbilled:
            return False
        return outcome.usage_source is not UsageSource.NONE


class RetryRegistry:
    """The answers whose reader has left; see the module."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: dict[RetriableAnswer, None] = {}  # the oldest first
        self._by_fingerprint: dict[bytes, list[RetriableAnswer]] = {}
        self._by_user: dict[str, list[RetriableAnswer]] = {}

    def __len__(self) -> int:
        """Return the number of answers that wait for a retry."""
        return len(self._left)

    def register(self, fingerprint: bytes, stream: Stream) -> RetriableAnswer:
        """Return the answer of a new request, for its reader."""
        return RetriableAnswer(self, fingerprint, stream, self._clock())

    def find_answer(self, fingerprint: bytes) -> str | None:
        """Return the id of the answer that a retry would get, if there is one."""
        now = self._clock()
        answers = self._by_fingerprint.get(fingerprint, ())
        return next((a.stream.intent.id for a in answers if a.is_repeatable(now)), None)

    def attach(self, fingerprint: bytes) -> RetriableAnswer | None:
        """Return the answer that a retry gets, for its reader; None: it is a new question."""
        now = self._clock()
        for answer in list(self._by_fingerprint.get(fingerprint, ())):
            self._forget(answer)
            if answer.is_repeatable(now):
                return answer
        return None

    def add_left(self, answer: RetriableAnswer) -> None:
        """Remember an answer whose reader has left."""
        self._left[answer] = None
        self._by_fingerprint.setdefault(answer.fingerprint, []).append(answer)
        own = self._by_user.setdefault(answer.stream.intent.user_id, [])
        own.append(answer)
        if len(own) > LEFT_USER_MAX:
            self._forget(own[0])
        now = self._clock()
        size = sum(other.size for other in self._left)
        for oldest in list(self._left):
            expired = now - oldest.started_at > RETRY_WINDOW_SECONDS
            if not expired and len(self._left) <= LEFT_MAX and size <= LEFT_BYTES_MAX:
                break
            size -= oldest.size
            self._forget(oldest)

    def _forget(self, answer: RetriableAnswer) -> None:
        del self._left[answer]
        for index, key in (
            (self._by_fingerprint, answer.fingerprint),
            (self._by_user, answer.stream.intent.user_id),
        ):
            answers = index[key]  # type: ignore[index]  # each index with its own key
            answers.remove(answer)
            if not answers:
                del index[key]  # type: ignore[arg-type]
