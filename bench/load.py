"""A load generator for answers and streams: one thread, closed or open loop; checks every answer.

    python bench/load.py --url http://127.0.0.1:8000/ai/stream --concurrency 64 --seconds 10
        --body '{"prompt": "question %d"}'

*Closed loop*: each of `--concurrency` connections sends its next request after an answer; answers
that end within the measured time are counted, and the time is extended until there are enough.
*Open loop* (`--rate`): requests are sent at fixed times on persistent connections, opened as
needed. Latency is measured from the time at which the request was due, so a stall that delays
requests is visible (no coordinated omission).

An answer is wrong if its status is not 200, its connection ends early, the number of its events is
not `--events`, or a text of `--contains` is missing. The first wrong answer ends the run: a failure
is never counted as a fast answer.

Prints one JSON object. Events are counted by the lines that begin with `data:`; gaps are the times
between the arrivals of events of one stream.
"""

import argparse
import asyncio
import json
import resource
import sys
from collections import deque
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import uvloop

SPIN_SECONDS = 0.002  # timers are exact to a millisecond; the rest is a busy wait
IDLE_SECONDS_MAX = 3  # the service may close connections that were idle for longer
TIMEOUT_SECONDS = 60
TURNS_MIN = 3  # minimum mean number of answers per connection in a closed loop


class WrongAnswer(Exception):
    """An answer was wrong or missing."""


class Connection(asyncio.Protocol):
    """One connection to the service, with the response that it receives."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self.closed = False
        self.busy = False
        self.idle_since = self.due = self.sent = 0.0
        self.first: float | None = None
        self._last_event = 0.0
        self._received = bytearray()
        self._head_end = self._length = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport: Any = transport

    def ask(self, due: float) -> None:
        """Send the next request, which was due at `due`."""
        self.busy, self.due, self.sent, self.first = True, due, perf_counter(), None
        self._received.clear()
        self._head_end = self._last_event = 0
        self.transport.write(self._load.next_request())

    def data_received(self, data: bytes) -> None:
        """Process a part of an answer."""
        now = perf_counter()
        received = self._received
        received += data
        if not self._head_end and not self._read_head():
            return
        if b"data:" in data:
            if self._last_event:
                self._load.gaps.append(now - self._last_event)
            self._last_event = now
        if self.first is None and received.find(self._load.first, self._head_end) >= 0:
            self.first = now
        if len(received) >= self._length if self._length else received.endswith(b"\r\n0\r\n\r\n"):
            self.busy = False
            self.idle_since = now
            self._load.finish_answer(self, received, now)

    def _read_head(self) -> bool:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._received[:end]).lower()
        if not head.startswith(b"http/1.1 200 "):
            self._load.fail(f"status: {bytes(self._received[:1000])!r}")
            return False
        self._head_end = end + 4
        _, _, length = head.partition(b"\r\ncontent-length:")
        self._length = self._head_end + int(length.split(b"\r\n")[0]) if length else 0
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Fail if an answer was incomplete."""
        self.closed = True
        if self.busy:
            self._load.fail(
                f"the connection ended in the middle of an answer ({error}):"
                f" …{bytes(self._received[-300:])!r}"
            )


class Load:
    """One run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        url = urlsplit(options.url)
        self._host, self._port = url.hostname or "127.0.0.1", url.port or 80
        path = url.path + (f"?{url.query}" if url.query else "")
        headers = ["Content-Type: application/json", *options.header]
        self._head = "\r\n".join(
            [f"{options.method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}", *headers]
        )
        self.first = options.first.encode()
        self._contains = [text.encode() for text in options.contains]
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._idle: list[Connection] = []  # a stack: the connection used last is reused first
        self._backlog: deque[float] = deque()
        self._connections = 0
        self._sent = self._answered = self._counted = self._events = 0
        self._begin = self._count_from = self._end = 0.0
        self._measured = 0.0  # seconds; 0 until the measured time has ended
        self._scheduled_all = False
        self.latencies: list[float] = []
        self.firsts: list[float] = []
        self.gaps: list[float] = []
        self.lateness: list[float] = []

    async def run(self) -> dict[str, Any]:
        """Run to the end and return the figures. Raises `WrongAnswer`."""
        options = self._options
        if not options.rate:
            connections = await asyncio.gather(
                *(self._connect() for _ in range(options.concurrency))
            )
        self._begin = perf_counter()
        self._count_from = self._begin + options.warmup_seconds
        self._end = self._count_from + options.seconds
        if options.rate:
            self._tick(0)
        else:
            for connection in connections:
                connection.ask(perf_counter())
        try:
            async with asyncio.timeout(options.warmup_seconds + options.seconds + TIMEOUT_SECONDS):
                await self._over
        except TimeoutError:
            raise WrongAnswer(
                f"{self._sent - self._answered} answers had not ended after {TIMEOUT_SECONDS} s"
            ) from None
        return self._figures()

    def next_request(self) -> bytes:
        """Return the bytes of a request; %d in the body and in the URL becomes its number."""
        text: str = self._options.body
        body = text.replace("%d", str(self._sent)).encode()
        head = self._head.replace("%d", str(self._sent))
        self._sent += 1
        return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def finish_answer(self, connection: Connection, received: bytearray, now: float) -> None:
        """Check an answer, count it, and go on."""
        events = received.count(b"\ndata:")
        if self._options.events is not None and events != self._options.events:
            self.fail(
                f"{events} events instead of {self._options.events}:"
                f" {bytes(received[:600])!r} … {bytes(received[-600:])!r}"
            )
        for text in self._contains:
            if text not in received:
                self.fail(
                    f"{text.decode()} is missing:"
                    f" {bytes(received[:600])!r} … {bytes(received[-600:])!r}"
                )
        self._answered += 1
        if self._is_counted(connection, now):
            self._counted += 1
            self._events += events
            self.latencies.append(now - connection.due)
            self.lateness.append(connection.sent - connection.due)
            if connection.first is not None:
                self.firsts.append(connection.first - connection.due)
        self._go_on(connection, now)

    def _is_counted(self, connection: Connection, now: float) -> bool:
        """True for answers due after the warm-up (open loop) or ended in time (closed loop)."""
        if self._options.rate:
            return connection.due >= self._count_from
        if (
            not self._measured
            and now >= self._end
            and (self._options.once or self._counted >= TURNS_MIN * self._options.concurrency)
        ):
            self._measured = now - self._count_from
        return now >= self._count_from and not self._measured

    def _go_on(self, connection: Connection, now: float) -> None:
        if self._over.done():
            return
        if self._backlog:
            connection.ask(self._backlog.popleft())
        elif not self._options.rate and not self._measured and not self._options.once:
            connection.ask(now)
        else:
            self._idle.append(connection)
            if self._sent == self._answered and (
                self._scheduled_all if self._options.rate else len(self._idle) == self._connections
            ):
                self._over.set_result(None)

    def fail(self, what: str) -> None:
        """End the run."""
        if not self._over.done():
            self._over.set_exception(WrongAnswer(f"wrong answer: {what}"))

    def _tick(self, n: int) -> None:
        """Open loop: send all requests that are due."""
        while (due := self._begin + n / self._options.rate) <= perf_counter():
            if due >= self._end:
                self._scheduled_all = True
                if self._sent == self._answered and not self._backlog and not self._over.done():
                    self._over.set_result(None)
                return
            self._start(due)
            n += 1
        wait = due - perf_counter() - SPIN_SECONDS
        if wait > 0:
            self._loop.call_later(wait, self._tick, n)
        else:
            self._loop.call_soon(self._tick, n)

    def _start(self, due: float) -> None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and perf_counter() - connection.idle_since < IDLE_SECONDS_MAX:
                connection.ask(due)
                return
            connection.transport.close()
            self._connections -= 1
        self._backlog.append(due)
        if self._connections < self._options.concurrency:
            self._connections += 1
            self._loop.create_task(self._connect()).add_done_callback(self._connected)

    def _connected(self, task: asyncio.Task[Connection]) -> None:
        if error := task.exception():
            self.fail(f"no connection: {error}")
        elif self._backlog:
            task.result().ask(self._backlog.popleft())
        else:
            self._idle.append(task.result())

    async def _connect(self) -> Connection:
        if not self._options.rate:
            self._connections += 1
        _, connection = await self._loop.create_connection(
            lambda: Connection(self), self._host, self._port
        )
        return connection

    def _figures(self) -> dict[str, Any]:
        seconds = self._measured or self._options.seconds
        return {
            "answers": self._counted,
            "answers_total": self._answered,
            "seconds": round(seconds, 3),
            "answers_per_second": self._counted / seconds,
            "events_per_second": self._events / seconds,
            "latency_ms": spread(self.latencies),
            "first_event_ms": spread(self.firsts),
            "gap_ms": spread(self.gaps),
            "sent_late_ms": spread(self.lateness),
            "connections": self._connections,
        }


def spread(seconds: list[float]) -> dict[str, float]:
    """Percentiles (nearest rank) in milliseconds."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {
        name: round(ordered[round(share * last)] * 1000, 3)
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1))
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A load generator for answers, streamed or not.")
    parser.add_argument("--url", required=True, help="%%d becomes the number of the request")
    parser.add_argument("--method", default="POST")
    parser.add_argument("--body", default="", help="%%d becomes the number of the request")
    parser.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'")
    parser.add_argument(
        "--concurrency",
        type=int,
        default=64,
        help="connections; with --rate the most that are opened",
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=0,
        help="answers a second, whatever the service does; 0: closed loop",
    )
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--warmup-seconds", type=float, default=1)
    parser.add_argument("--once", action="store_true", help="every connection asks once only")
    parser.add_argument("--events", type=int, help="how many events every answer must have")
    parser.add_argument(
        "--contains",
        action="append",
        default=[],
        metavar="TEXT",
        help="what every answer must contain",
    )
    parser.add_argument(
        "--first", default="data:", metavar="TEXT", help="what the first event that counts contains"
    )
    return parser.parse_args(arguments)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    return await Load(options).run()


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        print(json.dumps(uvloop.run(run(parse()))))
    except (WrongAnswer, OSError) as error:
        sys.exit(f"load: {error}")


if __name__ == "__main__":
    main()
