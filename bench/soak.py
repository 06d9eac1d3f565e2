"""Soak test: whether memory, file descriptors, threads or files grow while the load is steady.

    python -m bench.soak [--minutes 20] [--warmup-minutes 8] [--rate 60]
        [--json .data/bench-soak.json]

Clients send a steady mix to one service: plain answers, half of them with an idempotency key,
grounded answers, streams of which every other is aborted, pages of the log, conversations, which
are listed and erased, and uploads, searches and deletions of documents. Every sample has the
resident memory, file descriptors and threads of the service's process, and the files of its data
directory.

The first `WARMUP_DOCUMENTS` documents and searches are larger and fill the caches of the index;
samples count from then on, and not before `--warmup-minutes`. Of memory, the lowest sample of each
minute counts: the service returns freed memory once per minute (`workers/trimming.py`). The slope
of each is the median of the slopes between all pairs of samples (Theil and Sen), so that single
peaks do not count. Slopes are those of an hour in which the requests arrive at `--rate`: a machine
that is too busy for it needs more time, but the growth of a request counts the same.

Exit code 1 if memory grows by more than `--megabytes-max` per hour, or one of the others by more
than `--others-max`. The database grows with the log; its size is shown, and no criterion.
"""

import argparse
import http.client
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from bench.loop import generate_text
from bench.processes import Cores, Failed, machine, save
from bench.streams import Bench
from service.workers.trimming import TRIM_SECONDS

SAMPLE_SECONDS = 5.0
SHARES = {
    "plain": 0.3,
    "grounded": 0.2,
    "streams": 0.25,
    "pages": 0.1,
    "conversations": 0.1,
    "documents": 0.05,
}
DOCUMENTS = 20  # stored at the same time
DOCUMENT_BYTES = 4_000
# Of the first documents, which fill the caches of the index, together with their searches.
WARMUP_DOCUMENTS = 240
WARMUP_BYTES, WARMUP_WORDS, WARMUP_RESULTS = 100_000, 100, 50
WARMUP_NEW_WORDS = 30  # of a search, which no text contains
CONVERSATIONS, TURNS = 10, 4  # kept at the same time, and answers in each
USERS = 50
JSON_TYPE = {"Content-Type": "application/json"}
GOOD = {200, 201, 204}


@dataclass(frozen=True)
class Sample:
    """The resources of the service at one time. Memory in MB; files without the database.

    `requests`: number of those answered since the start.
    """

    seconds: float
    requests: int
    memory: float
    children: float
    descriptors: int
    threads: int
    files: int
    database: float


@dataclass
class Report:
    """All samples, the slopes per hour after the warm-up, and the numbers of requests.

    `warm_seconds`: the time of the first sample that counts.
    """

    samples: list[Sample] = field(default_factory=list)
    slopes: dict[str, float] = field(default_factory=dict)
    warm_seconds: float = 0
    requests: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def exceeds(self, megabytes_max: float, others_max: float) -> list[str]:
        """Return what grows faster than allowed."""
        return [
            name
            for name, slope in self.slopes.items()
            if slope > (megabytes_max if name == "memory" else others_max)
        ]

    def to_figures(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "samples": [asdict(sample) for sample in self.samples],
            "slopes": self.slopes,
            "warm_seconds": self.warm_seconds,
            "requests": dict(self.requests),
            "failures": dict(self.failures),
        }

    def to_text(self) -> str:
        """Format a table of about ten samples, and the slopes."""
        names = ("requests", "memory", "children", "descriptors", "threads", "files", "database")
        lines = ["minute" + "".join(f"{name:>13}" for name in names)]
        step = max(1, len(self.samples) // 10)
        for sample in [*self.samples[:-step:step], self.samples[-1]]:
            values = (getattr(sample, name) for name in names)
            lines.append(
                f"{sample.seconds / 60:6.1f}" + "".join(f"{value:13,.1f}" for value in values)
            )
        lines.append("per h " + "".join(f"{self.slopes.get(name, 0):+13,.2f}" for name in names))
        lines.append(f"caches are full after {self.warm_seconds / 60:.1f} minutes")
        lines.append(f"requests: {dict(self.requests)}; failures: {dict(self.failures) or 'none'}")
        return "\n".join(lines)


class Client(threading.Thread):
    """Sends the requests of one kind at a fixed rate over one connection."""

    def __init__(
        self, url: str, kind: str, rate: float, report: Report, warmup_documents: int
    ) -> None:
        super().__init__(name=kind, daemon=True)
        self._netloc, self._kind, self._interval = urlsplit(url).netloc, kind, 1 / rate
        self._report = report
        self._choose = random.Random(kind)
        self._ended = threading.Event()
        self._connection = http.client.HTTPConnection(self._netloc, timeout=60)
        self._documents: list[str] = []
        self._cursor = ""
        self._conversations: list[tuple[str, str]] = []  # with their users
        self._send: Callable[[int], None] = getattr(self, f"_send_{kind}")
        self._warmup_documents = warmup_documents
        self.is_warming = kind == "documents"

    def run(self) -> None:
        """Send on schedule until the end; a late request does not delay the schedule by more."""
        n, due = 0, time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._interval, time.monotonic() - 1)
            n += 1
            try:
                self._send(n)
                self._report.requests[self._kind] += 1
            except (OSError, http.client.HTTPException, Failed) as error:
                self._report.failures[f"{self._kind}: {type(error).__name__} {error}"[:80]] += 1
                self._connection.close()
        self._connection.close()

    def end(self) -> None:
        """Stop sending."""
        self._ended.set()

    def _call(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        retries: int = 2,
    ) -> Any:
        content = None if body is None else json.dumps(body)
        self._connection.request(
            method, path, content, (headers or {}) | (JSON_TYPE if content else {})
        )
        response = self._connection.getresponse()
        answer = response.read()
        if response.status == 503 and retries:  # on a busy machine, rows are late
            time.sleep(int(response.headers["Retry-After"]))
            return self._call(method, path, body, headers, retries - 1)
        if response.status not in GOOD:
            raise Failed(f"{response.status} {answer[:60]!r}")
        is_json = response.headers.get_content_type() == "application/json"
        return json.loads(answer) if answer and is_json else None

    def _build_body(self, n: int, *, grounded: bool = False) -> dict[str, object]:
        prompt = f"How often does the keeper of lighthouse {n % 400} ring the bell? {n} chunks=20"
        return {"prompt": prompt, "grounded": grounded, "user_id": f"user {n % USERS}"}

    def _send_plain(self, n: int) -> None:
        key = {"Idempotency-Key": f"soak-{n}"} if n % 2 else None
        self._call("POST", "/ai/test", self._build_body(n), key)

    def _send_conversations(self, n: int) -> None:
        """Continue the newest conversation; after its last answer list some, erase the oldest."""
        body = self._build_body(n)
        if n % TURNS != 1 and self._conversations:
            conversation_id, user_id = self._conversations[-1]
            body |= {"conversation_id": conversation_id, "user_id": user_id}
        answer = self._call("POST", "/ai/test", body)
        if "conversation_id" not in body:
            self._conversations.append((answer["conversation_id"], answer["user_id"]))
        if n % TURNS == 0:
            self._call("GET", f"/ai/conversations?user_id={quote(answer['user_id'])}&limit=5")
            if len(self._conversations) > CONVERSATIONS:
                self._call("DELETE", f"/ai/conversations/{self._conversations.pop(0)[0]}")

    def _send_grounded(self, n: int) -> None:
        self._call("POST", "/ai/test", self._build_body(n, grounded=True))

    def _send_streams(self, n: int) -> None:
        """Read a stream to its end, or disconnect after its first bytes."""
        body = self._build_body(n)
        if n % 2:
            body["prompt"] = f"{body['prompt']} interval-ms=20"
        self._connection.request("POST", "/ai/stream", json.dumps(body), JSON_TYPE)
        response = self._connection.getresponse()
        if response.status != 200:
            raise Failed(f"{response.status}")
        if n % 2:
            response.read(self._choose.randrange(1, 800))
            self._connection.close()
        elif b"event: done" not in response.read():
            raise Failed("a stream without its end")

    def _send_pages(self, n: int) -> None:
        """Read the log by pages, every other one of a user."""
        who = f"&user_id={quote(f'user {n % USERS}')}" if n % 2 else ""
        page = self._call("GET", f"/ai/logs?limit=50{who}{self._cursor}")
        follows = page["next_cursor"] and n % 20
        self._cursor = f"&cursor={page['next_cursor']}" if follows else ""

    def _send_documents(self, n: int) -> None:
        """Upload a document, search, and delete the oldest one."""
        self.is_warming = n <= self._warmup_documents
        size = WARMUP_BYTES if self.is_warming else DOCUMENT_BYTES
        text = generate_text("en", size, random.Random(n)) + f"\nVersion {n}."
        document = self._call("POST", "/ai/upload", {"title": f"document {n}", "text": text})
        self._documents.append(document["document_id"])
        query, limit = f"lighthouse {n % 400} bell", 5
        if self.is_warming:
            new = [f"w{n}x{word}" for word in range(WARMUP_NEW_WORDS)]
            query, limit = " ".join([*text.split()[-WARMUP_WORDS:], *new]), WARMUP_RESULTS
        self._call("GET", f"/ai/search?q={quote(query)}&limit={limit}")
        if len(self._documents) > DOCUMENTS:
            self._call("DELETE", f"/ai/documents/{self._documents.pop(0)}")


def take_sample(bench: Bench, folder: Path, began: float, requests: int = 0) -> Sample:
    """Read the resources of the service from /proc and its folder."""
    process = Path(f"/proc/{bench.service.pid}")
    status = (process / "status").read_text()
    values = {line.partition(":")[0]: line.split()[1:] for line in status.splitlines()}
    memory = int(values["VmRSS"][0]) / 1000
    files = [file for file in folder.rglob("*") if file.is_file()]
    sizes = Counter(file.name.startswith("kotae.db") for file in files)
    database = 0
    for file in files:
        with suppress(OSError):
            database += file.stat().st_size if file.name.startswith("kotae.db") else 0
    return Sample(
        seconds=time.monotonic() - began,
        requests=requests,
        memory=memory,
        children=bench.service.rss_kib() / 1000 - memory,
        descriptors=sum(1 for _ in (process / "fd").iterdir()),
        threads=int(values["Threads"][0]),
        files=sizes[False],
        database=database / 1e6,
    )


def compute_slope(samples: Sequence[Sample], name: str, rate: float) -> float:
    """Return the median slope between all pairs of samples, per hour with this rate of requests."""
    slopes = [
        (getattr(second, name) - getattr(first, name)) / (second.requests - first.requests)
        for first, second in combinations(samples, 2)
        if second.requests > first.requests
    ]
    return statistics.median(slopes) * rate * 3600 if slopes else 0.0


def select_lowest(samples: Sequence[Sample]) -> list[Sample]:
    """Return the sample with the least memory of each minute."""
    minutes: dict[int, Sample] = {}
    for sample in samples:
        minute = int(sample.seconds // TRIM_SECONDS)
        lowest = minutes.setdefault(minute, sample)
        if sample.memory < lowest.memory:
            minutes[minute] = sample
    return list(minutes.values())


def run_soak(
    folder: Path,
    *,
    seconds: float,
    warmup_seconds: float,
    rate: float,
    warmup_documents: int = WARMUP_DOCUMENTS,
    show: bool = False,
) -> Report:
    """Run the mix on a new service and return the samples and slopes.

    `seconds`: duration of the load, with the warm-up. Raises `Failed`, also if the caches are not
    full by then.
    """
    report = Report()
    bench = Bench(folder, Cores(None, None))
    with bench.running():
        clients = [
            Client(bench.url, kind, rate * share, report, warmup_documents)
            for kind, share in SHARES.items()
        ]
        for client in clients:
            client.start()
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            report.samples.append(take_sample(bench, folder, began, report.requests.total()))
            is_warming = now < warmup_seconds or any(client.is_warming for client in clients)
            if not is_warming and not report.warm_seconds:
                report.warm_seconds = now
            if show and len(report.samples) % 12 == 1:
                last = report.samples[-1]
                print(f"{now / 60:5.1f} min  {last.memory:7.1f} MB", flush=True)
            time.sleep(SAMPLE_SECONDS)
        for client in clients:
            client.end()
        for client in clients:
            client.join()
    if not report.warm_seconds:
        raise Failed("the machine is too slow: the caches are not full")
    steady = [sample for sample in report.samples if sample.seconds >= report.warm_seconds]
    report.slopes["memory"] = compute_slope(select_lowest(steady), "memory", rate)
    for name in ("descriptors", "threads", "files"):
        report.slopes[name] = compute_slope(steady, name, rate)
    if show:
        print(report.to_text(), flush=True)
    return report


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--warmup-minutes", type=float, default=8)
    parser.add_argument("--rate", type=float, default=60, help="requests per second")
    parser.add_argument("--megabytes-max", type=float, default=5, help="of memory, per hour")
    parser.add_argument("--others-max", type=float, default=10, help="per hour")
    parser.add_argument("--json", type=Path, default=Path(".data/bench-soak.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kotae-soak-") as folder:
        try:
            report = run_soak(
                Path(folder),
                seconds=options.minutes * 60,
                warmup_seconds=options.warmup_minutes * 60,
                rate=options.rate,
                show=True,
            )
        except Failed as failure:
            sys.exit(f"the run is void: {failure}")
    about = machine(Cores(None, None))
    save(options.json, {"machine": about, **report.to_figures()})
    print(f"{about}\nall samples: {options.json}")
    if report.failures:
        sys.exit("requests failed")
    if growing := report.exceeds(options.megabytes_max, options.others_max):
        sys.exit(f"growing: {', '.join(growing)}")


if __name__ == "__main__":
    main()
