"""SIGTERM with many streams, with a locked database, twice, and followed by SIGKILL.

The next start has every row.
"""

import asyncio
import signal
import socket
import sqlite3
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from tests.conftest import http_client
from tests.fakes.provider import ProviderFake
from tests.faults.oracle import check, read_log
from tests.faults.scene import Callers, get_readiness, settings_for, stop_service, wait_drained
from tests.process import ServiceProcess, serving
from tests.sse import collect

pytestmark = pytest.mark.slow

STREAMS = 500
GRACE = 0.5


async def open_streams(
    service: ServiceProcess, fake: ProviderFake, count: int
) -> list[asyncio.Task[str]]:
    """Open endless streams; each task returns the error code of its end, or "" without one."""
    before = len(fake.calls)

    async def open_stream(number: int) -> str:
        with suppress(httpx2.TransportError):
            async with service.client.stream(
                "POST",
                "/ai/stream",
                json={"prompt": f"[[hang-after=2]] {number}", "grounded": False},
            ) as response:
                return str((await collect(response))[-1].json.get("code", ""))
        return ""

    tasks = [asyncio.create_task(open_stream(number)) for number in range(count)]
    for call in list(await fake.wait_calls(before + count, 20))[before:]:
        await fake.wait_chunks(call, 2)
    return tasks


async def restart(tmp_path: Path, fake: ProviderFake, acknowledged: list[str]) -> list[str]:
    """Start, wait for recovery, stop; check the oracle and return the statuses of all rows."""
    await fake.wait_idle()
    async with serving(tmp_path, **settings_for(fake)) as service:
        await wait_drained(service)
        await stop_service(service, fake)
    assert list((tmp_path / "journal").iterdir()) == []
    return [row["status"] for row in check(tmp_path, fake.calls, acknowledged)]


@pytest.mark.parametrize("signals", [1, 2], ids=["once", "twice"])
async def test_many_open_streams(tmp_path: Path, fake: ProviderFake, signals: int) -> None:
    """After the grace period or a second signal, streams end with an event and a row."""
    grace = GRACE if signals == 1 else 30
    async with serving(
        tmp_path, **settings_for(fake, KOTAE_SHUTDOWN_GRACE_SECONDS=grace)
    ) as service:
        streams = await open_streams(service, fake, STREAMS)
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        if signals == 2:
            await wait_refusing(
                service
            )  # the first signal was handled; two pending signals would merge
            service.signal(signal.SIGTERM)
        endings = await asyncio.gather(*streams)
        assert await service.wait() == 0
        assert time.monotonic() - began < GRACE + 2 + service.start_seconds

    assert set(endings) == {"shutting_down"}
    assert await restart(tmp_path, fake, []) == ["interrupted"] * STREAMS


async def wait_refusing(service: ServiceProcess) -> None:
    """Wait until the service refuses new requests."""
    async with asyncio.timeout(10), http_client(service.url) as other:
        with suppress(httpx2.TransportError):
            while (await other.get("/health/ready")).status_code != 503:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("busy_seconds", [0.2, 5])
async def test_a_locked_database_at_shutdown(
    tmp_path: Path, fake: ProviderFake, busy_seconds: float
) -> None:
    """A blocked writer delays the exit only up to its limit; the next start writes its records."""
    settings = settings_for(
        fake,
        KOTAE_SHUTDOWN_GRACE_SECONDS=GRACE,
        KOTAE_DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/kotae.db?timeout={busy_seconds}",
    )
    async with serving(tmp_path, **settings) as service:
        callers = Callers(service.client)
        await callers.ask()
        await wait_drained(service)
        lock = sqlite3.connect(tmp_path / "kotae.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        await callers.ask_many(100)
        assert (await get_readiness(service))["queue"]["waiting"] == 100
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        assert await service.wait() == 0
        took = time.monotonic() - began
        lock.execute("ROLLBACK")
        lock.close()

    assert took < GRACE + 2 + service.start_seconds
    assert len(read_log(tmp_path)) == 1
    assert await restart(tmp_path, fake, callers.acknowledged) == ["completed"] * 101


async def test_a_kill_during_shutdown(tmp_path: Path, fake: ProviderFake) -> None:
    """SIGTERM and then SIGKILL with open streams and a locked database lose nothing."""
    async with serving(tmp_path, **settings_for(fake, KOTAE_SHUTDOWN_GRACE_SECONDS=0.1)) as service:
        callers = Callers(service.client)
        await callers.ask_many(20)
        await wait_drained(service)
        lock = sqlite3.connect(tmp_path / "kotae.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        await callers.ask_many(20)
        streams = await open_streams(service, fake, 50)
        asking = [asyncio.create_task(ask_until_refused(callers)) for _ in range(8)]
        began = len(callers.acknowledged)
        while len(callers.acknowledged) < began + 20:
            await asyncio.sleep(0.001)
        service.signal(signal.SIGTERM)
        with suppress(TimeoutError):
            await service.wait(0.3)
        service.signal(signal.SIGKILL)
        assert await service.wait() == -signal.SIGKILL
        await asyncio.gather(*streams, *asking)
        lock.close()

    statuses = await restart(tmp_path, fake, callers.acknowledged)
    assert set(statuses) == {"completed", "interrupted"}
    assert statuses.count("interrupted") >= 50


async def ask_until_refused(callers: Callers) -> None:
    """Send prompts until the service refuses or has ended."""
    with suppress(httpx2.TransportError):
        while await callers.ask():
            pass


async def open_many(service: ServiceProcess, count: int) -> list[asyncio.Task[str]]:
    """Open streams and wait for the first event of each; see `open_streams`."""
    begun = asyncio.Semaphore(0)

    async def open_stream(number: int) -> str:
        body = {"prompt": f"[[hang-after=2]] {number}", "grounded": False}
        code = ""
        with suppress(httpx2.TransportError):
            async with service.client.stream("POST", "/ai/stream", json=body) as response:
                begun.release()
                code = str((await collect(response))[-1].json.get("code", ""))
        return code

    tasks = [asyncio.create_task(open_stream(number)) for number in range(count)]
    async with asyncio.timeout(60):
        for _ in tasks:
            await begun.acquire()
    return tasks


async def refuse_until_exit(service: ServiceProcess) -> list[int | None]:
    """Connect again and again after SIGTERM; return the statuses, None for refused connections."""
    statuses: list[int | None] = []
    while service.process.returncode is None:
        async with http_client(service.url) as other:
            try:
                response = await other.post("/ai/test", json={"prompt": "?", "grounded": False})
                statuses.append(response.status_code)
            except httpx2.TransportError:
                statuses.append(None)
        await asyncio.sleep(0.02)
    return statuses


async def test_streams_that_wait_for_a_call_end_unbilled(
    tmp_path: Path, fake: ProviderFake
) -> None:
    """Streams that wait for a free call have usage `none`; new connections get 503 until then."""
    calls = 20
    settings = settings_for(fake, KOTAE_SHUTDOWN_GRACE_SECONDS=2, KOTAE_PROVIDER_CALLS_MAX=calls)
    async with serving(tmp_path, **settings) as service:
        streams = await open_many(service, STREAMS)
        for call in await fake.wait_calls(calls, 20):
            await fake.wait_chunks(call, 2)
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        await wait_refusing(service)
        statuses = await refuse_until_exit(service)
        assert await service.wait() == 0
        assert time.monotonic() - began < 2 + 2 + 2 * service.start_seconds  # on a busy machine
        endings = await asyncio.gather(*streams)

    answered = [status for status in statuses if status is not None]
    assert set(answered) == {503}
    assert len(answered) > 5
    assert None not in statuses[: len(answered)]
    assert set(endings) == {"shutting_down"}
    rows = check(tmp_path, fake.calls, [])
    assert Counter(row["usage_source"] for row in rows) == {
        "estimated": calls,
        "none": STREAMS - calls,
    }
    assert {row["attempts"] for row in rows if row["usage_source"] == "none"} == {0}


async def test_streams_that_never_connected_end_unbilled(tmp_path: Path) -> None:
    """Streams whose provider does not accept connections have usage `none` after SIGTERM."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]  # the queue of the listener is full
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        async with serving(
            tmp_path,
            OPENAI_BASE_URL=f"http://127.0.0.1:{address[1]}/v1",
            KOTAE_SHUTDOWN_GRACE_SECONDS=GRACE,
            KOTAE_LOG_LEVEL="error",
        ) as service:
            streams = await open_many(service, 50)
            began = time.monotonic()
            service.signal(signal.SIGTERM)
            assert await service.wait() == 0
            assert time.monotonic() - began < GRACE + 2 + service.start_seconds
            endings = await asyncio.gather(*streams)
        for filler in fillers:
            filler.close()

    assert set(endings) == {"shutting_down"}
    assert Counter((row["status"], row["usage_source"]) for row in read_log(tmp_path)) == {
        ("interrupted", "none"): 50
    }
