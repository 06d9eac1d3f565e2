"""A locked, read-only or deleted database, and a failing writer: answers continue and get rows."""

import asyncio
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import pytest

from service.core.database.engine import Database, Session
from service.core.errors import DatabaseUnavailable
from service.core.records import Outcome
from service.core.settings import Settings
from tests.conftest import Serve, Service, running
from tests.fakes.provider import Behaviour, ProviderFake
from tests.faults.oracle import check, read_log
from tests.faults.scene import (
    Callers,
    get_readiness,
    make_read_only,
    settings_for,
    stop_service,
    wait_drained,
    wait_status,
    wait_until,
)
from tests.process import serving

pytestmark = pytest.mark.slow


async def test_a_locked_database_stops_no_answer(tmp_path: Path, fake: ProviderFake) -> None:
    """While the database is locked, answers are neither refused nor slower, and all rows follow."""
    fake.default = Behaviour(chunks=4, gap=0.002)
    async with serving(
        tmp_path,
        **settings_for(
            fake, KOTAE_DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/kotae.db?timeout=0.2"
        ),
    ) as service:
        callers = Callers(service.client)
        await callers.ask_many(20)
        before = await callers.ask_many(100)
        await wait_drained(service)
        lock = sqlite3.connect(tmp_path / "kotae.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        during = await callers.ask_many(200)
        await wait_status(service, "degraded")
        waiting = (await get_readiness(service))["queue"]["waiting"]
        lock.execute("ROLLBACK")
        lock.close()
        await wait_drained(service)
        await wait_status(service, "ready")
        await stop_service(service, fake)

    assert callers.refused == []
    assert waiting == 200
    assert median(during) < median(before) * 2 + 0.02
    assert len(check(tmp_path, fake.calls, callers.acknowledged)) == 320


def service_settings(fake: ProviderFake, data_dir: Path) -> dict[str, Any]:
    """Settings of a service in this process with a short database lock timeout."""
    return {
        "openai_base_url": fake.base_url,
        "openai_api_key": "sk-test",
        "model": "fake-model",
        "data_dir": data_dir,
        "database_url": f"sqlite+aiosqlite:///{data_dir}/kotae.db?timeout=0.1",
    }


async def get_health(service: Service) -> str:
    """Return the readiness report."""
    return str((await service.client.get("/health/ready")).json()["status"])


async def send_prompts(service: Service, count: int) -> Callers:
    """Send this number of prompts; none is refused."""
    callers = Callers(service.client)
    await callers.ask_many(count)
    assert callers.refused == []
    return callers


def list_quarantined(data_dir: Path) -> list[str]:
    """Return the prompts of the quarantined records."""
    return [
        msgspec.json.decode(file.read_bytes(), type=Outcome).intent.prompt
        for file in (data_dir / "quarantine").glob("*")
    ]


async def has_status(service: Service, status: str) -> bool:
    """True if health reports this status."""
    return await get_health(service) == status


async def is_recovered(service: Service) -> bool:
    """True if recovery is done."""
    return bool((await service.client.get("/health/ready")).json()["recovery"]["state"] == "done")


async def test_a_read_only_database_stops_no_answer(
    migrated: Path, tmp_path: Path, fake: ProviderFake
) -> None:
    """Answers continue, health is degraded, and the next start writes the rows."""
    shutil.copy(migrated, tmp_path / "kotae.db")
    settings = Settings(
        **service_settings(fake, tmp_path),
        port=0,
        journal_spool=str(tmp_path / "spool"),
        log_level="error",
    )
    with make_read_only(tmp_path / "kotae.db"):
        async with running(settings, seeded=False) as service:
            callers = await send_prompts(service, 20)
            await wait_until(lambda: has_status(service, "degraded"))
        assert read_log(tmp_path) == []

    async with running(settings, seeded=False) as service:
        await wait_until(lambda: is_recovered(service))

    assert len(check(tmp_path, fake.calls, callers.acknowledged)) == 20


async def test_a_database_that_becomes_writable_is_written(
    migrated: Path, tmp_path: Path, fake: ProviderFake
) -> None:
    """A file that was read-only for some time receives its rows without a restart."""
    shutil.copy(migrated, tmp_path / "kotae.db")
    settings = Settings(
        **service_settings(fake, tmp_path),
        port=0,
        journal_spool=str(tmp_path / "spool"),
        log_level="error",
    )
    with make_read_only(tmp_path / "kotae.db"):
        async with running(settings, seeded=False) as service:
            await send_prompts(service, 20)
            await wait_until(lambda: has_status(service, "degraded"))
            subprocess.run(["mount", "-o", "remount,rw,bind", tmp_path / "kotae.db"], check=True)
            await wait_until(lambda: has_status(service, "ready"), 4)


async def test_a_deleted_database_is_detected(tmp_path: Path, fake: ProviderFake) -> None:
    """Rows are not written to a deleted file: the next start writes them."""
    async with serving(tmp_path, **settings_for(fake)) as service:
        await Callers(service.client).ask()
        await wait_drained(service)
        for file in tmp_path.glob("kotae.db*"):
            file.unlink()
        callers = Callers(service.client, "later")
        await callers.ask_many(20)
        await stop_service(service, fake)
    async with serving(tmp_path, "--migrate", **settings_for(fake)) as service:
        await wait_drained(service)
        await stop_service(service, fake)

    assert set(callers.acknowledged) <= {row["prompt"] for row in read_log(tmp_path)}


class Faulty:
    """Replaces `Database.transaction` while `fault` has items."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tries = 0
        self.fault: Callable[[int], Awaitable[None]] | None = None
        whole = Database.transaction

        @asynccontextmanager
        async def transaction(database: Database) -> AsyncGenerator[Session]:
            self.tries += 1
            if self.fault:
                await self.fault(self.tries)
            async with whole(database) as session:
                yield session

        monkeypatch.setattr(Database, "transaction", transaction)


@pytest.mark.parametrize(
    "error",
    [
        DatabaseUnavailable("away"),
        RuntimeError("can't start new thread"),
        OSError(24, "Too many open files"),
    ],
)
async def test_a_writer_that_fails_once(
    serve: Serve,
    fake: ProviderFake,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Exception,
) -> None:
    """One failure, of the database or other code, quarantines no record and loses none."""
    faulty = Faulty(monkeypatch)

    async def once(tries: int) -> None:
        if tries == 1:
            raise error

    faulty.fault = once
    service = await serve(**service_settings(fake, tmp_path / "data"))
    callers = await send_prompts(service, 1)
    await service.wait_idle()

    data_dir = service.services.settings.data_dir
    assert len(check(data_dir, fake.calls, callers.acknowledged)) == 1
    assert list_quarantined(data_dir) == []
    assert await get_health(service) == "ready"


async def test_a_writer_without_a_database(
    serve: Serve, fake: ProviderFake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Answers continue without the database, health is degraded, and all rows follow."""
    faulty = Faulty(monkeypatch)

    async def always(_: int) -> None:
        raise DatabaseUnavailable("away")

    faulty.fault = always
    service = await serve(**service_settings(fake, tmp_path / "data"))
    callers = await send_prompts(service, 30)
    await wait_until(lambda: has_status(service, "degraded"))
    faulty.fault = None
    await service.wait_idle()

    assert len(check(service.services.settings.data_dir, fake.calls, callers.acknowledged)) == 30
    assert await get_health(service) == "ready"


async def test_a_writer_with_a_permanent_error(
    serve: Serve, fake: ProviderFake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Records that cannot be written are quarantined whole; later answers have rows."""
    faulty = Faulty(monkeypatch)

    async def always(_: int) -> None:
        raise RuntimeError("broken")

    faulty.fault = always
    service = await serve(**service_settings(fake, tmp_path / "data"))
    aside = await send_prompts(service, 4)
    await service.wait_idle()
    faulty.fault = None
    before = len(fake.calls)
    callers = Callers(service.client, "later")
    await callers.ask_many(4)
    await service.wait_idle()

    data_dir = service.services.settings.data_dir
    assert sorted(list_quarantined(data_dir)) == sorted(aside.acknowledged)
    assert len(check(data_dir, fake.calls[before:], callers.acknowledged)) == 4
    assert await get_health(service) == "degraded"


async def test_a_writer_that_hangs(
    serve: Serve, fake: ProviderFake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A transaction that hangs stops no answer; when it continues, all rows follow."""
    faulty, goes_on = Faulty(monkeypatch), asyncio.Event()

    async def hang(_: int) -> None:
        await goes_on.wait()

    faulty.fault = hang
    service = await serve(**service_settings(fake, tmp_path / "data"))
    callers = await send_prompts(service, 30)
    goes_on.set()
    await service.wait_idle()

    assert len(check(service.services.settings.data_dir, fake.calls, callers.acknowledged)) == 30
    assert await get_health(service) == "ready"
