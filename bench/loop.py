"""Benchmark of streams during searches and an upload: the effect of computation on readers.

    python -m bench.loop [--turns 3] [--seconds 12] [--json .data/bench-loop.json]

The same number of readers of `POST /ai/stream`, 20 events per second each, in turns: without other
load (`alone`); with load generators that send 50 requests per second to the provider (`tools`);
and during 50 `GET /ai/search` per second over about 2,000 Japanese and English chunks while 5 MB
of text are uploaded (`beside`). The second turn shows the cost of the load generators, so the rest
of the third is the cost of the service. Each turn opens new streams on one warmed-up service and
counts events while all are open and, in the third, while the upload lasts.

The provider sends on a fixed schedule. The lateness of an event is relative to the most punctual
event of its stream; a gap is the time between two events of a stream, 50 ms on schedule.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvloop

from bench.processes import Caller, Cores, Failed, Loader, machine, save
from bench.streams import Bench, Reader, lateness

CONDITIONS = ("alone", "tools", "beside")
INTERVAL_MS = 50
SEARCHES = 25  # per second, for each language
UPLOAD_BYTES = 5_000_000  # the default of KOTAE_UPLOAD_FILE_BYTES_MAX
CORPUS_BYTES = 1_400_000  # per language: together about 2,000 chunks
UPLOAD_SECONDS_MAX = 120
QUESTIONS = (
    "第%d灯台の管理人は嵐の夜に鐘を何回鳴らしますか",
    "How often does the keeper of lighthouse %d ring the bell in a storm?",
)
JAPANESE = """灯台 管理人 嵐 夜 鐘 港 漁師 船 霧 岬 望遠鏡 図書館 記録 天気 潮 レンズ 塗装 階段
修理 点検 朝 海岸 地図 案内 規則"""
JAPANESE_ENDS = (
    "を確認します。",
    "について記録を残します。",
    "の手入れを行います。",
    "が始まると連絡します。",
    "は毎年見直されます。",
)
ENGLISH = """lighthouse keeper storm night bell harbour fisherman ship fog cape telescope library
record weather tide lens paint stairs"""
ENGLISH_VERBS = ("checks", "records", "repairs", "watches", "describes", "reviews")


def generate_text(language: str, size: int, choose: random.Random) -> str:
    """Generate sections of simple sentences up to a number of bytes."""
    parts: list[str] = []
    length = n = 0
    while True:
        n += 1
        part = _generate_japanese(n, choose) if language == "ja" else _generate_english(n, choose)
        length += len(part.encode())
        if length > size:
            return "".join(parts)
        parts.append(part)


def _generate_japanese(n: int, choose: random.Random) -> str:
    words = JAPANESE.split()
    lines = [
        "{}の{}と{}{}".format(
            *(choose.choice(words) for _ in range(3)), choose.choice(JAPANESE_ENDS)
        )
        for _ in range(12)
    ]
    fact = f"第{n}灯台の管理人は嵐の夜に鐘を{n % 7 + 1}回鳴らします。"
    return f"## 第{n}灯台\n\n{fact}{''.join(lines)}\n\n"


def _generate_english(n: int, choose: random.Random) -> str:
    words = ENGLISH.split()
    lines = [
        f"The {choose.choice(words)} {choose.choice(ENGLISH_VERBS)} the {choose.choice(words)}"
        f" near the {choose.choice(words)}."
        for _ in range(12)
    ]
    fact = f"The keeper of lighthouse {n} rings the bell {n % 7 + 1} times in a storm."
    return f"## Lighthouse {n}\n\n{fact} {' '.join(lines)}\n\n"


def upload_text(url: str, title: str, content: str) -> dict[str, Any]:
    """Upload a text as a file and return the document."""
    with closing(Caller(url, UPLOAD_SECONDS_MAX)) as caller:
        (document,) = caller.give([(f"{title}.txt", content)], good=(201,))
    return document


def delete_document(url: str, document: dict[str, Any]) -> None:
    """Delete a document, so that every turn searches the same ones."""
    with closing(Caller(url, UPLOAD_SECONDS_MAX)) as caller:
        caller.ask("DELETE", f"/ai/documents/{document['document_id']}", good=(204,))


def warm_up(url: str) -> None:
    """Search once per language: the first search loads modules and dictionary."""
    with closing(Caller(url)) as caller:
        for question in QUESTIONS:
            caller.ask("GET", f"/ai/search?q={quote(question, safe='')}")


class Turns:
    """Runs turns with one service."""

    def __init__(self, bench: Bench, cores: Cores, streams: int, seconds: float) -> None:
        self._bench, self._cores, self._streams = bench, cores, streams
        self._chunks = round(seconds * 1000 / INTERVAL_MS)

    async def alone(self) -> dict[str, float]:
        """Measure streams without other load."""
        began, readers, cpu = await self._begin()
        await self._end(readers)
        return self._figures(readers, began, began + 3600) | {
            "service_cpu_seconds": (self._bench.service.cpu_seconds() or 0) - cpu
        }

    async def tools(self) -> dict[str, float]:
        """Measure streams while the load generators call the provider."""
        began, readers, _ = await self._begin()
        with self._loading(
            [f"{self._bench.provider_url}/stats" for _ in QUESTIONS], contains='"requests":'
        ) as loaders:
            await self._end(readers)
            for loader in loaders:
                await asyncio.to_thread(loader.result)
        return self._figures(readers, began, began + 3600)

    async def beside(self, content: str) -> dict[str, float]:
        """Measure streams during searches and an upload."""
        began, readers, cpu = await self._begin()
        paths = [
            f"{self._bench.url}/ai/search?q={quote(question, safe='%')}" for question in QUESTIONS
        ]
        with self._loading(paths, contains='"answerable":') as loaders:
            upload = asyncio.create_task(
                asyncio.to_thread(upload_text, self._bench.url, "upload", content)
            )
            document = await upload
            ended = time.perf_counter()
            await self._end(readers)
            results = [await asyncio.to_thread(loader.result) for loader in loaders]
        figures = self._figures(readers, began, ended)
        figures["service_cpu_seconds"] = (self._bench.service.cpu_seconds() or 0) - cpu
        await asyncio.to_thread(delete_document, self._bench.url, document)
        return figures | {
            "upload_seconds": ended - began,
            "search_p50_ms": statistics.mean(result["latency_ms"]["p50"] for result in results),
            "search_p99_ms": max(result["latency_ms"]["p99"] for result in results),
        }

    @contextmanager
    def _loading(self, urls: list[str], *, contains: str) -> Iterator[list[Loader]]:
        pace = [
            "--method",
            "GET",
            "--rate",
            str(SEARCHES),
            "--seconds",
            str(self._seconds),
            "--warmup-seconds",
            "0",
        ]
        loaders = [
            Loader(["--url", url, *pace, "--contains", contains], cores=self._cores.tools)
            for url in urls
        ]
        try:
            yield loaders
        finally:
            for loader in loaders:
                loader.stop()

    @property
    def _seconds(self) -> float:
        return self._chunks * INTERVAL_MS / 1000

    async def _begin(self) -> tuple[float, list[Reader], float]:
        cpu = self._bench.service.cpu_seconds() or 0
        readers = await self._bench.open(self._streams, self._chunks, INTERVAL_MS)
        return time.perf_counter(), readers, cpu

    async def _end(self, readers: list[Reader]) -> None:
        until = time.perf_counter() + self._seconds + 60
        while any(len(reader.times) < self._chunks for reader in readers):
            if time.perf_counter() > until:
                raise Failed("some streams did not end")
            await asyncio.sleep(0.1)
        for reader in readers:
            reader.transport.close()

    def _figures(self, readers: list[Reader], began: float, ended: float) -> dict[str, float]:
        ended = min(ended, *(reader.times[-1] for reader in readers))
        late, gaps = [], []
        for reader in readers:
            late += [
                lateness_ms
                for at, lateness_ms in lateness(reader.times, INTERVAL_MS)
                if began <= at < ended
            ]
            times = [at for at in reader.times if began <= at < ended]
            gaps += [(b - a) * 1000 for a, b in pairwise(times)]
        late.sort()
        gaps.sort()
        return {
            "seconds": ended - began,
            "events": len(late),
            "late_p50_ms": _quantile(late, 0.5),
            "late_p99_ms": _quantile(late, 0.99),
            "gap_p99_ms": _quantile(gaps, 0.99),
            "gap_max_ms": gaps[-1],
        }


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[int(len(ordered) * share)]


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Fill the index and run the turns."""
    cores = Cores.split()
    if cores.tools:
        os.sched_setaffinity(0, cores.tools)
    choose = random.Random(7)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONDITIONS}
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as folder:
        bench = Bench(Path(folder), cores)
        with bench.running():
            chunks = sum(
                upload_text(bench.url, language, generate_text(language, CORPUS_BYTES, choose))[
                    "chunks"
                ]
                for language in ("ja", "en")
            )
            turns = Turns(bench, cores, options.streams, options.seconds)
            warm_up(bench.url)
            for _ in range(options.turns):
                results["alone"].append(await turns.alone())
                results["tools"].append(await turns.tools())
                half = UPLOAD_BYTES // 2
                results["beside"].append(
                    await turns.beside(
                        generate_text("ja", half, choose) + generate_text("en", half, choose)
                    )
                )
    return {"chunks": chunks, "turns": results, "machine": machine(cores)}


def format_table(turns: dict[str, list[dict[str, float]]]) -> str:
    """Format medians and the values of each turn."""
    lines = [f"{'':24}" + "".join(f"{condition:>10}" for condition in CONDITIONS) + "   each turn"]
    for name in turns["beside"][0]:
        cells = []
        for condition in CONDITIONS:
            values = [turn[name] for turn in turns[condition] if name in turn]
            cells.append(
                (
                    f"{statistics.median(values):.1f}" if values else "–",
                    " ".join(f"{value:.1f}" for value in values),
                )
            )
        lines.append(
            f"{name:24}"
            + "".join(f"{cell:>10}" for cell, _ in cells)
            + "   "
            + " | ".join(every for _, every in cells)
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12, help="length of a turn")
    parser.add_argument("--json", type=Path, default=Path(".data/bench-loop.json"))
    options = parser.parse_args()
    try:
        figures = uvloop.run(run(options))
    except Failed as failure:
        sys.exit(f"the run is void: {failure}")
    save(options.json, figures)
    print(format_table(figures["turns"]))
    print(f"\n{figures['chunks']} chunks; {figures['machine']}\nfigures: {options.json}")


if __name__ == "__main__":
    main()
