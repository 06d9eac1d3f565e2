"""The lock that the services of a PostgreSQL database hold.

A service that other replicas cannot reach (without `KOTAE_PEER_ADDRESS`) serves alone: it locks the
database for itself. Replicas share the lock. Migrations exclude both. The lock is an advisory lock
of a session, on a connection of its own, so the server releases it when the process or its
connection ends. The table `instances` names a holder for the error message of the next one.

A connection pooler that gives each transaction another session makes such locks useless: both
services would get it. `detect_pooler` notices that, and the service does not start.
"""

import os
import socket
from contextlib import AsyncExitStack, suppress
from typing import Any

from service.core.database.instance_lock import SERVE, LockHolder
from service.core.database.postgres import SERVICE_LOCK, connect, explain_error
from service.core.errors import DatabaseUnavailable, SettingsInvalid

PROBE_LOCK = 0x6B6F_7461_6503
STATEMENT_SECONDS = 5.0
PROBE_CONNECTIONS = 4
_UNKNOWN_STATEMENT = "26000"  # a prepared statement exists in another session only
_TRANSACTIONS = (
    "KOTAE_DATABASE_URL leads to a connection pooler in transaction mode (such as PgBouncer with "
    "pool_mode=transaction), which does not keep sessions: connect to PostgreSQL directly, or set "
    "pool_mode=session"
)


class ServiceLock:
    """The lock of this process. It is held until `close`, or until its connection is lost.

    `shared`: other processes may hold it too, if theirs are shared.
    """

    def __init__(self, url: str, address: str = "", *, shared: bool = False) -> None:
        self._url = url
        self._function = "pg_try_advisory_lock" + ("_shared" if shared else "")
        self._connection: Any = None
        self._holder = LockHolder(os.getpid(), socket.gethostname(), SERVE, address)

    async def acquire(self) -> None:
        """Acquire the lock. Raises `SettingsInvalid`, which names its holder.

        Raises `DatabaseUnavailable`.
        """
        try:
            await detect_pooler(self._url)
            await self._acquire()
        except Exception as error:
            if (detail := explain_error(error)) is None:
                raise
            raise DatabaseUnavailable(f"the database reported: {detail}") from error

    async def _acquire(self) -> None:
        async with AsyncExitStack() as stack:
            connection = await _open_connection(self._url, stack)
            if not await connection.fetchval(f"SELECT {self._function}($1)", SERVICE_LOCK):
                raise SettingsInvalid(await _describe_conflict(connection))
            holder = self._holder
            await connection.execute(_STORE, holder.pid, holder.host, holder.address)
            self._connection = connection
            stack.pop_all()

    async def keep(self) -> None:
        """Check that the lock is held, and acquire it again after its connection was lost.

        Raises `SettingsInvalid` if another process has acquired it meanwhile, and
        `DatabaseUnavailable`.
        """
        try:
            if self._connection is not None:
                await self._connection.fetchval("SELECT 1")
                return
            await self._acquire()
        except Exception as error:
            if (detail := explain_error(error)) is None:
                raise
            await self.close()
            raise DatabaseUnavailable(f"the database reported: {detail}") from error

    async def close(self) -> None:
        """Release the lock. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it may be broken; the server releases the lock anyway
                await connection.close(timeout=STATEMENT_SECONDS)


_STORE = """
INSERT INTO instances (id, pid, host, address, started_at) VALUES (0, $1, $2, $3, now())
ON CONFLICT (id) DO UPDATE SET pid = excluded.pid, host = excluded.host,
    address = excluded.address, started_at = excluded.started_at
"""


async def _describe_conflict(connection: Any) -> str:
    row = await connection.fetchrow("SELECT pid, host, address FROM instances WHERE id = 0")
    name = "another process"
    if row is not None:
        name = LockHolder(row["pid"], row["host"], SERVE, row["address"]).describe()
    return (
        f"the database is used by {name}: stop it, or set another KOTAE_DATABASE_URL; for several "
        "replicas, set KOTAE_PEER_ADDRESS of each"
    )


async def detect_pooler(url: str) -> None:
    """Raise `SettingsInvalid` if a pooler gives each transaction another session.

    A connection gets a lock outside of a transaction. With such a pooler its session is free
    again, so another connection gets the session, and with it the lock, or the first one another
    session while the others are within transactions.
    """
    async with AsyncExitStack() as stack:
        try:
            await _compare_sessions(url, stack)
        except Exception as error:
            if getattr(error, "sqlstate", None) == _UNKNOWN_STATEMENT:
                raise SettingsInvalid(_TRANSACTIONS) from error
            raise


async def _compare_sessions(url: str, stack: AsyncExitStack) -> None:
    first = await _open_connection(url, stack)
    pid = await first.fetchval("SELECT pg_backend_pid()")
    if pid == first.get_server_pid():  # no pooler: the server announced itself
        return
    await first.execute(f"SELECT pg_advisory_lock({PROBE_LOCK})")
    pids = [pid]
    for _ in range(PROBE_CONNECTIONS):
        other = await _open_connection(url, stack)
        await other.execute("BEGIN")
        if await other.fetchval(f"SELECT pg_try_advisory_xact_lock({PROBE_LOCK})"):
            raise SettingsInvalid(_TRANSACTIONS)
        pids.append(await first.fetchval("SELECT pg_backend_pid()"))
    if len(set(pids)) > 1:
        raise SettingsInvalid(_TRANSACTIONS)


async def _open_connection(url: str, stack: AsyncExitStack) -> Any:
    connection = await connect(url, {}, STATEMENT_SECONDS)
    stack.push_async_callback(connection.close, timeout=STATEMENT_SECONDS)
    return connection
