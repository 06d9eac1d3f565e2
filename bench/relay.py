"""Cost of reading an answer at another replica: first event, and CPU time per event.

    python -m bench.relay --database postgresql://… [--streams 100] [--events 200]
        [--interval-ms 30] [--json .data/bench-relay.json]

Two replicas share the database, which must be empty. First, `--samples` ended answers are read at
their owner and at the other replica in turn; compared are the times to the first event. Then
`--streams` paced answers of the owner are read at the owner, and the same number at the other
replica; the CPU time of the other replica, less what it uses when idle, is divided by the events.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import secrets
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from bench.processes import HERE, Caller, Cores, Failed, Process, free_port, machine, save
from bench.streams import DELTA, Reader
from service.core.settings import child_environment

ENDS_SECONDS = 60


class Replicas:
    """Two replicas and a provider, each a process."""

    def __init__(self, database: str, folder: Path) -> None:
        self._database, self._folder = database, folder
        self._key = secrets.token_hex(32)
        self.owner_url, self.other_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run all of them."""
        port = free_port()
        provider = Process(
            "provider", [sys.executable, HERE / "provider.py", "--port", str(port)],
            folder=self._folder, env=dict(os.environ), cores=None,
        )  # fmt: skip
        processes = [provider]
        try:
            provider.wait_ready(f"http://127.0.0.1:{port}/stats")
            self.owner = self._start("owner", self.owner_url, port, "--migrate")
            processes.append(self.owner)
            self.owner.wait_ready(f"{self.owner_url}/health/ready")
            self.other = self._start("other", self.other_url, port)
            processes.append(self.other)
            self.other.wait_ready(f"{self.other_url}/health/ready")
            time.sleep(2)  # until both have read the table of replicas
            yield
        finally:
            for process in reversed(processes):
                process.stop()

    def _start(self, name: str, url: str, provider_port: int, *options: str) -> Process:
        folder = self._folder / name
        folder.mkdir()
        env = child_environment() | {
            "OPENAI_BASE_URL": f"http://127.0.0.1:{provider_port}/v1",
            "OPENAI_API_KEY": "bench",
            "KOTAE_MODEL": "bench",
            "KOTAE_DATABASE_URL": self._database,
            "KOTAE_SECRET_KEY": self._key,
            "KOTAE_PEER_ADDRESS": "127.0.0.1:0",
            "KOTAE_DATA_DIR": str(folder),
            "KOTAE_LOG_LEVEL": "warning",
            "KOTAE_RESUME_SECONDS": "300",
        }
        port = str(urlsplit(url).port)
        command: list[str | Path] = [
            *(sys.executable, "-m", "service", "serve", "--port", port),
            *options,
        ]
        env["PYTHONPATH"] = str(HERE.parent)
        return Process(name, command, folder=folder, env=env, cores=None)


def start_answer(caller: Caller, prompt: str) -> str:
    """Start an answer and return its id."""
    body = json.dumps({"prompt": prompt, "grounded": False}).encode()
    _, answer = caller.ask("POST", "/ai/answers", body, good=(202,))
    answer_id: str = answer["id"]
    return answer_id


def time_first_event(connection: http.client.HTTPConnection, answer_id: str) -> float:
    """Read an ended answer, and return the milliseconds to its first bytes."""
    began = time.perf_counter()
    connection.request("GET", f"/ai/answers/{answer_id}/events")
    response = connection.getresponse()
    response.read(64)
    milliseconds = (time.perf_counter() - began) * 1000
    response.read()
    return milliseconds


def measure_first_events(replicas: Replicas, samples: int) -> dict[str, float]:
    """Medians of the time to the first event, at both replicas."""
    caller = Caller(replicas.owner_url)
    connections = [
        http.client.HTTPConnection(urlsplit(url).netloc)
        for url in (replicas.owner_url, replicas.other_url)
    ]
    times: list[list[float]] = [[], []]
    for n in range(samples):
        answer_id = start_answer(caller, f"question {n} chunks=20")
        time.sleep(0.02)
        for connection, values in zip(connections, times, strict=True):
            values.append(time_first_event(connection, answer_id))
    here, there = (statistics.median(values[samples // 10 :]) for values in times)
    return {"owner_ms": here, "other_ms": there, "more_ms": there - here}


def _return(reader: Reader) -> Reader:
    return reader


async def measure_events(
    replicas: Replicas, url: str, streams: int, events: int, interval_ms: int
) -> dict[str, float]:
    """Read paced answers of the owner at a replica; CPU time per event of both."""
    loop, caller, where = asyncio.get_running_loop(), Caller(replicas.owner_url), urlsplit(url)
    readers: list[Reader] = []
    for n in range(streams):
        prompt = f"question {n} chunks={events} interval-ms={interval_ms}"
        answer_id = start_answer(caller, prompt)
        request = f"GET /ai/answers/{answer_id}/events HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n"
        reader = Reader(request.encode(), DELTA, reads=True)
        connection = socket.create_connection((where.hostname, where.port))
        connection.setblocking(False)
        await loop.create_connection(partial(_return, reader), sock=connection)
        readers.append(reader)
    processes = {"owner": replicas.owner, "other": replicas.other}
    before = {name: process.cpu_seconds() or 0 for name, process in processes.items()}
    counts = sum(len(reader.times) for reader in readers)
    async with asyncio.timeout(events * interval_ms / 1000 + ENDS_SECONDS):
        await asyncio.gather(*(reader.done for reader in readers))
    counts = sum(len(reader.times) for reader in readers) - counts
    return {
        f"{name}_us_per_event": ((process.cpu_seconds() or 0) - before[name]) / counts * 1e6
        for name, process in processes.items()
    } | {"events": counts}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds."""
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-relay-") as folder:
        replicas = Replicas(options.database, Path(folder))
        with replicas.running():
            first = measure_first_events(replicas, options.samples)
            for name, url in (
                ("warm", replicas.other_url),
                ("at the owner", replicas.owner_url),
                ("at the other replica", replicas.other_url),
            ):
                figures = uvloop.run(
                    measure_events(
                        replicas, url, options.streams, options.events, options.interval_ms
                    )
                )
                rounds.append({"read": name, **figures})
    return {"first_event": first, "rounds": rounds, "machine": machine(Cores(None, None))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--database", required=True)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--interval-ms", type=int, default=30)
    parser.add_argument("--json", type=Path, default=Path(".data/bench-relay.json"))
    options = parser.parse_args()
    try:
        figures = run(options)
    except Failed as failure:
        sys.exit(f"the run is void: {failure}")
    save(options.json, figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
