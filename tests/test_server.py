"""The server: socket options and the start of the shutdown."""

import asyncio
import signal
import socket

from service.http_server.connections import HttpLimits
from tests.conftest import Serve
from tests.fakes.provider import Behaviour, ProviderFake
from tests.sse import Parser


async def test_the_system_does_not_hide_a_slow_reader(serve: Serve) -> None:
    """The listener, and so every connection, has the configured send buffer."""
    service = await serve(http_limits=HttpLimits(send_buffer_bytes=32_768))

    assert service.server.servers[0].sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in {
        32_768,
        65_536,
    }


async def test_the_end_of_the_process_says_goodbye(serve: Serve, fake: ProviderFake) -> None:
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
