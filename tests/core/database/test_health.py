"""The health of the database: refusals and aborted connections."""

import asyncio
import threading
from contextlib import AsyncExitStack

import pytest

from service.core.database.engine import READERS, Database
from service.core.database.health import DatabaseHealth
from service.core.errors import DatabaseUnavailable


class Connection:
    """A connection that remembers the thread in which it was aborted."""

    def __init__(self, *, closed: bool = False) -> None:
        self._closed = closed
        self.aborted_in: threading.Thread | None = None
        self.aborted = threading.Event()

    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self._closed

    def terminate(self) -> None:
        """Remember the thread."""
        self.aborted_in = threading.current_thread()
        self.aborted.set()


async def test_connections_are_aborted_in_their_loops() -> None:
    """A connection is not thread-safe; one that is closed already is left alone."""
    health = DatabaseHealth()
    here, elsewhere, closed = Connection(), Connection(), Connection(closed=True)

    async def use_elsewhere() -> None:
        health.track_connection(elsewhere)
        await asyncio.to_thread(elsewhere.aborted.wait, 20)

    thread = threading.Thread(target=asyncio.run, args=(use_elsewhere(),))
    for connection in (here, closed):
        health.track_connection(connection)
    thread.start()
    health.mark_unavailable("no reply")
    while thread.is_alive():
        health.mark_unavailable("no reply")
        await asyncio.sleep(0.001)

    assert here.aborted_in is threading.current_thread()
    assert elsewhere.aborted_in is thread
    assert closed.aborted_in is None


async def test_connections_of_ended_loops_are_ignored() -> None:
    """Neither an ended loop nor a connection that was freed prevents the refusals."""
    health, connection = DatabaseHealth(), Connection()

    async def track() -> None:
        health.track_connection(connection)
        health.track_connection(Connection())

    await asyncio.to_thread(lambda: asyncio.run(track()))
    health.mark_unavailable("no reply")

    assert not health.is_available
    assert connection.aborted_in is None


async def test_accesses_fail_at_once_until_the_database_responds(database: Database) -> None:
    """Reads, blocking reads and transactions are refused without a wait, and then work again."""
    database.health.mark_unavailable("no reply")
    with pytest.raises(DatabaseUnavailable, match="does not respond"):
        await database.ping()
    with pytest.raises(DatabaseUnavailable, match="does not respond"):
        await database.run_blocking_read(lambda connection: connection)
    with pytest.raises(DatabaseUnavailable, match="does not respond"):
        async with database.transaction():
            pass
    database.health.mark_available()
    await database.ping()
    async with database.transaction():
        pass


async def test_pings_do_not_wait_for_reads_that_hang(database: Database) -> None:
    """A ping has a time limit, and later ones wait for the same read instead of a further one."""
    async with AsyncExitStack() as stack:
        for _ in range(READERS):
            await stack.enter_async_context(database.read_session())
        for _ in range(READERS + 1):
            with pytest.raises(DatabaseUnavailable, match="no response within"):
                await database.ping(seconds_max=0)
    await database.ping()
