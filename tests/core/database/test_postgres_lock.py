"""The lock of the service in PostgreSQL."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.core.database.engine import Database
from service.core.database.postgres_lock import ServiceLock, detect_pooler
from service.core.errors import DatabaseUnavailable, SettingsInvalid
from tests.postgres import PostgresServer, temporary_database
from tests.proxies import find_free_port, require

pytestmark = pytest.mark.slow
END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of a database."""
    async with temporary_database(postgres) as database:
        yield database._url


async def cut_connections(url: str) -> None:
    """End all sessions of the database."""
    database = Database(url)
    async with database.transaction() as session:
        await session.exec_driver_sql(END_SESSIONS)
    await database.close()


async def test_a_second_service_names_the_first(url: str) -> None:
    """One process serves a database; the message has the first one's process and address."""
    first, second = ServiceLock(url, "http://127.0.0.1:8000"), ServiceLock(url)
    await first.acquire()
    with pytest.raises(SettingsInvalid, match=r"kotae serve.*pid \d+.*http://127.0.0.1:8000"):
        await second.acquire()
    await first.close()

    await second.acquire()
    await second.close()


async def test_a_served_database_is_migrated_if_services_do_not_notice(url: str) -> None:
    """Other migrations are refused while a service holds the lock."""
    lock, database = ServiceLock(url), Database(url)
    await lock.acquire()
    await database.migrate()  # to the present revision
    with pytest.raises(SettingsInvalid, match="used by a service"):
        await database.migrate("base")
    with pytest.raises(SettingsInvalid, match="used by a service"):
        await database.run_migrations(lambda _: None)
    await database.run_migrations(lambda _: None, beside_services=True)
    await lock.close()

    await database.migrate("base")
    await database.close()


async def test_a_lost_lock_is_acquired_again(url: str) -> None:
    """After its connection was cut, one check fails, and the next one has the lock again."""
    lock = ServiceLock(url)
    await lock.acquire()
    await cut_connections(url)
    with pytest.raises(DatabaseUnavailable):
        await lock.keep()

    await lock.keep()

    with pytest.raises(SettingsInvalid):
        await ServiceLock(url).acquire()
    await lock.close()


async def test_a_lost_lock_may_belong_to_another_process(url: str) -> None:
    """A process whose lock another one has acquired meanwhile is told so."""
    lock, other = ServiceLock(url), ServiceLock(url)
    await lock.acquire()
    await cut_connections(url)
    await other.acquire()
    with pytest.raises(DatabaseUnavailable):
        await lock.keep()

    with pytest.raises(SettingsInvalid, match="is used by"):
        await lock.keep()
    await other.close()


async def test_a_server_that_is_away_is_unavailable(tmp_path: Path) -> None:
    """The lock of a server that does not respond cannot be acquired."""
    with pytest.raises(DatabaseUnavailable):
        await ServiceLock(f"postgresql://kotae@/kotae?host={tmp_path}").acquire()


@contextmanager
def running_pooler(folder: Path, server: PostgresServer, mode: str) -> Iterator[str]:
    """Run PgBouncer in front of a server, and yield the URL of its database `postgres`."""
    program, port = require("pgbouncer", "pgbouncer"), find_free_port()
    (folder / "users.txt").write_text('"kotae" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"""[databases]
* = host={server.folder} user=kotae
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
"""
    )
    folder.chmod(0o755)
    for parent in folder.parents:
        if parent.owner() == "root" and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    user = "nobody" if Path.home() == Path("/root") else None
    process = subprocess.Popen(
        [program, str(folder / "pgbouncer.ini")],
        stderr=subprocess.DEVNULL,
        user=user,
        group="nogroup" if user else None,
    )
    try:
        yield f"postgresql://kotae@127.0.0.1:{port}/postgres"
    finally:
        process.kill()
        process.wait()


async def wait_open(url: str) -> None:
    """Wait until a server accepts connections."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return


async def test_a_pooler_of_transactions_is_refused(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """PgBouncer in transaction mode does not keep sessions; in session mode it does."""
    with running_pooler(tmp_path, postgres, "transaction") as url:
        await wait_open(url)
        with pytest.raises(SettingsInvalid, match="pool_mode=session"):
            await ServiceLock(url).acquire()
    with running_pooler(tmp_path, postgres, "session") as url:
        await wait_open(url)
        await detect_pooler(url)
