"""Mutated requests: whatever arrives, the service answers or closes, and nothing breaks."""

import asyncio
import json
import random
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import Serve, Service
from tests.fakes.provider import ProviderFake
from tests.http_server.raw import RawClient
from tests.http_server.test_protocol import ASK, LIMITS, LIVE, chunked, post

pytestmark = pytest.mark.slow

REQUESTS = 600
AT_ONCE = 100
EXPECTED = {100, 200, 201, 204, 400, 401, 403, 404, 405, 408, 413, 414, 415, 422, 431}
SEEDS = [
    LIVE + b"\r\n",
    post(),
    chunked(ASK[:5], ASK[5:]),
    chunked(ASK, end=b"0\r\nX-Trailer: 1\r\n\r\n"),
    post(b"/ai/upload", json.dumps({"text": "A text.", "title": "Title"}).encode()),
    post(b"/ai/test", ASK, b"Connection: Upgrade", b"Upgrade: h2c"),
    post(b"/ai/test", ASK, b"Expect: 100-continue"),
    LIVE.replace(b"/health", b"http://localhost/health") + b"\r\n",
]
FRAGMENTS = [
    *(bytes([byte]) for byte in b'\r\n\0 \t:,;\xff0{"'),
    *(b"\r\n", b"-1", b"HTTP/1.0", b"HTTP/2.0", b"CONNECT "),
    *(b"f" * 20, b"[" * 50, b"a" * 20_000, b"x: y\r\n" * 200, b"0\r\n\r\n"),
    b"Host: localhost\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
]


def mutate(choose: random.Random) -> bytes:
    """A request, or several, with some changes."""
    data = bytearray(b"".join(choose.choices(SEEDS, k=choose.randint(1, 3))))
    for _ in range(choose.randint(1, 4)):
        place = choose.randrange(len(data) + 1)
        length = choose.choice([0, 0, 1, 3, 20])
        data[place : place + length] = choose.choice([b"", *FRAGMENTS])
    return bytes(data)


async def send(service: Service, data: bytes, choose: random.Random) -> set[int]:
    """The statuses of the responses to these bytes, which are sent in segments."""
    client = await RawClient.connect(service)
    size = choose.choice([1_000_000, 7_000, 50])
    for begin in range(0, len(data), size):
        await client.send(data[begin : begin + size])
    statuses = {reply.status for reply in await client.receive_all()}
    await client.close()
    return statuses


async def test_mutated_requests_break_nothing(serve: Serve, fake: ProviderFake) -> None:
    """No mutated request is answered with a server error or raises in the event loop."""
    limits = replace(LIMITS, head_seconds=0.3, body_seconds=0.3, idle_seconds=0.3)
    service = await serve(openai_base_url=fake.base_url, model="fake-model", http_limits=limits)
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    choose, statuses = random.Random(17), set[int]()
    for _ in range(REQUESTS // AT_ONCE):
        batch = [mutate(choose) for _ in range(AT_ONCE)]
        for result in await asyncio.gather(*(send(service, data, choose) for data in batch)):
            statuses |= result

    assert statuses <= EXPECTED
    assert {200, 400} <= statuses
    assert errors == []
    assert (await service.client.get("/health/live")).status_code == 200
