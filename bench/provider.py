"""A fast OpenAI-compatible provider for benchmarks: one thread, prepared bytes, exact timing.

    python bench/provider.py [--port 9100] [--chunks 64] [--interval-ms 0] [--delay-ms 0]

A streamed answer has `--chunks` pieces of text: in one burst, or, with an interval, at exact times
from its start. Other answers are one JSON object. Both can be delayed. Usage is part of the last
chunk if the request asks for it. A prompt can select another pace: `chunks=20 interval-ms=500`.

`GET /stats` returns the totals: requests, streams, open, finished, aborted.
"""

import argparse
import asyncio
import json
import re
import socket
from functools import cache
from typing import Any

import uvloop

ENVELOPE = {
    "id": "chatcmpl-bench",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "bench",
}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
PACE = re.compile(rb"\b(chunks|interval-ms)=(\d+)")


class Stats:
    """Totals of what was sent."""

    def __init__(self) -> None:
        self.requests = self.streams = self.open = self.finished = self.aborted = 0


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, stats: Stats, chunks: int, interval: float, delay: float) -> None:
        self._stats, self._chunks, self._interval, self._delay = stats, chunks, interval, delay
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport: Any = transport

    def connection_lost(self, _error: Exception | None) -> None:
        """Stop the stream of a client that has disconnected."""
        if self._timer:
            self._timer.cancel()
        if self._busy:
            self._stats.open -= 1
            self._stats.aborted += 1

    def data_received(self, data: bytes) -> None:
        """Serve a request once it is complete."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0 or self._busy:
            return
        length = LENGTH.search(self._received, 0, end)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(self._received) < whole:
            return
        request, self._received = self._received[:whole], self._received[whole:]
        if request.startswith(b"GET /stats "):
            self._transport.write(json_response(vars(self._stats)))
        elif request.startswith(b"POST /v1/chat/completions "):
            self._serve(request[end + 4 :])
        else:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    def _serve(self, body: bytes) -> None:
        stats = self._stats
        stats.requests += 1
        stats.open += 1
        self._busy = True
        pace = {name: int(value) for name, value in PACE.findall(body)} if b"=" in body else {}
        chunks, interval = (
            pace.get(b"chunks", self._chunks),
            pace.get(b"interval-ms", self._interval * 1000) / 1000,
        )
        start = self._loop.time() + self._delay
        if b'"stream":true' not in body and b'"stream": true' not in body:
            self._at(start, lambda: self._finish(whole_answer(chunks)))
            return
        stats.streams += 1
        usage = b'"include_usage":true' in body or b'"include_usage": true' in body
        if interval:
            self._at(start, lambda: self._pace(stream_pieces(chunks, usage), 0, start, interval))
        else:
            self._at(start, lambda: self._finish(stream_burst(chunks, usage)))

    def _at(self, time: float, what: Any) -> None:
        if time <= self._loop.time():
            what()
        else:
            self._timer = self._loop.call_at(time, what)

    def _pace(self, pieces: list[bytes], n: int, start: float, interval: float) -> None:
        if n == len(pieces) - 1:
            self._finish(pieces[n])
            return
        self._transport.write(pieces[n])
        self._at(start + (n + 1) * interval, lambda: self._pace(pieces, n + 1, start, interval))

    def _finish(self, data: bytes) -> None:
        self._transport.write(data)
        self._busy = False
        self._stats.open -= 1
        self._stats.finished += 1


def text(n: int) -> str:
    """Return the n-th piece of an answer's text."""
    return f"word{n} "


def usage_of(chunks: int) -> dict[str, int]:
    return {"prompt_tokens": 100, "completion_tokens": chunks, "total_tokens": 100 + chunks}


def json_response(value: Any) -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


@cache
def whole_answer(chunks: int) -> bytes:
    message = {"role": "assistant", "content": "".join(text(n) for n in range(chunks))}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json_response(
        ENVELOPE | {"object": "chat.completion", "choices": [choice], "usage": usage_of(chunks)}
    )


@cache
def stream_pieces(chunks: int, usage: bool) -> list[bytes]:
    """Parts of a paced stream: head and role with the first text; finish, usage and end last."""

    def event(data: str) -> bytes:
        line = f"data: {data}\n\n".encode()
        return b"%x\r\n%b\r\n" % (len(line), line)

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
        return event(
            json.dumps(ENVELOPE | {"choices": choices} | ({"usage": None} if usage else {}))
        )

    pieces = [chunk({"content": text(n)}) for n in range(chunks)]
    last = chunk({}, "stop")
    if usage:
        last += event(json.dumps(ENVELOPE | {"choices": [], "usage": usage_of(chunks)}))
    pieces[0] = STREAM_HEAD + chunk({"role": "assistant", "content": ""}) + pieces[0]
    pieces[-1] += last + event("[DONE]") + b"0\r\n\r\n"
    return pieces


@cache
def stream_burst(chunks: int, usage: bool) -> bytes:
    return b"".join(stream_pieces(chunks, usage))


async def serve(port: int, chunks: int, interval_ms: float, delay_ms: float) -> None:
    stats = Stats()
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(stats, chunks, interval_ms / 1000, delay_ms / 1000), sock=listener
    )
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A fast OpenAI-compatible provider for benchmarks."
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--chunks", type=int, default=64, help="pieces of text in an answer")
    parser.add_argument(
        "--interval-ms", type=float, default=0, help="time between pieces of a stream; 0: one burst"
    )
    parser.add_argument("--delay-ms", type=float, default=0, help="time before an answer begins")
    options = parser.parse_args()
    uvloop.run(serve(**vars(options)))


if __name__ == "__main__":
    main()
