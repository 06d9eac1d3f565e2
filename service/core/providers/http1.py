"""HTTP/1.1 to one server, as lean as a stream of small events wants it. The one door to `httptools`.

A *connection* carries one exchange at a time. Bytes go from the socket through the parser into a list, and whoever reads
the exchange gets all that has come in one piece: a read of the socket is one wake-up, however many events it brought.
What has come before a fault is read before the fault is raised, so that nothing a provider said is lost.

Bounded by construction: there are as many connections as exchanges at once, and those that are kept are closed after
`KEEP_ALIVE_SECONDS`; a reader that does not read stops the socket at `AHEAD_BYTES_MAX`; a head has `HEAD_BYTES_MAX`.
One timer per exchange watches for silence, whatever the number of events.

Nothing is ever sent twice. Errors are `ProviderError`s, and they tell a request that surely was not sent
(`ProviderUnreachable`: there was no connection) from all others, which may have been billed.

What this does not do, on purpose: redirects, which would carry the key to another host; compression, of which a small
body could inflate without bound; proxies, cookies, HTTP/2 (`openai.py` leaves what needs them to the SDK's transport).
"""

import asyncio
import socket
import ssl
from collections import deque
from functools import partial
from typing import cast

import aiohappyeyeballs
import httptools

from service.core.errors import (
    ProviderCut,
    ProviderError,
    ProviderInvalid,
    ProviderTimeout,
    ProviderUnreachable,
)

KEEP_ALIVE_SECONDS = 3  # shorter than what servers allow (uvicorn: 5), so that a request rarely meets a closing connection
TAIL_SECONDS = 0.1  # wait for the end of a body of which enough was read, without which the connection cannot be used again
AHEAD_BYTES_MAX = 1_048_576  # unread body; beyond it the socket waits
HEAD_BYTES_MAX = 65_536
CLOSE_SECONDS = 1  # longest wait for sockets to close
_EYEBALLS_SECONDS = 0.25  # head start of one address family over the other (RFC 8305 §5)


class HttpConnection(asyncio.Protocol):
    """One connection, and the exchange on it: `send`, `wait_head`, `read` until empty, `close`."""

    def __init__(self, pool: "ConnectionPool", idle_seconds: float) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._idle_seconds = idle_seconds
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._parts: list[bytes] = []
        self._open = self._drop = self._paused = False
        self._kept_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._head_bytes = self._ahead = 0
        self._headed = self._complete = self._keep = False
        self._error: ProviderError | None = None

    # the exchange

    def send(self, request: bytes) -> None:
        """Begin an exchange."""
        self._begin()
        self._open = True
        self._heard = self._loop.time()
        self._timer = self._loop.call_later(self._idle_seconds, self._watch)
        self._transport.write(request)

    async def wait_head(self) -> None:
        """Wait for `status` and `headers`. Raises `ProviderError`s."""
        while not self._headed:
            if self._error:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """What has come of the body since the last call, waiting for something; empty at its end. Raises `ProviderError`s."""
        while not (parts := self._parts):
            if self._complete:
                return b""
            if self._error:
                raise self._error
            await self._wait()
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._ahead = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data

    def encoding(self) -> bytes:
        """How the body is compressed; empty if it is not."""
        return self.headers.get(b"content-encoding", b"")

    async def close(self, *, tail: bool = False) -> None:
        """Done with the exchange; does not wait. `tail`: its end is near, so it is waited for, by nobody; else an unfinished one is cut."""
        self._parts.clear()
        if self._complete or self._error or not tail:
            self._end()
        else:
            self._drop = True
            self._stop_watching()
            self._timer = self._loop.call_later(self._pool.tail_seconds, self._end)
            if self._paused:
                self._paused = False
                self._transport.resume_reading()

    def _end(self) -> None:
        self._open = self._drop = False
        self._stop_watching()
        if self._complete and self._keep and not self._transport.is_closing():
            self._kept_since = self._loop.time()
            self._pool.return_connection(self)
        else:
            self._transport.abort()

    def usable(self) -> bool:
        """Whether a kept connection may carry another exchange."""
        kept_seconds = self._loop.time() - self._kept_since
        return not self._transport.is_closing() and kept_seconds < self._pool.keep_alive_seconds

    def abort(self) -> asyncio.Future[None]:
        """Close the socket, whatever is on it. The future is done when it is closed."""
        self._fail(ProviderCut("the connection to the provider was closed"))
        self._transport.abort()
        return self._lost

    async def _wait(self) -> None:
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: ProviderError) -> None:
        if not self._complete:
            self._error = self._error or error
        self._wake()

    def _watch(self) -> None:
        """The provider's silence. One timer, set anew when it goes off, because setting it at every event would cost more."""
        silent = 0 if self._paused else self._loop.time() - self._heard
        if silent < self._idle_seconds:
            self._timer = self._loop.call_later(self._idle_seconds - silent, self._watch)
        else:
            self._fail(ProviderTimeout("the provider was silent for too long"))

    def _stop_watching(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    # the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = cast(
            asyncio.Transport, transport
        )  # what `create_connection` makes; uvloop's has not its class

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._keep = False
            refusal = ProviderInvalid("the provider's answer could not be read")
            refusal.__cause__ = error
            self._fail(refusal)
            self._transport.abort()
        if not self._open:
            self._transport.abort()  # nobody asked: what comes next would be taken for the answer of somebody else
        elif self._drop:
            if self._complete:
                self._end()
        elif self._waiter:
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is closed: the end of a body that has no other, or a fault."""
        framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        if self._headed and not framed and error is None and not self._error:
            self._complete = True
            self._wake()
        else:
            lost = ProviderCut("the connection to the provider broke")
            lost.__cause__ = error
            self._fail(lost)
        if self._drop:
            self._end()
        self._pool.discard_connection(self)
        self._lost.set_result(None)

    # the parser

    def on_message_begin(self) -> None:
        """The first byte of an answer."""
        if self._complete:
            raise ValueError(
                "a second answer to one request"
            )  # the parser turns it into its own error

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES_MAX:
            raise ValueError("the head is too long")
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The head is whole, unless it only says that another will come (RFC 9110 §15.2)."""
        self.status = self._parser.get_status_code()
        if self.status >= 200:
            self._headed = True
        else:
            self.headers.clear()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._drop:
            return
        self._parts.append(data)
        self._ahead += len(data)
        if self._ahead > AHEAD_BYTES_MAX and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The whole answer is there."""
        if self._headed:
            self._complete, self._keep = True, self._parser.should_keep_alive()


class ConnectionPool:
    """The connections to one server. `aclose` before the event loop ends.

    An idle connection is closed after `keep_alive_seconds`. `tail_seconds`: how long `Connection.close` waits for the end
    of a body, without which the connection cannot be used again.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        *,
        connect_seconds: float,
        idle_seconds: float,
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
        tail_seconds: float = TAIL_SECONDS,
    ) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._connect_seconds, self._idle_seconds = connect_seconds, idle_seconds
        self.keep_alive_seconds, self.tail_seconds = keep_alive_seconds, tail_seconds
        self._all: set[HttpConnection] = set()
        self._kept: deque[HttpConnection] = deque()  # the longest kept first
        self._sweeper: asyncio.TimerHandle | None = None

    async def send_request(self, request: bytes) -> HttpConnection:
        """Send a request on a connection that is free or new. Raises `ProviderUnreachable`."""
        connection = self._free() or await self._connect()
        connection.send(request)
        return connection

    def return_connection(self, connection: HttpConnection) -> None:
        """It may be used again."""
        self._kept.append(connection)
        if self._sweeper is None:
            self._sweep_later()

    def discard_connection(self, connection: HttpConnection) -> None:
        """It is closed."""
        self._all.discard(connection)

    async def aclose(self) -> None:
        """Close them all. Idempotent."""
        if self._sweeper:
            self._sweeper.cancel()
            self._sweeper = None
        self._kept.clear()
        lost = [connection.abort() for connection in self._all]
        if lost:
            await asyncio.wait(lost, timeout=CLOSE_SECONDS)

    def _free(self) -> HttpConnection | None:
        """The last used: so that those which are not needed become old."""
        while self._kept:
            connection = self._kept.pop()
            if connection.usable():
                return connection
        return None

    async def _connect(self) -> HttpConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                sock = await aiohappyeyeballs.start_connection(
                    found, happy_eyeballs_delay=_EYEBALLS_SECONDS
                )
                _, connection = await loop.create_connection(
                    partial(HttpConnection, self, self._idle_seconds),
                    sock=sock,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
        except (
            OSError,
            UnicodeError,
            RuntimeError,
        ) as error:  # TLS and time are OSErrors; uvloop has RuntimeErrors for some
            raise ProviderUnreachable("no connection to the provider") from error
        self._all.add(connection)
        return connection

    def _sweep(self) -> None:
        """Close what was kept for too long."""
        self._sweeper = None
        while self._kept and not self._kept[0].usable():
            self._kept.popleft().abort()
        if self._kept:
            self._sweep_later()

    def _sweep_later(self) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(self.keep_alive_seconds, self._sweep)
