"""The database: two engines, two kinds of session, one way to commit.

Reads and writes have different types: a `Session` may also read, a `ReadSession` cannot write, and SQLite itself
refuses it (`query_only`). All writes of the process go through one connection, begun with `BEGIN IMMEDIATE`: a
transaction that reads first and writes later would otherwise fail at once with SQLITE_BUSY_SNAPSHOT, whatever the busy
timeout, and two connections that write and checkpoint at once are what the WAL-reset race of SQLite before 3.51.3
needs. Readers are never blocked by the writer (WAL). Nothing may hold a session while it waits for a client or a
provider.

The only file that knows which database it is. Failure policy: every error of the driver that is not a mistake of ours
becomes `DatabaseUnavailable`; callers decide whether to retry (the writer) or to say 503 (everyone else).
"""

import sqlite3
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NewType, TypeVar

import anyio
import anyio.to_thread
import sqlalchemy
from sqlalchemy import create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from service.core.errors import DatabaseUnavailable, SettingsInvalid
from service.core.lazy import LazyModule

if TYPE_CHECKING:
    from service.core.database import migrations
else:
    migrations = LazyModule("service.core.database.migrations")

ReadSession = NewType("ReadSession", AsyncConnection)
Session = NewType("Session", ReadSession)

LOCK_SECONDS = 0.5  # longest wait of one BEGIN for the lock: it cannot be interrupted, so a long wait is many of them
LOCK_PAUSE_SECONDS = 0.02
_PACKAGE = Path(__file__).parents[2]
# Inside a wheel the migrations are part of the package; in a checkout they are beside it.
MIGRATIONS = next(
    folder
    for folder in (_PACKAGE / "alembic", _PACKAGE.parent / "alembic")
    if (folder / "env.py").exists()
)
BUSY_SECONDS = (
    5.0  # longest wait of a statement for a locked database; `?timeout=` in the URL overrides it
)
READERS = 4  # connections, each with a thread of its own

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
    """The engines. `open()` before use, `close()` after: an unclosed aiosqlite thread would keep the process alive."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._busy_seconds = _read_timeout(url)
        name = make_url(url).database
        self.file = Path(name) if name and name != ":memory:" else None
        self._writer = self._engine(pool_size=1, write=True)
        self._reader = self._engine(pool_size=READERS, write=False)
        self._blocking = self._prepared(
            create_engine(
                make_url(url).set(drivername="sqlite"), poolclass=QueuePool, **self._pool(READERS)
            )
        )
        self._threads = anyio.CapacityLimiter(READERS)

    def _engine(self, *, pool_size: int, write: bool, foreign_keys: bool = True) -> AsyncEngine:
        engine = create_async_engine(self._url, **self._pool(pool_size, write=write))
        self._prepared(engine.sync_engine, write=write, foreign_keys=foreign_keys)
        return engine

    def _pool(self, size: int, *, write: bool = False) -> dict[str, Any]:
        timeout = min(self._busy_seconds, LOCK_SECONDS) if write else self._busy_seconds
        return {
            "pool_size": size,
            "max_overflow": 0,
            "pool_timeout": self._busy_seconds * 2,
            "connect_args": {"timeout": timeout},
        }

    def _prepared(
        self, engine: sqlalchemy.Engine, *, write: bool = False, foreign_keys: bool = True
    ) -> sqlalchemy.Engine:
        @event.listens_for(engine, "connect")
        def _prepare(connection: Any, entry: ConnectionPoolEntry) -> None:
            entry.info["file"] = self._identity()
            connection.isolation_level = None  # we say BEGIN ourselves, below
            cursor = connection.cursor()
            for pragma in (
                "journal_mode=WAL",
                # A commit is on the disk when it returns: the journal lets go of its records then. The writer batches.
                "synchronous=FULL",
                f"foreign_keys={'ON' if foreign_keys else 'OFF'}",
                "cache_size=-16384",
                *(() if write else ("query_only=ON", "wal_autocheckpoint=0")),
            ):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        @event.listens_for(engine, "checkout")
        def _require_file(_connection: Any, entry: ConnectionPoolEntry, _proxy: Any) -> None:
            if (
                entry.info["file"] != self._identity()
            ):  # deleted, or replaced by a backup: nobody would read what we wrote
                raise sqlalchemy.exc.DisconnectionError("another file has the database's name")

        @event.listens_for(engine, "handle_error")
        def _give_up(context: sqlalchemy.ExceptionContext) -> None:
            if "readonly" in str(context.original_exception):  # a connection opened so stays so
                context.is_disconnect = True

        @event.listens_for(engine, "begin")
        def _begin(connection: sqlalchemy.Connection) -> None:
            if write:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:  # which never fails, and is asked for at every read: SQLAlchemy's part of it would be the larger one
                connection.connection.cursor().execute("BEGIN")

        return engine

    @asynccontextmanager
    async def read_session(self) -> AsyncGenerator[ReadSession]:
        """A short read on one snapshot. Raises `DatabaseUnavailable`."""
        with _translated():
            async with self._reader.connect() as connection:
                yield ReadSession(connection)

    async def run_blocking_read(self, work: Callable[[sqlalchemy.Connection], T]) -> T:
        """Do blocking reads on one snapshot, in a thread: of a statement of `reading` each step is a hop to another and back.

        Raises `DatabaseUnavailable`.
        """

        def read() -> T:
            with self._blocking.connect() as connection:
                connection.begin()
                return work(connection)

        with _translated():
            return await anyio.to_thread.run_sync(read, limiter=self._threads)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Session]:
        """One transaction: committed at the end of the block, rolled back if it raises. Raises `DatabaseUnavailable`."""
        with _translated():
            async with self._writer.connect() as connection:
                await self._begin(connection)
                yield Session(ReadSession(connection))
                await connection.commit()

    async def _begin(self, connection: AsyncConnection) -> None:
        """Begin, waiting for the lock as long as we may. Can be cancelled."""
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
        """Bring the schema to a revision, whole or not at all. Raises `DatabaseUnavailable`.

        Foreign keys are off meanwhile: altering a table in SQLite drops and makes it anew, and the drop would cascade.
        """
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        engine = self._engine(pool_size=1, write=True, foreign_keys=False)
        try:
            with _translated():
                await self._migrate_when_free(engine, revision)
        finally:
            await engine.dispose()

    async def _migrate_when_free(self, engine: AsyncEngine, revision: str) -> None:
        """Waits as `_begin` does, and to connect: while another process makes a new file a WAL one, SQLite refuses at once."""
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
        """(the schema's revision, the newest one). Raises `DatabaseUnavailable`."""
        newest = max(
            file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*_*.py")
        )  # a test holds them to be in order
        async with self.read_session() as session:
            return await session.run_sync(_revision), newest

    async def require_current_schema(self) -> None:
        """Raises `SettingsInvalid` if the schema is not the one that this version needs."""
        found, newest = await self.read_revision()
        if found != newest:
            raise SettingsInvalid(
                f"the database is at revision {found or 'none'}, this version needs {newest}: run `kotae migrate`"
            )

    async def ping(self) -> None:
        """Read something. Raises `DatabaseUnavailable`."""
        async with self.read_session() as session:
            await session.execute(sqlalchemy.text("SELECT 1 FROM alembic_version"))

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        await self._reader.dispose()
        await anyio.to_thread.run_sync(self._blocking.dispose)
        await self._writer.dispose()

    def _identity(self) -> tuple[int, int] | None:
        """What tells the file from another of its name."""
        try:
            status = self.file.stat() if self.file else None
        except OSError:
            return None
        return (status.st_dev, status.st_ino) if status else None


def _revision(connection: sqlalchemy.Connection) -> str | None:
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.exec_driver_sql(
        "SELECT version_num FROM alembic_version"
    ).scalar()
    return found


class _translated:  # noqa: N801 - reads as a word in a with statement
    """Turns the driver's operating errors into ours; mistakes in SQL or data stay what they are."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, PoolTimeout):
            raise DatabaseUnavailable("every connection to the database is in use") from error
        if isinstance(error, DBAPIError) and not isinstance(
            error, IntegrityError | ProgrammingError
        ):
            raise DatabaseUnavailable(f"the database says: {error.orig}") from error
        # Of a search, which asks the driver itself.
        if isinstance(error, sqlite3.Error) and not isinstance(
            error, sqlite3.IntegrityError | sqlite3.ProgrammingError
        ):
            raise DatabaseUnavailable(f"the database says: {error}") from error
