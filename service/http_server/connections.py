"""Limits of HTTP connections, and the table of the connections that are open.

A connection is *busy* while a request is answered on it, and *idle* otherwise: before its first
request, between requests, while a request head arrives, and while it is being closed. When there
are too many connections, the one that has been idle for the longest time is dropped; if all are
busy, one whose client does not read. Connections that send nothing, or send slowly, therefore keep
nobody out. When as many as `connections_max` are busy, only health checks are still answered, on
the connections reserved for them.

One periodic sweep checks the deadlines of all connections. A timer for each of them would be set
and cancelled twice per request. Deadlines are therefore exact to about half a second.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

SWEEP_TICKS = 5  # ticks of the server, ten per second, in which every connection is checked once
DISCARDED_BYTES_PER_TICK = 4_194_304  # of all refused requests together


@dataclass(frozen=True)
class HttpLimits:
    """What connections may use. Sizes are in bytes, times in seconds."""

    connections_max: int = 10_000
    connections_reserved: int = 64  # for health checks
    buffered_bytes_max: int = 134_217_728  # of all connections together
    url_bytes_max: int = 16_384
    head_bytes_max: int = 32_768  # of the request line and all headers
    headers_max: int = 100
    # Of chunk sizes, chunk extensions and trailers; and so many more for each byte of the body.
    framing_bytes_max: int = 16_384
    framing_bytes_per_body_byte: int = 8
    pipelined_max: int = 16  # requests that were received and are not answered
    pipelined_bytes_max: int = 65_536  # that were received ahead of their turn
    head_seconds: float = 10  # for a complete head
    body_seconds: float = 30  # without data of the body
    slow_body_seconds: float = 60  # after which a body must have arrived faster than
    body_bytes_per_second_min: int = 1024
    idle_seconds: float = 5  # between requests
    linger_seconds: float = 5  # in which the rest of a refused request is discarded
    send_buffer_bytes: int = 65_536  # of the kernel, per connection (SO_SNDBUF)
    send_seconds: float = 35  # without the client reading anything


class LimitedConnection(Protocol):
    """A connection as the table sees it."""

    def check_deadlines(self, now: float) -> int:
        """Enforce the time limits; return the bytes that are buffered for the connection."""

    def drop(self) -> None:
        """Close at once, without sending what waits to be sent."""

    def resume_reading(self) -> None:
        """Read again, at a tick."""


@dataclass(frozen=True)
class ConnectionStatistics:
    """An immutable snapshot of the counters; `dropped` counts by reason."""

    open: int
    busy: int
    dropped: dict[str, int]


class ConnectionTable:
    """All open connections.

    `now` is the time of the last tick: precise enough for deadlines, and free to read.
    """

    def __init__(self, limits: HttpLimits, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.draining = False
        self.on_drop: Callable[[str], None] = lambda _: None  # called with the exceeded limit
        self.busy = 0  # connections that are answering a request
        self.now = monotonic()
        self._monotonic = monotonic
        self._open: dict[LimitedConnection, None] = {}
        # Idle for the longest time first.
        self._idle: OrderedDict[LimitedConnection, None] = OrderedDict()
        # Waiting for their clients to read.
        self._stalled: OrderedDict[LimitedConnection, None] = OrderedDict()
        self._sweep: Iterator[LimitedConnection] = iter(())
        self._sweep_size = 0  # connections that are checked in one tick
        self._discardable = DISCARDED_BYTES_PER_TICK
        self._resting: list[LimitedConnection] = []
        self._buffered: Counter[LimitedConnection] = Counter()
        self._dropped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def statistics(self) -> ConnectionStatistics:
        """An immutable snapshot of the counters."""
        return ConnectionStatistics(len(self._open), self.busy, dict(self._dropped))

    def add(self, connection: LimitedConnection) -> None:
        """Enter a new connection.

        Another one is dropped if there are too many, or this one if all others are busy.
        """
        self._open[connection] = self._idle[connection] = None
        if len(self._open) > self.limits.connections_max + self.limits.connections_reserved:
            idle = next(iter(self._idle))
            if idle is not connection or not self.drop_stalled():
                self.drop(idle, "connections_max")

    def discard(self, connection: LimitedConnection) -> None:
        """Remove a connection that is closed. Idempotent."""
        if connection in self._open:
            del self._open[connection]
            self.set_stalled(connection, stalled=False)
            if connection in self._idle:
                del self._idle[connection]
            else:
                self.busy -= 1

    def set_busy(self, connection: LimitedConnection) -> None:
        """A request begins to be answered."""
        del self._idle[connection]
        self.busy += 1

    def set_idle(self, connection: LimitedConnection) -> None:
        """The request has been answered, or the connection is being closed."""
        if connection in self._open:
            self._idle[connection] = None
            self.busy -= 1

    def set_stalled(self, connection: LimitedConnection, *, stalled: bool) -> None:
        """Whether the client does not read what is sent to it."""
        if not stalled:
            self._stalled.pop(connection, None)
        elif connection in self._open:
            self._stalled[connection] = None

    def discard_bytes(self, connection: LimitedConnection, size: int) -> bool:
        """Whether more can be discarded before the next tick, when reading resumes."""
        self._discardable -= size
        if self._discardable < 0:
            self._resting.append(connection)
        return self._discardable >= 0

    def drop_stalled(self) -> bool:
        """Drop the busy connection whose client has not read for the longest time, if any."""
        if stalled := next(iter(self._stalled), None):
            self.drop(stalled, "connections_max")
        return stalled is not None

    def drop(self, connection: LimitedConnection, reason: str) -> None:
        """Close a connection at once, and count it."""
        self._dropped[reason] += 1
        self.on_drop(reason)
        self.discard(connection)
        connection.drop()

    def tick(self) -> None:
        """Check the next part of all connections. Called ten times per second."""
        self.now = self._monotonic()
        self._discardable = DISCARDED_BYTES_PER_TICK
        resting, self._resting = self._resting, []
        for connection in resting:
            connection.resume_reading()
        for checked, connection in enumerate(self._sweep, 1):
            if connection in self._open and (size := connection.check_deadlines(self.now)):
                self._buffered[connection] = size
            if checked >= self._sweep_size:
                return
        self._limit_buffers()
        self._sweep, self._sweep_size = iter(list(self._open)), len(self._open) // SWEEP_TICKS + 1

    def _limit_buffers(self) -> None:
        """Drop connections that wait for their clients until all buffers fit into their limit."""
        if not self._buffered:
            return
        excess = self._buffered.total() - self.limits.buffered_bytes_max
        for connection, size in self._buffered.most_common() if excess > 0 else ():
            if excess > 0 and (connection in self._idle or connection in self._stalled):
                self.drop(connection, "buffered_bytes_max")
                excess -= size
        self._buffered.clear()
