"""Supervises several replicas on one machine: `kotae serve --workers N`.

The workers are ordinary replicas, each a process with its own data directory and a free port of the
peer address, by default on the loopback interface. All accept connections from the same listening
sockets, which they inherit. A worker that ends is started again, later after each failure. A worker
ends when its standard input does, so none outlives the supervisor.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from service.core.errors import retry_delay
from service.core.settings import Settings, build_worker_environment
from service.core.telemetry import log

READY = "ready"  # the line that a worker writes when it serves
RETRY_SECONDS, RETRY_SECONDS_MAX = 0.5, 30
STABLE_SECONDS = 60  # after which a failure counts as the first one
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Supervisor:
    """`run` starts the workers, and ends with them. `announce` is called when all serve."""

    def __init__(
        self,
        settings: Settings,
        count: int,
        listeners: Sequence[socket.socket],
        announce: Callable[[], None],
    ) -> None:
        self._settings, self._count, self._listeners = settings, count, listeners
        self._announce = announce
        self._processes: dict[int, Process] = {}
        self._ready: set[int] = set()  # workers that have served at some time
        self._stopping = asyncio.Event()
        self._failed = False

    async def run(self) -> bool:
        """Run until a signal. False if a worker could not start; its reason is in the log."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop)
        try:
            async with asyncio.TaskGroup() as group:
                for worker in range(1, self._count + 1):
                    group.create_task(self._keep_worker(worker))
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
        return not self._failed

    def _stop(self) -> None:
        """End all workers. Workers receive every signal: a second one skips the grace period."""
        self._stopping.set()
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    async def _keep_worker(self, worker: int) -> None:
        """Start a worker again whenever it ends."""
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            status = await self._run_worker(worker)
            if self._stopping.is_set():
                return
            if worker not in self._ready:
                self._failed = True
                self._stop()
                return
            failures = 1 if time.monotonic() - began > STABLE_SECONDS else failures + 1
            log.error("worker.ended", worker=worker, status=status, failures=failures)
            delay = retry_delay(
                failures, first_seconds=RETRY_SECONDS, seconds_max=RETRY_SECONDS_MAX
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()

    async def _run_worker(self, worker: int) -> int:
        """Run a worker to its end, and return its exit status."""
        descriptors = [listener.fileno() for listener in self._listeners]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "serve", "--inherit"),
            ",".join(map(str, descriptors)),
            *("--host", self._settings.host, "--port", str(self._listeners[0].getsockname()[1])),
            env=build_worker_environment(
                KOTAE_DATA_DIR=str(choose_directory(self._settings.data_dir, worker)),
                KOTAE_PEER_ADDRESS=choose_peer_address(self._settings.peer_address),
            ),
            pass_fds=descriptors,
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,  # Ctrl-C is for the supervisor, which forwards it
        )
        self._processes[worker] = process
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        while line := await process.stdout.readline():
            if line.decode().strip() == READY:
                self._add_ready(worker)
        return await process.wait()

    def _add_ready(self, worker: int) -> None:
        complete = len(self._ready) == self._count
        self._ready.add(worker)
        if len(self._ready) == self._count and not complete:
            self._announce()


def choose_directory(data_dir: Path, worker: int) -> Path:
    """The data directory of a worker; the first one has that of a service without workers."""
    return data_dir if worker == 1 else data_dir / f"worker-{worker}"


def choose_peer_address(address: str | None) -> str:
    """The peer address of a worker: the configured host, by default loopback, and a free port."""
    host = address.rpartition(":")[0] if address else "127.0.0.1"
    return f"{host}:0"


def open_inherited(text: str) -> list[socket.socket]:
    """Open the listening sockets whose numbers the supervisor has passed."""
    return [socket.socket(fileno=int(number)) for number in text.split(",")]


def end_with_supervisor() -> None:
    """End this worker when its supervisor ends, however that happens."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="supervisor", daemon=True).start()
