"""Processes of a benchmark: start, pin, observe, stop and call them; save the figures."""

import contextlib
import http.client
import json
import os
import platform
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

START_SECONDS = 180
HERE = Path(__file__).parent


class Failed(Exception):
    """The run is void; the message has the reason."""


@dataclass(frozen=True)
class Cores:
    """Cores of the service and of the tools (provider, load); None: not pinned."""

    service: set[int] | None
    tools: set[int] | None

    @classmethod
    def split(cls) -> "Cores":
        """One core for the service, the others for tools; None if pinning is not possible."""
        if (
            not hasattr(os, "sched_setaffinity")
            or len(allowed := sorted(os.sched_getaffinity(0))) < 2
        ):
            return cls(None, None)
        return cls({allowed[-1]}, set(allowed[:-1]))


@contextlib.contextmanager
def pinned(cores: set[int] | None) -> Iterator[None]:
    """Processes started within this block inherit these cores."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Process:
    """A process whose output goes to a log file."""

    def __init__(
        self,
        name: str,
        command: list[str | Path],
        *,
        folder: Path,
        env: dict[str, str],
        cores: set[int] | None,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log, pinned(cores):
            self._popen = subprocess.Popen(
                [str(argument) for argument in command], cwd=folder, env=env, stdout=log, stderr=log
            )

    def wait_ready(self, url: str) -> None:
        """Wait until the URL answers with 200. Raises `Failed`."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._popen.poll() is not None:
                raise Failed(f"{self.name} ended with {self._popen.returncode}:\n{self.tail()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                return
            time.sleep(0.05)
        raise Failed(f"{self.name} did not start within {START_SECONDS} s:\n{self.tail()}")

    def tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    def rss_kib(self) -> int:
        """Return the resident memory, including children."""
        return sum(_rss_kib(pid) for pid in [self._popen.pid, *_descendants(self._popen.pid)])

    def cpu_seconds(self) -> float | None:
        """Processor time, including children; None where the system does not provide it."""
        ticks = [_ticks(pid) for pid in [self._popen.pid, *_descendants(self._popen.pid)]]
        return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks[0] else None

    def pin(self, cores: set[int] | None) -> None:
        """Pin the process and all of its threads to these cores."""
        if cores:
            for task in Path(f"/proc/{self._popen.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), cores)

    def stop(self) -> None:
        """Terminate the process; kill it after a timeout."""
        self._popen.terminate()
        try:
            self._popen.wait(15)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


class Loader:
    """A load generator that runs in the background."""

    def __init__(self, arguments: list[str], *, cores: set[int] | None) -> None:
        with pinned(cores):
            self._popen = subprocess.Popen(
                [sys.executable, HERE / "load.py", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def running(self) -> bool:
        """True while it runs."""
        return self._popen.poll() is None

    def result(self) -> dict[str, Any]:
        """Wait for its figures. Raises `Failed` if any answer was wrong."""
        out, error = self._popen.communicate()
        if self._popen.returncode:
            raise Failed(error.strip())
        figures: dict[str, Any] = json.loads(out)
        return figures

    def stop(self) -> None:
        """Stop it if it still runs."""
        if self.running():
            self._popen.kill()
            self._popen.communicate()


def free_port() -> int:
    """Return an unused port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def get_json(url: str) -> dict[str, Any]:
    """Return the JSON from a URL."""
    with urllib.request.urlopen(url, timeout=10) as response:
        value: dict[str, Any] = json.load(response)
        return value


class Caller:
    """Calls one service over one persistent connection."""

    def __init__(self, url: str, seconds_max: float = 300) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=seconds_max)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        kind: str = "application/json",
        good: Collection[int] = (200, 201),
    ) -> tuple[float, dict[str, Any]]:
        """Return (seconds, answer). Raises `Failed` if the status is not in `good`."""
        began = time.perf_counter()
        self._connection.request(method, path, body, {"Content-Type": kind})
        response = self._connection.getresponse()
        content = response.read()
        seconds = time.perf_counter() - began
        if response.status not in good:
            raise Failed(f"{method} {path}: {response.status} {content[:300]!r}")
        value: dict[str, Any] = json.loads(content) if content else {}
        return seconds, value

    def give(
        self, files: Sequence[tuple[str, str]], good: Collection[int] = (200, 201)
    ) -> list[dict[str, Any]]:
        """Upload texts by name and return the documents."""
        head = (
            '--bench\r\nContent-Disposition: form-data; name="files"; filename="{}"\r\n'
            "Content-Type: text/plain\r\n\r\n"
        )
        body = "".join(f"{head.format(name)}{text}\r\n" for name, text in files) + "--bench--\r\n"
        _, response = self.ask(
            "POST", "/ai/upload", body.encode(), "multipart/form-data; boundary=bench", good
        )
        documents: list[dict[str, Any]] = response["items"]
        return documents

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def save(file: Path, figures: dict[str, Any]) -> None:
    """Write figures as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(figures, indent=1))


def machine(cores: Cores) -> dict[str, Any]:
    """Describe the machine."""
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
        )
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "service_core": sorted(cores.service or []),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
    }


def _ticks(pid: int) -> int:
    """Return the processor time of a process and of its ended children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))


def _rss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)
    except OSError:
        output = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return int(output.stdout.strip() or 0)


def _descendants(pid: int) -> list[int]:
    try:
        children = [
            int(descendant)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for descendant in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return [*children, *(descendant for child in children for descendant in _descendants(child))]
