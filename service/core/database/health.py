"""Whether the database responds, as a probe has found out (`workers/database_probe.py`).

Failure policy: closed, and at once. A server that hangs, or a network that drops packets, ends no
statement. So when a probe fails, the connections are aborted, which ends the statements that wait;
later accesses raise `DatabaseUnavailable` without waiting, until a probe succeeds.
"""

import asyncio
import threading
from contextlib import suppress
from typing import Protocol
from weakref import WeakKeyDictionary

from service.core.errors import DatabaseUnavailable
from service.core.telemetry import log


class AbortableConnection(Protocol):
    """A connection of a driver. It is used in the event loop that opened it."""

    def is_closed(self) -> bool:
        """Whether it has ended."""
        ...

    def terminate(self) -> None:
        """Close it without waiting for the server; its statement raises an error."""
        ...


class DatabaseHealth:
    """See the module. Without a probe, the database is available."""

    def __init__(self) -> None:
        self.is_available = True
        self._lock = threading.Lock()  # blocking reads have threads with loops of their own
        self._loops: WeakKeyDictionary[AbortableConnection, asyncio.AbstractEventLoop]
        self._loops = WeakKeyDictionary()

    def require_available(self) -> None:
        """Raise `DatabaseUnavailable` while the database does not respond."""
        if not self.is_available:
            raise DatabaseUnavailable("the database does not respond")

    def track_connection(self, connection: AbortableConnection) -> None:
        """Abort this connection, of the running loop, when the database does not respond."""
        with self._lock:
            self._loops[connection] = asyncio.get_running_loop()

    def mark_available(self) -> None:
        """Note that a probe has succeeded."""
        if not self.is_available:
            self.is_available = True
            log.info("database.available")

    def mark_unavailable(self, reason: str) -> None:
        """Note that a probe has failed, and abort the connections."""
        if self.is_available:
            self.is_available = False
            log.error("database.unavailable", error=reason)
        with self._lock:
            tracked = list(self._loops.items())
        for connection, loop in tracked:
            with suppress(RuntimeError):  # the loop has ended
                if not connection.is_closed():
                    loop.call_soon_threadsafe(connection.terminate)
