"""Connections cut at every point by client or provider, and oversized responses: one row each."""

import asyncio
import json
import re
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest

from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, Ending, ProviderFake
from tests.faults.oracle import check
from tests.faults.scene import Callers

pytestmark = pytest.mark.slow

Cut = Literal["fin", "rst"]
CUTS: tuple[Cut, ...] = ("fin", "rst")
CHUNKS = 8
POINTS = ["request", "headers", *range(CHUNKS + 1), "finish", "usage"]


class Caller:
    """A client on a raw socket that can disconnect at any byte, with FIN or RST."""

    def __init__(self, service: Service) -> None:
        self._address = urlsplit(service.url)
        self.received = b""

    async def send(self, prompt: str, path: str = "/ai/stream", share: float = 1) -> None:
        """Send a request, or only its first part."""
        body = json.dumps({"prompt": prompt, "grounded": False}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._address.netloc}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._reader, self._writer = await asyncio.open_connection(
            self._address.hostname, self._address.port
        )
        request = head.encode() + body
        self._writer.write(request[: int(len(request) * share)])
        await self._writer.drain()

    async def read_until(self, pattern: bytes) -> None:
        """Read until the pattern has arrived."""
        async with asyncio.timeout(10):
            while not re.search(pattern, self.received, re.DOTALL):
                data = await self._reader.read(65_536)
                assert data, self.received
                self.received += data

    async def leave(self, how: Cut) -> None:
        """Close the socket with a FIN or a RST."""
        if how == "rst":
            self._writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self._writer.transport.abort() if how == "rst" else self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)


def read_rows(
    service: Service, fake: ProviderFake, acknowledged: list[str]
) -> dict[str, dict[str, Any]]:
    """Return the rows by prompt, checked by the oracle."""
    rows = check(service.services.settings.data_dir, fake.calls, acknowledged)
    return {row["prompt"]: row for row in rows}


async def wait_all_ended(service: Service, fake: ProviderFake) -> None:
    """Wait until every call has ended and every answer is in the log."""
    await fake.wait_idle()
    await service.wait_idle()


@pytest.mark.parametrize("how", CUTS)
async def test_a_disconnect_after_any_event(service: Service, fake: ProviderFake, how: Cut) -> None:
    """A disconnect stops the provider; the row has the text until then, or no usage."""

    async def leave_after(events: int) -> tuple[str, int]:
        prompt, caller = f"[[hang-after={events}]] client {events}", Caller(service)
        await caller.send(prompt)
        await caller.read_until(rb"event: start.*?\n\n" + rb'.*?"delta".*?\n\n' * events)
        await caller.leave(how)
        return prompt, events

    left = dict(await asyncio.gather(*(leave_after(events) for events in range(CHUNKS + 1))))
    await wait_all_ended(service, fake)

    rows = read_rows(service, fake, [])
    assert {call.ended for call in fake.calls} == {Ending.ABORTED}
    assert {row["status"] for row in rows.values()} == {"client_gone"}
    for prompt, events in left.items():  # the oracle checks that `none` means no call
        assert rows[prompt]["usage_source"] in ({"estimated"} if events else {"unknown", "none"})


@pytest.mark.parametrize("how", CUTS)
async def test_a_disconnect_before_the_first_byte(
    service: Service, fake: ProviderFake, how: Cut
) -> None:
    """An incomplete request has no row; a complete one has one if it reached the provider."""
    for number in range(10):
        caller = Caller(service)
        await caller.send(f"part {number}", share=number / 10)
        await caller.leave(how)
    for path in ("/ai/stream", "/ai/test"):
        for number in range(10):
            caller = Caller(service)
            await caller.send(f"[[gap=0.001]] {path} {number}", path)
            await caller.leave(how)
    assert (
        await service.client.post("/ai/test", json={"prompt": "the last", "grounded": False})
    ).status_code == 200
    await wait_all_ended(service, fake)

    rows = read_rows(service, fake, ["the last"])
    assert not [prompt for prompt in rows if prompt.startswith("part")]
    assert {row["status"] for row in rows.values()} <= {"client_gone", "completed"}


@pytest.mark.parametrize("how", CUTS)
async def test_a_disconnect_at_the_end(service: Service, fake: ProviderFake, how: Cut) -> None:
    """A disconnect after `done` does not change the account."""
    prompts = [f"done {number}" for number in range(5)]
    for prompt in prompts:
        caller = Caller(service)
        await caller.send(prompt)
        await caller.read_until(b"event: done.*?\n\n")
        await caller.leave(how)
    await wait_all_ended(service, fake)

    rows = read_rows(service, fake, prompts)
    assert [(row["status"], row["usage_source"]) for row in rows.values()] == [
        ("completed", "provider")
    ] * 5


@pytest.mark.parametrize("how", CUTS)
async def test_a_disconnect_with_drain_time(serve: Serve, fake: ProviderFake, how: Cut) -> None:
    """With drain time, the answer continues after a disconnect, and its usage is exact."""
    service = await serve(
        openai_base_url=fake.base_url,
        openai_api_key="sk-test",
        model="fake-model",
        drain_seconds=10,
    )
    goes_on = asyncio.Event()

    async def leave_after(events: int) -> None:
        caller = Caller(service)
        await caller.send(f"drained {events}")
        await caller.read_until(rb"event: start.*?\n\n" + rb'.*?"delta".*?\n\n' * events)
        await caller.leave(how)

    for events in range(CHUNKS + 1):
        fake.next(Behaviour(hold=goes_on, hold_after=events))
        await leave_after(events)
    goes_on.set()
    await wait_all_ended(service, fake)

    rows = read_rows(service, fake, [])
    assert [(row["status"], row["usage_source"]) for row in rows.values()] == [
        ("completed", "provider")
    ] * (CHUNKS + 1)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", CUTS)
async def test_a_provider_cut_at_any_point(
    service: Service, fake: ProviderFake, how: Cut, stream: bool
) -> None:
    """Any cut by the provider leaves one row: completed with its usage, or a failure."""

    async def cut_after(point: str | int) -> tuple[str, str]:
        prompt = f"[[cut-after={point} cut={how} gap=0.002]] {point}"
        caller = Caller(service)
        await caller.send(prompt, "/ai/stream" if stream else "/ai/test")
        await caller.read_until(rb"event: (done|failure).*?\n\n" if stream else rb"\r\n\r\n\{.*\}")
        await caller.leave("fin")
        return prompt, "done" if b"event: done" in caller.received or (
            b"HTTP/1.1 200" in caller.received and not stream
        ) else "failure"

    endings = dict(await asyncio.gather(*(cut_after(point) for point in POINTS)))
    await wait_all_ended(service, fake)

    rows = read_rows(
        service, fake, [prompt for prompt, ending in endings.items() if ending == "done"]
    )
    statuses = {
        row["prompt"].split()[-1]: (row["status"], row["usage_source"]) for row in rows.values()
    }
    cut = {("provider_error", "unknown"), ("provider_error", "estimated")}
    assert len(statuses) == len(POINTS)
    assert set(statuses.values()) <= cut | {("completed", "provider")}
    assert {prompt for prompt, ending in endings.items() if ending == "done"} == {
        prompt for prompt, row in rows.items() if row["status"] == "completed"
    }
    assert statuses["request"] == statuses["headers"] == ("provider_error", "unknown")
    if stream:
        assert how == "rst" or statuses["usage"] == ("completed", "provider")
        assert how == "rst" or {statuses[str(point)] for point in range(1, CHUNKS + 1)} == {
            ("provider_error", "estimated")
        }
    else:
        assert set(statuses.values()) <= cut


@pytest.mark.parametrize("stream", [True, False])
async def test_invalid_usage(service: Service, fake: ProviderFake, stream: bool) -> None:
    """Usage that is missing, null, negative or absurd is estimated; sent twice, it counts once."""
    strange = {
        "missing": Behaviour(usage=None),
        "null": Behaviour(usage="null"),
        "empty": Behaviour(usage="empty"),
        "negative": Behaviour(usage="negative"),
        "huge": Behaviour(usage="huge"),
        "float": Behaviour(usage="float"),
        "twice": Behaviour(usage_times=2),
        "every": Behaviour(usage_place="every"),
    }
    for prompt, behaviour in strange.items():
        fake.next(behaviour)
        response = await service.client.post(
            "/ai/stream" if stream else "/ai/test", json={"prompt": prompt, "grounded": False}
        )
        assert response.status_code == 200
    await wait_all_ended(service, fake)

    rows = read_rows(service, fake, ["twice", "every"])
    assert {row["status"] for row in rows.values()} == {"completed"}
    assert Counter(row["usage_source"] for row in rows.values()) == {"estimated": 6, "provider": 2}


@pytest.mark.parametrize(
    ("bomb", "status"),
    [
        (Behaviour(huge_line_bytes=200_000_000), "provider_error"),
        (Behaviour(huge_line_bytes=200_000_000, gzip=True), "provider_error"),
        (Behaviour(hang_after=0, hang_comments=0.01), "timeout"),
        (Behaviour(hang_after=3, hang_comments=0.01), "timeout"),
        (Behaviour(endless=True, deltas=["x" * 60_000]), "provider_error"),
    ],
    ids=["line", "gzip", "comments", "comments after text", "text"],
)
async def test_an_oversized_stream(
    serve: Serve, fake: ProviderFake, bomb: Behaviour, status: str
) -> None:
    """Endless lines, texts and comments and a bomb fail in bounded memory and time."""
    service = await serve(
        openai_base_url=fake.base_url,
        openai_api_key="sk-test",
        model="fake-model",
        answer_seconds_max=1.5 if status == "timeout" else 60,
    )
    callers = Callers(service.client)
    for _ in range(2):  # the first call loads modules, which are not part of the bomb's memory
        fake.next(Behaviour(usage=None))
        await callers.ask()
    before = peak_megabytes(reset=True)
    fake.next(bomb)
    async with asyncio.timeout(30):
        await service.client.post("/ai/stream", json={"prompt": "bomb", "grounded": False})
    await wait_all_ended(service, fake)

    assert peak_megabytes() - before < 40
    rows = check(service.services.settings.data_dir, fake.calls, [])
    assert [row["status"] for row in rows if row["prompt"] == "bomb"] == [status]


@pytest.mark.parametrize("gzip", ["false", "true"])
async def test_an_oversized_body(serve: Serve, gzip: str) -> None:
    """A plain body is read only to the longest possible answer and never decompressed."""
    async with provider_process(f"huge-line-bytes=100000000 gzip={gzip}") as base_url:
        service = await serve(
            openai_base_url=base_url, openai_api_key="sk-test", model="fake-model"
        )
        before = peak_megabytes(reset=True)
        response = await service.client.post("/ai/test", json={"prompt": "bomb", "grounded": False})
        row = await service.row()

    assert peak_megabytes() - before < 40
    assert (response.status_code, response.json()["code"]) == (502, "provider_invalid")
    assert (row["status"], row["usage_source"]) == ("provider_error", "unknown")


@asynccontextmanager
async def provider_process(behaviour: str) -> AsyncGenerator[str]:
    """Start a provider fake in a separate process and yield its base URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fakes.provider", "--behaviour", behaviour,
        cwd=Path(__file__).parents[2], stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.kill()
        await process.communicate()


def peak_megabytes(*, reset: bool = False) -> float:
    """Peak memory of this process since the last reset."""
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            pytest.skip("not run: the peak of memory cannot be reset here")
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert match
    return int(match[1]) / 1024
