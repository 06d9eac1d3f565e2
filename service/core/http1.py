"""A minimal HTTP/1.1 client for one server and many small events. The only module with `httptools`.

A connection carries one exchange at a time. The parser appends body bytes to a list, and `read`
returns everything received so far: one socket read causes one wake-up, regardless of the number of
events. Data received before an error is returned before the error is raised, so no provider output
is lost.

Bounds: there are as many connections as concurrent exchanges, and idle ones are closed after
`KEEP_ALIVE_SECONDS`; reading from the socket pauses at `UNREAD_BYTES_MAX`; a response head is
limited to `HEAD_BYTES_MAX`, and what is received between two parts of a body to
`FRAMING_BYTES_MAX`. One timer per exchange implements the read timeout.

Nothing is sent twice. Errors are `ProviderError`s. `ProviderUnreachable` (no connection) means that
the request was not sent; any other error means that it may have been billed.

Not supported on purpose: redirects (they would send the key to another host), compression (a small
body could inflate without bound), proxies, cookies, HTTP/2. `openai.py` sends requests that need
them through the SDK's transport.
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

# Shorter than the timeout of servers (uvicorn: 5), to rarely use a connection that is being closed.
KEEP_ALIVE_SECONDS = 3
# Maximum wait for the rest of a body that is not needed; afterwards the connection is reusable.
TAIL_SECONDS = 0.1
UNREAD_BYTES_MAX = 1_048_576  # of a body; reading from the socket pauses here
HEAD_BYTES_MAX = 65_536
# Received without a byte of the body: the parser buffers a header or trailer until its line ends.
FRAMING_BYTES_MAX = 131_072
CLOSE_SECONDS = 1  # maximum wait for sockets to close
_EYEBALLS_SECONDS = 0.25  # head start of one address family over the other (RFC 8305 §5)


class HttpConnection(asyncio.Protocol):
    """A connection and its current exchange: `send`, `wait_head`, `read` until empty, `close`."""

    def __init__(self, pool: "ConnectionPool") -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._idle_seconds = pool.idle_seconds
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._parts: list[bytes] = []
        self._open = self._discard_body = self._paused = False
        self._idle_since = 0.0
        self._reset_exchange()

    def _reset_exchange(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._head_bytes = self._unread_bytes = self._framing_bytes = 0
        self._body_arrived = False
        self._head_complete = self._complete = self._keep_alive = False
        self._error: ProviderError | None = None

    # the exchange

    def send(self, request: bytes) -> None:
        """Begin an exchange."""
        self._reset_exchange()
        self._open, self._idle_seconds = True, self._pool.idle_seconds
        self._last_data_at = self._loop.time()
        self._timer = self._loop.call_later(self._idle_seconds, self._check_silence)
        self._transport.write(request)

    def set_read_timeout(self, seconds: float) -> None:
        """Change the read timeout for the rest of the exchange."""
        self._idle_seconds = seconds
        self._cancel_timer()
        self._check_silence()

    async def wait_head(self) -> None:
        """Wait for `status` and `headers`. Raises `ProviderError`s."""
        while not self._head_complete:
            if self._error:
                raise self._error
            await self._wait_progress()

    async def read(self) -> bytes:
        """Return the body received since the last call, waiting for data; empty at the end.

        Raises `ProviderError`s.
        """
        while not (parts := self._parts):
            if self._complete:
                return b""
            if self._error:
                raise self._error
            await self._wait_progress()
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._unread_bytes = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data

    def content_encoding(self) -> bytes:
        """The compression of the body; empty without compression."""
        return self.headers.get(b"content-encoding", b"")

    async def close(self, *, tail: bool = False) -> None:
        """End the exchange without waiting. An unfinished one closes the connection.

        With `tail`, the rest of the body is expected soon: it is read in the background for up to
        `tail_seconds`, so that the connection can be reused.
        """
        self._parts.clear()
        if self._complete or self._error or not tail:
            self._finish_exchange()
        else:
            self._discard_body = True
            self._cancel_timer()
            self._timer = self._loop.call_later(self._pool.tail_seconds, self._finish_exchange)
            if self._paused:
                self._paused = False
                self._transport.resume_reading()

    def _finish_exchange(self) -> None:
        self._open = self._discard_body = False
        self._error = None  # its traceback refers to this connection
        self._cancel_timer()
        if self._complete and self._keep_alive and not self._transport.is_closing():
            self._idle_since = self._loop.time()
            self._pool.return_connection(self)
        else:
            self._transport.abort()

    def is_usable(self) -> bool:
        """Whether an idle connection may carry another exchange."""
        idle_seconds = self._loop.time() - self._idle_since
        return not self._transport.is_closing() and idle_seconds < self._pool.keep_alive_seconds

    def abort(self) -> asyncio.Future[None]:
        """Close the socket immediately. The future completes when it is closed."""
        self._set_error(ProviderCut("the connection to the provider was closed"))
        self._transport.abort()
        return self._closed

    async def _wait_progress(self) -> None:
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _wake_reader(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _set_error(self, error: ProviderError) -> None:
        if not self._complete:
            self._error = self._error or error
        self._wake_reader()

    def _check_silence(self) -> None:
        """Apply the read timeout. One timer that is re-armed here is cheaper than one per event."""
        silent = 0 if self._paused else self._loop.time() - self._last_data_at
        if silent < self._idle_seconds:
            self._timer = self._loop.call_later(self._idle_seconds - silent, self._check_silence)
        else:
            self._set_error(ProviderTimeout("the provider was silent for too long"))

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    # the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop when the socket is connected."""
        # A cast, because uvloop's transport is not a subclass.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop for received bytes."""
        self._last_data_at = self._loop.time()
        self._body_arrived = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._keep_alive = False
            refusal = ProviderInvalid("the provider's answer could not be read")
            refusal.__cause__ = error
            self._set_error(refusal)
            self._transport.abort()
        if not self._body_arrived:
            self._limit_framing(len(data))
        if not self._open:
            # Data without a request: it would be taken for the response to the next one.
            self._transport.abort()
        elif self._discard_body:
            if self._complete:
                self._finish_exchange()
        elif self._waiter:
            self._wake_reader()

    def _limit_framing(self, size: int) -> None:
        self._framing_bytes += size
        if self._framing_bytes > FRAMING_BYTES_MAX and not self._complete:
            self._set_error(ProviderInvalid("the provider sent an endless head or trailer"))
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Called when the socket is closed: the end of a body without a length, else an error."""
        framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        if self._head_complete and not framed and error is None and not self._error:
            self._complete = True
            self._wake_reader()
        elif self._open:
            cut = ProviderCut("the connection to the provider broke")
            cut.__cause__ = error
            self._set_error(cut)
        if self._discard_body:
            self._finish_exchange()
        self._pool.discard_connection(self)
        self._closed.set_result(None)
        del self._parser  # it refers to this connection

    # the parser

    def on_message_begin(self) -> None:
        """Called by the parser at the start of a response."""
        if self._complete:  # the parser raises its own error from this
            raise ValueError("a second response to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser for a header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES_MAX:
            raise ValueError("the head is too long")
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Called by the parser after a head; interim responses precede it (RFC 9110 §15.2)."""
        self.status = self._parser.get_status_code()
        if self.status >= 200:
            self._head_complete = True
        else:
            self.headers.clear()

    def on_body(self, data: bytes) -> None:
        """Called by the parser for a part of the body."""
        self._body_arrived, self._framing_bytes = True, 0
        if self._discard_body:
            return
        self._parts.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > UNREAD_BYTES_MAX and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """Called by the parser at the end of a response."""
        if self._head_complete:
            self._complete, self._keep_alive = True, self._parser.should_keep_alive()


class ConnectionPool:
    """The connections to one server. `aclose` before the event loop ends.

    An idle connection is closed after `keep_alive_seconds`. `tail_seconds` limits how long
    `HttpConnection.close(tail=True)` reads the rest of a body. `server_name`: the name in the
    certificate, if `host` is an address of it.
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
        server_name: str | None = None,
    ) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._server_name = server_name or host
        self._connect_seconds, self.idle_seconds = connect_seconds, idle_seconds
        self.keep_alive_seconds, self.tail_seconds = keep_alive_seconds, tail_seconds
        self._connections: set[HttpConnection] = set()
        self._idle_connections: deque[HttpConnection] = deque()  # longest idle first
        self._sweeper: asyncio.TimerHandle | None = None

    async def send_request(self, request: bytes) -> HttpConnection:
        """Send a request on an idle or new connection. Raises `ProviderUnreachable`."""
        connection = self._take_idle() or await self._open_connection()
        connection.send(request)
        return connection

    def return_connection(self, connection: HttpConnection) -> None:
        """Make a connection available for reuse."""
        self._idle_connections.append(connection)
        if self._sweeper is None:
            self._schedule_sweep()

    def discard_connection(self, connection: HttpConnection) -> None:
        """Forget a closed connection."""
        self._connections.discard(connection)

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        if self._sweeper:
            self._sweeper.cancel()
            self._sweeper = None
        self._idle_connections.clear()
        lost = [connection.abort() for connection in self._connections]
        if lost:
            await asyncio.wait(lost, timeout=CLOSE_SECONDS)

    def _take_idle(self) -> HttpConnection | None:
        """Take the most recently used connection, so that surplus ones expire."""
        while self._idle_connections:
            connection = self._idle_connections.pop()
            if connection.is_usable():
                return connection
        return None

    async def _open_connection(self) -> HttpConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                addresses = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                sock = await aiohappyeyeballs.start_connection(
                    addresses, happy_eyeballs_delay=_EYEBALLS_SECONDS
                )
                _, connection = await loop.create_connection(
                    partial(HttpConnection, self),
                    sock=sock,
                    ssl=self._tls,
                    server_hostname=self._server_name if self._tls else None,
                )
        # TLS errors and timeouts are OSErrors; uvloop raises RuntimeError in some cases.
        except (OSError, UnicodeError, RuntimeError) as error:
            raise ProviderUnreachable("no connection to the provider") from error
        self._connections.add(connection)
        return connection

    def _close_expired(self) -> None:
        """Close connections that have been idle for too long."""
        self._sweeper = None
        while self._idle_connections and not self._idle_connections[0].is_usable():
            self._idle_connections.popleft().abort()
        if self._idle_connections:
            self._schedule_sweep()

    def _schedule_sweep(self) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(
            self.keep_alive_seconds, self._close_expired
        )
