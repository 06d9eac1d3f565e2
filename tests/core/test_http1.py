"""The HTTP/1.1 client: reading responses, reusing connections, translating errors."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.core.errors import ProviderCut, ProviderInvalid, ProviderTimeout, ProviderUnreachable
from service.core.http1 import (
    HEAD_BYTES_MAX,
    UNREAD_BYTES_MAX,
    ConnectionPool,
    HttpConnection,
)

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


class Server:
    """Answers each request with the next answer: bytes to send, None to close the connection."""

    def __init__(self, answers: list[list[bytes | None]]) -> None:
        self.answers = answers
        self.accepted = 0
        self.gone = 0
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                for piece in self.answers.pop(0):
                    if piece is None:
                        return
                    writer.write(piece)
                    self.sent += len(piece)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone += 1
        finally:
            writer.close()


@asynccontextmanager
async def serve_answers(
    *answers: list[bytes | None], **options: Any
) -> AsyncIterator[tuple[ConnectionPool, Server]]:
    """Start a server with these answers and a connection pool for it."""
    server = Server(list(answers))
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    connections = ConnectionPool(
        "127.0.0.1", port, None, **({"connect_seconds": 5, "idle_seconds": 5} | options)
    )
    try:
        yield connections, server
    finally:
        await connections.aclose()
        listener.close()
        await listener.wait_closed()


async def send_request(connections: ConnectionPool) -> HttpConnection:
    """Send a request and wait for the head of the response."""
    connection = await connections.send_request(REQUEST)
    await connection.wait_head()
    return connection


async def read_response(connection: HttpConnection) -> bytes:
    """Wait for the head and return the body."""
    await connection.wait_head()
    return await body(connection)


async def body(connection: HttpConnection) -> bytes:
    """Read the rest of the body."""
    parts = []
    while data := await connection.read():
        parts.append(data)
    return b"".join(parts)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_complete_response_allows_reuse_of_its_connection() -> None:
    """Two sequential exchanges use one connection."""
    async with serve_answers(
        [WHOLE],
        [
            b"HTTP/1.1 404 No\r\nX-Why: that\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"3\r\nhey\r\n0\r\n\r\n",
        ],
    ) as (
        connections,
        server,
    ):
        first = await send_request(connections)
        assert (first.status, await body(first)) == (200, b"hi")
        await first.close()
        second = await send_request(connections)
        assert (second.status, second.headers[b"x-why"], await body(second)) == (
            404,
            b"that",
            b"hey",
        )
        await second.close()
        assert server.accepted == 1


async def test_an_unfinished_response_closes_its_connection() -> None:
    """Closing an unfinished exchange stops the provider; the next one uses a new connection."""
    async with serve_answers([b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi"], [WHOLE]) as (
        connections,
        server,
    ):
        first = await send_request(connections)
        assert await first.read() == b"hi"
        await first.close()
        await until(lambda: server.gone == 1)
        second = await send_request(connections)
        assert await body(second) == b"hi"
        await second.close()
        assert server.accepted == 2


async def test_the_tail_of_a_response_is_read_in_the_background() -> None:
    """With `tail`, close returns immediately, and the connection is reusable afterwards."""
    async with serve_answers(
        [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi", b"...", WHOLE]
    ) as (
        connections,
        server,
    ):
        server.answers = [[b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi", b"..."], [WHOLE]]
        first = await send_request(connections)
        await first.close(tail=True)
        await until(lambda: len(connections._idle_connections) == 1)
        second = await send_request(connections)
        assert await body(second) == b"hi"
        await second.close()
        assert server.accepted == 1


async def test_a_missing_tail_closes_the_connection() -> None:
    """The wait for a tail is limited."""
    answer: list[bytes | None] = [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi"]
    async with serve_answers(answer, tail_seconds=0.01) as (connections, server):
        await (await send_request(connections)).close(tail=True)
        await until(lambda: server.gone == 1)


async def test_a_closed_connection_is_not_reused() -> None:
    """Neither is one whose response has `Connection: close`."""
    last = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi"
    async with serve_answers([WHOLE, None], [last], [WHOLE]) as (connections, server):
        first = await send_request(connections)
        await first.close()
        await until(lambda: not first.is_usable())
        for number in (2, 3):
            connection = await send_request(connections)
            assert await body(connection) == b"hi"
            await connection.close()
            assert server.accepted == number


async def test_idle_connections_expire() -> None:
    """An idle connection is closed before the server would close it."""
    async with serve_answers([WHOLE], keep_alive_seconds=0.02) as (connections, server):
        await (await send_request(connections)).close()
        await until(lambda: server.gone == 1)
        assert not connections._connections


async def test_unsolicited_bytes_are_discarded() -> None:
    """Bytes after the end of a response do not become the next response."""
    async with serve_answers([WHOLE + WHOLE], [WHOLE]) as (connections, server):
        first = await send_request(connections)
        assert await body(first) == b"hi"
        await first.close()
        second = await send_request(connections)
        assert await body(second) == b"hi"
        await second.close()
        assert server.accepted == 2


async def test_interim_responses_are_skipped() -> None:
    """A 1xx response is not the final one."""
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    async with serve_answers([b"HTTP/1.1 100 Continue\r\n\r\n" + hints, WHOLE]) as (connections, _):
        connection = await send_request(connections)
        assert (connection.status, connection.headers, await body(connection)) == (
            200,
            {b"content-length": b"2"},
            b"hi",
        )
        await connection.close()


async def test_a_body_that_ends_with_its_connection() -> None:
    """Without a length, the end of the connection ends the body."""
    async with serve_answers([b"HTTP/1.1 200 OK\r\n\r\nall", b" of it", None]) as (connections, _):
        connection = await send_request(connections)
        assert await body(connection) == b"all of it"
        await connection.close()


async def test_data_before_a_cut_is_returned_first() -> None:
    """A truncated body raises an error after its bytes were read."""
    async with serve_answers([b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi", None]) as (
        connections,
        server,
    ):
        connection = await send_request(connections)
        await until(lambda: not server.answers and not connections._connections)
        assert await connection.read() == b"hi"
        with pytest.raises(ProviderCut):
            await connection.read()
        await connection.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnot a number\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhi",
    ],
    ids=["no head", "no chunk", "endless head", "another protocol"],
)
async def test_protocol_violations(answer: bytes) -> None:
    """An invalid response raises `ProviderInvalid` and closes the connection."""
    async with serve_answers([answer]) as (connections, _):
        connection = await connections.send_request(REQUEST)
        with pytest.raises(ProviderInvalid):
            await read_response(connection)
        await connection.close()
        await until(lambda: not connections._connections)


@pytest.mark.parametrize(
    ("start", "endless"),
    [
        (b"HTTP/1.1 200 OK\r\nx-a: ", b"a" * 16_384),
        (b"HTTP/1.1 200 OK\r\n", b"x-a: b\r\n" * 1_000),
        (b"HTTP/1.1 ", b"100 Continue\r\n\r\nHTTP/1.1 " * 500),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;x=", b"a" * 16_384),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-a: ", b"a" * 16_384),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x-a: b\r\n" * 999),
    ],
    ids=["header", "headers", "interim", "chunk extension", "trailer", "trailers"],
)
async def test_endless_framing_is_invalid(start: bytes, endless: bytes) -> None:
    """Heads, chunk extensions and trailers are bounded, also before a line is complete."""
    async with serve_answers([start, *[endless] * 500]) as (connections, _):
        connection = await connections.send_request(REQUEST)
        with pytest.raises(ProviderInvalid):
            await read_response(connection)


async def test_silence_is_a_timeout() -> None:
    """The read timeout applies before the head and within the body."""
    async with serve_answers(
        [], [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi"], idle_seconds=0.05
    ) as (connections, _):
        connection = await connections.send_request(REQUEST)
        with pytest.raises(ProviderTimeout):
            await connection.wait_head()
        await connection.close()
        connection = await send_request(connections)
        with pytest.raises(ProviderTimeout):
            await body(connection)
        await connection.close()


async def test_reading_pauses_without_a_reader() -> None:
    """Unread data is bounded (backpressure), and arrives once it is read."""
    piece, pieces = b"x" * 65_536, 400
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(piece) * pieces)
    async with serve_answers([head, *[piece] * pieces]) as (connections, server):
        connection = await send_request(connections)
        await until(lambda: connection._unread_bytes > UNREAD_BYTES_MAX)
        sent = -1
        while sent != server.sent:  # until the system's buffers are full
            sent = server.sent
            await asyncio.sleep(0.05)
        assert connection._unread_bytes < UNREAD_BYTES_MAX * 2
        assert server.sent < len(piece) * pieces
        assert len(await body(connection)) == len(piece) * pieces
        await connection.close()


async def test_a_refused_connection_is_unreachable() -> None:
    """If nothing listens, the request was not sent."""
    async with serve_answers() as (connections, _):
        pass
    with pytest.raises(ProviderUnreachable):
        await connections.send_request(REQUEST)
