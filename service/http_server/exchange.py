"""One request and its response, on uvicorn's cycle.

What differs from uvicorn: a request whose body was not read to its end closes the connection,
because what follows on it could not be told from the rest of the body; responses to HTTP/1.0 are
not chunked; and a request can be refused while the application waits for its body.
"""

import asyncio

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent, HTTPRequestEvent, HTTPResponseStartEvent
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)

from service.core.errors import KotaeError
from service.http_server.connections import HttpLimits

JOINED_BYTES_MAX = 16_384  # of a body that is written together with the head
_BODILESS = (204, 304)


class HttpExchange(RequestResponseCycle):
    """One request and its response."""

    received = 0  # bytes of the body
    received_at = 0.0
    refusal: KotaeError | None = None  # raised where the application waits for the body
    receiving = False  # the application waits for the body
    _refused = False
    _delimited = True  # the response ends before the connection does
    _head = b""  # of the response, not written yet
    _measured_from: tuple[float, int] | None = None  # a time, and the bytes received until then

    def refuse(self, error: KotaeError) -> None:
        """Raise this error where the application waits for the body, and close afterwards."""
        self.refusal, self.keep_alive = error, False
        self.message_event.set()

    def _measure_from(self, now: float) -> None:
        """Begin to measure how fast the body arrives.

        Time in which the application did not wait for it is not counted.
        """
        self.received_at = now
        self._measured_from = (now, self.received)

    def is_too_slow(self, now: float, limits: HttpLimits) -> bool:
        """Whether the application waits for a client that is silent, or sends too slowly."""
        if not self.more_body or self.refusal is not None:
            return False
        if self._measured_from is None or not self.receiving:
            self._measure_from(now)
            return False
        began, before = self._measured_from
        rate = (self.received - before) / max(1.0, now - began)
        return now - self.received_at > limits.body_seconds or (
            now - began > limits.slow_body_seconds and rate < limits.body_bytes_per_second_min
        )

    async def receive(self) -> ASGIReceiveEvent:
        """The next part of the body. Raises the refusal, if there is one."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not (self.disconnected or self.response_complete or self.refusal or self._refused):
            self.flow.resume_reading()
            self.receiving = True
            try:
                await self.message_event.wait()
            finally:
                self.receiving = False
            self.message_event.clear()
        if self.refusal:
            refusal, self.refusal = self.refusal, None  # its traceback will refer to this object
            self._refused = True
            if not (self.disconnected or self.response_started):
                raise refusal
        if self.disconnected or self.response_complete or self._refused:
            return {"type": "http.disconnect"}
        message: HTTPRequestEvent = {
            "type": "http.request",
            "body": bytes(self.body),
            "more_body": self.more_body,
        }
        self.body = bytearray()
        return message

    async def send(self, message: ASGISendEvent) -> None:
        """Send a part of the response; wait while the client does not read."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start" and not self.response_started:
            self._send_head(message)
        elif (
            message["type"] == "http.response.body"
            and self.response_started
            and not self.response_complete
        ):
            body, more_body = message.get("body", b""), message.get("more_body", False)
            if more_body and self.chunked_encoding:
                if body:
                    write = self._write if self._head else self.transport.write
                    write(b"%x\r\n%b\r\n" % (len(body), body))
            else:
                self._send_body(body, more_body=more_body)
        else:
            raise RuntimeError(f"Unexpected ASGI message {message['type']!r}")

    def _send_head(self, message: HTTPResponseStartEvent) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        status = message["status"]
        headers = [*self.default_headers, *message.get("headers", [])]
        if HEADER_RE.search(b"".join([name for name, _ in headers])) or HEADER_VALUE_RE.search(
            b"".join([value for _, value in headers])
        ):
            raise RuntimeError("Invalid HTTP header")
        content = [STATUS_LINE[status]]
        for header in headers:  # ASGI: names are in lower case
            name, value = header
            if name == b"connection":
                self.keep_alive = self.keep_alive and b"close" not in value.lower()
                continue
            if name == b"content-length":
                self.expected_content_length, self.chunked_encoding = int(value), False
            content.append(b"%b: %b\r\n" % header)
        if (
            self.chunked_encoding is None
            and self.scope["method"] != "HEAD"
            and status not in _BODILESS
        ):
            if self.scope["http_version"] == "1.0":
                self._delimited = self.keep_alive = False
            else:
                self.chunked_encoding = True
                content.append(b"transfer-encoding: chunked\r\n")
        if self.more_body or not self.keep_alive:
            self.keep_alive = False
            content.append(b"connection: close\r\n")
        content.append(b"\r\n")
        self._head = b"".join(content)
        if self.chunked_encoding or not self._delimited:  # the body may come much later
            asyncio.get_running_loop().call_soon(self._write, b"")

    def _write(self, data: bytes) -> None:
        """Write data, with the head in the same system call if that was not written yet.

        Larger data is not copied: many connections may wait to send the same file.
        """
        head, self._head = self._head, b""
        if len(data) <= JOINED_BYTES_MAX:
            data = head + data
        elif head:
            self.transport.write(head)
        if data:
            self.transport.write(data)

    def _send_body(self, body: bytes, *, more_body: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            self._write(b"")
        elif self.chunked_encoding:
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n")
        else:
            if self._delimited:
                self.expected_content_length -= len(body)
                if self.expected_content_length < 0:
                    raise RuntimeError("Response content longer than Content-Length")
            self._write(body)
        if not more_body:
            if self.expected_content_length:
                raise RuntimeError("Response content shorter than Content-Length")
            self.response_complete = True
            self.message_event.set()
            self.on_response()
