"""The server: socket options, limits, and the shutdown."""

import asyncio
import resource
import signal
import socket
import time

from service.http_server.connections import HttpLimits
from tests.conftest import Serve, http_client
from tests.fakes.provider import Behaviour, ProviderFake
from tests.http_server.raw import RawClient
from tests.http_server.test_protocol import post
from tests.sse import Parser

ASK = {"prompt": "Why?", "grounded": False}


async def test_the_send_buffer_is_limited(serve: Serve) -> None:
    """The listener, and so every connection, has the configured send buffer."""
    service = await serve(http_limits=HttpLimits(send_buffer_bytes=32_768))

    assert service.server.servers[0].sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in {
        32_768,
        65_536,
    }


async def test_shutdown_announces_a_reconnect_time(serve: Serve, fake: ProviderFake) -> None:
    """At the first signal a stream receives a reconnect time, and still ends in time."""
    service = await serve(
        openai_base_url=fake.base_url, model="fake-model", shutdown_grace_seconds=10
    )
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=2))
    parser, events, retries = Parser(), [], []
    async with service.client.stream(
        "GET", "/ai/stream", params={"prompt": "x", "grounded": "false"}
    ) as response:
        async for piece in response.aiter_raw():
            events += parser.feed(piece)
            if b"retry:" in piece:
                retries.append(parser.retry)
            if len(events) == 3 and not service.server.should_exit:
                service.server.handle_exit(signal.SIGTERM, None)
            if len(retries) == 2:
                held.set()

    first, second = retries
    assert first == 2000
    assert second
    assert 1000 <= second <= 4000
    assert events[-1].name == "done"


async def test_new_connections_are_answered_while_answers_end(
    serve: Serve, fake: ProviderFake
) -> None:
    """Until the last answer ends a new connection gets 503 with Retry-After, and is not refused."""
    service = await serve(
        openai_base_url=fake.base_url, model="fake-model", shutdown_grace_seconds=20
    )
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=1))
    async with service.client.stream("POST", "/ai/stream", json=ASK) as response:
        await fake.wait_calls(1)
        service.server.handle_exit(signal.SIGTERM, None)
        async with http_client(service.url) as other:
            refused = await other.post("/ai/test", json=ASK)
            ready = await other.get("/health/ready")
            live = await other.get("/health/live")
        held.set()
        text = await response.aread()

    assert (refused.status_code, refused.json()["code"]) == (503, "shutting_down")
    assert refused.headers["retry-after"]
    assert refused.headers["connection"] == "close"
    assert (ready.status_code, ready.json()["status"], live.status_code) == (503, "stopping", 200)
    assert b"event: done" in text


async def test_a_client_that_does_not_read_does_not_delay_the_end(
    serve: Serve, fake: ProviderFake
) -> None:
    """Streams whose clients do not read are cut soon after the grace period."""
    service = await serve(
        openai_base_url=fake.base_url,
        model="fake-model",
        http_limits=HttpLimits(send_buffer_bytes=4096),
        shutdown_grace_seconds=0.3,
    )
    fake.default = Behaviour(deltas=["word " * 1000] * 20, hang_after=20)
    clients = [await RawClient.connect(service) for _ in range(5)]
    for client in clients:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(post(b"/ai/stream"))
    await fake.wait_calls(5)
    began = time.monotonic()
    service.server.handle_exit(signal.SIGTERM, None)
    while service.server.servers[0].is_serving() or len(service.server.connections):
        await asyncio.sleep(0.01)

    assert time.monotonic() - began < 0.3 + 2
    for client in clients:
        await client.close()


async def test_connections_are_limited_by_open_files(serve: Serve) -> None:
    """With few file descriptors the limit of connections leaves half of them to everything else."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    service = await serve(connections_max=100_000)

    assert service.server.connections.limits.connections_max <= hard
    assert soft <= hard
