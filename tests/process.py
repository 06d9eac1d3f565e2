"""The service in a separate process, for tests that end it."""

import asyncio
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.conftest import SECRET_KEY, http_client
from tests.schema import migrated_database


class ServiceProcess:
    """A running `kotae serve`. `start_seconds`: duration of its start, a measure of the machine."""

    def __init__(self, process: Process, url: str, start_seconds: float) -> None:
        self.process = process
        self.url = url
        self.start_seconds = start_seconds
        self.client = http_client(url, timeout=30, limits=httpx2.Limits(max_connections=None))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def wait(self, seconds: float = 20) -> int:
        """Wait for the end and return the exit status."""
        async with asyncio.timeout(seconds):
            return await self.process.wait()


def environment(data_dir: Path, **settings: Any) -> dict[str, str]:
    """Return the environment of a service: these settings and none of this machine."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KOTAE_", "OPENAI_"))
    }
    return (
        inherited
        | {
            "KOTAE_DATA_DIR": str(data_dir),
            "KOTAE_LOG_LEVEL": "warning",
            "KOTAE_JOURNAL_SPOOL": f"{data_dir}/spool",
            "KOTAE_SECRET_KEY": SECRET_KEY,  # required with PostgreSQL
        }
        | {name: str(value) for name, value in settings.items()}
    )


async def kotae(*arguments: str, data_dir: Path, **settings: Any) -> tuple[int, str, str]:
    """Run one command to its end; return (exit status, standard output, standard error)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service",
        *arguments,
        cwd=data_dir,
        env=environment(data_dir, **settings),
        stdout=PIPE,
        stderr=PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def migrate(data_dir: Path) -> None:
    """Copy a migrated database into the folder, unless it has one: Alembic needs half a second."""
    if not (data_dir / "kotae.db").exists():
        shutil.copy(await asyncio.to_thread(migrated_database), data_dir / "kotae.db")


@asynccontextmanager
async def serving(
    data_dir: Path, *arguments: str, **settings: Any
) -> AsyncGenerator[ServiceProcess, None]:
    """Start `kotae serve` on a free port, with a migrated database, and wait until it listens."""
    if "--migrate" not in arguments:
        await migrate(data_dir)
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", "serve", "--port", "0", *arguments,
        cwd=data_dir, env=environment(data_dir, **settings), stdout=PIPE,
    )  # fmt: skip
    assert process.stdout
    url = ""
    async with asyncio.timeout(60):
        while not url:
            line = (await process.stdout.readline()).decode()
            assert line, "the service ended instead of starting"
            url = line.strip().rstrip("/") if line.strip().startswith("http://") else ""
    service = ServiceProcess(process, url, time.monotonic() - began)
    try:
        yield service
    finally:
        await service.client.aclose()
        if process.returncode is None:
            process.kill()
        await process.communicate()
