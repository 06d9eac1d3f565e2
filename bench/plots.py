"""Two charts: latency by request rate, and events per second by number of open streams.

    python -m bench.plots [--litellm /path/to/bin/litellm] [--json .data/bench-plots.json]
        [--images docs/images]

Targets and tools are those of `python -m bench`. A target ends at the first step that it cannot
sustain. A run lasts about four minutes. The charts are drawn from the JSON (`--draw` only draws) as
SVG, and as PNG if Chromium is available.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a file too

from bench.processes import Cores, Failed, Loader, machine, save
from bench.run import FULL, Bench, Target

RATES = (10, 25, 50, 100, 200, 400, 800, 1200)
STREAMS = (25, 50, 100, 200, 400, 800, 1600)
SECONDS = 4.0
CHUNKS, INTERVAL_MS = 80, 50  # per stream: twenty events per second
LATE_MS = 1000  # a higher median latency means that the target cannot sustain the rate
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 400, 70, 40, 110, 50
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLOURS = {"direct": "#888888", "tutorial": "#d97706", "litellm": "#7c3aed", "kotae": "#0369a1"}

Points = list[tuple[float, float]]


def measure_latencies(bench: Bench, target: Target) -> tuple[Points, Points]:
    """Return (p50, p99) in ms at each rate."""
    medians: Points = []
    tails: Points = []
    for rate in RATES:
        try:
            latency = bench.measure_answers(target, SECONDS, concurrency=400, rate=rate)[
                "latency_ms"
            ]
        except Failed:
            break
        if latency["p50"] > LATE_MS:
            break
        medians.append((rate, latency["p50"]))
        tails.append((rate, latency["p99"]))
    return medians, tails


def measure_events(bench: Bench, target: Target) -> Points:
    """Events per second by number of streams; the provider sends 20 per second to each."""
    points: Points = []
    for streams in STREAMS:
        body = target.stream_body.replace(
            "question %d", f"question %d chunks={CHUNKS} interval-ms={INTERVAL_MS}"
        )
        arguments = bench.build_arguments(target, "streams", CHUNKS, body)
        loader = Loader(
            [*arguments, "--once", "--concurrency", str(streams), "--seconds", "60"],
            cores=bench.cores.tools,
        )
        try:
            longest = loader.result()["latency_ms"]["max"] / 1000
        except Failed:
            break
        finally:
            loader.stop()
        points.append((streams, streams * CHUNKS / longest))
        if longest > 3 * CHUNKS * INTERVAL_MS / 1000:
            break
    return points


def measure(litellm: Path | None) -> dict[str, Any]:
    """Run both sweeps."""
    results: dict[str, Any] = {"latency_p50_ms": {}, "latency_p99_ms": {}, "events_per_second": {}}
    with tempfile.TemporaryDirectory(prefix="kotae-bench-") as folder:
        bench = Bench(FULL, Path(folder), Cores.split(), litellm)
        with bench.run_provider():
            for name in ("direct", "tutorial", *(["litellm"] if litellm else []), "kotae"):
                print(name, file=sys.stderr, flush=True)
                with bench.run_target(name) as target:
                    results["events_per_second"][name] = measure_events(bench, target)
                    results["latency_p50_ms"][name], results["latency_p99_ms"][name] = (
                        measure_latencies(bench, target)
                    )
    return results


def draw(title: str, across: str, up: str, series: dict[str, Points]) -> str:
    """Draw a chart with two logarithmic axes as an SVG for light and dark pages."""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    low_x, high_x = min(xs), max(xs)
    low_y, high_y = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys)))

    def place(x: float, y: float) -> tuple[float, float]:
        share_x = math.log(x / low_x) / math.log(high_x / low_x)
        share_y = math.log(y / low_y) / math.log(high_y / low_y)
        return LEFT + share_x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - share_y * (
            HEIGHT - TOP - BOTTOM
        )

    out = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            ' font-family="system-ui, sans-serif" font-size="12">'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{title}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 12}">{across}</text>',
        f'<text x="12" y="{TOP - 16}" font-size="11">{up}</text>',
    ]
    for power in range(round(math.log10(low_y)), round(math.log10(high_y)) + 1):
        _, y = place(low_x, 10**power)
        out.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        out.append(
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:,g}</text>'
        )
    for x_value in sorted(set(xs)):
        x, _ = place(x_value, low_y)
        out.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x_value:g}</text>'
        )
    for name, points in series.items():
        if not points:
            continue
        colour = COLOURS[name.split()[0]]
        dashes = ' stroke-dasharray="5 4"' if name.endswith("p99") else ""
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in points))
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        x, y = place(*points[-1])
        out.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*out, "</svg>", ""])


def show(file: Path, picture: str) -> None:
    """Write an SVG, and a PNG rendered by Chromium."""
    file.write_text(picture)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(
            f"not drawn: {file.with_suffix('.png').name}: there is none of {', '.join(BROWSERS)}",
            file=sys.stderr,
        )
        return
    with tempfile.TemporaryDirectory(prefix="kotae-bench-") as profile:
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ]
        command += [
            f"--window-size={WIDTH},{HEIGHT}",
            "--force-device-scale-factor=2",
            f"--screenshot={file.with_suffix('.png').absolute()}",
        ]
        subprocess.run(
            [*command, file.absolute().as_uri()], check=True, capture_output=True, timeout=60
        )


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--litellm", type=Path)
    parser.add_argument("--json", type=Path, default=Path(".data/bench-plots.json"))
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    parser.add_argument("--draw", action="store_true", help="draw what was measured before")
    options = parser.parse_args()
    if not options.draw:
        save(options.json, {"machine": machine(Cores.split()), **measure(options.litellm)})
    results = json.loads(options.json.read_text())
    latency = {
        f"{name} {share}": results[f"latency_{share}_ms"][name]
        for name in results["latency_p50_ms"]
        for share in ("p50", "p99")
    }
    title = "Latency of POST /ai/test against the rate of questions (dashed: p99)"
    show(options.images / "latency.svg", draw(title, "questions a second", "ms", latency))
    title = "Events that arrive, of the 20 a second that each stream is sent"
    show(
        options.images / "streams.svg",
        draw(title, "open streams", "events/s", results["events_per_second"]),
    )


if __name__ == "__main__":
    main()
