"""HTTP/1.1 to a provider: what comes over a connection, when it is used again, and what each fault becomes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from service.core.errors import ProviderCut, ProviderInvalid, ProviderTimeout, ProviderUnreachable
from service.core.providers.http1 import (
    HEAD_BYTES_MAX,
    UNREAD_BYTES_MAX,
    ConnectionPool,
    HttpConnection,
)

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


class Server:
    """Answers each request with the next of its answers: bytes to send, or None to close the connection."""

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
async def served(
    *answers: list[bytes | None], **options: float
) -> AsyncIterator[tuple[ConnectionPool, Server]]:
    """A server with these answers, and connections to it."""
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


async def asked(connections: ConnectionPool) -> HttpConnection:
    """A connection whose answer has begun."""
    connection = await connections.send_request(REQUEST)
    await connection.wait_head()
    return connection


async def all_of(connection: HttpConnection) -> bytes:
    """The body of the answer, its head waited for."""
    await connection.wait_head()
    return await body(connection)


async def body(connection: HttpConnection) -> bytes:
    """The rest of the answer."""
    parts = []
    while data := await connection.read():
        parts.append(data)
    return b"".join(parts)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_whole_answer_frees_its_connection_for_the_next() -> None:
    """Two exchanges one after another need one connection."""
    async with served(
        [WHOLE],
        [
            b"HTTP/1.1 404 No\r\nX-Why: that\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhey\r\n0\r\n\r\n"
        ],
    ) as (
        connections,
        server,
    ):
        first = await asked(connections)
        assert (first.status, await body(first)) == (200, b"hi")
        await first.close()
        second = await asked(connections)
        assert (second.status, second.headers[b"x-why"], await body(second)) == (
            404,
            b"that",
            b"hey",
        )
        await second.close()
        assert server.accepted == 1


async def test_an_unfinished_answer_closes_its_connection() -> None:
    """Who leaves in the middle stops the provider, and the next exchange has a connection of its own."""
    async with served([b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi"], [WHOLE]) as (
        connections,
        server,
    ):
        first = await asked(connections)
        assert await first.read() == b"hi"
        await first.close()
        await until(lambda: server.gone == 1)
        second = await asked(connections)
        assert await body(second) == b"hi"
        await second.close()
        assert server.accepted == 2


async def test_the_tail_of_an_answer_is_waited_for_by_nobody() -> None:
    """An answer whose end is near is left to itself: close returns at once, and then the connection is free again."""
    async with served([b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi", b"...", WHOLE]) as (
        connections,
        server,
    ):
        server.answers = [[b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi", b"..."], [WHOLE]]
        first = await asked(connections)
        await first.close(tail=True)
        await until(lambda: len(connections._idle_connections) == 1)
        second = await asked(connections)
        assert await body(second) == b"hi"
        await second.close()
        assert server.accepted == 1


async def test_a_tail_that_does_not_come_closes_the_connection() -> None:
    """It is waited for no longer than a moment."""
    answer: list[bytes | None] = [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi"]
    async with served(answer, tail_seconds=0.01) as (connections, server):
        await (await asked(connections)).close(tail=True)
        await until(lambda: server.gone == 1)


async def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    """Nor is one whose answer says that it is the last."""
    last = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi"
    async with served([WHOLE, None], [last], [WHOLE]) as (connections, server):
        first = await asked(connections)
        await first.close()
        await until(lambda: not first.is_usable())
        for number in (2, 3):
            connection = await asked(connections)
            assert await body(connection) == b"hi"
            await connection.close()
            assert server.accepted == number


async def test_kept_connections_are_closed_in_time() -> None:
    """A connection that nobody wants goes before the server would close it."""
    async with served([WHOLE], keep_alive_seconds=0.02) as (connections, server):
        await (await asked(connections)).close()
        await until(lambda: server.gone == 1)
        assert not connections._connections


async def test_what_nobody_asked_for_is_nobodys_answer() -> None:
    """Bytes behind the end of an answer are not taken for the next one."""
    async with served([WHOLE + WHOLE], [WHOLE]) as (connections, server):
        first = await asked(connections)
        assert await body(first) == b"hi"
        await first.close()
        second = await asked(connections)
        assert await body(second) == b"hi"
        await second.close()
        assert server.accepted == 2


async def test_heads_that_only_announce_another() -> None:
    """A 1xx is not the answer."""
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    async with served([b"HTTP/1.1 100 Continue\r\n\r\n" + hints, WHOLE]) as (connections, _):
        connection = await asked(connections)
        assert (connection.status, connection.headers, await body(connection)) == (
            200,
            {b"content-length": b"2"},
            b"hi",
        )
        await connection.close()


async def test_a_body_that_ends_with_its_connection() -> None:
    """Without a length the end of the connection is the end of the body."""
    async with served([b"HTTP/1.1 200 OK\r\n\r\nall", b" of it", None]) as (connections, _):
        connection = await asked(connections)
        assert await body(connection) == b"all of it"
        await connection.close()


async def test_what_came_before_a_cut_is_read_before_it_is_raised() -> None:
    """A body that is shorter than its length is a fault, after its bytes."""
    async with served([b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi", None]) as (
        connections,
        server,
    ):
        connection = await asked(connections)
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
    ids=["no head", "no chunk", "a head without end", "another protocol"],
)
async def test_what_is_not_the_protocol(answer: bytes) -> None:
    """It is said to be invalid, and its connection is closed."""
    async with served([answer]) as (connections, _):
        connection = await connections.send_request(REQUEST)
        with pytest.raises(ProviderInvalid):
            await all_of(connection)
        await connection.close()
        await until(lambda: not connections._connections)


async def test_silence_is_a_timeout() -> None:
    """Before the head and within the body, counted from the last byte."""
    async with served(
        [], [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi"], idle_seconds=0.05
    ) as (connections, _):
        connection = await connections.send_request(REQUEST)
        with pytest.raises(ProviderTimeout):
            await connection.wait_head()
        await connection.close()
        connection = await asked(connections)
        with pytest.raises(ProviderTimeout):
            await body(connection)
        await connection.close()


async def test_a_reader_that_does_not_read_stops_the_socket() -> None:
    """Only so much is read ahead; the rest waits with the server, and comes when it is wanted."""
    piece, pieces = b"x" * 65_536, 400
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(piece) * pieces)
    async with served([head, *[piece] * pieces]) as (connections, server):
        connection = await asked(connections)
        await until(lambda: connection._unread_bytes > UNREAD_BYTES_MAX)
        sent = -1
        while sent != server.sent:  # until the buffers of the system are full
            sent = server.sent
            await asyncio.sleep(0.05)
        assert connection._unread_bytes < UNREAD_BYTES_MAX * 2
        assert server.sent < len(piece) * pieces
        assert len(await body(connection)) == len(piece) * pieces
        await connection.close()


async def test_no_connection_is_told_from_a_lost_one() -> None:
    """Nobody listens: the request surely was not sent."""
    async with served() as (connections, _):
        pass
    with pytest.raises(ProviderUnreachable):
        await connections.send_request(REQUEST)
