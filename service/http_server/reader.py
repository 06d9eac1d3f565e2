"""Reads requests from the bytes of one connection, within limits.

The parser, llhttp, refuses what is not HTTP/1.1: bare LF, folded headers, invalid, repeated or
contradictory lengths. But it buffers a head without a limit, and reports trailers as headers.
Therefore it is fed in pieces of `FEED_BYTES`, and what it holds is checked after each piece.

A request that exceeds a limit becomes an exchange with that error, in its turn; what follows on the
connection is not parsed. An `Upgrade` header is ignored (RFC 9110, section 7.8): llhttp stops at
such a request, which is then parsed again without the header.
"""

from typing import Protocol

import httptools

from service.core.errors import HeadTooLarge, KotaeError, MalformedRequest
from service.http_server.connections import ConnectionTable
from service.http_server.exchange import HttpExchange
from service.http_server.head import (
    RequestHead,
    check_size,
    format_without_upgrade,
    head_too_large,
)

FEED_BYTES = 16_384
BODY_BUFFER_BYTES = 65_536  # beyond which reading waits for the application


class ExchangeQueue(Protocol):
    """Where exchanges go."""

    def begin_exchange(self, head: RequestHead, *, keep_alive: bool) -> HttpExchange:
        """Answer a request in its turn; its body follows."""

    def can_begin(self) -> bool:
        """Whether another request may wait for its turn."""

    def stop_reading_ahead(self) -> None:
        """Answer the complete requests that are waiting, then close."""


class _TooManyRequests(Exception):
    """Raised in a parser callback: more requests are waiting than may wait."""


class RequestReader:
    """The receiving side of a connection. `exchange` is the one that was begun last.

    `head_bytes`: received since the last complete message. `stopped`: nothing is parsed any more.
    """

    def __init__(self, queue: ExchangeQueue, table: ConnectionTable) -> None:
        self._queue: ExchangeQueue = queue
        self._table, self._limits = table, table.limits
        self._parser = self._new_parser()
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._hosts: tuple[bytes, ...] = ()
        self._transfer_encoding = b""
        self._expects_continue = False
        self._in_head = False  # a head has begun and is not complete
        self._upgrading = False  # the complete head asks for another protocol
        self._framing_bytes = 0  # of the body: chunk sizes, chunk extensions and trailers
        self._trailer_bytes = 0  # of its complete trailers
        self.exchange: HttpExchange | None = None
        self.head_bytes = 0
        self.stopped = False

    def feed(self, data: bytes, size: int) -> None:
        """Parse a piece, and check the size of the incomplete part of the message."""
        exchange = self.exchange
        received = exchange.received if exchange is not None and exchange.more_body else None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._upgrading:
                self._parse_again(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._end_parsing(error)
        if self.exchange is not exchange:
            self.head_bytes = self._framing_bytes = 0
        elif exchange is not None and received is not None:
            self._framing_bytes += size - (exchange.received - received)
            self._check_framing(exchange)
        else:
            self.head_bytes += size
            self._check_head()

    def refuse(self, error: KotaeError) -> None:
        """Answer what is being received with a problem, and parse nothing more."""
        if self.stopped:
            return
        self.stopped = True
        if self.exchange is not None and self.exchange.more_body and not self._in_head:
            self.exchange.refuse(error)
        else:
            head = RequestHead("1.1", "GET", b"", [], (), b"", refusal=error)
            self.exchange = self._queue.begin_exchange(head, keep_alive=False)

    def close(self) -> None:
        """Let go of everything: the parser and this object refer to each other."""
        self.stopped = True
        self.exchange = None
        del self._parser, self._queue

    # Parser callbacks

    def on_message_begin(self) -> None:
        """Begin a head."""
        if self.stopped or not self._queue.can_begin():
            raise _TooManyRequests
        self._in_head, self._trailer_bytes = True, 0
        self._url, self._headers = b"", []
        self._hosts, self._transfer_encoding = (), b""
        self._expects_continue = False

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header.

        Trailers are ignored: nothing uses them, and they must not replace headers.
        """
        if not self._in_head:
            self._trailer_bytes += len(name) + len(value) + 4
            return
        name = name.lower()
        if value and value[-1] in b" \t":  # not part of the value (RFC 9110, 5.5)
            value = value.rstrip(b" \t")
        if name == b"host":
            self._hosts += (value,)
        elif name == b"transfer-encoding":
            self._transfer_encoding = value.lower()
        elif name == b"expect":
            self._expects_continue = value.lower() == b"100-continue"
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin the exchange, with the reason if the request is refused."""
        parser = self._parser
        method = parser.get_method().decode("ascii")
        if parser.should_upgrade() and method != "CONNECT":
            self._upgrading = True
            return
        self._in_head = False
        head = RequestHead(
            parser.get_http_version(),
            method,
            self._url,
            self._headers,
            self._hosts,
            self._transfer_encoding,
        )
        head.check(self._limits, exactly=self.head_bytes > 0)
        keep_alive = head.version == "1.1" and parser.should_keep_alive()
        self.exchange = self._queue.begin_exchange(head, keep_alive=keep_alive)
        self.exchange.waiting_for_100_continue = self._expects_continue

    def on_body(self, body: bytes) -> None:
        """Buffer a part of the body until the application reads it."""
        exchange = self.exchange
        if exchange is None:
            return
        exchange.received += len(body)
        exchange.received_at = self._table.now
        if exchange.response_complete:
            return
        exchange.body += body
        if exchange.received > BODY_BUFFER_BYTES and len(exchange.body) > BODY_BUFFER_BYTES:
            exchange.flow.pause_reading()
        exchange.message_event.set()

    def on_message_complete(self) -> None:
        """End the body."""
        exchange = self.exchange
        if self._upgrading or exchange is None:
            return
        if self._trailer_bytes > self._limits.framing_bytes_max:
            self.refuse(self._framing_too_large())
        exchange.more_body = False
        exchange.message_event.set()
        if not exchange.keep_alive:
            self.stopped = True

    # Limits

    def _check_head(self) -> None:
        try:
            check_size(self._url, self._headers, self._limits)
            if self.head_bytes > self._limits.head_bytes_max:
                raise head_too_large(self._limits)
        except KotaeError as error:
            self.refuse(error.with_traceback(None))

    def _check_framing(self, exchange: HttpExchange) -> None:
        limits = self._limits
        allowed = limits.framing_bytes_max + limits.framing_bytes_per_body_byte * exchange.received
        if exchange.more_body and self._framing_bytes > allowed:
            self.refuse(self._framing_too_large())

    def _framing_too_large(self) -> HeadTooLarge:
        size = self._limits.framing_bytes_max
        return HeadTooLarge(f"chunk extensions or trailers are larger than {size} bytes")

    # Parsing

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # What follows a request with `Connection: close` is ignored, and is no error.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _parse_again(self, rest: bytes) -> None:
        """Parse a request that asks for another protocol as an ordinary one, and the rest."""
        parser = self._parser
        head = format_without_upgrade(
            parser.get_method(), self._url, parser.get_http_version(), self._headers
        )
        data = head + rest
        self._upgrading = False
        self._parser = self._new_parser()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._upgrading:
                self._parse_again(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._end_parsing(error)

    def _end_parsing(self, error: httptools.HttpParserError) -> None:
        if isinstance(error.__context__, _TooManyRequests):
            self._queue.stop_reading_ahead()
        elif isinstance(error, httptools.HttpParserCallbackError):
            raise error.__context__ or error
        else:
            self.refuse(MalformedRequest(f"this is not HTTP/1.1: {error}"))
