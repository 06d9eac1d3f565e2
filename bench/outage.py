"""Latency while PostgreSQL hangs: of known users without limits, and of everything else.

    python -m bench.outage --postgres postgresql://… --postmaster PID [--seconds 20] [--rounds 3]

The server must be local, and its processes may be stopped (SIGSTOP) by this user. `POST /ai/test`
at 50 answers/s (open loop) with an API key, in turns while the server works and while it hangs,
with the processor time of the service per answer. Beside the latter, requests that need the
database, of which the first ones notice the outage.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a file too

from bench.access import KOTAE
from bench.accounting import BODY, CHUNKS, RATE, run_provider, start_service
from bench.processes import Cores, Failed, Loader, get_json, machine, save

ASK_SECONDS = 0.2  # between two requests that need the database
TIMEOUT_SECONDS = 60
WARMUP_SECONDS = 1
SHARES = ("p50", "p99", "max", "cpu_us")


@contextmanager
def stop_server(postmaster: int) -> Iterator[None]:
    """Stop all processes of a PostgreSQL server, but not its connections."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    pids = [postmaster, *map(int, children)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


def ask_database(url: str, key: str, until: float) -> list[float]:
    """Milliseconds of requests that get 503, one after the other. Raises `Failed` for others."""
    durations = []
    while time.monotonic() < until:
        request = urllib.request.Request(
            f"{url}/ai/documents", headers={"Authorization": f"Bearer {key}"}
        )
        began = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                raise Failed(f"status {response.status} without a database")
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise Failed(f"status {error.code}") from error
        durations.append((time.monotonic() - began) * 1000)
        time.sleep(ASK_SECONDS)
    return durations


def measure(options: argparse.Namespace, folder: Path, cores: Cores) -> dict[str, Any]:
    """Run all rounds. Raises `Failed`."""
    with ExitStack() as stack:
        provider = stack.enter_context(run_provider(folder, cores))
        settings = {
            "OPENAI_BASE_URL": provider,
            "KOTAE_DATABASE_URL": options.postgres,
            "KOTAE_SECRET_KEY": "5e" * 32,
            "KOTAE_AUTH": "keys",
        }
        process, url = start_service(folder, folder / "data", cores, **settings)
        stack.callback(process.stop)
        process.wait_ready(f"{url}/health/ready")
        done = subprocess.run(
            [KOTAE, "keys", "create", "--user", "free"], env=os.environ | settings,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        key = done.stdout.split()[0]

        def start_load() -> Loader:
            return Loader(
                ["--url", f"{url}/ai/test", "--body", BODY, "--contains", f"word{CHUNKS - 1} ",
                 "--rate", str(RATE), "--seconds", str(options.seconds),
                 "--warmup-seconds", str(WARMUP_SECONDS),
                 "--header", f"Authorization: Bearer {key}"],
                cores=cores.tools,
            )  # fmt: skip

        def finish_load(loader: Loader, before: float) -> dict[str, float]:
            result = loader.result()
            spent = (process.cpu_seconds() or 0) - before
            cpu_us = spent * 1e6 / (RATE * (options.seconds + WARMUP_SECONDS))
            return {**result["latency_ms"], "cpu_us": cpu_us}

        figures: dict[str, list[Any]] = {"normal": [], "hanging": [], "first_ms": [], "next_ms": []}
        for _ in range(options.rounds):
            before = process.cpu_seconds() or 0
            figures["normal"].append(finish_load(start_load(), before))
            with stop_server(options.postmaster):
                before, loader = process.cpu_seconds() or 0, start_load()
                refused = ask_database(url, key, time.monotonic() + options.seconds)
                figures["hanging"].append(finish_load(loader, before))
            figures["first_ms"].append(refused[0])
            figures["next_ms"] += refused[1:]
            while get_json(f"{url}/health/ready")["status"] != "ready":
                time.sleep(0.1)
        return figures


def format_table(figures: dict[str, Any]) -> str:
    """Format the figures as text."""
    lines = [f"{f'POST /ai/test, {RATE}/s':28}" + "".join(f"{n:>9}" for n in SHARES)]
    for state in ("normal", "hanging"):
        medians = [
            statistics.median(values[share] for values in figures[state]) for share in SHARES
        ]
        lines.append(f"PostgreSQL {state:17}" + "".join(f"{value:9.2f}" for value in medians))
    later = figures["next_ms"]
    first = ", ".join(f"{value:.0f}" for value in figures["first_ms"])
    spread = f"p50 {statistics.median(later):.1f} ms, max {max(later):.1f} ms"
    lines += [f"503, the first ones: {first} ms", f"503, {len(later)} later ones: {spread}"]
    return "\n".join(lines)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description="Latency while PostgreSQL hangs.")
    parser.add_argument("--postgres", required=True, help="URL of an empty database")
    parser.add_argument("--postmaster", type=int, required=True, help="process id of the server")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cores = Cores.split()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder), cores)
    print(json.dumps(machine(cores)))
    print(format_table(figures))
    if options.json:
        save(options.json, figures)


if __name__ == "__main__":
    main()
