"""Kotae, LiteLLM and a tutorial service compared on the same provider, in the same run.

    python -m bench [--quick] [--litellm /path/to/bin/litellm] [--json figures.json]

Four targets: `direct` is the provider fake, the limit of the tools; `tutorial` is
`bench/tutorial.py`; `litellm` is LiteLLM's proxy without a database, if installed; `kotae` is
`kotae serve` with everything on: an API key, and limits on requests, tokens and cost. The measured
service has a separate core, the tools have the others. Each figure is the median of the rounds, and
every round measures all targets. The load generator checks every answer, and the number of answers
is compared with what the provider has served: one wrong answer voids the run.
"""

import argparse
import contextlib
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a file too

from bench.processes import HERE, Cores, Failed, Loader, Process, free_port, get_json, machine, save
from service.core.settings import child_environment

CHUNKS = 64
CONCURRENCY = 64
BURST_CONCURRENCY = (
    16  # enough for one core; more answers would arrive in clusters longer than the measurement
)
RATE, HIGH_RATE = 50, 100  # not every target sustains the second
PACED_STREAMS, PACED_MS = 200, 50
BODY = '{"prompt": "question %d", "grounded": false}'
CHAT = '{"model": "gpt-5-mini", "messages": [{"role": "user", "content": "question %d"}]'
KOTAE = Path(sys.executable).parent / "kotae"
LIMITS = [
    "--limit=requests_per_minute=10000000",
    "--limit=tokens_per_day=1000000000000",
    "--limit=cost_usd_per_month=1000000",
]
READY = {"tutorial": "/openapi.json", "litellm": "/health/liveliness", "kotae": "/health/ready"}
CHAT_STREAM = CHAT + ', "stream": true, "stream_options": {"include_usage": true}}'


@dataclass(frozen=True)
class Plan:
    """Durations and sizes of a run."""

    rounds: int
    seconds: float
    warmup_seconds: float
    rate_seconds: float
    streams: int
    stream_chunks: int
    stream_interval_ms: int
    paced_chunks: int


# Many short measurements: the speed of a machine may double or halve within a minute, and each
# target must meet fast and slow times alike.
FULL = Plan(
    rounds=9,
    seconds=3,
    warmup_seconds=0.5,
    rate_seconds=6,
    streams=500,
    stream_chunks=40,
    stream_interval_ms=500,
    paced_chunks=100,
)
QUICK = Plan(
    rounds=1,
    seconds=1,
    warmup_seconds=0.3,
    rate_seconds=1,
    streams=100,
    stream_chunks=12,
    stream_interval_ms=250,
    paced_chunks=40,
)
LITELLM = """\
model_list:
  - model_name: gpt-5-mini
    litellm_params: {model: openai/gpt-5-mini, api_base: %s/v1, api_key: bench}
litellm_settings: {telemetry: false, drop_params: true}
"""


@dataclass(frozen=True)
class Target:
    """A service that answers, and how its answers are checked.

    `events`: number of events of a stream beside its text, None: varies; `last`: content of the
    last.
    """

    name: str
    url: str
    answer_path: str
    stream_path: str
    answer_body: str
    stream_body: str
    events: int | None
    first: str
    last: str
    process: Process | None
    headers: tuple[str, ...] = ()


class Bench:
    """One run: the provider, the services and the measurements."""

    def __init__(self, plan: Plan, folder: Path, cores: Cores, litellm: Path | None) -> None:
        self.plan, self._folder, self.cores, self._litellm = plan, folder, cores, litellm
        self._provider_url = f"http://127.0.0.1:{free_port()}"
        self.raw: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def run_provider(self) -> Iterator[None]:
        """Run the provider fake."""
        command: list[str | Path] = [
            sys.executable,
            HERE / "provider.py",
            "--chunks",
            str(CHUNKS),
            "--port",
            _port(self._provider_url),
        ]
        provider = Process(
            "provider", command, folder=self._folder, env=dict(os.environ), cores=self.cores.tools
        )
        try:
            provider.wait_ready(f"{self._provider_url}/stats")
            yield
        finally:
            provider.stop()

    @contextlib.contextmanager
    def run_target(
        self, name: str, prepare: Callable[[Path], None] = lambda _: None
    ) -> Iterator[Target]:
        """Run a target with an empty database; `prepare` may fill it and receives the folder."""
        if name == "direct":
            path = "/v1/chat/completions"
            yield Target(
                name,
                self._provider_url,
                path,
                path,
                CHAT + "}",
                CHAT_STREAM,
                4,
                '"content": "word0 ',
                "[DONE]",
                None,
            )
            return
        url = f"http://127.0.0.1:{free_port()}"
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))
        env = child_environment()
        env |= {
            "OPENAI_BASE_URL": f"{self._provider_url}/v1",
            "OPENAI_API_KEY": "bench",
            "KOTAE_DATA_DIR": str(folder),
        }
        commands: dict[str, list[str | Path]] = {
            "tutorial": [
                sys.executable,
                HERE / "tutorial.py",
                "--port",
                _port(url),
                "--database",
                folder / "tutorial.db",
            ],
            "litellm": [
                self._litellm or "",
                "--config",
                folder / "litellm.yaml",
                "--port",
                _port(url),
                "--host",
                "127.0.0.1",
            ],
            "kotae": [KOTAE, "serve", "--port", _port(url)],
        }
        headers: tuple[str, ...] = ()
        if name == "kotae":
            env |= {"KOTAE_AUTH": "keys", "KOTAE_ANSWERS_MAX": "4000"}
            headers = (f"Authorization: Bearer {_key_with_limits(env)}",)
        if name == "litellm":
            (folder / "litellm.yaml").write_text(LITELLM % self._provider_url)
            key = f"sk-{secrets.token_hex(32)}"  # required at start
            # Local price map: otherwise it downloads prices at start.
            env |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": key}
            headers = (f"Authorization: Bearer {key}",)
        prepare(folder)
        process = Process(name, commands[name], folder=folder, env=env, cores=self.cores.service)
        try:
            process.wait_ready(f"{url}{READY[name]}")
            if name == "litellm":
                path = "/v1/chat/completions"
                yield Target(
                    name,
                    url,
                    path,
                    path,
                    CHAT + "}",
                    CHAT_STREAM,
                    None,
                    '"content":"word0 ',
                    "[DONE]",
                    process,
                    headers,
                )
            else:
                events = 2 if name == "kotae" else 1
                yield Target(
                    name,
                    url,
                    "/ai/test",
                    "/ai/stream",
                    BODY,
                    BODY,
                    events,
                    '"delta"',
                    "event: done",
                    process,
                    headers,
                )
        except Failed as failure:
            raise Failed(f"{name}: {failure}\n{process.tail()}") from failure
        finally:
            process.stop()

    def measure_answers(
        self, target: Target, seconds: float, concurrency: int = CONCURRENCY, rate: float = 0
    ) -> dict[str, Any]:
        """Answers without streaming."""
        return self._measure(target, "answers", seconds, concurrency, rate)

    def measure_bursts(
        self, target: Target, seconds: float, concurrency: int = BURST_CONCURRENCY
    ) -> dict[str, Any]:
        """Streams whose text the provider sends in one burst."""
        return self._measure(target, "streams", seconds, concurrency, 0)

    def measure_memory(self, target: Target) -> dict[str, Any]:
        """Resident memory after light use, and the memory per open slow stream."""
        assert target.process
        plan, process = self.plan, target.process
        self.measure_answers(
            target, 0.5, concurrency=4
        )  # light use: heavy load would leave free memory that hides the memory of streams
        self.measure_bursts(target, 0.5, concurrency=4)
        idle = process.rss_kib()
        if target.name == "litellm":  # it cannot sustain this number of streams
            return {"idle_mib": idle / 1024}
        pace = f"question %d chunks={plan.stream_chunks} interval-ms={plan.stream_interval_ms}"
        body = target.stream_body.replace("question %d", pace)
        arguments = self.build_arguments(target, "streams", plan.stream_chunks, body)
        loader = Loader(
            [*arguments, "--once", "--concurrency", str(plan.streams), "--seconds", "60"],
            cores=self.cores.tools,
        )
        try:
            most = 0
            while loader.running():
                if self._stats()["open"] == plan.streams:
                    most = max(most, process.rss_kib())
                time.sleep(0.1)
            loader.result()
        finally:
            loader.stop()
        if not most:
            raise Failed(f"{target.name} never had {plan.streams} streams open at once")
        return {
            "idle_mib": idle / 1024,
            "open_mib": most / 1024,
            "stream_kib": (most - idle) / plan.streams,
        }

    def measure_paced(self, target: Target) -> dict[str, Any]:
        """Many paced streams: processor time per event, time to first event of a new stream."""
        plan = self.plan
        pace = f"question %d chunks={plan.paced_chunks} interval-ms={PACED_MS}"
        many = self.build_arguments(
            target, "streams", plan.paced_chunks, target.stream_body.replace("question %d", pace)
        )
        cpu_before = target.process.cpu_seconds() if target.process else None
        loader = Loader(
            [*many, "--once", "--concurrency", str(PACED_STREAMS), "--seconds", "120"],
            cores=self.cores.tools,
        )
        try:
            while self._stats()["open"] < PACED_STREAMS and loader.running():
                time.sleep(0.05)
            seconds = plan.paced_chunks * PACED_MS / 1000 * 0.7
            probing = self.build_arguments(
                target,
                "streams",
                4,
                target.stream_body.replace("question %d", "question %d chunks=4"),
            )
            probe = Loader(
                [*probing, "--rate", "5", "--seconds", str(seconds), "--warmup-seconds", "0"],
                cores=self.cores.tools,
            )
            try:
                first = probe.result()["first_event_ms"]
            finally:
                probe.stop()
            gaps = loader.result()["gap_ms"]
        finally:
            loader.stop()
        figures: dict[str, Any] = {
            "first_p50_ms": first["p50"],
            "first_p99_ms": first["p99"],
            "gap_p99_ms": gaps["p99"],
        }
        if target.process and cpu_before is not None:
            cpu = (target.process.cpu_seconds() or 0) - cpu_before
            figures["cpu_us_per_event"] = cpu * 1e6 / (PACED_STREAMS * plan.paced_chunks)
        self.raw.append({"target": target.name, "what": "paced", **figures})
        return figures

    def _measure(
        self, target: Target, what: str, seconds: float, concurrency: int, rate: float
    ) -> dict[str, Any]:
        body = target.stream_body if what == "streams" else target.answer_body
        arguments = self.build_arguments(target, what, CHUNKS, body)
        warmup = min(self.plan.warmup_seconds, seconds)
        arguments += [
            "--concurrency",
            str(concurrency),
            "--seconds",
            str(seconds),
            "--warmup-seconds",
            str(warmup),
            "--rate",
            str(rate),
        ]
        before, cpu_before = self._stats(), target.process.cpu_seconds() if target.process else None
        loader = Loader(arguments, cores=self.cores.tools)
        try:
            figures = loader.result()
        finally:
            loader.stop()
        cpu, after = target.process.cpu_seconds() if target.process else None, self._stats()
        served = after["finished"] - before["finished"]
        if served != figures["answers_total"] or after["requests"] - before["requests"] != served:
            raise Failed(
                f"{target.name}: {figures['answers_total']} answers,"
                f" but the provider has served {served}"
            )
        if cpu is not None and cpu_before is not None:
            figures["cpu_ms_per_answer"] = (cpu - cpu_before) * 1000 / served
        self.raw.append({"target": target.name, "what": what, "rate": rate, **figures})
        return figures

    def build_arguments(self, target: Target, what: str, chunks: int, body: str) -> list[str]:
        """Arguments of the load generator for this target."""
        last_word = f"word{chunks - 1} "
        headers = [part for header in target.headers for part in ("--header", header)]
        if what == "answers":
            return [
                "--url",
                target.url + target.answer_path,
                "--body",
                body,
                "--contains",
                last_word,
                *headers,
            ]
        events = [] if target.events is None else ["--events", str(chunks + target.events)]
        expected = ["--contains", last_word, "--contains", target.last, "--first", target.first]
        return [
            "--url",
            target.url + target.stream_path,
            "--body",
            body,
            *events,
            *expected,
            *headers,
        ]

    def _stats(self) -> dict[str, Any]:
        return get_json(f"{self._provider_url}/stats")


def _key_with_limits(env: dict[str, str]) -> str:
    """Create a key of a user with limits that are never reached."""
    for arguments in (["migrate"], ["users", "quota", "bench", *LIMITS]):
        subprocess.run([KOTAE, *arguments], env=env, check=True, capture_output=True)
    created = subprocess.run(
        [KOTAE, "keys", "create", "--user", "bench"],
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    return created.stdout.split()[0]


def run_round(bench: Bench, target: Target) -> dict[str, float]:
    """Run all measurements of one target."""
    plan = bench.plan
    answers, bursts = (
        bench.measure_answers(target, plan.seconds),
        bench.measure_bursts(target, plan.seconds),
    )
    fixed = bench.measure_answers(target, plan.rate_seconds, rate=RATE)["latency_ms"]
    results = {
        "answers_per_second": answers["answers_per_second"],
        "streams_per_second": bursts["answers_per_second"],
        "events_per_second": bursts["answers_per_second"] * CHUNKS,
        "latency_p50_ms": fixed["p50"],
        "latency_p99_ms": fixed["p99"],
        **bench.measure_paced(target),
    }
    if target.process:
        results |= {
            "cpu_ms_per_answer": answers["cpu_ms_per_answer"],
            "cpu_ms_per_stream": bursts["cpu_ms_per_answer"],
        }
    if target.name in {"direct", "kotae"}:
        fast = bench.measure_answers(target, plan.rate_seconds, rate=HIGH_RATE)["latency_ms"]
        results |= {"fast_p50_ms": fast["p50"], "fast_p99_ms": fast["p99"]}
    return results


def measure(plan: Plan, folder: Path, cores: Cores, litellm: Path | None) -> dict[str, Any]:
    """Run all measurements. Raises `Failed`."""
    bench, figures = Bench(plan, folder, cores, litellm), dict[str, dict[str, list[float]]]()
    names = ["direct", "tutorial", *(["litellm"] if litellm else []), "kotae"]

    def note(target: Target, values: dict[str, float]) -> None:
        for name, value in values.items():
            figures.setdefault(target.name, {}).setdefault(name, []).append(value)

    with bench.run_provider(), contextlib.ExitStack() as stack:
        targets = [stack.enter_context(bench.run_target(name)) for name in names]
        for target in targets[1:]:  # before any load
            _say(f"memory: {target.name}")
            note(target, bench.measure_memory(target))
        for n in range(plan.rounds):
            for target in targets if n % 2 == 0 else reversed(targets):
                _say(f"round {n + 1} of {plan.rounds}: {target.name}")
                note(target, run_round(bench, target))
    medians = {
        name: {figure: statistics.median(values) for figure, values in rounds.items()}
        for name, rounds in figures.items()
    }
    for name in names[1:]:
        for kind in ("latency", "fast", "first"):
            for share in ("p50", "p99"):
                if (value := medians[name].get(f"{kind}_{share}_ms")) is not None:
                    medians[name][f"added_{kind}_{share}_ms"] = (
                        value - medians["direct"][f"{kind}_{share}_ms"]
                    )
    return {"medians": medians, "rounds": figures, "raw": bench.raw}


ROWS = [
    ("answers_per_second", f"answers/s, POST /ai/test, {CONCURRENCY} at a time", "{:,.0f}"),
    ("cpu_ms_per_answer", "  processor time per answer, ms", "{:.2f}"),
    (
        "streams_per_second",
        f"streams/s, bursts of {CHUNKS}, {BURST_CONCURRENCY} at a time",
        "{:,.0f}",
    ),
    ("events_per_second", "  events/s", "{:,.0f}"),
    ("cpu_ms_per_stream", "  processor time per stream, ms", "{:.2f}"),
    ("latency_p50_ms", f"latency at {RATE} answers/s, p50 ms", "{:.2f}"),
    ("latency_p99_ms", "  p99 ms", "{:.2f}"),
    ("added_latency_p50_ms", "  added to direct, p50 ms", "{:.2f}"),
    ("added_latency_p99_ms", "  added to direct, p99 ms", "{:.2f}"),
    ("added_fast_p50_ms", f"added at {HIGH_RATE} answers/s, p50 ms", "{:.2f}"),
    ("added_fast_p99_ms", "  p99 ms", "{:.2f}"),
    (
        "cpu_us_per_event",
        f"{PACED_STREAMS} streams, an event each {PACED_MS} ms: processor µs per event",
        "{:.0f}",
    ),
    ("gap_p99_ms", "  time between events, p99 ms", "{:.1f}"),
    ("added_first_p99_ms", "  added to a further caller's first event, p99 ms", "{:.1f}"),
    ("idle_mib", "memory in use, no stream open, MiB", "{:.1f}"),
    ("stream_kib", "  per open stream, KiB", "{:.1f}"),
]


def format_table(medians: dict[str, dict[str, float]]) -> str:
    """Format the figures. The last column is Kotae's as a multiple of the tutorial's."""
    names = [name for name in ("direct", "tutorial", "litellm", "kotae") if name in medians]
    lines = [f"{'':60}" + "".join(f"{name:>10}" for name in names) + f"{'kotae/tutorial':>16}"]
    for key, title, form in ROWS:
        cells = [form.format(medians[name][key]) if key in medians[name] else "–" for name in names]
        tutorial, kotae = medians["tutorial"].get(key), medians["kotae"].get(key)
        ratio = (
            f"{kotae / tutorial:.2f}×" if tutorial and kotae is not None and tutorial > 0 else "–"
        )
        lines.append(f"{title:60}" + "".join(f"{cell:>10}" for cell in cells) + f"{ratio:>16}")
    return "\n".join(lines)


def _port(url: str) -> str:
    return url.rpartition(":")[2]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description="Kotae against a tutorial-style service.")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a smoke run of some twenty seconds; its figures mean little",
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument(
        "--litellm", type=Path, help="the command of a LiteLLM proxy, in an environment of its own"
    )
    parser.add_argument(
        "--json", type=Path, default=Path(".data/bench.json"), help="where the figures go"
    )
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = Plan(**{**vars(plan), "rounds": options.rounds})
    litellm = options.litellm or (
        Path(found_litellm) if (found_litellm := shutil.which("litellm")) else None
    )
    if litellm is None:
        _say(
            "not run: LiteLLM is not installed"
            " (pip install 'litellm[proxy]' in a separate environment)"
        )
    cores = Cores.split()
    if os.getloadavg()[0] > 0.2 * (os.cpu_count() or 1):
        _say(
            f"this machine is busy (load average {os.getloadavg()[0]:.1f}):"
            " latencies will be too long, and ratios rough"
        )
    about = {"machine": machine(cores), "plan": vars(plan)}
    try:
        with tempfile.TemporaryDirectory(prefix="kotae-bench-") as folder:
            results = measure(plan, Path(folder), cores, litellm)
    except Failed as failure:
        sys.exit(f"the run is void: {failure}")
    save(options.json, about | results)
    print(format_table(results["medians"]))
    print(f"\n{about['machine']}\nfigures of every round: {options.json}")


if __name__ == "__main__":
    main()
