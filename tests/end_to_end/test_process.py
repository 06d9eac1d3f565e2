"""The command line and the end of the process."""

import asyncio
import signal
import sqlite3
import time
from contextlib import aclosing
from pathlib import Path

import httpx2
import pytest

from tests.conftest import http_client
from tests.fakes.provider import Behaviour, Ending, ProviderFake
from tests.process import ServiceProcess, kotae, migrate, serving
from tests.sse import collect, events

pytestmark = pytest.mark.slow

FREE = {"prompt": "Say something.", "grounded": False}


def read_statuses(data_dir: Path) -> list[tuple[str, str]]:
    """Read (status, usage_source) of every row of the log from the file."""
    with sqlite3.connect(data_dir / "kotae.db") as connection:
        return connection.execute(
            "SELECT status, usage_source FROM request_logs ORDER BY seq"
        ).fetchall()


async def test_commands_of_a_new_user(tmp_path: Path) -> None:
    """migrate, seed, serve, ask, logs: each command works as documented in the README."""
    assert (await kotae("migrate", data_dir=tmp_path))[0] == 0
    seeded = await kotae("seed", data_dir=tmp_path)
    again = await kotae("seed", data_dir=tmp_path)
    async with serving(tmp_path) as service:
        code, answer, _ = await kotae(
            "ask", "返品は何日以内にできますか？", "--url", service.url, data_dir=tmp_path
        )
        _, log, _ = await kotae("logs", "--url", service.url, data_dir=tmp_path)
        refused = await kotae(
            "ask", "x", "--model", "nobody", "--url", service.url, data_dir=tmp_path
        )

    assert "10 of them new" in seeded[1]
    assert "0 of them new" in again[1]
    assert code == 0
    assert "30日" in answer
    assert "[1]" in answer
    assert "completed" in log
    assert (refused[0], "Unknown model" in refused[2], "Traceback" in refused[2]) == (
        2,
        True,
        False,
    )


async def test_sigterm_when_idle(tmp_path: Path) -> None:
    """An idle service exits at once, with 0."""
    async with serving(tmp_path) as service:
        await service.client.get("/health/ready")
        began = time.monotonic()
        service.signal(signal.SIGTERM)

        assert await service.wait() == 0
        assert time.monotonic() - began < 2 + service.start_seconds


async def test_sigterm_waits_for_streams_within_the_grace_period(
    tmp_path: Path, fake: ProviderFake
) -> None:
    """A stream that ends within the grace period is completed and recorded; the exit code is 0."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=3))
    async with serving(
        tmp_path, OPENAI_BASE_URL=fake.base_url, KOTAE_MODEL="m", KOTAE_SHUTDOWN_GRACE_SECONDS=15
    ) as service:
        async with (
            service.client.stream("POST", "/ai/stream", json=FREE) as response,
            aclosing(events(response)) as stream,
        ):
            first = await anext(stream)
            service.signal(signal.SIGTERM)
            await wait_refusing(service)
            held.set()
            rest = [event async for event in stream]

        assert await service.wait() == 0
    assert (first.name, rest[-1].name) == ("start", "done")
    assert read_statuses(tmp_path) == [("completed", "provider")]


async def wait_refusing(service: ServiceProcess) -> None:
    """Wait until the service no longer listens."""
    async with asyncio.timeout(10), http_client(service.url) as other:
        while True:
            try:
                response = await other.get("/health/ready")
            except httpx2.TransportError:
                return
            if response.status_code == 503:
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("signals", [1, 2])
async def test_sigterm_interrupts_open_streams(
    tmp_path: Path, fake: ProviderFake, signals: int
) -> None:
    """After the grace period or a second signal, streams fail, rows are written, exit is 0."""
    fake.default = Behaviour(hang_after=3)
    grace = 0.5 if signals == 1 else 60
    async with serving(
        tmp_path, OPENAI_BASE_URL=fake.base_url, KOTAE_MODEL="m", KOTAE_SHUTDOWN_GRACE_SECONDS=grace
    ) as service:
        streams = [asyncio.create_task(read_failure_code(service)) for _ in range(20)]
        for call in await fake.wait_calls(20):
            await fake.wait_chunks(call, 3)
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        if signals == 2:
            await wait_refusing(
                service
            )  # the first signal was handled; two pending signals would merge
            service.signal(signal.SIGTERM)
        endings = await asyncio.gather(*streams)

        assert await service.wait() == 0
        assert time.monotonic() - began < 0.5 + 2 + service.start_seconds
    assert set(endings) == {"shutting_down"}
    assert {call.ended for call in fake.calls} == {Ending.ABORTED}
    assert read_statuses(tmp_path) == [("interrupted", "estimated")] * 20


async def read_failure_code(service: ServiceProcess) -> str:
    """Return the code of the failure that ends a stream."""
    async with service.client.stream("POST", "/ai/stream", json=FREE) as response:
        return str((await collect(response))[-1].json["code"])


async def test_the_queue_is_written_at_shutdown(tmp_path: Path) -> None:
    """Answers completed just before SIGTERM are in the database after it."""
    await migrate(tmp_path)
    await kotae("seed", data_dir=tmp_path)
    async with serving(tmp_path) as service:
        answers = await asyncio.gather(
            *(
                service.client.post("/ai/test", json={"prompt": "返品は何日以内にできますか？"})
                for _ in range(50)
            )
        )
        service.signal(signal.SIGTERM)

        assert await service.wait() == 0
    assert {answer.status_code for answer in answers} == {200}
    assert len(read_statuses(tmp_path)) == 50
