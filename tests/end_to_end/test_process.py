"""The command line and the end of the process."""

import asyncio
import resource
import signal
import sqlite3
import time
from contextlib import aclosing
from pathlib import Path

import httpx2
import pytest

from tests.fakes.provider import Behaviour, Ending, ProviderFake
from tests.process import ServiceProcess, kotae, serving
from tests.sse import collect, events

FREE = {"prompt": "Say something.", "grounded": False}


def rows(data_dir: Path) -> list[tuple[str, str]]:
    """(status, usage_source) of every row of the log, by reading the file."""
    with sqlite3.connect(data_dir / "kotae.db") as connection:
        return connection.execute("SELECT status, usage_source FROM request_logs ORDER BY seq").fetchall()


async def test_the_two_minutes_of_a_newcomer(tmp_path: Path) -> None:
    """migrate, seed, serve, ask, logs: each command does what the README says."""
    assert (await kotae("migrate", data_dir=tmp_path))[0] == 0
    seeded = await kotae("seed", data_dir=tmp_path)
    again = await kotae("seed", data_dir=tmp_path)
    async with serving(tmp_path) as service:
        code, answer, _ = await kotae("ask", "返品は何日以内にできますか？", "--url", service.url, data_dir=tmp_path)
        _, log, _ = await kotae("logs", "--url", service.url, data_dir=tmp_path)
        refused = await kotae("ask", "x", "--model", "nobody", "--url", service.url, data_dir=tmp_path)

    assert "10 of them new" in seeded[1]
    assert "0 of them new" in again[1]
    assert code == 0
    assert "30日" in answer
    assert "[1]" in answer
    assert "completed" in log
    assert (refused[0], "not known" in refused[2], "Traceback" in refused[2]) == (2, True, False)


async def test_the_command_line_of_somebody_with_a_key(tmp_path: Path) -> None:
    """`kotae ask` and `kotae logs` send KOTAE_API_KEY; without a credential they end with one line."""
    assert (await kotae("migrate", data_dir=tmp_path))[0] == 0
    _, made, _ = await kotae("keys", "create", "--user", "alice", data_dir=tmp_path)
    key = made.split()[0]
    async with serving(tmp_path, KOTAE_AUTH="keys") as service:
        refused = await kotae("ask", "Why?", "--url", service.url, data_dir=tmp_path)
        asked = await kotae("ask", "Why?", "--url", service.url, data_dir=tmp_path, KOTAE_API_KEY=key)
        _, log, _ = await kotae("logs", "--url", service.url, data_dir=tmp_path, KOTAE_API_KEY=key)

    assert (refused[0], "credential" in refused[2] or "API key" in refused[2], refused[2].count("\n")) == (2, True, 1), refused
    assert asked[0] == 0, asked
    assert "no_context" in log
    assert key not in asked[1] + asked[2] + log


async def test_known_mistakes_are_one_line(tmp_path: Path) -> None:
    """A bad setting, a missing schema and an absent service end a command with one line, never a traceback."""
    bad = await kotae("serve", data_dir=tmp_path, KOTAE_PORT="many")
    beyond = await kotae("serve", data_dir=tmp_path, KOTAE_HOST="0.0.0.0")
    unmigrated = await kotae("serve", "--port", "0", data_dir=tmp_path)
    absent = await kotae("ask", "x", "--url", "http://127.0.0.1:9", data_dir=tmp_path)

    for (code, _, said), told in zip(
        (bad, beyond, unmigrated, absent), ("KOTAE_PORT", "KOTAE_AUTH", "kotae migrate", "no service"), strict=True
    ):
        assert code != 0
        assert told in said
        assert "Traceback" not in said


async def test_doctor_says_what_is_wrong_and_what_to_do(tmp_path: Path, fake: ProviderFake) -> None:
    """Everything well: 0. No schema and a provider that is away: 1, each with its remedy."""
    sick = await kotae("doctor", data_dir=tmp_path, OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    await kotae("migrate", data_dir=tmp_path)
    well = await kotae("doctor", data_dir=tmp_path, OPENAI_BASE_URL=fake.base_url, KOTAE_MODEL="fake-model")

    assert sick[0] == 1
    assert "→ run `kotae migrate`" in sick[1]
    assert "→ check OPENAI_BASE_URL" in sick[1]
    assert (well[0], "BAD" in well[1]) == (0, False)


async def test_settings_are_printed_without_secrets(tmp_path: Path) -> None:
    """`kotae settings` shows what is in force and masks what is secret."""
    code, out, _ = await kotae("settings", data_dir=tmp_path, KOTAE_PORT="8123", OPENAI_API_KEY="sk-canary", KOTAE_SECRET="c" * 40)

    assert code == 0
    assert "KOTAE_PORT=8123" in out
    assert "sk-canary" not in out
    assert "cccc" not in out


async def test_it_may_open_as_many_files_as_it_is_allowed(tmp_path: Path) -> None:
    """A low soft limit, as most systems have it, does not bound the answers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        async with serving(tmp_path) as service:
            assert resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_sigterm_when_idle(tmp_path: Path) -> None:
    """An idle service ends at once, with 0."""
    async with serving(tmp_path) as service:
        await service.client.get("/health/ready")
        began = time.monotonic()
        service.signal(signal.SIGTERM)

        assert await service.wait() == 0
        assert time.monotonic() - began < 2 + service.start_seconds


async def test_sigterm_lets_streams_end_within_the_grace(tmp_path: Path, fake: ProviderFake) -> None:
    """A stream that ends within the grace is completed and recorded; the process ends with 0."""
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=3))
    async with serving(tmp_path, OPENAI_BASE_URL=fake.base_url, KOTAE_MODEL="m", KOTAE_SHUTDOWN_GRACE_SECONDS=15) as service:
        async with service.client.stream("POST", "/ai/stream", json=FREE) as response, aclosing(events(response)) as stream:
            first = await anext(stream)
            service.signal(signal.SIGTERM)
            await refuses(service)
            held.set()
            rest = [event async for event in stream]

        assert await service.wait() == 0
    assert (first.name, rest[-1].name) == ("start", "done")
    assert rows(tmp_path) == [("completed", "provider")]


async def refuses(service: ServiceProcess) -> None:
    """Until the service takes nothing new: it does not listen any more."""
    async with asyncio.timeout(10), httpx2.AsyncClient(base_url=service.url) as other:
        while True:
            try:
                response = await other.get("/health/ready")
            except httpx2.TransportError:
                return
            if response.status_code == 503:
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("signals", [1, 2])
async def test_sigterm_interrupts_what_does_not_end(tmp_path: Path, fake: ProviderFake, signals: int) -> None:
    """After the grace, or at once with a second signal, streams end with a failure, rows are written, exit is 0."""
    fake.default = Behaviour(hang_after=3)
    grace = 0.5 if signals == 1 else 60
    async with serving(tmp_path, OPENAI_BASE_URL=fake.base_url, KOTAE_MODEL="m", KOTAE_SHUTDOWN_GRACE_SECONDS=grace) as service:
        streams = [asyncio.create_task(streamed(service)) for _ in range(20)]
        for call in await fake.wait_calls(20):
            await fake.wait_chunks(call, 3)
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        if signals == 2:
            await refuses(service)  # the first has been taken: sent together they would be one
            service.signal(signal.SIGTERM)
        endings = await asyncio.gather(*streams)

        assert await service.wait() == 0
        assert time.monotonic() - began < 0.5 + 2 + service.start_seconds
    assert set(endings) == {"shutting_down"}
    assert {call.ended for call in fake.calls} == {Ending.ABORTED}
    assert rows(tmp_path) == [("interrupted", "estimated")] * 20


async def streamed(service: ServiceProcess) -> str:
    """The code of the failure that a stream ends with."""
    async with service.client.stream("POST", "/ai/stream", json=FREE) as response:
        return str((await collect(response))[-1].json["code"])


async def test_the_queue_is_written_at_the_end(tmp_path: Path) -> None:
    """Answers given just before SIGTERM are in the database after it."""
    await kotae("migrate", data_dir=tmp_path)
    await kotae("seed", data_dir=tmp_path)
    async with serving(tmp_path) as service:
        answers = await asyncio.gather(
            *(service.client.post("/ai/test", json={"prompt": "返品は何日以内にできますか？"}) for _ in range(50))
        )
        service.signal(signal.SIGTERM)

        assert await service.wait() == 0
    assert {answer.status_code for answer in answers} == {200}
    assert len(rows(tmp_path)) == 50
