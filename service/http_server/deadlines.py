"""The time limits of one connection. Pure: the caller passes the time."""

from typing import Literal

from service.http_server.connections import HttpLimits
from service.http_server.exchange import HttpExchange

Exceeded = Literal["head_seconds", "body_seconds", "idle_seconds", "linger_seconds", "send_seconds"]


class Deadlines:
    """What a connection is waiting for, and since when.

    `since`: when its head or its idleness began, or when it began to close. `stalled_since`: when
    the client last read something that was waiting for it; None while nothing is waiting.
    """

    def __init__(self, limits: HttpLimits, now: float) -> None:
        self._limits = limits
        self.since = now
        self.closing = False
        self.stalled_since: float | None = None
        self._unsent = 0

    def begin_closing(self, now: float) -> None:
        """From now on the connection only waits for its client to read, and to close it, too."""
        self.closing, self.since = True, now

    def find_exceeded(
        self,
        now: float,
        *,
        unsent: int,
        in_head: bool,
        last: HttpExchange | None,
        active: HttpExchange | None,
    ) -> Exceeded | None:
        """The limit that is exceeded, if any.

        `unsent` bytes wait for the client. `in_head`: part of a head has arrived. `last` is the
        exchange that was begun last, `active` the one being answered.
        """
        if unsent < self._unsent or (self.closing and unsent and self.stalled_since is None):
            self.stalled_since = now
        self._unsent = unsent
        if unsent and self.stalled_since is not None:
            return "send_seconds" if now - self.stalled_since > self._limits.send_seconds else None
        waited = now - self.since
        if self.closing:
            return "linger_seconds" if waited > self._limits.linger_seconds else None
        if in_head:
            return "head_seconds" if waited > self._limits.head_seconds else None
        if active is not None:
            return "body_seconds" if active.is_too_slow(now, self._limits) else None
        limit = self._limits.head_seconds if last is None else self._limits.idle_seconds
        return "idle_seconds" if waited > limit else None
