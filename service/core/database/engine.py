"""The database: read sessions, blocking reads and write transactions.

Reads and writes have different types: a `Session` can also read; a `ReadSession` cannot write,
which the database enforces. A read sees one snapshot. No session may be held while waiting for a
client or a provider. Transactions do not overlap: those of the process use one connection, and
those of other processes wait. So a transaction may read before it writes, and `request_logs.seq`
has the order of commits.

Failure policy: driver errors that may disappear become `DatabaseUnavailable`. The writer retries;
all other callers respond with 503. Errors that are signs of damage are also remembered in
`Database.damage`, which readiness reports until the database is replaced. While PostgreSQL does not
respond (`health.py`), every access fails at once.

What depends on the kind of database is in `sqlite.py` and `postgres.py`, and in the expressions of
`constructs.py`; queries and statements are the same.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NewType, Protocol, TypeVar

import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service.core.database.failures import DamageLog, ErrorTranslation
from service.core.database.files import is_sqlite
from service.core.database.health import DatabaseHealth
from service.core.database.sqlite import READERS, SqliteBackend
from service.core.errors import DatabaseUnavailable, SettingsInvalid
from service.core.fair_share import FairTurns
from service.core.lazy import LazyModule
from service.core.settings import Settings

if TYPE_CHECKING:
    from service.core.database import migrations, postgres
else:
    migrations = LazyModule("service.core.database.migrations")
    postgres = LazyModule("service.core.database.postgres")

__all__ = ["READERS", "Database", "ReadSession", "Session", "open_database"]

ReadSession = NewType("ReadSession", AsyncConnection)
Session = NewType("Session", ReadSession)

_PACKAGE = Path(__file__).parents[2]
# A wheel contains the migrations inside the package; a checkout has them next to it.
MIGRATIONS = next(
    folder
    for folder in (_PACKAGE / "alembic", _PACKAGE.parent / "alembic")
    if (folder / "env.py").exists()
)

PING_SECONDS = 2.0

T = TypeVar("T")


class Backend(Protocol):
    """One kind of database.

    `migrations`: the folder of its revisions. `readers`: the number of connections of `reader`, and
    of blocking reads. `wait_seconds`: maximum wait for a connection.
    """

    dialect: str
    migrations: str
    readers: int
    wait_seconds: float
    file: Path | None
    damage: DamageLog
    writer: AsyncEngine
    reader: AsyncEngine

    def explain_error(self, error: BaseException) -> str | None:
        """Return the message of an error after which a retry may succeed; None for others."""
        ...

    async def run_blocking(self, work: Callable[[sqlalchemy.Connection], T]) -> T:
        """Run blocking reads on one snapshot in another thread."""
        ...

    async def begin_write(self, connection: AsyncConnection) -> None:
        """Begin a transaction of `writer`, which waits for the end of all others."""
        ...

    async def migrate(
        self, run: Callable[[sqlalchemy.Connection], None], *, beside_services: bool
    ) -> None:
        """Run migrations in one transaction that excludes those of other processes.

        `beside_services`: services that use the database do not notice them.
        """
        ...

    async def check_pages(self) -> str | None:
        """See `Database.check_pages`."""
        ...

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        ...


def open_database(settings: Settings) -> "Database":
    """The configured database."""
    return Database(
        settings.database,
        readers=settings.database_pool,
        statement_seconds=settings.database_seconds,
    )


class Database:
    """The connections to a database. They must be closed.

    `readers`: the number of reading connections to PostgreSQL; `statement_seconds`: the maximum
    duration of its statements.
    """

    def __init__(
        self, url: str, *, readers: int = READERS, statement_seconds: float = 30.0
    ) -> None:
        self._url = url
        self.health = DatabaseHealth()
        self._backend = _open_backend(url, readers, statement_seconds, self.health)
        self.dialect, self.file = self._backend.dialect, self._backend.file
        self._writer, self._reader = self._backend.writer, self._backend.reader
        # Connections are given to users in rotation; their pools are first come, first served.
        turns = partial(FairTurns, wait_seconds=self._backend.wait_seconds)
        self._reader_turns = turns(self._backend.readers)
        self._blocking_turns = turns(self._backend.readers)
        self._writer_turns = turns(1)
        self._fence: Callable[[Session], Awaitable[None]] | None = None
        self._ping: asyncio.Task[DatabaseUnavailable | None] | None = None

    @property
    def damage(self) -> str | None:
        """The first error that was a sign of damage in the current database, if any."""
        return self._backend.damage.first

    @property
    def damaged_rows(self) -> int:
        """The number of rows of the current database that could not be read, up to the limit."""
        return self._backend.damage.rows

    def report_damage(self, detail: str) -> None:
        """Remember a sign of damage in the current database."""
        self._backend.damage.report(detail)

    def translate_errors(self) -> ErrorTranslation:
        """A context manager that raises `DatabaseUnavailable` for operational errors."""
        return ErrorTranslation(self._backend.damage.report, self._backend.explain_error)

    async def check_pages(self) -> str | None:
        """Check the structure of the database's file; return and report the first problem, if any.

        PostgreSQL checks its pages when they are read. Raises `DatabaseUnavailable`.
        """
        return await self._backend.check_pages()

    @asynccontextmanager
    async def read_session(self) -> AsyncGenerator[ReadSession]:
        """A short read on one snapshot. Raises `DatabaseUnavailable`."""
        self.health.require_available()
        with self.translate_errors():
            async with self._reader_turns.turn(), self._reader.connect() as connection:
                yield ReadSession(connection)

    async def run_blocking_read(self, work: Callable[[sqlalchemy.Connection], T]) -> T:
        """Run blocking reads on one snapshot in another thread. Raises `DatabaseUnavailable`.

        With SQLite, a `read_session` switches threads several times per statement; this once.
        """
        self.health.require_available()
        with self.translate_errors():
            async with self._blocking_turns.turn():
                return await self._backend.run_blocking(work)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Session]:
        """A transaction: committed at the end of the block, rolled back if the block raises.

        Raises `DatabaseUnavailable`.
        """
        self.health.require_available()
        with self.translate_errors():
            async with self._writer_turns.turn(), self._writer.connect() as connection:
                await self._backend.begin_write(connection)
                session = Session(ReadSession(connection))
                if self._fence is not None:
                    await self._fence(session)
                yield session
                await connection.commit()

    def with_fence(self, fence: Callable[[Session], Awaitable[None]]) -> "Database":
        """The same database; each transaction begins with `fence`, which may raise."""
        fenced = copy(self)
        fenced._fence = fence  # noqa: SLF001 - of the same class
        return fenced

    async def migrate(self, revision: str = "head") -> None:
        """Migrate the schema to a revision in one transaction. Raises `DatabaseUnavailable`."""
        folder = MIGRATIONS / self._backend.migrations
        beside_services = self.dialect == "postgresql" and await self._is_compatible(revision)
        await self.run_migrations(
            lambda connection: migrations.run_migration(connection, MIGRATIONS, folder, revision),
            beside_services=beside_services,
        )

    async def run_migrations(
        self, run: Callable[[sqlalchemy.Connection], None], *, beside_services: bool = False
    ) -> None:
        """Run a function that changes the schema, in a transaction. Raises `DatabaseUnavailable`.

        It waits for those of other processes. `beside_services`: services may use the database.
        """
        with self.translate_errors():
            await self._backend.migrate(run, beside_services=beside_services)

    async def _is_compatible(self, revision: str) -> bool:
        """Whether services of the present schema can use that of `revision`, a later one."""
        present, _, _ = await self._read_schema()
        scripts = migrations.open_scripts(MIGRATIONS, MIGRATIONS / self._backend.migrations)
        return (
            present is not None
            and (revision == "head" or (revision.isdigit() and revision >= present))
            and migrations.find_oldest_compatible(scripts, revision) <= present
        )

    async def read_revision(self) -> tuple[str | None, str]:
        """The revision of the schema and the newest revision. Raises `DatabaseUnavailable`."""
        present, newest, _ = await self._read_schema()
        return present, newest

    async def _read_schema(self) -> tuple[str | None, str, bool]:
        """The revision of the schema, the newest one, and whether this version can use the first.

        A later schema states the oldest revision that it is compatible with
        (`migrations.mark_compatibility`).
        """
        files = (MIGRATIONS / self._backend.migrations).glob("[0-9]*_*.py")
        newest = max(file.name.partition("_")[0] for file in files)  # a test checks their order
        async with self.read_session() as session:
            present = await session.run_sync(_select_revision)
            oldest = None
            if present and present > newest and self.dialect == "postgresql":
                oldest = (await session.exec_driver_sql(_COMPATIBILITY)).scalar()
        is_usable = present == newest or (oldest is not None and oldest <= newest)
        return present, newest, is_usable

    async def is_current(self) -> bool:
        """Whether the database exists and this version can use its schema."""
        if self.file and not self.file.exists():
            return False
        try:
            _, _, is_usable = await self._read_schema()
        except DatabaseUnavailable:
            return False
        return is_usable

    async def require_current_schema(self) -> None:
        """Raise `SettingsInvalid` unless this version can use the schema."""
        if self.file and not self.file.exists():
            raise SettingsInvalid(f"{self.file} does not exist: run `kotae migrate`")
        present, newest, is_usable = await self._read_schema()
        if not is_usable:
            is_later = present is not None and present > newest
            raise SettingsInvalid(
                f"the database is at revision {present or 'none'}, this version needs {newest}: "
                + ("install a newer version" if is_later else "run `kotae migrate`")
            )

    async def ping(self, seconds_max: float = PING_SECONDS) -> None:
        """Read one row within the time. Raises `DatabaseUnavailable`.

        A read of SQLite on a disk that hangs cannot be cancelled: later calls wait for it too.
        """
        if self._ping is None or self._ping.done():
            self._ping = asyncio.create_task(self._try_read_row(), name="ping")
        done, _ = await asyncio.wait({self._ping}, timeout=seconds_max)
        if not done:
            raise DatabaseUnavailable(f"no response within {seconds_max:g} s")
        if error := self._ping.result():
            raise error

    async def _try_read_row(self) -> DatabaseUnavailable | None:
        try:
            async with self.read_session() as session:
                await session.execute(sqlalchemy.text("SELECT 1 FROM alembic_version"))
        except DatabaseUnavailable as error:
            return error
        return None

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        if self._ping is not None:
            self._ping.cancel()
            with suppress(asyncio.CancelledError):
                await self._ping
        await self._backend.close()


def _open_backend(
    url: str, readers: int, statement_seconds: float, health: DatabaseHealth
) -> Backend:
    if is_sqlite(url):
        return SqliteBackend(url)
    try:
        return postgres.PostgresBackend(url, readers, statement_seconds, health)
    except ImportError as error:
        raise SettingsInvalid(
            "KOTAE_DATABASE_URL=postgresql://… needs a driver: pip install 'kotae[postgres]'"
        ) from error


_COMPATIBILITY = "SELECT obj_description('alembic_version'::regclass, 'pg_class')"


def _select_revision(connection: sqlalchemy.Connection) -> str | None:
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.exec_driver_sql(
        "SELECT version_num FROM alembic_version"
    ).scalar()
    return revision
