"""A Redis server of the tests, on a free port. Its program is that of Debian's `redis-server`."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.proxies import find_free_port

START_SECONDS = 20


@dataclass
class RedisServer:
    """A server without persistence."""

    program: str
    folder: str
    port: int = field(default_factory=find_free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        """Start the server, and wait until it answers."""
        command = [self.program, "--port", str(self.port), "--save", "", "--dir", self.folder]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
        until = time.monotonic() + START_SECONDS
        while self.run("PING") != "PONG":
            assert time.monotonic() < until, "redis-server did not start"

    def run(self, *command: str) -> str:
        """Run a command, and return the reply."""
        client = shutil.which("redis-cli") or "redis-cli"
        done = subprocess.run(
            [client, "-p", str(self.port), *command], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    def pause(self) -> None:
        """Stop the process without closing its connections."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue after `pause`."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill the server: its memory is lost."""
        if self.process:
            self.process.kill()
            self.process.wait()


@contextmanager
def running_redis() -> Iterator[RedisServer]:
    """Start a server. Without the program a test is skipped; in CI it fails."""
    program = shutil.which("redis-server")
    if program is None:
        reason = "not run: Redis is absent (apt-get install redis-server)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="kotae-redis-") as folder:
        server = RedisServer(program, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
