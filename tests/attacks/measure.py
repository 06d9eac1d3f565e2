"""Cost of an attack: the memory of the service, and the latency of another client.

The attack is a separate program (`programs.py`). Another client sends one request after another on
a separate connection: before, during and after the attack. All phases belong to the same run, so
that a slow machine does not decide the result.
"""

import asyncio
import http.client
import json
import os
import sys
import threading
import time
from asyncio.subprocess import PIPE
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.attacks.sender import Outcome
from tests.process import ServiceProcess

QUIET_SECONDS = 1.5
PAUSE_SECONDS = 0.005
# Of the 99th percentile: in seconds, or on slow machines as a multiple of that without an attack.
DELAY_MAX, DELAYS_MAX = 0.05, 20
QUESTION = json.dumps({"prompt": "How many days?", "grounded": False})
MEGABYTE = 1_000_000


class Neighbour(threading.Thread):
    """Another client of the service. `latencies` are those since the last `restart`, in seconds.

    `reconnect`: a new connection for each request.
    """

    def __init__(self, url: str, key: str, *, reconnect: bool) -> None:
        super().__init__(daemon=True)
        self._reconnect = reconnect
        self._netloc = urlsplit(url).netloc
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._ended = threading.Event()
        self.latencies: list[float] = []
        self.failures: Counter[str] = Counter()

    def run(self) -> None:
        """Send requests until the end."""
        connection = http.client.HTTPConnection(self._netloc, timeout=30)
        while not self._ended.wait(PAUSE_SECONDS):
            began = time.perf_counter()
            try:
                connection.request("POST", "/ai/test", QUESTION, self._headers)
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    self.failures[str(response.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures[type(error).__name__] += 1
                connection.close()
            self.latencies.append(time.perf_counter() - began)
            if self._reconnect:
                connection.close()
        connection.close()

    def restart(self) -> list[float]:
        """Start a new phase and return the latencies of the previous one."""
        before, self.latencies = self.latencies, []
        return before

    def end(self) -> None:
        """Stop sending."""
        self._ended.set()
        self.join()


@dataclass(frozen=True)
class Report:
    """Result of a measurement. Memory in bytes, latencies in seconds."""

    outcome: Outcome
    memory_before: int
    memory_peak: int
    quiet: tuple[list[float], list[float]]  # before and after
    attacked: list[float]
    failures: Counter[str]

    @property
    def memory_growth(self) -> int:
        """The maximum growth of the service's resident memory."""
        return self.memory_peak - self.memory_before

    @property
    def quiet_latency(self) -> float:
        """The other client's 99th percentile of latency without the attack."""
        return max(percentile(latencies, 0.99) for latencies in self.quiet)

    @property
    def delay(self) -> float:
        """The increase of the other client's 99th percentile of latency."""
        return percentile(self.attacked, 0.99) - self.quiet_latency

    @property
    def is_delayed(self) -> bool:
        """Whether the other client was delayed more than a machine of this speed explains."""
        return self.delay >= max(DELAY_MAX, DELAYS_MAX * self.quiet_latency)

    def __str__(self) -> str:
        quiet = self.quiet_latency
        return (
            f"memory {self.memory_before / MEGABYTE:.0f} to {self.memory_peak / MEGABYTE:.0f} MB, "
            f"p99 {quiet * 1000:.1f} to {(quiet + self.delay) * 1000:.1f} ms "
            f"({len(self.attacked)} requests), "
            f"{dict(self.outcome.statuses)}, {self.outcome.opened} connections, "
            f"{self.outcome.sent} bytes sent"
        )

    def check(self, *, megabytes_max: int) -> None:
        """Assert that neither the service nor its other client was affected."""
        assert not self.failures, f"{self.failures}; {self}"
        assert self.memory_growth < megabytes_max * MEGABYTE, str(self)
        assert not self.is_delayed, str(self)


async def attack(service: ServiceProcess, program: str, **options: Any) -> Report:
    """Measure an attack, up to three times while the other client is delayed by other programs."""
    report = await measure(service, program, **options)
    for _ in range(2):
        print(report)
        if not report.is_delayed:
            break
        report = min(
            report, await measure(service, program, **options), key=lambda measured: measured.delay
        )
    return report


async def measure(
    service: ServiceProcess,
    program: str,
    *,
    key: str,
    seconds: float = 4,
    known: bool = False,
    reconnect: bool = False,
) -> Report:
    """Run a program against a service. `known`: the attacker has the key."""
    pid = service.process.pid
    neighbour = Neighbour(service.url, key, reconnect=reconnect)
    neighbour.start()
    try:
        await asyncio.sleep(QUIET_SECONDS)
        quiet_before, memory_before = neighbour.restart(), memory_of(pid)
        reset_peak(pid)
        outcome = await _run(service.url, program, seconds, key if known else "")
        attacked, memory_peak = neighbour.restart(), memory_of(pid, peak=True)
        await asyncio.sleep(QUIET_SECONDS)
        quiet_after = neighbour.restart()
    finally:
        await asyncio.to_thread(neighbour.end)
    quiet = (quiet_before, quiet_after)
    return Report(outcome, memory_before, memory_peak, quiet, attacked, neighbour.failures)


async def _run(url: str, program: str, seconds: float, key: str) -> Outcome:
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 0
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.attacks.programs", program, host, str(port), str(seconds), key,
        cwd=Path(__file__).parents[2], stdout=PIPE, preexec_fn=_yield_processor,
    )  # fmt: skip
    try:
        async with asyncio.timeout(seconds * 3 + 30):
            out, _ = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, f"{program} failed"
    statuses, *others = json.loads(out)
    return Outcome(Counter({int(status): count for status, count in statuses.items()}), *others)


def _yield_processor() -> None:
    """Lower the priority: a real attacker does not use this machine's processor."""
    os.nice(10 - os.nice(0))


def memory_of(pid: int, *, peak: bool = False) -> int:
    """Return the resident memory of a process in bytes."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def reset_peak(pid: int) -> None:
    """Reset the peak of the resident memory."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def percentile(values: list[float], share: float) -> float:
    """Return the value below which this share of the values lies."""
    assert values, "nothing was measured"
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
