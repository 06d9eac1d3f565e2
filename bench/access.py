"""Cost of API keys and quotas per answer: `POST /ai/test` with all of them against open mode.

    python -m bench.access [--pairs 2000]

Two services on one provider fake are called in turn, one request at a time over a persistent
connection, so that changes of machine speed affect both. With keys, the request has an API key of a
user and a key that have a limit in every window. The output shows the median of each, the median of
the differences within the pairs, and the processor time of both.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a file too

from bench.processes import HERE, Cores, Process, free_port
from service.core.settings import child_environment

BODY = json.dumps({"prompt": "question", "grounded": False, "max_tokens": 100})
NAMES = (
    "requests_per_minute",
    "tokens_per_minute",
    "tokens_per_day",
    "tokens_per_month",
    "cost_usd_per_day",
    "cost_usd_per_month",
)
LIMITS = [f"--limit={name}=100000000" for name in (*NAMES, "concurrent")]
KOTAE = Path(sys.executable).parent / "kotae"


class Caller:
    """Calls one service over one connection."""

    def __init__(self, url: str, headers: dict[str, str], process: Process) -> None:
        self.process = process
        self._connection = http.client.HTTPConnection(str(urlsplit(url).netloc))
        self._headers = {"Content-Type": "application/json"} | headers

    def ask(self) -> float:
        """Send one prompt and return the seconds until the answer."""
        began = time.perf_counter()
        self._connection.request("POST", "/ai/test", BODY, self._headers)
        response = self._connection.getresponse()
        body = response.read()
        seconds = time.perf_counter() - began
        assert response.status == 200, body
        return seconds

    def reconnect(self) -> None:
        """Use a new connection from now on: the service closes idle ones."""
        self._connection.close()


@contextmanager
def run_service(folder: Path, provider: str, cores: Cores, *, keys: bool) -> Iterator[Caller]:
    """Start a service, open or with keys and limits, and yield its caller."""
    folder.mkdir()
    env = child_environment()
    env |= {
        "OPENAI_BASE_URL": f"{provider}/v1",
        "KOTAE_DATA_DIR": str(folder),
        "KOTAE_LOG_LEVEL": "warning",
    }
    env |= {"KOTAE_AUTH": "keys"} if keys else {}
    headers: dict[str, str] = {}
    if keys:
        for arguments in (["migrate"], ["users", "quota", "bench", *LIMITS]):
            subprocess.run([KOTAE, *arguments], env=env, check=True, capture_output=True)
        created = subprocess.run(
            [KOTAE, "keys", "create", "--user", "bench"],
            env=env,
            check=True,
            capture_output=True,
            text=True,
        )
        headers = {"Authorization": f"Bearer {created.stdout.split()[0]}"}
    url = f"http://127.0.0.1:{free_port()}"
    command: list[str | Path] = [KOTAE, "serve", "--migrate", "--port", str(urlsplit(url).port)]
    process = Process(folder.name, command, folder=folder, env=env, cores=cores.service)
    try:
        process.wait_ready(f"{url}/health/ready")
        yield Caller(url, headers, process)
    finally:
        process.stop()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=2000)
    pairs = parser.parse_args().pairs
    with ExitStack() as stack:
        folder, cores = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kotae-access-"))),
            Cores.split(),
        )
        provider = f"http://127.0.0.1:{free_port()}"
        fake = Process(
            "provider",
            [
                sys.executable,
                HERE / "provider.py",
                "--chunks",
                "8",
                "--port",
                str(urlsplit(provider).port),
            ],
            folder=folder,
            env=dict(os.environ),
            cores=cores.tools,
        )
        stack.callback(fake.stop)
        fake.wait_ready(f"{provider}/stats")
        callers = [
            stack.enter_context(run_service(folder / name, provider, cores, keys=name == "keys"))
            for name in ("open", "keys")
        ]
        for caller in callers * 200:
            caller.ask()
        before = [caller.process.cpu_seconds() or 0 for caller in callers]
        seconds: tuple[list[float], list[float]] = ([], [])
        for n in range(pairs):
            for which in (0, 1) if n % 2 else (1, 0):
                seconds[which].append(callers[which].ask())
        cpu = [
            ((caller.process.cpu_seconds() or 0) - start) / pairs
            for caller, start in zip(callers, before, strict=True)
        ]
    medians = [statistics.median(times) * 1000 for times in seconds]
    added = statistics.median(keyed - bare for bare, keyed in zip(*seconds, strict=True)) * 1000
    print(f"open: p50 {medians[0]:.3f} ms, {cpu[0] * 1000:.3f} ms of processor time an answer")
    print(f"keys and quotas: p50 {medians[1]:.3f} ms, {cpu[1] * 1000:.3f} ms of processor time")
    print(
        f"added: {added:.3f} ms at the median of {pairs} pairs,"
        f" {(cpu[1] - cpu[0]) * 1000:.3f} ms of processor time"
    )


if __name__ == "__main__":
    main()
