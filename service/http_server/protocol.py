"""One HTTP/1.1 connection: uvicorn's protocol, bounded in memory and in time.

`RequestReader` turns what arrives into exchanges, which are answered one after another. A request
that is refused by the reader, or because too many connections are busy, is passed to the
application with the error (`kotae.refusal` in the scope) and answered as a problem; then the
connection is closed. What the client still sends is discarded for a while, since closing at once
would reset the connection before the client has read the response (RFC 9112, section 9.6).

What this module does not do: HTTP/2, TLS and WebSocket.
"""

import asyncio
from collections import deque
from typing import Any
from urllib.parse import unquote

from uvicorn._types import HTTPScope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.core.errors import Overloaded, RequestTimeout
from service.http_server.connections import ConnectionTable
from service.http_server.deadlines import Deadlines
from service.http_server.exchange import HttpExchange
from service.http_server.head import RequestHead
from service.http_server.reader import FEED_BYTES, RequestReader

WRITE_BUFFER_BYTES = 16_384  # beyond which the application waits for the client
_HEALTH = "/health/"  # paths that are served when too many connections are busy


class HttpProtocol(HttpToolsProtocol):
    """One connection. `_active` is the exchange that is being answered."""

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
        self.parser = None  # type: ignore[assignment]  # the reader has its own
        self._table, self._limits = table, table.limits
        self._reader = RequestReader(self, table)
        self._deadlines = Deadlines(table.limits, table.now)
        self._active: HttpExchange | None = None
        self._waiting: deque[HttpExchange] = deque()  # the newest first
        self._ahead_bytes = 0  # received while requests are waiting
        self._unfed = bytearray()  # received, and not yet parsed
        self._extensions: dict[str, Any] = {}

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
        self._reader.close()
        self._waiting.clear()
        self._unfed.clear()
        if self._active is not None:
            self._active.disconnected = not self._active.response_complete
            self._active.message_event.set()
            self._active = None
        self.flow.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Feed the reader.

        What is discarded is read slowly: it is not worth the time of the event loop.
        """
        size = len(data)
        if self._reader.stopped:
            if not self._table.discard_bytes(self, size):
                self.flow.pause_reading()
        elif size <= FEED_BYTES and not self._unfed:
            self._feed(data, size)
        else:
            self.transport.pause_reading()
            if not self._unfed:
                self.loop.call_soon(self._feed_piece)
            self._unfed += data

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

    # Receiving

    def _feed(self, data: bytes, size: int) -> None:
        reader = self._reader
        if not reader.head_bytes:
            self._deadlines.since = self._table.now
        reader.feed(data, size)
        if self._waiting:
            self._ahead_bytes += size
            if self._ahead_bytes > self._limits.pipelined_bytes_max:
                self.stop_reading_ahead()

    def _feed_piece(self) -> None:
        """Feed a piece per iteration of the event loop.

        In chunks of one byte, parsing it takes milliseconds.
        """
        if self._unfed and not self._reader.stopped:
            piece = bytes(self._unfed[:FEED_BYTES])
            del self._unfed[:FEED_BYTES]
            self._feed(piece, len(piece))
        if self._unfed and not self._reader.stopped:
            self.loop.call_soon(self._feed_piece)
        else:
            self._unfed.clear()
            if not self.transport.is_closing() and not self.flow.read_paused:
                self.transport.resume_reading()

    # Exchanges

    def can_begin(self) -> bool:
        """Whether another request may wait for its turn."""
        return len(self._waiting) + 1 < self._limits.pipelined_max

    def begin_exchange(self, head: RequestHead, *, keep_alive: bool) -> HttpExchange:
        """Answer a request in its turn; its body follows."""
        exchange = self._make_exchange(head, keep_alive=keep_alive)
        if self._active is None:
            self._start(exchange)
        else:
            self._waiting.appendleft(exchange)
        return exchange

    def stop_reading_ahead(self) -> None:
        """Answer the complete requests that are waiting, then close."""
        if not self._reader.stopped:
            self._reader.stopped = True
            if self._waiting and self._waiting[0].more_body:
                self._waiting.popleft()
            self._close_after_last()

    def _make_exchange(self, head: RequestHead, *, keep_alive: bool) -> HttpExchange:
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
        message_event = asyncio.Event()
        # Ends a wait for the client's disconnect: `receive` returns an empty part of the body.
        scope["kotae.wake"] = message_event.set  # type: ignore[typeddict-unknown-key]
        return HttpExchange(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=message_event,
            expect_100_continue=False,
            keep_alive=keep_alive and refusal is None and not self._table.draining,
            on_response=self.on_response_complete,
        )

    def _start(self, exchange: HttpExchange) -> None:
        self._active = exchange
        self._table.set_busy(self)
        self._start_asgi_task(exchange, self.app)

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

    # The end

    def shutdown(self) -> None:
        """Close an idle connection; close any other one after its last response."""
        if self._active is None and not self._reader.head_bytes:
            self.transport.close()
        self._close_after_last()

    def drop(self) -> None:
        """Close at once, without sending what waits to be sent."""
        self._reader.stopped = True
        self.transport.abort()

    def check_deadlines(self, now: float) -> int:
        """Enforce the time limits; return the bytes that are buffered for the connection."""
        reader, unsent = self._reader, self.transport.get_write_buffer_size()
        exceeded = self._deadlines.find_exceeded(
            now,
            unsent=unsent,
            in_head=reader.head_bytes > 0 and not reader.stopped,
            last=reader.exchange,
            active=self._active,
        )
        if exceeded == "head_seconds":
            seconds = self._limits.head_seconds
            reader.refuse(RequestTimeout(f"the head was not complete within {seconds:g} seconds"))
        elif exceeded == "body_seconds":
            reader.refuse(RequestTimeout("the body arrives too slowly"))
        elif exceeded == "idle_seconds":
            self._deadlines.begin_closing(now)
            self.transport.close()
        elif exceeded:
            self._table.drop(self, exceeded)
        body_bytes = len(self._active.body) if self._active else 0
        return unsent + len(self._unfed) + reader.head_bytes + self._ahead_bytes + body_bytes

    def _close_after_last(self) -> None:
        last = self._waiting[0] if self._waiting else self._active
        if last is not None:
            last.keep_alive = False

    def _close(self) -> None:
        """End the response; discard what the client sends until it closes the connection, too."""
        self._reader.stopped = True
        self._deadlines.begin_closing(self._table.now)
        self.transport.write_eof()
