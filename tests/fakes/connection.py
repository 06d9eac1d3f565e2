"""The socket side of a provider fake: reads requests, applies behaviours, records calls."""

import asyncio
import base64
import json
import socket
import struct
import zlib
from array import array
from collections import deque
from http import HTTPStatus
from typing import Any

import httptools

from tests.fakes.behaviour import Piece, Point, error_body, stream_pieces, whole_pieces
from tests.fakes.truth import Call, Ending, Truth

LAST_CHUNK = b"0\r\n\r\n"


def encode_vector(text: str, body: Any) -> Any:
    """The vector of a text in the requested format."""
    vector = count_letters(text)
    if body.get("encoding_format") != "base64":
        return vector
    return base64.b64encode(array("f", vector).tobytes()).decode()


def count_letters(text: str) -> list[float]:
    """Count 64 classes of characters in a text; the last component is 1."""
    counts = [0.0] * 64
    for character in text.lower():
        counts[ord(character) % 64] += 1.0
    return [*counts, 1.0]


class Connection(asyncio.Protocol):
    """One connection: requests one after another, and the task that answers the current one."""

    transport: asyncio.Transport

    def __init__(self, truth: Truth, connections: set["Connection"], models: list[str]) -> None:
        self._truth, self._connections, self._models = truth, connections, models
        self._parser = httptools.HttpRequestParser(self)
        self._requests: deque[tuple[str, dict[str, str], bytes]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._call: Call | None = None
        self._drained = asyncio.Event()
        self._drained.set()
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._connections.add(self)
        transport.set_write_buffer_limits(high=0)  # drained means that the kernel has all of it
        if self._truth.take_refusal():
            transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def eof_received(self) -> None:
        self.end(Ending.ABORTED)

    def connection_lost(self, _error: Exception | None) -> None:
        self.end(Ending.ABORTED)
        self._connections.discard(self)
        if self._task:
            self._task.cancel()
        self._lost.set_result(None)

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    # the request

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body = b"", dict[str, str](), b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        self._requests.append(
            (
                f"{self._parser.get_method().decode()} {self._url.decode('latin-1')}",
                self._headers,
                self._body,
            )
        )
        if not self._task:
            self._answer_next()

    def _answer_next(self) -> None:
        if not self._requests or self.transport.is_closing():
            return
        line, headers, raw = self._requests.popleft()
        if line == "POST /v1/embeddings":
            self._answer_embeddings(raw)
            self._answer_next()
            return
        if line != "POST /v1/chat/completions":
            self._answer_other(line)
            self._answer_next()
            return
        try:
            self._call = self._truth.add_call(json.loads(raw), headers)
        except ValueError as error:  # invalid JSON or behaviour: an error in the test
            self.respond(
                HTTPStatus.BAD_REQUEST,
                json.dumps({"error": {"message": f"provider fake: {error}"}}).encode(),
            )
            return
        if not self._call:
            self.transport.abort()
            return
        self._task = asyncio.create_task(Exchange(self._truth, self, self._call).run())
        self._task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()):
            self._truth.errors.append(error)
            self.end(Ending.CLOSED)
            self.transport.abort()
        self._answer_next()

    def _answer_other(self, line: str) -> None:
        self._truth.others.append(line)
        match line:
            case "GET /v1/models":
                models = [
                    {"id": name, "object": "model", "created": 0, "owned_by": "fake"}
                    for name in self._models
                ]
                self.respond(HTTPStatus.OK, json.dumps({"object": "list", "data": models}).encode())
            case "GET /truth":
                self.respond(
                    HTTPStatus.OK, json.dumps(self._truth.truth()).encode("utf-8", "surrogatepass")
                )
            case _:
                self.respond(
                    HTTPStatus.NOT_FOUND,
                    b'{"error":{"message":"no such route","type":"invalid_request_error"}}',
                )

    def _answer_embeddings(self, raw: bytes) -> None:
        """Send letter counts as vectors: texts with the same letters are similar.

        A status of `embedding_statuses` replaces the next response.
        """
        body = json.loads(raw)
        self._truth.embedding_bodies.append(body)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        if isinstance(texts[0], int):
            texts = [texts]
        texts = [text if isinstance(text, str) else "a" * len(text) for text in texts]
        self._truth.embedded.append(texts)
        if (
            self._truth.embedding_statuses
            and (status := self._truth.embedding_statuses.popleft()) != HTTPStatus.OK
        ):
            self.respond(status, b'{"error":{"message":"not now","type":"server_error"}}')
            return
        data = [
            {"object": "embedding", "index": n, "embedding": encode_vector(text, body)}
            for n, text in enumerate(texts)
        ]
        used = sum(len(text) for text in texts)
        reply: dict[str, object] = {"object": "list", "data": data[::-1], "model": "fake"}
        if self._truth.embedding_usage:
            reply["usage"] = {"prompt_tokens": used, "total_tokens": used}
        self.respond(HTTPStatus.OK, json.dumps(reply).encode())

    def respond(self, status: int, body: bytes) -> None:
        """Send a JSON response."""
        self.transport.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            % (status, len(body))
            + body
        )

    # used by an exchange

    def end(self, ending: Ending) -> None:
        """Record how the current call ended, if there is one."""
        if self._call:
            self._truth.end_call(self._call, ending)

    async def wait_lost(self) -> None:
        """Wait until the connection is closed and its task has ended."""
        await self._lost
        if self._task:
            await asyncio.wait([self._task])

    async def write(self, data: bytes) -> None:
        """Write, and wait until the kernel has all of it."""
        if self.transport.is_closing():
            await asyncio.Future[None]()  # connection_lost is about to cancel this task
        self.transport.write(data)
        await self._drained.wait()

    def cut(self, how: str) -> None:
        """End the connection with a FIN or a RST. Earlier writes were drained."""
        if how == "rst":
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self.transport.close()


class CutError(Exception):
    """The behaviour ends the connection at this point."""


class Exchange:
    """The answer to one call."""

    def __init__(self, truth: Truth, connection: Connection, call: Call) -> None:
        self._truth, self._connection, self._call, self._behaviour = (
            truth,
            connection,
            call,
            call.behaviour,
        )
        self._pending: list[Piece] = []
        self._zip = zlib.compressobj(wbits=31) if self._behaviour.gzip else None
        self._length: int | None = None  # length of the body; None: not announced
        self._cut_next = False  # the next piece is cut in the middle

    async def run(self) -> None:
        """Send the answer. Cancelled when the client disconnects."""
        behaviour, call = self._behaviour, self._call
        try:
            await self._reach("request")
            await asyncio.sleep(behaviour.headers_delay)
            if behaviour.status != HTTPStatus.OK or behaviour.body is not None:
                await self._send_error()
                ending = Ending.ERROR
            else:
                await (self._send_stream() if call.stream else self._send_whole())
                spoilt = (
                    behaviour.error_after is not None
                    if call.stream
                    else behaviour.malformed_after is not None
                )
                ending = (
                    Ending.CUT if spoilt or behaviour.finish_reason == "absent" else Ending.FINISHED
                )
        except CutError:
            self._truth.end_call(call, Ending.CUT)
            self._connection.cut(behaviour.cut)
            return
        self._truth.end_call(call, ending)  # the rest is framing, which clients need not wait for
        await self._close_body()
        if not behaviour.keep_alive or behaviour.framing == "close":
            self._connection.cut("fin")

    async def _send_error(self) -> None:
        body = error_body(self._behaviour)
        default = "text/html" if body.startswith(b"<") else "application/json"
        self._zip, self._length = None, len(body)
        await self._send_head(default)
        await self._send(Piece(b"", "headers"))
        await self._send(Piece(body))
        await self._flush()

    async def _send_whole(self) -> None:
        pieces = whole_pieces(self._behaviour, self._call.body, self._call.prompt)
        self._length = None if self._zip else sum(len(piece.data) for piece in pieces)
        await self._send_head("application/json")
        for piece in pieces:
            await self._send(piece)
        await self._flush()

    async def _send_stream(self) -> None:
        behaviour = self._behaviour
        await self._send_head("text/event-stream; charset=utf-8")
        waits = behaviour.first_delay
        for piece in stream_pieces(behaviour, self._call.body, self._call.prompt):
            if waits and piece.text:
                await self._flush()
                await asyncio.sleep(waits)
            if piece.text:
                waits = behaviour.gap
            await self._send(piece)
        await self._flush()

    async def _send_head(self, content_type: str) -> None:
        behaviour = self._behaviour
        headers = [
            ("content-type", behaviour.content_type or content_type),
            ("x-request-id", f"req_{self._call.number}"),
        ]
        headers += behaviour.headers
        if behaviour.retry_after is not None:
            headers.append(("retry-after", str(behaviour.retry_after)))
        if self._zip:
            headers.append(("content-encoding", "gzip"))
        if behaviour.framing == "close" or not behaviour.keep_alive:
            headers.append(("connection", "close"))
        if behaviour.framing == "chunked":
            headers.append(
                ("transfer-encoding", "chunked")
                if self._length is None
                else ("content-length", str(self._length))
            )
        reason = (
            HTTPStatus(behaviour.status).phrase
            if behaviour.status in HTTPStatus.__members__.values()
            else "Odd"
        )
        lines = [
            f"HTTP/1.1 {behaviour.status} {reason}",
            *(f"{name}: {value}" for name, value in headers),
            "",
            "",
        ]
        await self._connection.write("\r\n".join(lines).encode("latin-1"))
        self._call.status = behaviour.status
        self._truth.wake_waiters()

    async def _send(self, piece: Piece) -> None:
        """Send a piece now or with its neighbours, and apply the behaviour at its point."""
        cut = self._behaviour.cut_after if self._behaviour.cut_inside else None
        if self._cut_next and piece.data:
            await self._flush()
            await self._write_body(piece.data[: len(piece.data) // 2])
            raise CutError
        self._pending.append(piece)
        together = self._behaviour.chunks_per_write if self._behaviour.cut_at_byte is None else 1
        acts = piece.point is not None and self._acts_at(piece.point)
        if (
            acts
            or (together and sum(1 for pending in self._pending if pending.data) >= together)
            or len(piece.data) >= 65_536
        ):
            await self._flush()
        if piece.point is not None and acts:
            if cut is not None and self._is(piece.point, cut):
                self._cut_next = True
            else:
                await self._reach(piece.point)

    async def _flush(self) -> None:
        """Send the pending pieces in one write, then record them."""
        pieces, self._pending = self._pending, []
        await self._write_body(b"".join(piece.data for piece in pieces))
        for piece in pieces:
            self._call.text += piece.text
            self._call.chunks += bool(piece.text)
            if piece.usage is not None:
                self._call.usages.append(piece.usage)
        self._truth.wake_waiters()

    async def _write_body(self, data: bytes) -> None:
        if self._zip:
            data = self._zip.compress(data) + self._zip.flush(zlib.Z_SYNC_FLUSH)
        if not data:
            return
        room = (
            None
            if self._behaviour.cut_at_byte is None
            else self._behaviour.cut_at_byte - self._call.body_bytes
        )
        sent = data if room is None else data[:room]
        chunked = self._behaviour.framing == "chunked" and self._length is None
        cut_here = room is not None and room <= len(data)
        framed = (
            b"%x\r\n%b" % (len(data), sent) + (b"" if cut_here else b"\r\n") if chunked else sent
        )
        step = self._behaviour.bytes_per_write or len(framed) or 1
        for at in range(0, len(framed), step):
            await self._connection.write(framed[at : at + step])
            if step < len(framed):
                await asyncio.sleep(0)
        self._call.body_bytes += len(sent)
        if cut_here:
            raise CutError

    async def _close_body(self) -> None:
        if self._zip:
            rest = self._zip.flush()
            await self._connection.write(
                b"%x\r\n%b\r\n" % (len(rest), rest)
                if self._behaviour.framing == "chunked"
                else rest
            )
        if self._behaviour.framing == "chunked" and self._length is None:
            await self._connection.write(LAST_CHUNK)

    def _is(self, point: Point, wanted: Point | None) -> bool:
        """Compare points; the body of an answer that is not streamed has only one."""
        return point == wanted or (
            not self._call.stream and point == 0 and wanted not in (None, "request", "headers")
        )

    def _acts_at(self, point: Point) -> bool:
        behaviour = self._behaviour
        wanted = [
            behaviour.cut_after,
            behaviour.hang_after,
            *behaviour.holds,
            *([behaviour.hold_after] if behaviour.hold else []),
        ]
        return any(self._is(point, candidate) for candidate in wanted)

    async def _reach(self, point: Point) -> None:
        """Hold, hang or cut after a point, as the behaviour specifies."""
        behaviour = self._behaviour
        for held, event in behaviour.holds.items():
            if self._is(point, held):
                await event.wait()
        if behaviour.hold and self._is(point, behaviour.hold_after):
            await behaviour.hold.wait()
        if self._is(point, behaviour.cut_after):
            raise CutError
        if self._is(point, behaviour.hang_after):
            while behaviour.hang_comments is not None:
                await asyncio.sleep(behaviour.hang_comments)
                await self._write_body(b": keep-alive\n\n")
            await asyncio.Future[None]()
