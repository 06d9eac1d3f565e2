"""Benchmark of search: latency of `GET /ai/search`, overhead of grounding, speed of indexing.

    python -m bench.search [--chunks 2500 20000] [--languages ja en] [--questions 500]
    python -m bench.search --languages en --corpus corpus.jsonl --queries queries.jsonl
    python -m bench.search --chunks 200000 --document-chunks 10 --database-url postgresql://…
    python -m bench.search --languages en --chunks 20000 --filled --database-url postgresql://…

For each language and size a separate service receives texts of about one chunk through `POST
/ai/upload`, twenty files at a time, on all cores. When the index is merged, distinct questions
are searched one after another on one core over one connection, after a warm-up. Finally the
answerable questions are sent to `POST /ai/test`, grounded and not, in alternating order, with a
provider that answers immediately: the difference is the overhead of search and context. With
`--filled` the database already contains the texts, and others if need be: nothing is uploaded.

Without files the texts are generated: sentences of common words, few of which are very frequent,
with rare names. With files (as for `kotae eval`) the texts of `--corpus` are used, followed by
random combinations of their sentences.
"""

import argparse
import json
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from bench.load import spread
from bench.processes import HERE, Caller, Cores, Failed, Process, free_port, machine, save
from service.core.settings import child_environment
from service.workers.merging import CHECK_SECONDS

FILES_AT_ONCE = 20  # as many as an upload may have
CHARACTERS = {"ja": 600, "en": 1200}  # per text: about one chunk
WARM_UP = 150
KOTAE = Path(sys.executable).parent / "kotae"

NOUNS = {
    "ja": """灯台 管理人 港 漁師 霧 岬 望遠鏡 図書館 記録 天気 潮 階段 修理 点検 海岸 地図 案内
    規則 学校 先生 試験 建物 工事 費用 予算 会議 計画 歴史 文化 祭り 音楽 楽器 演奏 劇場 絵画
    博物館 展示 研究 実験 装置 温度 圧力 電気 発電 工場 製品 輸出 貿易 市場 価格 銀行 法律 裁判
    選挙 議会 政府 軍隊 戦争 条約 国境 山地 河川 森林 動物 植物 種子 農業 収穫 料理 祖父 家族
    結婚 病院 医師 治療 薬品 鉄道 駅 列車 道路 橋 空港 飛行機 船舶 通信 放送 新聞 出版 作家 小説
    翻訳""",
    "en": """lighthouse keeper harbour fisherman fog cape telescope library record weather tide
    stairway repair inspection coast map guide rule school teacher examination building
    construction cost budget meeting plan history culture festival music instrument performance
    theatre painting museum exhibition research experiment device temperature pressure
    electricity generator factory product export trade market price bank law court election
    parliament government army war treaty border mountain river forest animal plant seed farming
    harvest cooking grandfather family marriage hospital doctor treatment medicine railway
    station train road bridge airport aircraft vessel communication broadcast newspaper publisher
    writer novel translation""",
}
VERBS = {
    "ja": """調べる 支える 変える 始める 終える 伝える 記す 導く 集める 守る 作る 直す 比べる
    広げる 減らす""".split(),  # noqa: SIM905
    "en": """examines supports changes begins ends carries describes leads gathers protects makes
    mends compares widens reduces""".split(),  # noqa: SIM905
}
SYLLABLES = {
    "ja": "ア カ サ タ ナ ハ マ ラ リ ル レ ロ ミ ノ キ ト".split(),  # noqa: SIM905
    "en": "ba cor del fin gra hul jen kar lom mir nor pel ras sto tun vel wis".split(),  # noqa: SIM905
}


@dataclass
class Corpus:
    """Pairs of title and text, and questions."""

    texts: list[tuple[str, str]]
    questions: list[str]


def generate_texts(language: str, count: int, questions: int, choose: random.Random) -> Corpus:
    """Generate texts about rare names, and questions about one sentence each."""
    nouns, verbs = NOUNS[language].split(), VERBS[language]
    weights = [1 / (n + 1) for n in range(len(nouns))]
    names = ["".join(choose.choices(SYLLABLES[language], k=4)) for _ in range(max(count // 3, 10))]
    pattern, asking, gap = (
        ("{0}の{1}は{2}の{3}を{4}{5}と{6}が知られる。", "{0}の{1}は{2}の{3}をどうしますか", "")
        if language == "ja"
        else (
            "The {1} of {0} {4} the {3} of the {2}, which is known for {5} and {6}.",
            "What does the {1} of {0} do with the {3} of the {2}?",
            " ",
        )
    )
    texts, candidates = [], []
    for n in range(count):
        own = [name.capitalize() for name in choose.sample(names, 2)]
        sentences: list[str] = []
        while sum(map(len, sentences)) < CHARACTERS[language]:
            words = [
                choose.choice(own),
                *choose.choices(nouns, weights, k=3),
                choose.choice(verbs),
                *choose.choices(nouns, k=2),
            ]
            sentences.append(pattern.format(*words))
        candidates.append(asking.format(*words))
        texts.append((f"{own[0]} {n}", gap.join(sentences)))
    return Corpus(texts, choose.choices(candidates, k=questions))


def read_texts(
    language: str, corpus: Path, queries: Path, count: int, questions: int, choose: random.Random
) -> Corpus:
    """Read `count` texts and questions from files."""
    lines = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    texts = [(line.get("title") or "", line["text"]) for line in lines][:count]
    mark = "。" if language == "ja" else ". "
    sentences = [
        sentence + mark
        for line in lines
        for sentence in line["text"].split(mark)
        if sentence.strip()
    ]
    size = statistics.mean(len(line["text"]) for line in lines)
    while len(texts) < count:
        mixed = ""
        while len(mixed) < size:
            mixed += choose.choice(sentences)
        texts.append((f"mixed {len(texts)}", mixed))
    candidates = [
        json.loads(line)["question"] for line in queries.read_text(encoding="utf-8").splitlines()
    ]
    return Corpus(texts, choose.sample(candidates, min(questions, len(candidates))))


class SearchCaller(Caller):
    """Sends the requests that are measured."""

    def search(self, question: str) -> tuple[float, dict[str, Any]]:
        """Search and return the seconds and the response."""
        return self.ask("GET", f"/ai/search?q={quote(question, safe='')}")

    def answer(self, question: str, *, grounded: bool) -> float:
        """Return the seconds of an answer."""
        seconds, answer = self.ask(
            "POST", "/ai/test", json.dumps({"prompt": question, "grounded": grounded}).encode()
        )
        if answer["status"] != "completed":
            raise Failed(f"{question}: {answer['status']}")
        return seconds


@contextmanager
def run_service(
    folder: Path, cores: Cores, database_url: str | None
) -> Iterator[tuple[str, Process]]:
    """Run a service with a provider fake."""
    provider, url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    ports = [str(urlsplit(address).port) for address in (provider, url)]
    command: list[str | Path] = [
        sys.executable,
        HERE / "provider.py",
        "--chunks",
        "8",
        "--port",
        ports[0],
    ]
    fake = Process("provider", command, folder=folder, env=dict(os.environ), cores=cores.tools)
    env = child_environment()
    env |= {
        "OPENAI_BASE_URL": f"{provider}/v1",
        "OPENAI_API_KEY": "bench",
        "KOTAE_DATA_DIR": str(folder),
        "KOTAE_LOG_LEVEL": "warning",
        "KOTAE_DOCUMENTS_MAX": "1000000",
        "KOTAE_DATABASE_URL": database_url or "",
        "KOTAE_SECRET_KEY": secrets.token_hex(32),
    }
    service = Process(
        "kotae",
        [KOTAE, "serve", "--migrate", "--port", ports[1]],
        folder=folder,
        env=env,
        cores=None,
    )
    try:
        fake.wait_ready(f"{provider}/stats")
        service.wait_ready(f"{url}/health/ready")
        yield url, service
    finally:
        service.stop()
        fake.stop()


def join_texts(texts: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Join each `count` texts to one document with the title of the first."""
    groups = (texts[n : n + count] for n in range(0, len(texts), count))
    return [(group[0][0], "\n\n".join(text for _, text in group)) for group in groups]


def measure(
    texts: Corpus, cores: Cores, database_url: str | None, *, filled: bool
) -> dict[str, Any]:
    """Run all measurements with one service."""
    with (
        tempfile.TemporaryDirectory(prefix="kotae-search-") as folder,
        run_service(Path(folder), cores, database_url) as (url, service),
    ):
        caller = SearchCaller(url)
        caller.search("warm-up")
        began, cpu, chunks = time.perf_counter(), service.cpu_seconds() or 0, 0
        for begin in range(0, 0 if filled else len(texts.texts), FILES_AT_ONCE):
            batch = [
                ("a.txt", f"{title}\n\n{text}")
                for title, text in texts.texts[begin : begin + FILES_AT_ONCE]
            ]
            chunks += sum(
                document["chunks"] for document in caller.give(batch) if document["created"]
            )
        seconds, used = time.perf_counter() - began, (service.cpu_seconds() or 0) - cpu
        if not filled:
            wait_merged(caller)
        service.pin(cores.service)
        before, after = texts.questions[:WARM_UP], texts.questions[WARM_UP:]
        for question in before:
            caller.search(question)
        cpu = service.cpu_seconds() or 0
        results = [caller.search(question) for question in after]
        per_search = ((service.cpu_seconds() or 0) - cpu) / len(after)
        answerable = [
            question
            for question, (_, answer) in zip(after, results, strict=True)
            if answer["answerable"]
        ]
        plain: list[float] = []
        grounded: list[float] = []
        for n, question in enumerate(answerable):
            for which in (True, False) if n % 2 else (False, True):
                (grounded if which else plain).append(caller.answer(question, grounded=which))
        return {
            "chunks": chunks,
            "chunks_per_second": round(chunks / seconds),
            "chunks_per_processor_second": round(chunks / used) if used and chunks else None,
            "search_ms": percentiles([seconds for seconds, _ in results]),
            "search_processor_ms": round(per_search * 1000, 2),
            "answerable": len(answerable) / len(after),
            "grounded_ms": percentiles(grounded),
            "plain_ms": percentiles(plain),
            "added_ms": percentiles(
                [with_ - without for with_, without in zip(grounded, plain, strict=True)]
            ),
            "rss_mib": service.rss_kib() // 1024,
        }


def wait_merged(caller: SearchCaller) -> None:
    """Wait until the service has merged the index, some seconds after the uploads."""
    until = time.monotonic() + CHECK_SECONDS
    while time.monotonic() < until or caller.ask("GET", "/health/ready")[1].get("merging", {}).get(
        "pending"
    ):
        time.sleep(0.5)
        caller.ask("GET", "/health/live")  # keeps the connection open
    time.sleep(1)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return percentiles as the load generator does, and the 95th."""
    ordered = sorted(seconds) or [0.0]
    return {**spread(seconds), "p95": round(ordered[round(0.95 * (len(ordered) - 1))] * 1000, 3)}


def print_row(name: str, figures: dict[str, Any]) -> None:
    """Print a row of the table."""
    cells = [name, f"{figures['chunks_per_second']} ({figures['chunks_per_processor_second']})"]
    cells += [
        "; ".join(f"{figures['search_ms'][p]:.1f}" for p in ("p50", "p95", "p99")),
        f"{figures['search_processor_ms']:.1f}",
    ]
    for key in ("plain_ms", "grounded_ms", "added_ms"):
        cells.append("; ".join(f"{figures[key].get(p, 0):.1f}" for p in ("p50", "p99")))
    print(f"| {' | '.join(cells)} | {figures['rss_mib']} |", flush=True)


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--chunks",
        type=int,
        nargs="+",
        default=[2500, 20_000],
        help="number of texts of about one chunk",
    )
    parser.add_argument("--languages", nargs="+", choices=["ja", "en"], default=["ja", "en"])
    parser.add_argument("--questions", type=int, default=500, help="measured, after the warm-up")
    parser.add_argument("--document-chunks", type=int, default=1, help="texts per document")
    parser.add_argument("--database-url", help="PostgreSQL, empty or --filled; default: SQLite")
    parser.add_argument("--filled", action="store_true", help="the database contains the texts")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--queries", type=Path)
    parser.add_argument("--json", type=Path, default=Path(".data/bench-search.json"))
    options = parser.parse_args()
    cores, figures = Cores.split(), {}
    print(
        "| chunks | indexed a second (processor second) | search ms, p50; p95; p99 | processor ms",
        end=" ",
    )
    print("| not grounded ms, p50; p99 | grounded | added | MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for language in options.languages:
        for count in options.chunks:
            question_count, choose = options.questions + WARM_UP, random.Random(7)
            if options.corpus and options.queries:
                texts = read_texts(
                    language, options.corpus, options.queries, count, question_count, choose
                )
            else:
                texts = generate_texts(language, count, question_count, choose)
            texts.texts = join_texts(texts.texts, options.document_chunks)
            results = measure(texts, cores, options.database_url, filled=options.filled)
            figures[f"{language} {count}"] = results
            print_row(f"{language}, {results['chunks']}", results)
    save(options.json, {"machine": machine(cores), "figures": figures})


if __name__ == "__main__":
    main()
