"""SQLite: connections, errors, the wait for its lock, and the check of its file.

All writes of the process use one connection and start with `BEGIN IMMEDIATE`, for two reasons: a
transaction that reads before it writes would otherwise fail immediately with SQLITE_BUSY_SNAPSHOT
regardless of the busy timeout, and the WAL-reset race of SQLite before 3.51.3 requires two
connections that write and checkpoint concurrently. In WAL mode the writer never blocks readers.
"""

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import sqlalchemy
from sqlalchemy import create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from service.core.database.damaged_rows import REPORT
from service.core.database.failures import (
    UNDECODABLE_MESSAGE,
    DamageLog,
    ErrorTranslation,
    describe_error,
    load_json,
    run_quick_check,
)
from service.core.database.files import (
    create_private_directory,
    create_private_file,
    find_database_file,
    restrict_database_files,
)
from service.core.errors import SettingsInvalid

# Maximum wait of one BEGIN for the lock. It cannot be cancelled, so a longer wait repeats it.
LOCK_SECONDS = 0.5
LOCK_PAUSE_SECONDS = 0.02
# Maximum wait of a statement for a locked database; `?timeout=` in the URL overrides it.
BUSY_SECONDS = 5.0
READERS = 4  # connections, each with its own thread; there are two such pools
# The page cache of each connection. In total at most 80 MiB, which fill while the database grows.
CACHE_KIB, READER_CACHE_KIB = 16_384, 8_192

T = TypeVar("T")


def _read_timeout(url: str) -> float:
    value = make_url(url).query.get("timeout", BUSY_SECONDS)
    try:
        return float(value)  # type: ignore[arg-type]  # a repeated parameter is a tuple: a TypeError
    except (TypeError, ValueError) as error:
        raise SettingsInvalid(
            f"KOTAE_DATABASE_URL: timeout={value} is not a number of seconds"
        ) from error


def explain_error(error: BaseException) -> str | None:
    """See `ErrorTranslation`. Searches call the driver directly."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, UnicodeDecodeError):
        return UNDECODABLE_MESSAGE
    if not isinstance(cause, sqlite3.Error) or isinstance(
        cause, sqlite3.IntegrityError | sqlite3.ProgrammingError
    ):
        return None
    return describe_error(cause)


class SqliteBackend:
    """See `Backend`. Unless closed, the threads of its connections keep the process alive."""

    dialect, migrations, readers = "sqlite", "versions", READERS

    def __init__(self, url: str) -> None:
        self._url = url
        self._busy_seconds = _read_timeout(url)
        self.wait_seconds = self._busy_seconds * 2
        self.file = find_database_file(url)
        self.damage = DamageLog(self._identify_file)
        self.writer = self._create_engine(pool_size=1, write=True)
        self.reader = self._create_engine(pool_size=READERS, write=False)
        self._blocking = self._configure_engine(
            create_engine(
                make_url(url).set(drivername="sqlite"),
                json_deserializer=load_json,
                poolclass=QueuePool,
                **self._pool_options(READERS),
            )
        )
        self._threads = anyio.CapacityLimiter(READERS)

    def _create_engine(
        self, *, pool_size: int, write: bool, foreign_keys: bool = True
    ) -> AsyncEngine:
        engine = create_async_engine(
            self._url, json_deserializer=load_json, **self._pool_options(pool_size, write=write)
        )
        self._configure_engine(engine.sync_engine, write=write, foreign_keys=foreign_keys)
        return engine

    def _pool_options(self, size: int, *, write: bool = False) -> dict[str, Any]:
        timeout = min(self._busy_seconds, LOCK_SECONDS) if write else self._busy_seconds
        return {
            "pool_size": size,
            "max_overflow": 0,
            "pool_use_lifo": True,  # the caches of rarely needed connections stay small
            "pool_timeout": self.wait_seconds,
            "connect_args": {"timeout": timeout},
        }

    def _configure_engine(
        self, engine: sqlalchemy.Engine, *, write: bool = False, foreign_keys: bool = True
    ) -> sqlalchemy.Engine:
        @event.listens_for(engine, "connect")
        def configure_connection(connection: Any, entry: ConnectionPoolEntry) -> None:
            entry.info["file"] = self._identify_file()
            entry.info[REPORT] = self.damage.report_row
            connection.isolation_level = None  # `begin_transaction` below sends BEGIN
            cursor = connection.cursor()
            for pragma in (
                "journal_mode=WAL",
                # A commit is durable when it returns: the journal then deletes its records.
                "synchronous=FULL",
                f"foreign_keys={'ON' if foreign_keys else 'OFF'}",
                f"cache_size=-{CACHE_KIB if write else READER_CACHE_KIB}",
                *(() if write else ("query_only=ON", "wal_autocheckpoint=0")),
            ):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        @event.listens_for(engine, "checkout")
        def require_same_file(_connection: Any, entry: ConnectionPoolEntry, _proxy: Any) -> None:
            # If the file was deleted or replaced by a backup, writes to the old one would be lost.
            if entry.info["file"] != self._identify_file():
                raise sqlalchemy.exc.DisconnectionError("the database file was replaced")

        @event.listens_for(engine, "handle_error")
        def reconnect_readonly(context: sqlalchemy.ExceptionContext) -> None:
            # A connection that was opened while the file was read-only remains read-only.
            if "readonly" in str(context.original_exception):
                context.is_disconnect = True

        @event.listens_for(engine, "begin")
        def begin_transaction(connection: sqlalchemy.Connection) -> None:
            if write:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:  # runs at every read: executing it through SQLAlchemy costs more than SQLite does
                connection.connection.cursor().execute("BEGIN")

        return engine

    def explain_error(self, error: BaseException) -> str | None:
        """See `Backend.explain_error`."""
        return explain_error(error)

    async def run_blocking(self, work: Callable[[sqlalchemy.Connection], T]) -> T:
        """See `Backend.run_blocking`."""

        def read() -> T:
            with self._blocking.connect() as connection:
                connection.begin()
                return work(connection)

        return await anyio.to_thread.run_sync(read, limiter=self._threads)

    async def begin_write(self, connection: AsyncConnection) -> None:
        """Begin, waiting up to `busy_seconds` for the lock. Can be cancelled."""
        until = time.monotonic() + self._busy_seconds
        while True:
            try:
                await connection.begin()
            except OperationalError as error:
                if "locked" not in str(error.orig) or time.monotonic() > until:
                    raise
            else:
                return

    async def migrate(
        self,
        run: Callable[[sqlalchemy.Connection], None],
        *,
        beside_services: bool,  # noqa: ARG002 - a service has locked the file
    ) -> None:
        """See `Backend.migrate`. The caller holds the lock of the data directory.

        Foreign keys are off: altering a table in SQLite drops and recreates it, and the drop would
        cascade.
        """
        if self.file:
            create_private_directory(self.file.parent)
            create_private_file(self.file)
            restrict_database_files(self.file)
        engine = self._create_engine(pool_size=1, write=True, foreign_keys=False)
        try:
            await self._migrate_when_unlocked(engine, run)
        finally:
            await engine.dispose()

    async def _migrate_when_unlocked(
        self, engine: AsyncEngine, run: Callable[[sqlalchemy.Connection], None]
    ) -> None:
        """Wait like `begin_write`, and also to connect.

        While another process switches a new file to WAL mode, SQLite fails without waiting.
        """
        until = time.monotonic() + self._busy_seconds
        while True:
            try:
                async with engine.connect() as connection:
                    await connection.begin()
                    await connection.run_sync(run)
                    await connection.commit()
            except OperationalError as error:
                if "locked" not in str(error.orig) or time.monotonic() > until:
                    raise
                await anyio.sleep(LOCK_PAUSE_SECONDS)
            else:
                return

    async def check_pages(self) -> str | None:
        """Run `PRAGMA quick_check`, and return and report the first problem, if any.

        Reads the whole file in a thread with another connection. Can be cancelled.
        """
        if self.file is None:
            return None
        with ErrorTranslation(self.damage.report, explain_error):
            connection = sqlite3.connect(self.file, check_same_thread=False)
            try:
                result = await anyio.to_thread.run_sync(
                    run_quick_check, connection, abandon_on_cancel=True
                )
            except BaseException:
                with suppress(sqlite3.ProgrammingError):  # it is closed already
                    connection.interrupt()
                raise
        if result == "ok":
            return None
        self.damage.report(result)
        return result

    async def close(self) -> None:
        """See `Backend.close`."""
        await self.reader.dispose()
        await anyio.to_thread.run_sync(self._blocking.dispose)
        await self.writer.dispose()

    def _identify_file(self) -> tuple[int, int] | None:
        """Device and inode of the file, which change when it is replaced. None if it is missing."""
        try:
            status = self.file.stat() if self.file else None
        except OSError:
            return None
        return (status.st_dev, status.st_ino) if status else None
