"""Number of function calls of an answer: a performance test that needs no clock.

Counted are the calls of the event loop's thread for a request, into Python and C, in Kotae and in
libraries. Not counted are calls of the writer, which works in batches, of the server's periodic
tasks, of the standard library, and of these tests, whose client and provider run in the same
process. The numbers are the same on every machine, but vary with the versions of libraries.

A change that costs more raises the budget here; one that costs much less lowers it.
"""

import asyncio
import gc
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

from service.core.answering.pump import Pump
from service.core.answering.streams import Stream
from service.core.errors import KotaeError
from service.core.http1 import HttpConnection
from service.core.ports import ProviderRequest
from tests.conftest import Service
from tests.fakes.provider import Behaviour, Point, ProviderFake

# Calls: of a plain answer, of a stream without its chunks, of a chunk.
ANSWER, STREAM, CHUNK = 770, 955, 77
RESPONSE, RESPONSE_STREAM, RESPONSE_CHUNK = 925, 1_240, 102
RUNS_EQUAL, RUNS_MAX = 3, 20
HERE, PACKAGES = f"{Path(__file__).parents[1]}/", f"{Path(pytest.__file__).parents[1]}/"
NOT_THE_REQUEST = (
    "tests/",
    "service/workers/",
    "service/core/accounting/latency_bins.py",
    "service/core/accounting/log.py",
    "service/core/accounting/rollups.py",
    "service/core/accounting/rows.py",
    "service/core/database/damaged_rows.py",
    "service/core/database/engine.py",
    *(
        "service/core/auth/authenticator.py Authenticator.refresh_keys",
        "service/core/auth/revocation.py",
        "service/core/quota/local.py LocalQuota.expire",
        "service/http_server/connections.py ConnectionTable._limit_buffers",
        "service/http_server/connections.py ConnectionTable.tick",
        "service/http_server/deadlines.py",
        "service/http_server/exchange.py HttpExchange.is_too_slow",
        "service/http_server/protocol.py HttpProtocol.check_deadlines",
        "service/server.py",
        "uvicorn/server.py",
    ),  # periodic, so more often in a request on a busy machine
    "sqlalchemy/",
    "aiosqlite/",
    "_pytest/",
    "pluggy/",
)


class CallCounter:
    """Counts calls between enter and exit, by file and function."""

    def __init__(self) -> None:
        self.by_place: Counter[str] = Counter()

    def __enter__(self) -> Self:
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event in ("call", "c_call"):
            code = frame.f_code
            self.by_place[f"{code.co_filename} {code.co_qualname}"] += 1

    def count_calls(self) -> Counter[str]:
        """Count the calls of the request."""
        counts: Counter[str] = Counter()
        for name, number in self.by_place.items():
            place = (
                name.removeprefix(PACKAGES)
                if name.startswith(PACKAGES)
                else name.removeprefix(HERE)
            )
            if place != name and not place.startswith(NOT_THE_REQUEST):
                counts[place] += number
        return counts


PROMPT = b'{"prompt": "Why?", "grounded": false}'
CHAT = b'{"model": "fake-model", "messages": [{"role": "user", "content": "Why?"}]}'
CHAT_STREAM = CHAT[:-1] + b', "stream": true}'
CHAT_SHARE = 1.1  # of the calls of Kotae's own routes
CHAT_PATH = "/v1/chat/completions"
RESPONSES_PATH = "/v1/responses"
RESPONSES_BODY = b'{"model": "fake-model", "input": "Why?"}'


async def send_prompt(
    service: Service,
    path: str,
    holds: Mapping[Point, asyncio.Event] | None = None,
    body: bytes = PROMPT,
) -> None:
    """Send a minimal request and read its answer; release each hold after the chunk before it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(service.url.rpartition(":")[2]))
    head = (
        b"POST %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    writer.write(head % (path.encode(), len(body)) + body)
    answer = b""
    for hold in (holds or {}).values():
        deltas_before = answer.count(b'"delta"')
        while answer.count(b'"delta"') == deltas_before:
            answer += await reader.read(65_536)
        hold.set()
    answer += await reader.read()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await writer.wait_closed()
    await service.wait_idle()


async def count_request(
    service: Service, fake: ProviderFake, path: str, chunks: int = 0, body: bytes = PROMPT
) -> Counter[str]:
    """Count the calls of a warm request whose provider sends this number of chunks.

    Repeated until some requests had the same number: the first ones fill caches, and a busy machine
    adds timers, and divides or joins reads.
    """
    counts: list[Counter[str]] = []
    for _ in range(RUNS_MAX):
        calls = CallCounter()
        holds: dict[Point, asyncio.Event] = {n: asyncio.Event() for n in range(1, chunks + 1)}
        fake.default = Behaviour(deltas=["word "] * chunks, holds=holds) if chunks else Behaviour()
        with calls:
            await send_prompt(service, path, holds, body)
        counts.append(calls.count_calls())
        equal = [other for other in counts if other.total() == counts[-1].total()]
        if len(equal) == RUNS_EQUAL:
            return equal[0]
    return min(counts, key=Counter.total)


def check_budget(counted: float, budget: int, calls: Counter[str]) -> None:
    """Fail if the calls exceed the budget, or are so few that the budget is obsolete."""
    dearest = "\n".join(f"{number:6} {name}" for name, number in calls.most_common(50))
    assert budget * 0.8 <= counted <= budget * 1.05, (
        f"{counted:.1f} calls, the budget is {budget}; the dearest:\n{dearest}"
    )


async def test_an_answer(service: Service, fake: ProviderFake) -> None:
    """A plain answer stays within its budget of calls."""
    calls = await count_request(service, fake, "/ai/test")

    check_budget(calls.total(), ANSWER, calls)


async def test_a_chat_completion(service: Service, fake: ProviderFake) -> None:
    """The OpenAI protocol costs little more than Kotae's own."""
    own = await count_request(service, fake, "/ai/test")
    chat = await count_request(service, fake, CHAT_PATH, body=CHAT)

    check_budget(chat.total(), round(own.total() * CHAT_SHARE / 1.05), chat)


async def test_a_chat_completion_stream_and_each_of_its_chunks(
    service: Service, fake: ProviderFake
) -> None:
    """The same holds for a short stream, and for each separate chunk."""
    own, own_long = [await count_request(service, fake, "/ai/stream", n) for n in (10, 60)]
    chat, chat_long = [
        await count_request(service, fake, CHAT_PATH, n, CHAT_STREAM) for n in (10, 60)
    ]
    own_chunk = (own_long.total() - own.total()) / 50
    chunk = (chat_long.total() - chat.total()) / 50

    check_budget(chunk, round(own_chunk * CHAT_SHARE / 1.05), chat_long - chat)
    check_budget(chat.total(), round(own.total() * CHAT_SHARE / 1.05), chat)


async def test_a_response(service: Service, fake: ProviderFake) -> None:
    """The Responses API stays within its budget."""
    calls = await count_request(service, fake, RESPONSES_PATH, body=RESPONSES_BODY)

    check_budget(calls.total(), RESPONSE, calls)


async def test_a_response_stream_and_each_of_its_chunks(
    service: Service, fake: ProviderFake
) -> None:
    """So do its streams, whose text is built from the chunks of the provider."""
    body = RESPONSES_BODY[:-1] + b', "stream": true}'
    few, many = [await count_request(service, fake, RESPONSES_PATH, n, body) for n in (10, 60)]
    chunk = (many.total() - few.total()) / 50

    check_budget(chunk, RESPONSE_CHUNK, many - few)
    check_budget(few.total() - chunk * 10, RESPONSE_STREAM, few)


Part = Stream | Pump | ProviderRequest | HttpConnection | KotaeError


def find_answers() -> list[Part]:
    """The parts of every answer that exist in this process."""
    return [item for item in gc.get_objects() if isinstance(item, Part)]


async def abort_stream(service: Service, fake: ProviderFake) -> None:
    """Disconnect in the middle of a stream."""
    calls = len(fake.calls)
    fake.next(Behaviour(hang_after=2))
    async with service.client.stream(
        "POST", "/ai/stream", json={"prompt": "Why?", "grounded": False}
    ) as response:
        async for line in response.aiter_lines():
            if '"delta"' in line:
                break
    await fake.wait_calls(calls + 1)
    await service.wait_idle()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["plain", "stream", "chat", "chat stream", "aborted", "cut", "refused"]
)
async def test_an_answer_leaves_no_reference_cycle(
    service: Service, fake: ProviderFake, kind: str
) -> None:
    """When an answer has ended, no reference cycle keeps its stream, pump, connection or error."""

    async def ask() -> None:
        if kind == "aborted":
            await abort_stream(service, fake)
        elif kind in {"chat", "chat stream"}:
            await send_prompt(service, CHAT_PATH, body=CHAT if kind == "chat" else CHAT_STREAM)
        elif kind in {"plain", "stream"}:
            await send_prompt(service, "/ai/test" if kind == "plain" else "/ai/stream")
        else:
            fake.next(Behaviour(cut_after=1) if kind == "cut" else Behaviour(status=401))
            await service.client.post("/ai/test", json={"prompt": "Why?", "grounded": False})
            await service.wait_idle()
        await fake.wait_idle()

    await ask()
    gc.collect()
    before = {id(item) for item in find_answers()}  # idle connections, and earlier tests
    gc.disable()
    try:
        for _ in range(3):
            await ask()
        async with asyncio.timeout(5):
            while leaked := [item for item in find_answers() if id(item) not in before]:
                if all(isinstance(item, HttpConnection) and item.is_usable() for item in leaked):
                    break
                del leaked
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


async def test_a_stream_and_each_of_its_chunks(service: Service, fake: ProviderFake) -> None:
    """A stream stays within its budget, and so does each separate chunk."""
    few, many = (
        await count_request(service, fake, "/ai/stream", 10),
        await count_request(service, fake, "/ai/stream", 60),
    )
    chunk = (many.total() - few.total()) / 50

    check_budget(chunk, CHUNK, many - few)
    check_budget(few.total() - chunk * 10, STREAM, few)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["numpy", "mcp"])
def test_large_packages_are_not_imported_at_the_start(module: str) -> None:
    """The start imports neither numpy (10 MiB, 0.1 s) nor mcp (24 MiB, 0.6 s)."""
    loaded = (
        "import sys, service.__main__, service.cli.app, service.main, service.server; "
        f"print('{module}' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", loaded], capture_output=True, check=True, text=True
        ).stdout
        == "False\n"
    )
