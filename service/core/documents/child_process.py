"""Isolated child processes for work on untrusted data.

Both sides exchange frames (bytes with a length prefix) over a socket, which is the standard input
of the child. An empty frame ends a task and its response. The environment of the child contains no
secrets; its memory is limited and it cannot write files (on Linux); its priority is lower. Its
responses are bytes in frames of bounded size, which callers decode to declared types; pickle would
let it execute code in the service (docs/decisions/0027).
"""

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Pipe

from service.core.settings import child_environment

FRAME_BYTES_MAX = 64 * 1024**2
NICENESS = 10


class ChildProcess:
    """A child process. `exchange` and `end` block; two threads may call them at once."""

    def __init__(
        self, command: Sequence[str], memory_bytes_max: int, *, keeps_errors: bool = True
    ) -> None:
        self._command, self._memory_bytes_max = command, memory_bytes_max
        self._stderr = None if keeps_errors else subprocess.DEVNULL
        self._process: subprocess.Popen[bytes] | None = None
        self._connection, self._child_connection = Pipe()
        self._lock = threading.Lock()
        self._ended = False

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def exchange(self, frames: Iterable[bytes]) -> Iterator[bytes]:
        """Send the frames of a task and yield those of the response. Starts the process if needed.

        Raises `OSError` or `EOFError` if the process does not start or ends early.
        """
        if self._process is None:
            self._start()
        for frame in frames:
            self._connection.send_bytes(frame)
        self._connection.send_bytes(b"")
        while frame := self._connection.recv_bytes(FRAME_BYTES_MAX):
            yield frame

    def end(self) -> None:
        """Kill the process and wait for its end. A process that is being started is killed then."""
        with self._lock:
            self._ended = True
        if self._process:
            self._process.kill()
            self._process.wait()

    def end_in_thread(self) -> None:
        """Kill the process without waiting for it."""
        threading.Thread(target=self.end, daemon=True).start()

    def _start(self) -> None:
        with self._child_connection as stdin:
            process = subprocess.Popen(  # noqa: S603 - a constant
                self._command,
                stdin=stdin.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env=child_environment(),
            )
        with suppress(ProcessLookupError):  # set here, before the imports of the child
            priority = os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
            os.setpriority(os.PRIO_PROCESS, process.pid, priority)
            if sys.platform == "linux":
                memory = (self._memory_bytes_max, self._memory_bytes_max)
                resource.prlimit(process.pid, resource.RLIMIT_AS, memory)
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
                resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        with self._lock:
            self._process = process
            ended = self._ended
        if ended:
            self.end()
