"""PostgreSQL through asyncpg: connections, errors, locks. The only module that imports `asyncpg`.

Each process has one writing connection, a pool of reading ones, and another such pool for blocking
reads, which run in threads with event loops of their own: a search computes for milliseconds.
Reading connections are read-only, and each read sees one snapshot (`REPEATABLE READ`).

Limits: `CONNECT_SECONDS` for a connection or a lock; `statement_seconds` for a statement;
`IDLE_SECONDS` for a transaction without statements, for example of a process that hangs.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from service.core.database.damaged_rows import REPORT
from service.core.database.failures import DamageLog, load_json
from service.core.database.health import DatabaseHealth
from service.core.errors import SettingsInvalid

__all__ = ["Insert", "PostgresBackend", "connect", "explain_error"]

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 60
RECYCLE_SECONDS = 1800  # load balancers drop connections that have been open for hours
# Keys of advisory locks: any numbers that other applications of the database are unlikely to use.
MIGRATION_LOCK, WRITE_LOCK, SERVICE_LOCK = 0x6B6F_7461_6500, 0x6B6F_7461_6501, 0x6B6F_7461_6502
# Classes of errors (the first characters of SQLSTATE) that depend on the statement or its values,
# https://www.postgresql.org/docs/current/errcodes-appendix.html. A repeated statement fails again.
MISTAKES = ("0A", "20", "21", "22", "23", "42")
# Their exceptions: a table, a column, a schema or a right is missing, as during a restore; a plan
# is outdated by a migration.
NOT_MISTAKES = {"42P01", "42703", "42501", "0A000"}
_READER_SETTINGS = {
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "repeatable read",
    # A plan for any values cannot leave out partitions, nor use the frequencies of values.
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",  # compiling takes longer than these queries
}

T = TypeVar("T")


def explain_error(error: BaseException) -> str | None:
    """See `ErrorTranslation`. Connecting raises `OSError` and `TimeoutError` directly."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, OSError):  # `TimeoutError` is one
        return str(cause) or "no response in time"
    state = getattr(cause, "sqlstate", None)
    if state is not None:
        is_mistake = state[:2] in MISTAKES and state not in NOT_MISTAKES
        return None if is_mistake else str(cause)
    client_errors = asyncpg.InterfaceError | asyncpg.InternalClientError
    driver_error = cause if isinstance(cause, client_errors) else _get_cause(cause)
    # A value that cannot be encoded is both.
    if isinstance(driver_error, ValueError | TypeError):
        return None
    is_explained = isinstance(driver_error, client_errors | asyncpg.PostgresError)
    return str(cause) if is_explained else None


def _get_cause(error: BaseException | None) -> BaseException | None:
    return error and error.__cause__


async def connect(url: str, settings: dict[str, str], statement_seconds: float) -> Any:
    """Open a connection with these settings of its session. Raises driver errors and `OSError`."""
    milliseconds = {
        "statement_timeout": statement_seconds,
        "lock_timeout": CONNECT_SECONDS,
        "idle_in_transaction_session_timeout": IDLE_SECONDS,
    }
    values = {
        "timezone": "UTC",
        # The server notices a client that has vanished.
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        **{name: str(int(seconds * 1000)) for name, seconds in milliseconds.items()},
        **settings,
    }
    connection = await asyncpg.connect(
        url,
        timeout=CONNECT_SECONDS,
        # Ends statements that the server does not end, because it or the network hangs.
        command_timeout=statement_seconds + CONNECT_SECONDS,
        server_settings={"application_name": "kotae"},  # poolers reject others
    )
    try:
        await connection.execute("".join(f"SET {name} = '{values[name]}';" for name in values))
    except BaseException:
        connection.terminate()
        raise
    return connection


class PostgresBackend:
    """See `Backend`."""

    dialect, migrations = "postgresql", "postgresql"
    file: Path | None = None
    wait_seconds = CONNECT_SECONDS * 2

    def __init__(
        self, url: str, readers: int, statement_seconds: float, health: DatabaseHealth
    ) -> None:
        self._url, self.readers, self._health = url, readers, health
        self._statement_seconds = statement_seconds
        self.damage = DamageLog(lambda: None)
        self.writer = self._create_engine({}, pool_size=1)
        self.reader = self._create_engine(_READER_SETTINGS, pool_size=readers)
        # The last one that became free is used first, so rarely more than one has started.
        self._blocking = [
            _BlockingReader(self._create_engine(_READER_SETTINGS, pool_size=1))
            for _ in range(readers)
        ]

    def _create_engine(self, settings: dict[str, str], **pool_options: Any) -> AsyncEngine:
        if pool_options.get("poolclass") is not NullPool:
            pool_options |= {
                "max_overflow": 0,
                "pool_use_lifo": True,
                "pool_timeout": self.wait_seconds,
                "pool_recycle": RECYCLE_SECONDS,
            }
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: self._connect(settings),
            json_deserializer=load_json,
            **pool_options,
        )

        @event.listens_for(engine.sync_engine, "connect")
        def configure_connection(_connection: Any, entry: ConnectionPoolEntry) -> None:
            entry.info[REPORT] = self.damage.report_row

        @event.listens_for(engine.sync_engine, "checkout")
        def replace_closed(connection: Any, _entry: ConnectionPoolEntry, _proxy: Any) -> None:
            # The driver has noticed that the server was restarted; a query need not fail for that.
            if connection.driver_connection.is_closed():
                raise DisconnectionError("the server closed the connection")

        return engine

    async def _connect(self, settings: dict[str, str]) -> Any:
        self._health.require_available()
        connection = await connect(self._url, settings, self._statement_seconds)
        self._health.track_connection(connection)
        return connection

    def explain_error(self, error: BaseException) -> str | None:
        """See `Backend.explain_error`."""
        return explain_error(error)

    async def run_blocking(self, work: Callable[[sa.Connection], T]) -> T:
        """See `Backend.run_blocking`."""
        reader = self._blocking.pop()  # `Database` runs at most `readers` at a time
        try:
            return await reader.read(work)
        finally:
            self._blocking.append(reader)

    async def begin_write(self, connection: AsyncConnection) -> None:
        """See `Backend.begin_write`. The lock is released after the commit is visible."""
        await connection.begin()
        await connection.execute(_LOCK, {"key": WRITE_LOCK})

    async def migrate(self, run: Callable[[sa.Connection], None], *, beside_services: bool) -> None:
        """See `Backend.migrate`. Waits for the migration of another process.

        Raises `SettingsInvalid` while a service uses the database (`postgres_lock.py`), unless
        `beside_services`.
        """
        engine = self._create_engine({"statement_timeout": "0"}, poolclass=NullPool)
        try:
            async with engine.begin() as connection:
                await connection.execute(sa.text("SET LOCAL lock_timeout = 0"))
                await connection.execute(_LOCK, {"key": MIGRATION_LOCK})
                if not (
                    beside_services
                    or (await connection.execute(_TRY_LOCK, {"key": SERVICE_LOCK})).scalar_one()
                ):
                    raise SettingsInvalid("the database is used by a service: stop it first")
                # Queries that wait behind a migration must not wait long.
                await connection.execute(
                    sa.select(sa.func.set_config("lock_timeout", f"{int(CONNECT_SECONDS)}s", True))
                )
                await connection.run_sync(run)
        finally:
            await engine.dispose()

    async def check_pages(self) -> str | None:
        """See `Database.check_pages`."""
        return None

    async def close(self) -> None:
        """See `Backend.close`."""
        await self.reader.dispose()
        for reader in self._blocking:
            await reader.close()
        await self.writer.dispose()


class _BlockingReader:
    """A thread with an event loop and a connection. It starts with the first read."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._running: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run reads in the thread, and cancel them with the caller at their next statement."""

        async def run_reads() -> T:
            async with self._engine.connect() as connection:
                return await connection.run_sync(work)

        return await self._run(run_reads())

    async def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._running is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="blocking reads", daemon=True)
            self._running = loop, thread
            thread.start()
        future = asyncio.run_coroutine_threadsafe(work, self._running[0])
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Close the connection, and end the thread. Idempotent."""
        if self._running is not None:
            await self._run(self._engine.dispose())
            (loop, thread), self._running = self._running, None
            loop.call_soon_threadsafe(loop.stop)
            await asyncio.to_thread(thread.join)
            loop.close()


_LOCK = sa.text("SELECT pg_advisory_xact_lock(:key)")
_TRY_LOCK = sa.text("SELECT pg_try_advisory_xact_lock(:key)")
