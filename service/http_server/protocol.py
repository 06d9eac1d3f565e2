"""HTTP/1.1 on one connection, bounded in memory and in time: uvicorn's protocol with limits.

The parser, llhttp, refuses what is not HTTP/1.1: bare LF, folded headers, invalid, repeated or
contradictory lengths. But it buffers a head without a limit, knows no deadlines, and reports
trailers as headers. Therefore it is fed in pieces of `FEED_BYTES`, and what it holds is checked
after each piece.

A request that exceeds a limit is passed to the application with the error (`kotae.refusal` in the
scope) and answered in its turn, as a problem; then the connection is closed. What the client still
sends is discarded for a while, since closing at once would reset the connection before the client
has read the response (RFC 9112, section 9.6).

What this module does not do: HTTP/2, TLS and WebSocket. An `Upgrade` header is ignored (RFC 9110,
section 7.8).
"""

import asyncio
from collections import deque
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn._types import HTTPScope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.core.errors import (
    HeadTooLarge,
    KotaeError,
    MalformedRequest,
    Overloaded,
    RequestTimeout,
)
from service.http_server.connections import ConnectionTable
from service.http_server.deadlines import Deadlines
from service.http_server.exchange import HttpExchange
from service.http_server.head import (
    RequestHead,
    check_size,
    format_without_upgrade,
    head_too_large,
)

FEED_BYTES = 16_384
BODY_BUFFER_BYTES = 65_536  # beyond which reading waits for the application
WRITE_BUFFER_BYTES = 16_384  # beyond which the application waits for the client
_HEALTH = "/health/"  # paths that are served when too many connections are busy


class _TooManyRequests(Exception):
    """Raised in a parser callback: more requests are waiting than may wait."""


class HttpProtocol(HttpToolsProtocol):
    """One connection. `cycle` is the exchange being received, `_active` the one being answered."""

    cycle: HttpExchange

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        table: ConnectionTable,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._table, self._limits = table, table.limits
        self._active: HttpExchange | None = None
        self._waiting: deque[HttpExchange] = deque()  # the newest first
        self._extensions: dict[str, Any] = {}
        self.url = b""
        self.headers = []
        self._hosts: tuple[bytes, ...] = ()
        self._transfer_encoding = b""
        self._unfed = bytearray()  # received, and not yet parsed
        self._in_head = False  # a head has begun and is not complete
        self._upgrading = False  # the complete head asks for another protocol
        self._head_bytes = 0  # received since the last complete message
        self._framing_bytes = 0  # of the body: chunk sizes, chunk extensions and trailers
        self._trailer_bytes = 0  # of its complete trailers
        self._ahead_bytes = 0  # received while requests are waiting
        self._discarding = False  # what arrives is not parsed any more
        self._deadlines = Deadlines(table.limits, table.now)

    # Transport callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        """Enter the table, and bound what waits for the client."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        self._extensions = {"kotae.drop": {"now": transport.abort}}
        self._table.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature of a callback
        """Disconnect the application; requests that are waiting are not answered."""
        self._table.discard(self)
        self.connections.discard(self)
        self._waiting.clear()
        self._discarding = True
        self._unfed.clear()
        if self._active is not None:
            self._active.disconnected = not self._active.response_complete
            self._active.message_event.set()
        self.flow.resume_writing()
        self.parser = self.cycle = self._active = None  # type: ignore[assignment]  # cycles would wait for the collector

    def data_received(self, data: bytes) -> None:
        """Feed the parser.

        What is discarded is read slowly: it is not worth the time of the event loop.
        """
        size = len(data)
        if self._discarding:
            if not self._table.discard_bytes(self, size):
                self.flow.pause_reading()
        elif size <= FEED_BYTES and not self._unfed:
            self._feed(data, size)
        else:
            self.transport.pause_reading()
            if not self._unfed:
                self.loop.call_soon(self._feed_piece)
            self._unfed += data

    def _feed_piece(self) -> None:
        """Feed a piece per iteration of the event loop.

        In chunks of one byte, parsing it takes milliseconds.
        """
        if self._unfed and not self._discarding:
            piece = bytes(self._unfed[:FEED_BYTES])
            del self._unfed[:FEED_BYTES]
            self._feed(piece, len(piece))
        if self._unfed and not self._discarding:
            self.loop.call_soon(self._feed_piece)
        else:
            self._unfed.clear()
            if not self.transport.is_closing() and not self.flow.read_paused:
                self.transport.resume_reading()

    def resume_reading(self) -> None:
        """Read again, at a tick."""
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        """The client does not read."""
        self._deadlines.stalled_since = self._table.now
        self._table.set_stalled(self, stalled=True)
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        """The client has read."""
        self._deadlines.stalled_since = None
        self._table.set_stalled(self, stalled=False)
        self.flow.resume_writing()

    # Parser callbacks

    def on_message_begin(self) -> None:
        """Begin a head."""
        if self._discarding or (
            self._waiting and len(self._waiting) + 1 >= self._limits.pipelined_max
        ):
            raise _TooManyRequests
        self._in_head, self._trailer_bytes = True, 0
        self.url, self.headers = b"", []
        self._hosts, self._transfer_encoding = (), b""
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header.

        Trailers are ignored: nothing uses them, and they must not replace headers.
        """
        if not self._in_head:
            self._trailer_bytes += len(name) + len(value) + 4
            return
        name = name.lower()
        if name == b"host":
            self._hosts += (value,)
        elif name == b"transfer-encoding":
            self._transfer_encoding = value.lower()
        elif name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Pass the request to the application, with the reason if it is refused."""
        method = self.parser.get_method().decode("ascii")
        if self.parser.should_upgrade() and method != "CONNECT":
            self._upgrading = True
            return
        self._in_head = False
        head = RequestHead(
            self.parser.get_http_version(),
            method,
            self.url,
            self.headers,
            self._hosts,
            self._transfer_encoding,
        )
        head.check(self._limits, exactly=self._head_bytes > 0)
        keep_alive = head.version == "1.1" and self.parser.should_keep_alive()
        self._begin(self._exchange(head, keep_alive=keep_alive))

    def on_body(self, body: bytes) -> None:
        """Buffer a part of the body until the application reads it."""
        exchange = self.cycle
        exchange.received += len(body)
        exchange.received_at = self._table.now
        if exchange.response_complete:
            return
        exchange.body += body
        if exchange.received > BODY_BUFFER_BYTES and len(exchange.body) > BODY_BUFFER_BYTES:
            self.flow.pause_reading()
        exchange.message_event.set()

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self._upgrading:
            return
        exchange = self.cycle
        if self._trailer_bytes > self._limits.framing_bytes_max:
            self._refuse(self._framing_too_large())
        exchange.more_body = False
        exchange.message_event.set()
        if not exchange.keep_alive:
            self._discarding = True

    def on_response_complete(self) -> None:
        """Answer the next request, wait for one, or close."""
        self.server_state.total_requests += 1
        exchange, self._active = self._active, None
        if exchange is None or self.transport.is_closing():
            return
        self._table.set_idle(self)
        self._deadlines.since = self._table.now
        exchange.body.clear()
        self.flow.resume_reading()
        if not exchange.keep_alive:
            self._close()
        elif self._waiting:
            self._start(self._waiting.pop())
        else:
            self._ahead_bytes = 0

    # Limits

    def _feed(self, data: bytes | memoryview, size: int) -> None:
        """Parse a piece, and check the size of the incomplete part of the message."""
        if self._discarding:
            return
        exchange = self.cycle
        received = exchange.received if exchange is not None and exchange.more_body else None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._upgrading:
                self._parse_again(bytes(data[upgrade.args[0] :]))
        except httptools.HttpParserError as error:
            self._end_parsing(error)
        if self.cycle is not exchange:
            self._head_bytes = self._framing_bytes = 0
        elif received is not None:
            self._framing_bytes += size - (exchange.received - received)
        else:
            if not self._head_bytes:
                self._deadlines.since = self._table.now
            self._head_bytes += size
        if self._head_bytes or self._framing_bytes or self._waiting:
            self._check_sizes(size)

    def _parse_again(self, rest: bytes) -> None:
        """Parse a request that asks for another protocol as an ordinary one, and the rest."""
        head = format_without_upgrade(
            self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers
        )
        data = head + rest
        self._upgrading = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._upgrading:
                self._parse_again(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._end_parsing(error)

    def _end_parsing(self, error: httptools.HttpParserError) -> None:
        if isinstance(error.__context__, _TooManyRequests):
            self._stop_reading_ahead()
        elif isinstance(error, httptools.HttpParserCallbackError):
            raise error.__context__ or error
        else:
            self._refuse(MalformedRequest(f"this is not HTTP/1.1: {error}"))

    def _check_sizes(self, size: int) -> None:
        limits, exchange = self._limits, self.cycle
        if self._head_bytes:
            try:
                check_size(self.url, self.headers, limits)
            except KotaeError as error:
                self._refuse(error)
            if self._head_bytes > limits.head_bytes_max:
                self._refuse(head_too_large(limits))
        elif exchange.more_body:
            allowed = (
                limits.framing_bytes_max + limits.framing_bytes_per_body_byte * exchange.received
            )
            if self._framing_bytes > allowed:
                self._refuse(self._framing_too_large())
        if self._waiting:
            self._ahead_bytes += size
            if self._ahead_bytes > limits.pipelined_bytes_max:
                self._stop_reading_ahead()

    def _framing_too_large(self) -> HeadTooLarge:
        return HeadTooLarge(
            f"chunk extensions or trailers are larger than {self._limits.framing_bytes_max} bytes"
        )

    # Exchanges

    def _exchange(self, head: RequestHead, *, keep_alive: bool) -> HttpExchange:
        path, refusal = head.path.decode("ascii"), head.refusal
        if "%" in path:
            path = unquote(path)
        full = self._table.busy >= self._limits.connections_max and not path.startswith(_HEALTH)
        if full and refusal is None and not self._table.drop_stalled():
            refusal = Overloaded("too many requests are being answered")
        scope: HTTPScope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": head.version,
            "server": self.server,
            "client": self.client,
            "scheme": "https" if self.scheme == "https" else "http",
            "method": head.method,
            "root_path": self.root_path,
            "path": self.root_path + path,
            "raw_path": self.root_path.encode("ascii") + head.path,
            "query_string": head.query,
            "headers": head.headers,
            "state": self.app_state.copy(),
            "extensions": self._extensions,
        }
        if refusal is not None:
            scope["kotae.refusal"] = refusal  # type: ignore[typeddict-unknown-key]
        return HttpExchange(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive and refusal is None and not self._table.draining,
            on_response=self.on_response_complete,
        )

    def _begin(self, exchange: HttpExchange) -> None:
        """Answer a request, in its turn."""
        self.cycle = exchange
        if self._active is None:
            self._start(exchange)
        else:
            self._waiting.appendleft(exchange)

    def _start(self, exchange: HttpExchange) -> None:
        self._active = exchange
        self._table.set_busy(self)
        self._start_asgi_task(exchange, self.app)

    def _refuse(self, error: KotaeError) -> None:
        """Answer what is being received with a problem, and discard the rest."""
        if self._discarding:
            return
        self._discarding = True
        if not self._in_head and self.cycle is not None and self.cycle.more_body:
            self.cycle.refusal, self.cycle.keep_alive = error, False
            self.cycle.message_event.set()
        else:
            head = RequestHead("1.1", "GET", b"", [], (), b"", refusal=error)
            self._begin(self._exchange(head, keep_alive=False))

    def _stop_reading_ahead(self) -> None:
        """Answer the complete requests that are waiting, then close."""
        if self._discarding:
            return
        self._discarding = True
        if self._waiting and self._waiting[0].more_body:
            self._waiting.popleft()
        self._close_after_last()

    def _close_after_last(self) -> None:
        last = self._waiting[0] if self._waiting else self._active
        if last is not None:
            last.keep_alive = False

    # The end

    def shutdown(self) -> None:
        """Close an idle connection; close any other one after its last response."""
        if self._active is None and not self._head_bytes:
            self.transport.close()
        self._close_after_last()

    def drop(self) -> None:
        """Close at once, without sending what waits to be sent."""
        self._discarding = True
        self.transport.abort()

    def _close(self) -> None:
        """End the response; discard what the client sends until it closes the connection, too."""
        self._discarding = True
        self._deadlines.begin_closing(self._table.now)
        self.transport.write_eof()

    def check_deadlines(self, now: float) -> int:
        """Enforce the time limits; return the bytes that are buffered for the connection."""
        unsent = self.transport.get_write_buffer_size()
        exceeded = self._deadlines.find_exceeded(
            now,
            unsent=unsent,
            in_head=self._head_bytes > 0 and not self._discarding,
            cycle=self.cycle,
            active=self._active,
        )
        if exceeded == "head_seconds":
            seconds = self._limits.head_seconds
            self._refuse(RequestTimeout(f"the head was not complete within {seconds:g} seconds"))
        elif exceeded == "body_seconds":
            self._refuse(RequestTimeout("the body arrives too slowly"))
        elif exceeded == "idle_seconds":
            self._deadlines.begin_closing(now)
            self.transport.close()
        elif exceeded:
            self._table.drop(self, exceeded)
        body_bytes = len(self._active.body) if self._active else 0
        return unsent + len(self._unfed) + self._head_bytes + self._ahead_bytes + body_bytes
