"""Many open streams on one process: memory per stream and lateness of events.

    python -m bench.streams [--streams 1500] [--stalled 1000] [--seconds 20]
        [--json .data/bench-streams.json]

`--streams` readers receive two events per second: from the provider, as the limit of the tools;
then from `POST /ai/stream`, twice without other clients, and once beside `--stalled` clients that
request a long answer and never read. The provider follows an exact schedule, so an event's lateness
is its distance from its scheduled time, relative to the most punctual event of its stream. Lateness
is counted while all streams are open, for `--seconds`, or longer if fewer than 200 streams per
second can be opened. `tools_busy` is the share of a core that the provider and the readers used:
near 1, the tools cause the lateness. Memory is the increase of the service's resident set after
light use without streams.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from bench.processes import HERE, Cores, Failed, Process, free_port, machine, save
from service.core.settings import child_environment

INTERVAL_MS = 500
STALLED_CHUNKS = 6000  # half a megabyte of events: more than the socket buffers hold
DELTA, DIRECT_DELTA = b'data: {"delta"', b'{"content": "word'
ENDS = b"event: done", b"[DONE]"


class Reader(asyncio.Protocol):
    """A client of one stream; records the arrival of each delta."""

    def __init__(self, request: bytes, delta: bytes, *, reads: bool) -> None:
        self._request, self._delta, self._reads = request, delta, reads
        self.times: list[float] = []
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._tail = b""

    def connection_made(self, transport: Any) -> None:
        """Send the request; a stalled client never reads the answer."""
        self.transport = transport
        if not self._reads:
            transport.pause_reading()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Record the events; an event may arrive in two parts."""
        now = time.perf_counter()
        data = self._tail + data
        self.times += [now] * data.count(self._delta)
        self._tail = data[-len(self._delta) + 1 :]
        if any(end in data for end in ENDS):
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Mark the stream as ended."""
        if not self.done.done():
            self.done.set_result(error is None)


class Bench:
    """A service, a provider, and clients in this process."""

    def __init__(self, folder: Path, cores: Cores) -> None:
        self._folder, self._cores = folder, cores
        self.provider_url, self.url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))

    @contextlib.contextmanager
    def running(self) -> Any:
        """Run both processes."""
        port = str(urlsplit(self.provider_url).port)
        self.provider = provider = Process(
            "provider", [sys.executable, HERE / "provider.py", "--port", port], folder=self._folder,
                           env=dict(os.environ), cores=self._cores.tools)  # fmt: skip
        env = child_environment()
        env |= {
            "OPENAI_BASE_URL": f"{self.provider_url}/v1",
            "OPENAI_API_KEY": "bench",
            "KOTAE_DATA_DIR": str(self._folder),
        }
        env |= {
            "KOTAE_ANSWERS_MAX": "10000",
            "KOTAE_PROVIDER_CALLS_MAX": "10000",
            "KOTAE_LOG_LEVEL": "warning",
        }
        command: list[str | Path] = [
            Path(sys.executable).parent / "kotae",
            "serve",
            "--migrate",
            "--port",
            str(urlsplit(self.url).port),
        ]
        self.service = Process(
            "kotae", command, folder=self._folder, env=env, cores=self._cores.service
        )
        try:
            provider.wait_ready(f"{self.provider_url}/stats")
            self.service.wait_ready(f"{self.url}/health/ready")
            yield
        finally:
            self.service.stop()
            provider.stop()

    async def open(
        self, count: int, chunks: int, interval_ms: int, *, reads: bool = True, direct: bool = False
    ) -> list[Reader]:
        """Open streams, evenly over one interval, or 400 per second if that is slower."""
        loop, readers, where = (
            asyncio.get_running_loop(),
            [],
            urlsplit(self.provider_url if direct else self.url),
        )
        path, delta = ("/v1/chat/completions", DIRECT_DELTA) if direct else ("/ai/stream", DELTA)
        for n in range(count):
            prompt = f"question {n} chunks={chunks} interval-ms={interval_ms}"
            direct_body = {
                "model": "bench",
                "stream": True,
                "messages": [{"role": "user", "content": prompt}],
            }
            body = json.dumps(
                direct_body if direct else {"prompt": prompt, "grounded": False}
            ).encode()
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {where.netloc}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            connection = socket.create_connection((where.hostname, where.port))
            if not reads:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            _, reader = await loop.create_connection(
                partial(Reader, head.encode() + body, delta, reads=reads), sock=connection
            )
            readers.append(reader)
            await asyncio.sleep(_opening_seconds(count) / count)
        return readers

    async def measure(
        self, streams: int, seconds: float, stalled: int, *, direct: bool = False
    ) -> dict[str, Any]:
        """Run one round. Raises `Failed` if the streams were never all open."""
        stalling = await self.open(stalled, STALLED_CHUNKS, 0, reads=False) if stalled else []
        if stalled:
            await asyncio.sleep(2)
        before = self.service.rss_kib()
        cpu = self.service.cpu_seconds() or 0
        chunks = round((seconds + 2 * _opening_seconds(streams)) * 1000 / INTERVAL_MS)
        readers = await self.open(streams, chunks, INTERVAL_MS, direct=direct)
        began, tools = time.perf_counter(), time.process_time() + (self.provider.cpu_seconds() or 0)
        most = 0
        while any(len(reader.times) < chunks for reader in readers):
            most = max(most, self.service.rss_kib())
            if time.perf_counter() - began > seconds + 2 * _opening_seconds(streams) + 60:
                raise Failed("some streams did not end")
            await asyncio.sleep(0.25)
        tools = (time.process_time() + (self.provider.cpu_seconds() or 0) - tools) / (
            time.perf_counter() - began
        )
        for reader in [*stalling, *readers]:
            reader.transport.abort() if reader in stalling else reader.transport.close()
        ended = min(reader.times[-1] for reader in readers)
        every = [
            lateness_ms for reader in readers for lateness_ms in lateness(reader.times, INTERVAL_MS)
        ]
        late = sorted(ms for at, ms in every if began <= at < ended)
        if not late:
            what = "streams of the provider itself" if direct else "streams"
            raise Failed(
                f"the {streams} {what} were never all open:"
                " the machine is too slow or too busy; try fewer, or longer"
            )
        spent = (self.service.cpu_seconds() or 0) - cpu
        return {
            "streams": streams,
            "stalled": stalled,
            "before_mib": before / 1024,
            "most_mib": most / 1024,
            "lateness_ms": {
                name: late[int(len(late) * share)]
                for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
            }
            | {"max": late[-1]},
            "all_open_seconds": ended - began,
            "tools_busy": tools,
            "cpu_us_per_event": spent / (streams * chunks) * 1e6,
        }


def _opening_seconds(count: int) -> float:
    return max(INTERVAL_MS / 1000, count / 400)


def lateness(times: list[float], interval_ms: int) -> list[tuple[float, float]]:
    """Return (time, lateness in ms) of each event."""
    on_time = min(at - n * interval_ms / 1000 for n, at in enumerate(times))
    return [(at, (at - n * interval_ms / 1000 - on_time) * 1000) for n, at in enumerate(times)]


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds."""
    cores = Cores.split()
    if cores.tools:
        os.sched_setaffinity(0, cores.tools)
    with tempfile.TemporaryDirectory(prefix="bench-streams-") as folder:
        bench = Bench(Path(folder), cores)
        with bench.running():
            await bench.measure(4, 1, 0)  # light use
            idle = bench.service.rss_kib()
            direct = await bench.measure(options.streams, options.seconds, 0, direct=True)
            rounds = [await bench.measure(options.streams, options.seconds, 0) for _ in range(2)]
            if options.stalled:
                rounds.append(
                    await bench.measure(options.streams, options.seconds, options.stalled)
                )
    first, alone = rounds[0], rounds[1]
    figures: dict[str, Any] = {
        "idle_mib": idle / 1024,
        "stream_kib": (first["most_mib"] * 1024 - idle) / options.streams,
        "direct": {
            name: direct[name] for name in ("lateness_ms", "all_open_seconds", "tools_busy")
        },
        "rounds": rounds,
        "machine": machine(cores),
    }
    if options.stalled:
        figures["stalled_mib"] = rounds[2]["most_mib"] - alone["most_mib"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--streams", type=int, default=1500)
    parser.add_argument("--stalled", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--json", type=Path, default=Path(".data/bench-streams.json"))
    options = parser.parse_args()
    try:
        figures = uvloop.run(run(options))
    except Failed as failure:
        sys.exit(f"the run is void: {failure}")
    save(options.json, figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
