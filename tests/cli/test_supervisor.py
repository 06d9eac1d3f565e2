"""`kotae serve --workers`: several replicas on one machine."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.cli.supervisor import choose_directory, choose_peer_address
from service.core.database.engine import Database
from service.core.encoding import read_slot
from tests.postgres import PostgresServer, temporary_database
from tests.process import ServiceProcess, kotae, serving

pytestmark = pytest.mark.slow
QUESTION = {"prompt": "Hello", "grounded": True}


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A migrated database of PostgreSQL."""
    async with temporary_database(postgres) as database:
        yield database


def list_workers(supervisor: int) -> list[int]:
    """The process ids of the workers."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text()
    return [int(pid) for pid in children.split()]


async def wait_gone(pids: list[int]) -> None:
    """Wait until these processes have ended."""
    async with asyncio.timeout(20):
        while any(is_running(pid) for pid in pids):
            await asyncio.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process has not ended; nobody may have read its status yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def read_states(database: Database) -> list[str]:
    """The states of the slots."""
    async with database.read_session() as session:
        rows = await session.execute(sa.text("SELECT state FROM replicas ORDER BY slot"))
        return list(rows.scalars())


async def ask_until(service: ServiceProcess, slots: set[int]) -> list[str]:
    """Ask until every one of these slots has answered; return the ids."""
    ids: list[str] = []
    async with asyncio.timeout(40):
        while {read_slot(answer_id) for answer_id in ids} < slots:
            reply = await service.client.post(
                "/ai/test", json=QUESTION, headers={"connection": "close"}
            )
            assert reply.status_code == 200, reply.text
            ids.append(reply.json()["id"])
    return ids


def test_the_first_worker_has_the_data_directory(tmp_path: Path) -> None:
    """So a service with one worker, and one with several, recover the same journal."""
    assert choose_directory(tmp_path, 1) == tmp_path
    assert len({choose_directory(tmp_path, worker) for worker in range(1, 5)}) == 4


def test_each_worker_has_a_free_port_of_the_peer_address() -> None:
    """On loopback, or at the host where other machines reach it."""
    assert choose_peer_address(None) == "127.0.0.1:0"
    assert choose_peer_address("10.0.0.5:8100") == "10.0.0.5:0"
    assert choose_peer_address("[fd00::1]:8100") == "[fd00::1]:0"


async def test_sqlite_is_refused(tmp_path: Path) -> None:
    """The message names the setting to change."""
    status, _, errors = await kotae("serve", "--workers", "2", data_dir=tmp_path)

    assert status != 0
    assert "KOTAE_DATABASE_URL" in errors
    assert "Traceback" not in errors


async def test_workers_answer_at_one_address_and_end_in_order(
    database: Database, tmp_path: Path
) -> None:
    """Each has a slot; SIGTERM ends all of them with their rows written."""
    async with serving(tmp_path, "--workers", "2", KOTAE_DATABASE_URL=database._url) as service:
        ids = await ask_until(service, {0, 1})
        workers = list_workers(service.process.pid)
        service.signal(signal.SIGTERM)
        status = await service.wait()
    async with database.read_session() as session:
        rows = await session.execute(sa.text("SELECT id FROM request_logs"))

    assert (status, len(workers)) == (0, 2)
    assert sorted(rows.scalars()) == sorted(ids)
    assert await read_states(database) == ["left", "left"]


async def test_a_killed_worker_is_started_again(database: Database, tmp_path: Path) -> None:
    """With its slot; meanwhile the other one answers."""
    async with serving(tmp_path, "--workers", "2", KOTAE_DATABASE_URL=database._url) as service:
        before = list_workers(service.process.pid)
        os.kill(before[0], signal.SIGKILL)
        await wait_gone(before[:1])
        await ask_until(service, {0, 1})
        after = list_workers(service.process.pid)
        service.signal(signal.SIGTERM)
        await service.wait()

    assert len(set(before) | set(after)) == 3


async def test_workers_do_not_outlive_the_supervisor(database: Database, tmp_path: Path) -> None:
    """They end in order when it was killed."""
    async with serving(tmp_path, "--workers", "2", KOTAE_DATABASE_URL=database._url) as service:
        workers = list_workers(service.process.pid)
        service.signal(signal.SIGKILL)
        await wait_gone(workers)

    assert await read_states(database) == ["left", "left"]


async def test_a_worker_that_cannot_start_ends_all(database: Database, tmp_path: Path) -> None:
    """The reason is in the log, and the status says that the service did not start."""
    status, _, errors = await kotae(
        "serve", "--workers", "2", "--port", "0",
        data_dir=tmp_path, KOTAE_DATABASE_URL=database._url.replace("kotae_", "missing_"),
    )  # fmt: skip

    assert status == 1
    assert 1 <= errors.count("does not exist") <= 2
