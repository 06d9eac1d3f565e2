"""Search time of a user in a database with many users, compared with one who is alone.

    python -m bench.tenants [--users 1000] [--chunks 1000] [--questions 300] [--json …]

Each user has the same number of chunks, taken at random from generated texts of a few sentences
(`bench.search`), and there are shared chunks as well. The users' chunks are written in turns, so
that they are spread over the database. Each question is searched for in both databases, one after
the other, in this process; caches are empty at the beginning and small compared with the index.

*alone*, *among others*: the same user with the same documents. *another user each time*: what the
service does under load; nearly all reads are of pages and terms that no search has read before.
*admin*: a search of all users' documents, which reads the scope of each of them.
"""

import argparse
import asyncio
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.processes import Cores, machine, save
from bench.search import generate_texts, percentiles
from service.core.database.engine import Database
from service.core.search import fts5_merge
from service.core.search.service import SearchService
from service.core.settings import Settings
from service.core.text.tokenizer import get_tokenizer

LANGUAGE = "en"
CHARACTERS = 240  # of a chunk: a database of 1,000 × 1,000 has 3 GB
TEXTS = 5_000  # distinct ones
SHARED = 200  # chunks
ADMIN_SEARCHES = 20
CREATED = "2026-01-01 00:00:00.000000"

Chunk = tuple[str, str, str]  # text, words, grams


def generate_chunks(choose: random.Random, questions: int) -> tuple[list[Chunk], list[str]]:
    """Generate chunks with their terms, and questions."""
    corpus = generate_texts(LANGUAGE, TEXTS, questions, choose)
    extract = get_tokenizer("auto").extract_terms
    chunks = []
    for _, text in corpus.texts:
        short = text[: text.rfind(".", 0, CHARACTERS) + 1]
        terms = extract(short)
        chunks.append((short, " ".join(terms.words), " ".join(terms.grams)))
    return chunks, corpus.questions


async def fill_database(
    database: Database, owners: dict[str, Sequence[Chunk]], shared: Sequence[Chunk]
) -> None:
    """Write one document per owner, their chunks in turns, and merge the index."""
    await database.migrate()
    assert database.file
    with sqlite3.connect(database.file) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        documents = {name: f"{n:036}" for n, name in enumerate((*owners, ""))}
        connection.executemany(
            "INSERT INTO documents (id, user_id, shared, title, content_hash, text, characters,"
            " chunks, encoding, created_at) VALUES (?, ?, ?, '', ?, '', 0, 0, 'utf-8', ?)",
            [(id_, name or "admin", not name, id_, CREATED) for name, id_ in documents.items()],
        )
        scopes = dict(connection.execute("SELECT user_id, id FROM index_scopes"))
        connection.executemany(
            "INSERT INTO chunks (document_id, n, start, end, text, words, grams, scope)"
            " VALUES (?, ?, 0, 0, ?, ?, ?, ?)",
            _list_rows(documents, scopes, owners, shared),
        )
    connection.close()
    await fts5_merge.merge_segments(database, pause_seconds=0)


def _list_rows(
    documents: dict[str, str],
    scopes: dict[str, int],
    owners: dict[str, Sequence[Chunk]],
    shared: Sequence[Chunk],
) -> Iterator[tuple[Any, ...]]:
    for n, chunk in enumerate(shared, 1):
        yield documents[""], n, *chunk, 0
    for n in range(max(map(len, owners.values()))):
        for name, chunks in owners.items():
            yield documents[name], n + 1, *chunks[n], scopes[name]


async def measure_searches(
    columns: dict[str, tuple[SearchService, Callable[[int], str | None]]], questions: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Search for each question in each column in turn. Returns milliseconds by column.

    They are those of the clock, and `processor` those of this process, which matter where other
    processes run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in columns}
    processor: dict[str, list[float]] = {name: [] for name in columns}
    for n, question in enumerate(questions):
        for name in list(columns) if n % 2 else reversed(columns):
            service, choose_user = columns[name]
            user_id = choose_user(n)
            began, used = time.perf_counter(), time.process_time()
            await service.search(question, user_id=user_id, limit=10)
            seconds[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - used)
    return {
        name: {"clock": percentiles(seconds[name]), "processor": percentiles(processor[name])}
        for name in columns
    }


async def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fill both databases and measure."""
    choose = random.Random(7)
    pool, questions = generate_chunks(choose, options.questions)
    owners: dict[str, Sequence[Chunk]] = {
        f"user-{n}": choose.sample(pool, options.chunks) for n in range(options.users)
    }
    shared = choose.sample(pool, SHARED)
    first = next(iter(owners))
    alone, many = (Database(f"sqlite+aiosqlite:///{folder / name}.db") for name in ("a", "m"))
    began = time.perf_counter()
    await fill_database(alone, {first: owners[first]}, shared)
    await fill_database(many, owners, shared)
    seconds = time.perf_counter() - began
    service = SearchService(many, Settings(_env_file=None))
    columns: dict[str, tuple[SearchService, Callable[[int], str | None]]] = {
        "alone": (SearchService(alone, Settings(_env_file=None)), lambda _: first),
        "among others": (service, lambda _: first),
        "another user each time": (service, lambda n: f"user-{n * 7 % options.users}"),
    }
    figures = await measure_searches(columns, questions)
    figures |= await measure_searches(
        {"admin": (service, lambda _: None)}, questions[:ADMIN_SEARCHES]
    )
    size = (folder / "m.db").stat().st_size
    for database in (alone, many):
        await database.close()
    return {
        "chunks": options.users * options.chunks,
        "chunks_per_second": round(options.users * options.chunks / seconds),
        "bytes_per_chunk": round(size / (options.users * options.chunks)),
        "search_ms": figures,
    }


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--chunks", type=int, default=1_000, help="per user")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--json", type=Path, default=Path(".data/bench-tenants.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kotae-tenants-") as folder:
        figures = asyncio.run(run(options, Path(folder)))
    print(f"{figures['chunks']:,} chunks, {figures['bytes_per_chunk']:,} bytes each")
    print("| search ms, p50; p95; p99 | clock | processor |\n|---|---|---|")
    for name, kinds in figures["search_ms"].items():
        cells = ["; ".join(f"{v[p]:.2f}" for p in ("p50", "p95", "p99")) for v in kinds.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    save(options.json, {"machine": machine(Cores.split()), "figures": figures})


if __name__ == "__main__":
    main()
