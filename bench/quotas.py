"""CPU time of limits in memory, in PostgreSQL and in Redis: per hold, and per answer.

    python -m bench.quotas --postgres postgresql://…/one --for-redis postgresql://…/two
        --redis redis://…/0 --redis-pid PID [--answers 480] [--rounds 5]

Both databases must be empty, and all servers local: their processor time is read from `/proc`.
Three services on one provider fake, with SQLite, with PostgreSQL, and with PostgreSQL and Redis,
answer in turn to 16 callers, with a key without limits and with one that has a limit in every
window. Holds are measured in this process, one at a time and 64 at a time; each is released.
"""

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a file too

from bench.access import KOTAE, LIMITS, Caller
from bench.processes import HERE, Cores, Process, free_port, machine, save
from service.core.database import postgres
from service.core.ports import QuotaLimits, QuotaSubject
from service.core.quota.postgres import PostgresQuotaStore
from service.core.quota.redis import RedisQuotaStore
from service.core.quota.shared import QuotaStore, SharedQuota
from service.core.settings import child_environment

HOLDS, CALLERS, SECONDS = 1_000, 16, 10.0
TICKS = os.sysconf("SC_CLK_TCK")
SUBJECTS = [
    QuotaSubject(name, of, QuotaLimits(tokens_per_minute=10**9, tokens_per_month=10**9))
    for name, of in (("user:bench", "user"), ("key:bench", "key"))
]


def read_cpu_seconds(pids: list[int]) -> float:
    """Processor time of processes."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


async def list_postgres_pids(url: str) -> list[int]:
    """The server processes of the connections to a database."""
    connection = await postgres.connect(url, {}, SECONDS)
    rows = await connection.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid()"
    )
    await connection.close()
    return [row["pid"] for row in rows]


async def measure_holds(store: QuotaStore, url: str, server: int | None) -> dict[str, Any]:
    """CPU time per hold with its release, of this process and the server."""
    quota = SharedQuota(store, seconds=SECONDS)
    await quota.start()
    await quota.hold("warm", SUBJECTS, tokens=1, nano_usd=None)
    figures: dict[str, Any] = {}
    for callers in (1, 64):
        turns = asyncio.Semaphore(callers)

        async def hold(name: str, turns: asyncio.Semaphore = turns) -> float:
            async with turns:
                began = time.perf_counter()
                await quota.hold(name, SUBJECTS, tokens=1, nano_usd=None)
                seconds = time.perf_counter() - began
                quota.release(name)
                return seconds

        pids = [server] if server else await list_postgres_pids(url)
        before, here = read_cpu_seconds(pids), time.process_time()
        names = [f"{callers}-{n}" for n in range(HOLDS)]
        times = await asyncio.gather(*map(hold, names))
        await quota.refresh(SUBJECTS)  # after the releases
        figures[f"{callers} at a time"] = {
            "client_us": (time.process_time() - here) / HOLDS * 1e6,
            "server_us": (read_cpu_seconds(pids) - before) / HOLDS * 1e6,
            "p50_ms": statistics.median(times) * 1000,
        }
    await quota.stop()
    return figures


def start_service(name: str, folder: Path, provider: str, settings: dict[str, str]) -> Process:
    """Start a migrated service with keys."""
    (folder / name).mkdir()
    port = free_port()
    env = child_environment() | {
        "OPENAI_BASE_URL": f"{provider}/v1",
        "OPENAI_API_KEY": "bench",
        "KOTAE_MODEL": "gpt-5-mini",
        "KOTAE_AUTH": "keys",
        "KOTAE_SECRET_KEY": secrets.token_hex(32),
        "KOTAE_DATA_DIR": str(folder / name),
        "KOTAE_LOG_LEVEL": "warning",
        **settings,
    }
    command: list[str | Path] = [KOTAE, "serve", "--port", str(port), "--migrate"]
    process = Process(name, command, folder=folder, env=env, cores=None)
    process.url, process.env = f"http://127.0.0.1:{port}", env  # type: ignore[attr-defined]
    process.wait_ready(f"http://127.0.0.1:{port}/health/ready")
    return process


def create_callers(process: Any, user: str, limits: list[str]) -> list[Caller]:
    """Callers with a new key of a user with these limits."""
    commands = [["keys", "create", "--user", user]]
    if limits:
        commands.insert(0, ["users", "quota", user, *limits])
    for command in commands:
        done = subprocess.run(
            [KOTAE, *command], env=process.env, capture_output=True, text=True, check=True
        )
    headers = {"Authorization": f"Bearer {done.stdout.split()[0]}"}
    return [Caller(process.url, headers, process) for _ in range(CALLERS)]


def ask_in_parallel(callers: list[Caller], answers: int) -> tuple[float, float]:
    """Return (microseconds of processor time per answer, median of the seconds)."""

    def ask(caller: Caller) -> list[float]:
        caller.reconnect()
        return [caller.ask() for _ in range(answers // CALLERS)]

    process = callers[0].process
    before = process.cpu_seconds() or 0
    with ThreadPoolExecutor(CALLERS) as threads:
        times = [seconds for each in threads.map(ask, callers) for seconds in each]
    spent = (process.cpu_seconds() or 0) - before
    return spent / len(times) * 1e6, statistics.median(times)


def measure_answers(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """CPU time per answer of each service, with and without limits: medians of the rounds."""
    port = free_port()
    provider = Process(
        "provider", [sys.executable, HERE / "provider.py", "--port", str(port)],
        folder=folder, env=dict(os.environ), cores=None,
    )  # fmt: skip
    services = {
        "SQLite": {},
        "PostgreSQL": {"KOTAE_DATABASE_URL": options.postgres},
        "Redis": {"KOTAE_DATABASE_URL": options.for_redis, "KOTAE_REDIS_URL": options.redis},
    }
    with ExitStack() as stack:
        stack.callback(provider.stop)
        provider.wait_ready(f"http://127.0.0.1:{port}/stats")
        callers: dict[str, list[Caller]] = {}
        for name, settings in services.items():
            process = start_service(name, folder, f"http://127.0.0.1:{port}", settings)
            stack.callback(process.stop)
            callers[name] = create_callers(process, "free", [])
            callers[f"{name}, limits"] = create_callers(process, "limited", LIMITS)
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in callers}
        for number in range(options.rounds + 1):  # the first one is warm-up
            for name, group in callers.items():
                figures = ask_in_parallel(group, options.answers)
                if number:
                    rounds[name].append(figures)
    return {
        name: {
            "cpu_us": statistics.median(spent for spent, _ in figures),
            "p50_ms": statistics.median(seconds for _, seconds in figures) * 1000,
        }
        for name, figures in rounds.items()
    }


async def measure_stores(options: argparse.Namespace) -> dict[str, Any]:
    """CPU time of holds in both stores."""
    in_postgres = PostgresQuotaStore(options.postgres, slot=1, ttl_seconds=60, seconds=SECONDS)
    in_redis = RedisQuotaStore(
        options.redis, options.for_redis, slot=1, ttl_seconds=60, seconds=SECONDS
    )
    return {
        "PostgreSQL": await measure_holds(in_postgres, options.postgres, None),
        "Redis": await measure_holds(in_redis, options.for_redis, options.redis_pid),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--postgres", required=True)
    parser.add_argument("--for-redis", required=True)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--redis-pid", type=int, required=True)
    parser.add_argument("--answers", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path(".data/bench-quotas.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-quotas-") as folder:
        answers = measure_answers(options, Path(folder))
    holds = asyncio.run(measure_stores(options))
    figures = {"answers": answers, "holds": holds, "machine": machine(Cores(None, None))}
    save(options.json, figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
