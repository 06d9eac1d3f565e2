"""Event streams on the socket: slow readers and silence."""

import asyncio
import socket
from urllib.parse import urlsplit

from service.core.limits import ServiceLimits
from service.http_server.connections import HttpLimits
from tests.conftest import Serve
from tests.fakes.provider import Behaviour, ProviderFake
from tests.sse import Parser, text_of
from tests.streams import read_all_events, start_answer


async def test_stalled_reader_is_disconnected_and_may_resume(
    serve: Serve, fake: ProviderFake
) -> None:
    """After send_seconds_max a stalled reader is disconnected; a new reader gets everything."""
    service = await serve(
        openai_base_url=fake.base_url,
        model="fake-model",
        limits=ServiceLimits(send_seconds_max=0.3),
        http_limits=HttpLimits(send_buffer_bytes=4096),
    )
    fake.next(Behaviour(chunks=20_000, chunks_per_write=0))
    started = await start_answer(service)
    address = urlsplit(service.url)
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect((address.hostname, address.port))
        connections = service.server.server_state.connections
        before = set(connections)
        stalled.sendall(
            f"GET {started['events_url']} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()
        )
        async with asyncio.timeout(10):
            while not connections - before:
                await asyncio.sleep(0)
            (connection,) = connections - before
            waiting = []
            while connection in connections:
                waiting.append(connection.transport.get_write_buffer_size())
                await asyncio.sleep(0.01)

        whole = await read_all_events(service, f"/ai/answers/{started['id']}/events")

    assert 0 < max(waiting) <= 16_384 * 2 + 8192
    assert text_of(whole) == fake.calls[0].text
    assert (await service.row())["status"] == "completed"


async def test_silence_is_filled_with_comments(serve: Serve, fake: ProviderFake) -> None:
    """While the provider says nothing, comments keep the connection awake; retry is said once."""
    service = await serve(
        openai_base_url=fake.base_url, model="fake-model", limits=ServiceLimits(ping_seconds=0.05)
    )
    release = asyncio.Event()
    fake.next(Behaviour(hold=release, hold_after=1))
    parser, received = Parser(), []
    async with service.client.stream(
        "GET", "/ai/stream", params={"prompt": "x", "grounded": "false"}
    ) as response:
        data = b""
        async for piece in response.aiter_raw():
            data += piece
            received += parser.feed(piece)
            if len(parser.comments) > 2:
                release.set()

    assert set(parser.comments) == {"ping"}
    assert data.startswith(b"retry: 2000\nevent: start\n")
    assert data.count(b"retry:") == 1
    assert received[-1].name == "done"
