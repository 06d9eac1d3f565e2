"""Cost of exact accounting: latency with frozen disks and locked databases, bursts, replay.

    python -m bench.accounting [--seconds 20] [--json figures.json]

`POST /ai/test` at 50 answers/s (open loop) against the provider fake, with the service in five
states, each in its own process and folder; then the journal, the writer and recovery in this
process. The frozen file system needs root, and a second process unfreezes it if this one fails. A
run lasts about five minutes and uses half a gigabyte of disk and tmpfs.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a file too


from bench.load import spread
from bench.processes import HERE, Cores, Failed, Loader, Process, free_port, get_json, machine, save
from service.core.accounting.journal import Journal, choose_spool
from service.core.accounting.queue import JournaledQueue
from service.core.database.engine import Database
from service.core.encoding import create_id, utc_now
from service.core.pricing import Usage
from service.core.records import Intent, Outcome, Status, UsageSource
from service.core.settings import child_environment
from service.core.telemetry import Metrics, configure_logging
from service.workers.recovery import JournalRecovery
from service.workers.writer import Writer

RATE = 50
ROUNDS = 3  # every state runs once per round; the table has the medians
CHUNKS = 64
BODY = '{"prompt": "question %d", "grounded": false}'
BURST, REPLAYED, PAIRS = 50_000, 100_000, 20_000
BYTES_MAX = 256 * 1024 * 1024
IMAGE_BYTES = 256 * 1024 * 1024


class NotRun(Exception):
    """A measurement that is not possible on this machine, with the reason."""


# latency


@contextlib.contextmanager
def run_provider(folder: Path, cores: Cores) -> Iterator[str]:
    """Start the provider fake and yield its URL."""
    port = free_port()
    command: list[str | Path] = [
        sys.executable,
        HERE / "provider.py",
        "--chunks",
        str(CHUNKS),
        "--port",
        str(port),
    ]
    process = Process("provider", command, folder=folder, env=dict(os.environ), cores=cores.tools)
    try:
        process.wait_ready(f"http://127.0.0.1:{port}/stats")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.stop()


def start_service(folder: Path, data: Path, cores: Cores, **settings: str) -> tuple[Process, str]:
    """Start a service with its log in `folder` and return it with its URL, without waiting."""
    port = free_port()
    env = child_environment()
    env |= {
        "OPENAI_API_KEY": "bench",
        "KOTAE_DATA_DIR": str(data),
        "KOTAE_LOG_LEVEL": "error",
        **settings,
    }
    command: list[str | Path] = [
        Path(sys.executable).parent / "kotae",
        "serve",
        "--migrate",
        "--port",
        str(port),
    ]
    return Process(
        "kotae", command, folder=folder, env=env, cores=cores.service
    ), f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def lock_database(file: Path) -> Iterator[None]:
    """Lock the database from another connection."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None, timeout=10)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@contextlib.contextmanager
def loop_filesystem(folder: Path) -> Iterator[Path]:
    """Mount a separate ext4. Raises `NotRun`."""
    if os.geteuid() != 0:
        raise NotRun("needs root")
    for tool in ("mkfs.ext4", "mount", "umount", "fsfreeze"):
        if not shutil.which(tool):
            raise NotRun(f"needs {tool}")
    image, mount = folder / "disk.img", folder / "disk"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    try:
        subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, mount], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise NotRun(error.stderr.decode().strip()) from error
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", mount], check=False)


@contextlib.contextmanager
def freeze_filesystem(mount: Path, seconds: float) -> Iterator[None]:
    """Freeze the file system; a second process unfreezes it if this one does not."""
    thaw = subprocess.Popen(
        ["sh", "-c", f"sleep {seconds:.0f}; fsfreeze --unfreeze '{mount}'"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        subprocess.run(["fsfreeze", "--freeze", mount], check=True)
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", mount], check=False, stderr=subprocess.DEVNULL)
        thaw.kill()
        thaw.wait()


def measure_latency(
    state: str, folder: Path, base_url: str, cores: Cores, seconds: float
) -> dict[str, Any]:
    """Percentiles of one state. Raises `NotRun` and `Failed`."""
    with contextlib.ExitStack() as stack:
        data = (
            stack.enter_context(loop_filesystem(folder)) if state == "frozen" else folder / "data"
        )
        settings = {
            "no spool": {"KOTAE_JOURNAL_SPOOL": "none"},
            "synchronous": {"KOTAE_JOURNAL_SYNC_MS": "0"},
        }.get(state, {})
        process, url = start_service(folder, data, cores, OPENAI_BASE_URL=base_url, **settings)
        stack.callback(process.stop)
        process.wait_ready(f"{url}/health/ready")
        load(url, 2, cores)
        if state == "locked":
            stack.enter_context(lock_database(data / "kotae.db"))
        elif state == "frozen":
            stack.enter_context(freeze_filesystem(data, seconds + 30))
        figures = load(url, seconds, cores)
        ready = get_json(f"{url}/health/ready") if state != "frozen" else {"status": "not asked"}
        return {**figures["latency_ms"], "answers": figures["answers"], "status": ready["status"]}


def load(url: str, seconds: float, cores: Cores) -> dict[str, Any]:
    arguments = [
        "--url",
        f"{url}/ai/test",
        "--body",
        BODY,
        "--contains",
        f"word{CHUNKS - 1} ",
        "--rate",
        str(RATE),
    ]
    loader = Loader(
        [*arguments, "--seconds", str(seconds), "--warmup-seconds", "1"], cores=cores.tools
    )
    try:
        return loader.result()
    finally:
        loader.stop()


# the journal, the writer and recovery


def build_record(n: int) -> Outcome:
    at = utc_now()
    intent = Intent(
        id=create_id(at),
        created_at=at,
        endpoint="/ai/test",
        model="bench",
        user_id="local",
        request_id=f"r{n}",
        prompt="question? " * 20,
        grounded=False,
    )
    return Outcome(
        intent=intent, status=Status.COMPLETED, usage_source=UsageSource.PROVIDER,
        usage=Usage(prompt_tokens=40, completion_tokens=64),
        response="an answer " * 40, finish_reason="stop", error_code=None,
        cost_nano_usd=52_000, price="p", response_time_ms=10,
        first_token_ms=None, attempts=1, sources=[],
    )  # fmt: skip


@contextlib.contextmanager
def open_spool(folder: Path) -> Iterator[Path | None]:
    """Return the spool that the service would choose."""
    spool, _ = choose_spool(folder, "auto", BYTES_MAX)
    try:
        yield spool
    finally:
        if spool:
            shutil.rmtree(spool, ignore_errors=True)


def measure_pairs(folder: Path) -> dict[str, float]:
    """Return the microseconds of a `begin` and its `finish`."""
    seconds: list[float] = []
    with open_spool(folder) as spool:
        journal = Journal(folder / "journal", spool, sync_ms=50, bytes_max=BYTES_MAX)
        journal.start()
        for n in range(PAIRS):
            outcome = build_record(n)
            started = time.perf_counter()
            journal.append_intent(outcome.intent)
            journal.append_outcome(outcome)
            seconds.append(time.perf_counter() - started)
            journal.release([outcome.intent.id])
        journal.stop(5)
    return {name: round(value * 1000, 1) for name, value in spread(seconds).items()}


async def measure_burst(folder: Path) -> dict[str, float]:
    """Record answers while the database is locked, then unlock it."""
    database = Database(f"sqlite+aiosqlite:///{folder / 'kotae.db'}")
    await database.migrate()
    with open_spool(folder) as spool:
        journal = Journal(folder / "journal", spool, sync_ms=50, bytes_max=BYTES_MAX)
        journal.start()
        queue = JournaledQueue(100_000, journal)
        writer = Writer(database, queue, Metrics(), batch_max=500, quarantine=folder / "quarantine")
        outcomes = [build_record(n) for n in range(BURST)]
        with lock_database(folder / "kotae.db"):
            writer.start()
            started = time.perf_counter()
            for n, outcome in enumerate(outcomes):
                queue.add_intent(outcome.intent)
                queue.add_outcome(outcome)
                if n % 100 == 0:
                    await asyncio.sleep(0)
            taken_in = time.perf_counter() - started
        started = time.perf_counter()
        await queue.wait_committed()
        drained = time.perf_counter() - started
        await writer.stop(5)
        written = writer.statistics().written
        await asyncio.to_thread(journal.stop, 5)
    await database.close()
    if written != BURST:
        raise Failed(f"{written} rows of {BURST}")
    return {"taken_in_seconds": round(taken_in, 2), "drained_seconds": round(drained, 2)}


def write_dead_journal(folder: Path) -> None:
    """Write the journal of a killed process: half of the frames are intents, half outcomes."""
    (folder / "journal").mkdir(parents=True)
    journal = Journal(folder / "journal", None, sync_ms=50, bytes_max=BYTES_MAX)
    for n in range(REPLAYED // 2):
        outcome = build_record(n)
        journal.append_intent(outcome.intent)
        journal.append_outcome(outcome)
    for segment in journal._segments:  # noqa: SLF001 - a death cannot be asked for
        segment.close()


async def measure_replay(folder: Path) -> dict[str, float]:
    """Measure recovery without other load."""
    write_dead_journal(folder)
    database = Database(f"sqlite+aiosqlite:///{folder / 'kotae.db'}")
    await database.migrate()
    recovery = JournalRecovery(database, folder / "journal", None, quarantine=folder / "quarantine")
    started = time.perf_counter()
    recovery.start()
    await recovery.wait_done()
    seconds = time.perf_counter() - started
    await database.close()
    if recovery.statistics().rows != REPLAYED // 2:
        raise Failed(f"{recovery.statistics().rows} rows of {REPLAYED // 2}")
    return {"seconds": round(seconds, 2)}


def measure_start(folder: Path, cores: Cores, *, full: bool) -> dict[str, float]:
    """Return the seconds from the start of a service to its first answer."""
    folder.mkdir()
    data = folder / "data"
    if full:
        write_dead_journal(data)
    started = time.perf_counter()
    process, url = start_service(folder, data, cores)
    try:
        figures = {name: _wait(url, name, started) for name in ("live", "ready")}
        while get_json(f"{url}/health/ready")["recovery"]["state"] != "done":
            time.sleep(0.05)
        return {**figures, "recovered": round(time.perf_counter() - started, 2)}
    finally:
        process.stop()


def _wait(url: str, name: str, started: float) -> float:
    while time.perf_counter() - started < 60:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{url}/health/{name}", timeout=5),
        ):
            return round(time.perf_counter() - started, 2)
        time.sleep(0.005)
    raise Failed(f"the service was not {name} after a minute")


# all measurements

STATES = {
    "normal": "everything normal",
    "locked": "database locked by another connection",
    "frozen": "data folder on a frozen file system",
    "no spool": "KOTAE_JOURNAL_SPOOL=none",
    "synchronous": "KOTAE_JOURNAL_SYNC_MS=0",
}


def measure(folder: Path, cores: Cores, seconds: float) -> dict[str, Any]:
    """Run all measurements. Raises `Failed`."""
    figures: dict[str, Any] = {"latency_ms": {}}
    with run_provider(folder, cores) as base_url:
        rounds: dict[str, list[dict[str, Any]]] = {state: [] for state in STATES}
        for n in range(ROUNDS):
            for state in STATES if n % 2 == 0 else reversed(STATES):
                print(f"round {n + 1} of {ROUNDS}: {state}", file=sys.stderr, flush=True)
                place = folder / f"{n}-{state.replace(' ', '-')}"
                place.mkdir()
                try:
                    rounds[state].append(measure_latency(state, place, base_url, cores, seconds))
                except NotRun as reason:
                    rounds[state].append({"not run": str(reason)})
        figures["rounds"] = rounds
        for state, values in rounds.items():
            shares = ("p50", "p90", "p99", "max")
            medians = (
                {share: statistics.median(value[share] for value in values) for share in shares}
                if "p50" in values[0]
                else values[0]
            )
            figures["latency_ms"][state] = medians
    for name in ("pairs", "burst", "replay"):
        print(name, file=sys.stderr, flush=True)
        (folder / name).mkdir()
        figures[name] = (
            measure_pairs(folder / name)
            if name == "pairs"
            else asyncio.run(
                {"burst": measure_burst, "replay": measure_replay}[name](folder / name)
            )
        )
    print("start", file=sys.stderr, flush=True)
    figures["start_empty"] = measure_start(folder / "empty", cores, full=False)
    figures["start_full"] = measure_start(folder / "full", cores, full=True)
    return figures


def format_table(figures: dict[str, Any]) -> str:
    """Format the figures as text."""
    normal = figures["latency_ms"]["normal"]
    lines = [
        f"{f'POST /ai/test, {RATE}/s':42}"
        + "".join(f"{name:>9}" for name in ("p50 ms", "p99 ms", "max ms", "p50", "p99"))
    ]
    for state, title in STATES.items():
        values = figures["latency_ms"][state]
        if "not run" in values:
            lines.append(f"{title:42}  not run: {values['not run']}")
            continue
        ratios = "".join(f"{values[share] / normal[share]:>8.2f}×" for share in ("p50", "p99"))
        lines.append(
            f"{title:42}{values['p50']:9.2f}{values['p99']:9.2f}{values['max']:9.2f}{ratios}"
        )
    pair, took, empty, full = (
        figures[name] for name in ("pairs", "burst", "start_empty", "start_full")
    )
    lines += [
        "",
        f"begin + finish: p50 {pair['p50']} µs, p99 {pair['p99']} µs, longest {pair['max']} µs",
        f"{BURST:,} records while the database is locked: taken in {took['taken_in_seconds']} s",
        f"written once it is free: {took['drained_seconds']} s (target 15)",
        f"{REPLAYED:,} frames replayed in {figures['replay']['seconds']} s (target 15)",
        (
            f"start with {REPLAYED:,} frames to recover: live {full['live']} s,"
            f" ready {full['ready']} s (target 2), done {full['recovered']} s"
        ),
        f"start with none: live {empty['live']} s, ready {empty['ready']} s",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description="What exact accounting costs.")
    parser.add_argument("--seconds", type=float, default=20, help="of each latency measurement")
    parser.add_argument(
        "--json",
        type=Path,
        default=Path(".data/bench-accounting.json"),
        help="where the figures go",
    )
    options = parser.parse_args()
    configure_logging("error", "json")
    cores = Cores.split()
    about = {"machine": machine(cores), "seconds": options.seconds}
    try:
        with tempfile.TemporaryDirectory(
            prefix="kotae-bench-", ignore_cleanup_errors=True
        ) as folder:
            figures = measure(Path(folder), cores, options.seconds)
    except Failed as failure:
        sys.exit(f"the run is void: {failure}")
    save(options.json, about | figures)
    print(format_table(figures))
    print(f"\n{about['machine']}\nfigures: {options.json}")


if __name__ == "__main__":
    main()
