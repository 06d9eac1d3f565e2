"""The check of the database after the start, and readiness with a damaged database."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from service.core.database.engine import Database
from service.workers.integrity import IntegrityChecker, IntegrityState
from tests.command import run
from tests.conftest import Serve
from tests.process import migrate
from tests.rows import away


async def test_an_intact_database(database: Database) -> None:
    """The check ends with the state `intact`."""
    checker = IntegrityChecker(database)
    checker.start()
    await checker.wait_done()
    statistics = checker.statistics()
    await checker.stop()

    assert (statistics.state, statistics.damage) == (IntegrityState.INTACT, None)
    assert not checker.degraded()


async def test_a_database_that_cannot_be_opened(database: Database) -> None:
    """A check that cannot run is no sign of damage."""
    checker = IntegrityChecker(database)
    with away(database):
        checker.start()
        await checker.wait_done()

    assert checker.statistics().state is IntegrityState.FAILED
    assert not checker.degraded()


async def test_a_stop_does_not_wait_for_the_check(database: Database) -> None:
    """Stopping cancels a check in progress."""
    checker = IntegrityChecker(database)
    checker.start()
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await checker.stop()

    assert checker.statistics().state is IntegrityState.CHECKING


def damage_log(file: Path) -> None:
    """Overwrite the header of the first page of the log."""
    with sqlite3.connect(file) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name='request_logs'"
        (page,) = connection.execute(query).fetchone()
    connection.close()
    with file.open("r+b") as data:
        data.seek((page - 1) * 4096)
        data.write(b"\xff" * 12)


async def test_a_damaged_database_is_reported_after_the_start(serve: Serve, tmp_path: Path) -> None:
    """Readiness is degraded and names the damage, although no request has met it."""
    await migrate(tmp_path)
    damage_log(tmp_path / "kotae.db")
    service = await serve(data_dir=tmp_path)
    worker = service.services.workers["integrity"]
    assert isinstance(worker, IntegrityChecker)
    await worker.wait_done()
    report = (await service.client.get("/health/ready")).json()

    assert report["status"] == "degraded"
    assert report["integrity"]["state"] == "damaged"
    assert report["database"] != "ok"


async def test_a_read_that_fails_degrades_readiness(serve: Serve, tmp_path: Path) -> None:
    """Damage that happens while the service runs is reported once a read fails."""
    service = await serve(seeded=True, data_dir=tmp_path)
    worker = service.services.workers["integrity"]
    assert isinstance(worker, IntegrityChecker)
    await worker.wait_done()
    before = (await service.client.get("/health/ready")).json()
    async with service.services.database.transaction() as session:
        await session.exec_driver_sql("UPDATE documents SET created_at = 'x'")
    response = await service.client.get("/ai/documents")
    after = (await service.client.get("/health/ready")).json()

    assert before["status"] == "ready"
    assert response.status_code == 503
    assert (after["status"], after["integrity"]["damage"]) == (
        "degraded",
        "a time cannot be parsed",
    )


@pytest.mark.parametrize("damaged", [False, True])
async def test_doctor_checks_the_pages(tmp_path: Path, damaged: bool) -> None:
    """`kotae doctor` reports a damaged page with a remedy and exit code 1."""
    await migrate(tmp_path)
    if damaged:
        damage_log(tmp_path / "kotae.db")
    status, out = await run("doctor", KOTAE_DATA_DIR=str(tmp_path))

    assert (status, "no damage found" in out) == ((1, False) if damaged else (0, True))
