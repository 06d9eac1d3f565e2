"""The database engine: read sessions, blocking reads and write transactions on SQLite.

Reads and writes have different types: a `Session` can also read; a `ReadSession` cannot write,
which SQLite enforces (`query_only`). All writes of the process use one connection and start with
`BEGIN IMMEDIATE`, for two reasons: a transaction that reads before it writes would otherwise fail
immediately with SQLITE_BUSY_SNAPSHOT regardless of the busy timeout, and the WAL-reset race of
SQLite before 3.51.3 requires two connections that write and checkpoint concurrently. In WAL mode
the writer never blocks readers. No session may be held while waiting for a client or a provider.

Failure policy: driver errors that are not programming errors become `DatabaseUnavailable`. The
writer retries; all other callers respond with 503. Errors that are signs of a damaged file are also
remembered in `Database.damage`, which readiness reports until the file is replaced.
"""

import sqlite3
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NewType, TypeVar

import anyio
import anyio.to_thread
import sqlalchemy
from sqlalchemy import create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from service.core.database.damaged_rows import REPORT
from service.core.database.failures import ErrorTranslation, load_json, run_quick_check
from service.core.database.files import (
    create_private_directory,
    create_private_file,
    find_database_file,
    restrict_database_files,
)
from service.core.errors import DatabaseUnavailable, SettingsInvalid
from service.core.fair_share import FairTurns
from service.core.lazy import LazyModule
from service.core.telemetry import log

if TYPE_CHECKING:
    from service.core.database import migrations
else:
    migrations = LazyModule("service.core.database.migrations")

ReadSession = NewType("ReadSession", AsyncConnection)
Session = NewType("Session", ReadSession)

# Maximum wait of one BEGIN for the lock. It cannot be cancelled, so a longer wait repeats it.
LOCK_SECONDS = 0.5
LOCK_PAUSE_SECONDS = 0.02
_PACKAGE = Path(__file__).parents[2]
# A wheel contains the migrations inside the package; a checkout has them next to it.
MIGRATIONS = next(
    folder
    for folder in (_PACKAGE / "alembic", _PACKAGE.parent / "alembic")
    if (folder / "env.py").exists()
)
# Maximum wait of a statement for a locked database; `?timeout=` in the URL overrides it.
BUSY_SECONDS = 5.0
READERS = 4  # connections, each with its own thread; there are two such pools
# The page cache of each connection. In total at most 80 MiB, which fill while the database grows.
CACHE_KIB, READER_CACHE_KIB = 16_384, 8_192
DAMAGED_ROWS_MAX = 1_000  # counted and logged

T = TypeVar("T")


def _read_timeout(url: str) -> float:
    value = make_url(url).query.get("timeout", BUSY_SECONDS)
    try:
        return float(value)  # type: ignore[arg-type]  # a repeated parameter is a tuple: a TypeError
    except (TypeError, ValueError) as error:
        raise SettingsInvalid(
            f"KOTAE_DATABASE_URL: timeout={value} is not a number of seconds"
        ) from error


class Database:
    """The connections to a database. Unless closed, their threads keep the process alive."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._busy_seconds = _read_timeout(url)
        self.file = find_database_file(url)
        self._writer = self._create_engine(pool_size=1, write=True)
        self._reader = self._create_engine(pool_size=READERS, write=False)
        self._blocking = self._configure_engine(
            create_engine(
                make_url(url).set(drivername="sqlite"),
                json_deserializer=load_json,
                poolclass=QueuePool,
                **self._pool_options(READERS),
            )
        )
        self._threads = anyio.CapacityLimiter(READERS)
        # Connections are given to users in rotation; their pools are first come, first served.
        seconds = self._busy_seconds * 2
        self._reader_turns = FairTurns(READERS, wait_seconds=seconds)
        self._blocking_turns = FairTurns(READERS, wait_seconds=seconds)
        self._writer_turns = FairTurns(1, wait_seconds=seconds)
        self._damage: tuple[tuple[int, int] | None, str] | None = None  # the file and the error
        self._damaged_rows: set[tuple[str, str]] = set()  # of that file: table and key

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
            "pool_timeout": self._busy_seconds * 2,
            "connect_args": {"timeout": timeout},
        }

    def _configure_engine(
        self, engine: sqlalchemy.Engine, *, write: bool = False, foreign_keys: bool = True
    ) -> sqlalchemy.Engine:
        @event.listens_for(engine, "connect")
        def configure_connection(connection: Any, entry: ConnectionPoolEntry) -> None:
            entry.info["file"] = self._identify_file()
            entry.info[REPORT] = self._report_damaged_row
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

    @property
    def damage(self) -> str | None:
        """The first error that was a sign of damage in the current file, if any."""
        if self._damage is None or self._damage[0] != self._identify_file():
            return None
        return self._damage[1]

    @property
    def damaged_rows(self) -> int:
        """The number of rows of the current file that could not be read, up to the limit."""
        return len(self._damaged_rows) if self.damage else 0

    def report_damage(self, detail: str) -> None:
        """Remember a sign of damage in the current file, such as a value that cannot be decoded."""
        if self.damage is None:
            self._damage = (self._identify_file(), detail)
            self._damaged_rows.clear()
            remedy = "run `kotae doctor`; if the damage is confirmed, restore a backup"
            log.error("database.damaged", error=detail, remedy=remedy)

    def _report_damaged_row(self, table: str, key: str, detail: str) -> None:
        """Remember a row that could not be read; its key is logged once."""
        self.report_damage(detail)
        if (table, key) not in self._damaged_rows and len(self._damaged_rows) < DAMAGED_ROWS_MAX:
            self._damaged_rows.add((table, key))
            log.error("row.damaged", table=table, key=key, error=detail)

    async def check_pages(self) -> str | None:
        """Run `PRAGMA quick_check`, and return and report the first problem, if any.

        Reads the whole file in a thread with another connection. Can be cancelled.
        """
        if self.file is None:
            return None
        with ErrorTranslation(self.report_damage):
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
        self.report_damage(result)
        return result

    @asynccontextmanager
    async def read_session(self) -> AsyncGenerator[ReadSession]:
        """A short read on one snapshot. Raises `DatabaseUnavailable`."""
        with ErrorTranslation(self.report_damage):
            async with self._reader_turns.turn(), self._reader.connect() as connection:
                yield ReadSession(connection)

    async def run_blocking_read(self, work: Callable[[sqlalchemy.Connection], T]) -> T:
        """Run blocking reads on one snapshot in a worker thread. Raises `DatabaseUnavailable`.

        A `read_session` switches threads several times per statement; this switches once.
        """

        def read() -> T:
            with self._blocking.connect() as connection:
                connection.begin()
                return work(connection)

        with ErrorTranslation(self.report_damage):
            async with self._blocking_turns.turn():
                return await anyio.to_thread.run_sync(read, limiter=self._threads)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Session]:
        """A transaction: committed at the end of the block, rolled back if the block raises.

        Raises `DatabaseUnavailable`.
        """
        with ErrorTranslation(self.report_damage):
            async with self._writer_turns.turn(), self._writer.connect() as connection:
                await self._begin_write(connection)
                yield Session(ReadSession(connection))
                await connection.commit()

    async def _begin_write(self, connection: AsyncConnection) -> None:
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

    async def migrate(self, revision: str = "head") -> None:
        """Migrate the schema to a revision in one transaction. Raises `DatabaseUnavailable`.

        Foreign keys are off: altering a table in SQLite drops and recreates it, and the drop would
        cascade.
        """
        if self.file:
            create_private_directory(self.file.parent)
            create_private_file(self.file)
            restrict_database_files(self.file)
        engine = self._create_engine(pool_size=1, write=True, foreign_keys=False)
        try:
            with ErrorTranslation(self.report_damage):
                await self._migrate_when_unlocked(engine, revision)
        finally:
            await engine.dispose()

    async def _migrate_when_unlocked(self, engine: AsyncEngine, revision: str) -> None:
        """Wait like `_begin_write`, and also to connect.

        While another process switches a new file to WAL mode, SQLite fails without waiting.
        """
        until = time.monotonic() + self._busy_seconds
        while True:
            try:
                async with engine.connect() as connection:
                    await connection.begin()
                    await connection.run_sync(migrations.run_migration, MIGRATIONS, revision)
                    await connection.commit()
            except OperationalError as error:
                if "locked" not in str(error.orig) or time.monotonic() > until:
                    raise
                await anyio.sleep(LOCK_PAUSE_SECONDS)
            else:
                return

    async def read_revision(self) -> tuple[str | None, str]:
        """The revision of the schema and the newest revision. Raises `DatabaseUnavailable`."""
        files = (MIGRATIONS / "versions").glob("[0-9]*_*.py")
        newest = max(file.name.partition("_")[0] for file in files)  # a test checks their order
        async with self.read_session() as session:
            return await session.run_sync(_select_revision), newest

    async def is_current(self) -> bool:
        """Whether the database exists and has the newest revision."""
        if self.file and not self.file.exists():
            return False
        try:
            revision, newest = await self.read_revision()
        except DatabaseUnavailable:
            return False
        return revision == newest

    async def require_current_schema(self) -> None:
        """Raise `SettingsInvalid` unless the schema has the revision that this version needs."""
        if self.file and not self.file.exists():
            raise SettingsInvalid(f"{self.file} does not exist: run `kotae migrate`")
        revision, newest = await self.read_revision()
        if revision != newest:
            raise SettingsInvalid(
                f"the database is at revision {revision or 'none'}, this version needs {newest}: "
                "run `kotae migrate`"
            )

    async def ping(self) -> None:
        """Read one row. Raises `DatabaseUnavailable`."""
        async with self.read_session() as session:
            await session.execute(sqlalchemy.text("SELECT 1 FROM alembic_version"))

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        await self._reader.dispose()
        await anyio.to_thread.run_sync(self._blocking.dispose)
        await self._writer.dispose()

    def _identify_file(self) -> tuple[int, int] | None:
        """Device and inode of the file, which change when it is replaced. None if it is missing."""
        try:
            status = self.file.stat() if self.file else None
        except OSError:
            return None
        return (status.st_dev, status.st_ino) if status else None


def _select_revision(connection: sqlalchemy.Connection) -> str | None:
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.exec_driver_sql(
        "SELECT version_num FROM alembic_version"
    ).scalar()
    return revision
