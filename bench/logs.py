"""Latency of `GET /ai/logs` and `GET /ai/analytics` with millions of rows.

    python -m bench.logs [--rows 5000000] [--json figures.json]
    python -m bench.logs --rows 10000000 --database-url postgresql://…

Fills a temporary database and queries the real service over HTTP: each query 200 times, one at a
time, with different parameters where possible. The service runs on a separate core. Filling is not
measured: it inserts in order of id, 50,000 rows per transaction, without syncing, and their rollups
(`rollups.py`). A run lasts about ten minutes and uses 7 GB for 5 million rows.
"""

import argparse
import asyncio
import http.client
import json
import os
import random
import secrets
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a file too

from bench.processes import Cores, Failed, Process, free_port, machine, save
from bench.rollups import TABLES, RollupSums
from service.core.database import postgres
from service.core.database.engine import Database
from service.core.database.partitions import create_partitions
from service.core.settings import child_environment

TIMES = 200
WARMUP = 5
BATCH = 50_000
DAYS = 60
START = datetime(2026, 1, 1, tzinfo=UTC)
USERS = [f"user-{n:03}" for n in range(200)]
MODELS = ["gpt-5-mini", "gpt-5", "gpt-4o-mini", "llama3.2", "extractive"]
# `rare` occurs once in 100,000 answers and never with status `timeout`.
MODEL_WEIGHTS = [60, 20, 10, 5, 5]
ENDS = [  # status, usage_source, rank, per thousand
    ("completed", "provider", 2, 930),
    ("no_context", "none", 2, 40),
    ("client_gone", "estimated", 1, 15),
    ("provider_error", "unknown", 0, 10),
    ("timeout", "unknown", 0, 5),
]
TEXT = (
    "where is my order how long does shipping take returns are free within thirty days of delivery "
    "返品 送料 お届け"
)

_INDEXES = """
    SELECT indexname, indexdef FROM pg_indexes
    WHERE tablename = 'request_logs' AND indexname <> 'pk_request_logs'
"""

Question = Callable[[random.Random], dict[str, Any]]


def fill_log(file: Path, rows: int) -> None:
    """Insert rows in order of their ids, as the service writes them, and their totals."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for pragma in ("synchronous=OFF", "cache_size=-400000", "wal_autocheckpoint=20000"):
            connection.execute(f"PRAGMA {pragma}")
        generated = generate_rows(rows)
        columns = next(generated)
        placeholders = ", ".join("?" * len(columns))
        insert = f"INSERT INTO request_logs ({', '.join(columns)}) VALUES ({placeholders})"
        sums = RollupSums(columns)
        started = time.monotonic()
        for done in range(0, rows, BATCH):
            connection.execute("BEGIN")
            connection.executemany(insert, sums.follow(islice(generated, BATCH)))
            for table, listed in sums.take(last=done + BATCH >= rows).items():
                marks = ", ".join("?" * len(TABLES[table]))
                connection.executemany(
                    f"INSERT INTO {table} ({', '.join(TABLES[table])}) VALUES ({marks})", listed
                )
            connection.execute("COMMIT")
            if done % 500_000 == 0 and done:
                _say(f"  {done:,} rows, {time.monotonic() - started:.0f} s")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("rb") as filled:
        os.fsync(filled.fileno())  # so that the disk is idle during the measurement


async def fill_postgres(url: str, rows: int) -> int:
    """Insert the rows of `fill_log` into a PostgreSQL database; return its bytes."""
    database = Database(url)
    async with database.transaction() as session:
        await create_partitions(session, START, months_ahead=DAYS // 28)
    await database.close()
    connection = await postgres.connect(url, {}, 60)
    # Indexes are created afterwards, which takes a third of the time of keeping them up to date.
    indexes = await connection.fetch(_INDEXES)
    for index in indexes:
        await connection.execute(f"DROP INDEX {index['indexname']}")
    generated = generate_rows(rows)
    columns = next(generated)
    boolean, times = columns.index("grounded"), columns.index("created_at")
    sums = RollupSums(columns)
    started = time.monotonic()
    for done in range(0, rows, BATCH):
        batch = [list(row) for row in sums.follow(islice(generated, BATCH))]
        for row in batch:
            row[boolean] = bool(row[boolean])
            row[times] = datetime.fromisoformat(row[times]).replace(tzinfo=UTC)
        await connection.copy_records_to_table("request_logs", records=batch, columns=columns)
        for table, listed in sums.take(last=done + BATCH >= rows).items():
            await connection.copy_records_to_table(table, records=listed, columns=TABLES[table])
        if done % 500_000 == 0 and done:
            _say(f"  {done:,} rows, {time.monotonic() - started:.0f} s")
    for index in indexes:
        _say(f"  {index['indexname']}, {time.monotonic() - started:.0f} s")
        await connection.execute(index["indexdef"].replace(" ON ONLY ", " ON ", 1))
    for table in ("request_logs", *TABLES):
        await connection.execute(f"VACUUM (ANALYZE) {table}")
    await connection.execute("CHECKPOINT")
    size: int = await connection.fetchval("SELECT pg_database_size(current_database())")
    await connection.close()
    return size


def start_time(n: int, rows: int) -> datetime:
    """Return the start time of the n-th answer."""
    return START + timedelta(milliseconds=n * (DAYS * 86_400_000 // rows))


def answer_id(n: int, rows: int) -> str:
    """Return the id of the n-th answer: a UUIDv7 whose random bits are a number."""
    milliseconds = int(
        (start_time(n, rows) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1)
    )
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7000-8000-{n:012x}"


def generate_rows(rows: int) -> Iterator[tuple[Any, ...]]:
    """Yield the column names, then the rows."""
    yield (
        "id", "created_at", "user_id", "endpoint", "model", "status", "finish_reason",
        "prompt", "response", "prompt_tokens",
        "completion_tokens", "cached_tokens", "reasoning_tokens", "usage_source",
        "cost_nano_usd", "price", "response_time_ms",
        "first_token_ms", "grounded", "sources", "attempts", "request_id", "rank",
    )  # fmt: skip
    choose = random.Random(7)
    words = TEXT.split()
    texts = [" ".join(choose.choices(words, k=20)) for _ in range(997)]  # about 110 characters each
    users = choose.choices(USERS, k=100_003)
    models = choose.choices(MODELS, MODEL_WEIGHTS, k=50_021)
    ends = choose.choices(ENDS, [end[3] for end in ENDS], k=20_011)
    for n in range(rows):
        id_, (status, source, rank, _) = answer_id(n, rows), ends[n % len(ends)]
        model = (
            "rare" if n % 100_000 == 50_000 and status == "completed" else models[n % len(models)]
        )
        prompt, completion = (
            (n % 900 + 20, n % 300 + 5) if source in {"provider", "estimated"} else (None, None)
        )
        tokens = (
            (0, 0, 0, 0)
            if source == "none"
            else (prompt, completion, None if prompt is None else 0, None if prompt is None else 0)
        )
        cost = (
            0
            if source == "none"
            else None
            if prompt is None
            else prompt * 250 + (completion or 0) * 2000
        )
        yield (
            id_, start_time(n, rows).strftime("%Y-%m-%d %H:%M:%S.%f"), users[n % len(users)],
            "/ai/stream" if n % 3 else "/ai/test", model, status,
            "stop" if status == "completed" else None,
            texts[n % 997], texts[n % 991] + texts[n % 983], *tokens, source, cost,
            "p" if cost else None, n % 4000 + 30,
            n % 400 + 20, 1, "[]", 1, id_, rank,
        )  # fmt: skip


def build_queries(rows: int) -> dict[str, Question]:
    """Return the queries by name."""

    def at(choose: random.Random, least: float = 0, most: float = 1) -> str:
        return answer_id(int(choose.uniform(least, most) * (rows - 1)), rows)

    def window(choose: random.Random) -> dict[str, Any]:
        since = START + timedelta(minutes=choose.randrange(DAYS * 1440 - 60))
        return {
            "since": f"{since:%Y-%m-%dT%H:%M:%SZ}",
            "until": f"{since + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
        }

    def day(choose: random.Random, days: int = 1, **params: Any) -> dict[str, Any]:
        since = START + timedelta(days=choose.randrange(DAYS - days))
        until = since + timedelta(days=days)
        return {
            "path": "/ai/analytics",
            "since": f"{since:%Y-%m-%d}",
            "until": f"{until:%Y-%m-%d}",
            "limit": 1000,
            **params,
        }

    return {
        "first page": lambda _: {},
        "first page of 200": lambda _: {"limit": 200},
        "a page in the middle": lambda choose: {"cursor": at(choose, 0.3, 0.7)},
        "by user": lambda choose: {"user_id": choose.choice(USERS)},
        "by user, in the middle": lambda choose: {
            "user_id": choose.choice(USERS),
            "cursor": at(choose, 0.3, 0.7),
        },
        "by user and status": lambda choose: {
            "user_id": choose.choice(USERS),
            "status": "completed",
        },
        "by user and a rare status": lambda choose: {
            "user_id": choose.choice(USERS),
            "status": "timeout",
        },
        "by model": lambda choose: {"model": choose.choice(MODELS)},
        "by a rare model": lambda _: {"model": "rare"},
        "by a rare status": lambda _: {"status": "timeout"},
        "by endpoint": lambda _: {"endpoint": "/ai/test"},
        "an hour": window,
        "an hour of a status": lambda choose: {"status": "timeout", **window(choose)},
        "an hour of a user": lambda choose: {"user_id": choose.choice(USERS), **window(choose)},
        "tail, near the end": lambda choose: {"after": at(choose, 0.9999, 1)},
        "tail, from the middle": lambda choose: {"after": at(choose, 0.3, 0.7)},
        "tail of a user, from the middle": lambda choose: {
            "after": at(choose, 0.3, 0.7),
            "user_id": choose.choice(USERS),
        },
        "tail of nobody, from the middle": lambda choose: {
            "after": at(choose, 0.3, 0.7),
            "user_id": "nobody",
        },
        "tail of a rare model, from the middle": lambda choose: {
            "after": at(choose, 0.3, 0.7),
            "model": "rare",
        },
        "nothing: a user who never asked": lambda choose: {"user_id": f"nobody-{choose.random()}"},
        "nothing: a user, a status never seen": lambda choose: {
            "user_id": choose.choice(USERS),
            "status": "interrupted",
        },
        "nothing: a user, a model never asked": lambda choose: {
            "user_id": choose.choice(USERS),
            "model": "rare",
            "status": "timeout",
        },
        "nothing: a rare status and a rare model": lambda _: {"status": "timeout", "model": "rare"},
        "nothing: a usual status, no such model": lambda _: {
            "status": "completed",
            "model": "none",
        },
        "nothing: a usual model, an unused endpoint": lambda _: {
            "model": "gpt-5-mini",
            "endpoint": "/ai/answers",
        },
        "slowest of an hour": lambda choose: {"order": "-response_time_ms", **window(choose)},
        "errors of an hour": lambda choose: {"status": "error", **window(choose)},
        "analytics: a day": day,
        "analytics: a day by user": lambda choose: day(choose, group_by="user_id"),
        "analytics: a day by hour and model": lambda choose: day(
            choose, group_by="model", bucket="hour"
        ),
        "analytics: a day of a user": lambda choose: day(choose, user_id=choose.choice(USERS)),
        "analytics: an hour within quarters": lambda choose: day(choose) | window(choose),
        "analytics: a month by day, without latencies": lambda choose: day(
            choose, 30, bucket="day", metrics=["answers", "cost"]
        ),
    }


def send_query(
    connection: http.client.HTTPConnection, params: dict[str, Any]
) -> tuple[float, dict[str, Any]]:
    """Send one request and return (milliseconds, page)."""
    started = time.perf_counter()
    path = params.get("path", "/ai/logs")
    query = {name: value for name, value in params.items() if name != "path"}
    connection.request("GET", f"{path}?{urlencode(query, doseq=True)}")
    response = connection.getresponse()
    body = response.read()
    milliseconds = (time.perf_counter() - started) * 1000
    page: dict[str, Any] = json.loads(body)
    if page.get("code") == "invalid_interval":  # took too long, and counts with that time
        return milliseconds, {"items": [], "next_cursor": None}
    if response.status != 200:
        raise Failed(f"{params}: {response.status} {body[:200]!r}")
    return milliseconds, page


def measure(url: str, rows: int, times: int, service: Process) -> list[dict[str, Any]]:
    """Send every query `times` times; return milliseconds and mean rows per page."""
    address = urlsplit(url)
    figures = []
    with closing(
        http.client.HTTPConnection(address.hostname or "", address.port, timeout=300)
    ) as connection:
        for name, question in build_queries(rows).items():
            choose = random.Random(name)
            _say(f"  {name}")
            for _ in range(WARMUP):
                send_query(connection, question(choose))
            before = service.cpu_seconds()
            answers = [send_query(connection, question(choose)) for _ in range(times)]
            after = service.cpu_seconds()
            times_ms = sorted(milliseconds for milliseconds, _ in answers)
            row_counts = [len(page["items"]) for _, page in answers]
            figures.append(
                {
                    "question": name,
                    "p50_ms": times_ms[len(times_ms) // 2],
                    "p99_ms": times_ms[min(len(times_ms) - 1, int(len(times_ms) * 0.99))],
                    "most_ms": times_ms[-1],
                    "cpu_ms": None
                    if before is None or after is None
                    else (after - before) * 1000 / times,
                    "rows_mean": sum(row_counts) / len(row_counts),
                    "unfinished": sum(
                        bool(page["next_cursor"]) and len(page["items"]) < 50 for _, page in answers
                    ),
                }
            )
    return figures


def run(
    rows: int, times: int, folder: Path, cores: Cores, database_url: str | None
) -> dict[str, Any]:
    """Fill the database, start the service, measure. Raises `Failed`."""
    env = child_environment() | {"KOTAE_DATA_DIR": str(folder)}
    if database_url:
        env |= {"KOTAE_DATABASE_URL": database_url, "KOTAE_SECRET_KEY": secrets.token_hex(32)}
    kotae = Path(sys.executable).parent / "kotae"
    migrated = subprocess.run(
        [kotae, "migrate"], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    if migrated.returncode:
        raise Failed(migrated.stderr)
    file = folder / "kotae.db"
    _say(f"filling {rows:,} rows")
    started = time.monotonic()
    if database_url:
        size = asyncio.run(fill_postgres(database_url, rows))
    else:
        fill_log(file, rows)
        size = file.stat().st_size
    filled = time.monotonic() - started
    _say(f"filled: {filled:.0f} s, {size / 1e9:.2f} GB")
    url = f"http://127.0.0.1:{free_port()}"
    service = Process(
        "kotae",
        [kotae, "serve", "--port", url.rpartition(":")[2]],
        folder=folder,
        env=env,
        cores=cores.service,
    )
    try:
        service.wait_ready(f"{url}/health/ready")
        figures = measure(url, rows, times, service)
    finally:
        service.stop()
    return {
        "rows": rows,
        "times": times,
        "fill_seconds": filled,
        "file_bytes": size,
        "questions": figures,
    }


def format_table(figures: list[dict[str, Any]]) -> str:
    """Format the figures as text."""
    lines = [f"{'GET /ai/logs':44}{'p50 ms':>9}{'p99 ms':>9}{'cpu ms':>9}{'rows':>8}"]
    for row in figures:
        cpu = "–" if row["cpu_ms"] is None else f"{row['cpu_ms']:.1f}"
        lines.append(
            f"{row['question']:44}{row['p50_ms']:>9.1f}{row['p99_ms']:>9.1f}"
            f"{cpu:>9}{row['rows_mean']:>8.1f}"
        )
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description="GET /ai/logs on a log of millions.")
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--times", type=int, default=TIMES, help="how often each question is asked")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the temporary database goes; default: the system's place for such",
    )
    parser.add_argument("--database-url", help="a migrated PostgreSQL database; default: SQLite")
    parser.add_argument(
        "--json", type=Path, default=Path(".data/bench-logs.json"), help="where the figures go"
    )
    options = parser.parse_args()
    cores = Cores.split()
    try:
        with tempfile.TemporaryDirectory(prefix="kotae-bench-", dir=options.folder) as folder:
            results = run(options.rows, options.times, Path(folder), cores, options.database_url)
            about = {"machine": machine(cores)}  # the state at the end of the measurement
    except Failed as failure:
        sys.exit(f"the run is void: {failure}")
    save(options.json, about | results)
    print(format_table(results["questions"]))
    print(
        f"\n{options.rows:,} rows, {results['file_bytes'] / 1e9:.2f} GB,"
        f" filled in {results['fill_seconds']:.0f} s\n{about['machine']}"
    )


if __name__ == "__main__":
    main()
