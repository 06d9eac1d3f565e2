"""Cost of an answer with increasing numbers of callers and of rows in the log.

    python -m bench.growth [--rows 5000000] [--rounds 7] [--json .data/bench-growth.json]

*Callers*: `POST /ai/test` by 16, 64, 250 and 1,000 callers, each of which sends its next request
after an answer. The measurements of a round follow each other, so that changes of machine speed
affect all of them. *Rows*: the same with 64 callers and two services, one with an empty log and one
whose log has `--rows` rows (written by `bench.logs`: 5 GB and five minutes for 5 million; 0 skips
this part).

Everything is on: a key, limits, journal, log rows, metrics. The output has the median of the rounds
and its share of the first column. Rates depend on the machine's speed; processor time per answer is
steadier.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a file too

from bench.logs import fill_log
from bench.processes import Cores, Failed, machine, save
from bench.run import FULL, Bench

CALLERS = (16, 64, 250, 1000)
FIGURES = {
    "answers_per_second": "answers/s",
    "cpu_ms_per_answer": "processor ms per answer",
    "latency_p99_ms": "latency p99, ms",
}

Rounds = dict[str, list[dict[str, float]]]  # of each column, in order


def run_rounds(columns: dict[str, Callable[[], dict[str, Any]]], rounds: int) -> Rounds:
    """Run every column once per round, in alternating order."""
    rounds_by_column: Rounds = {name: [] for name in columns}
    for n in range(rounds):
        for name in list(columns) if n % 2 == 0 else reversed(columns):
            figures = columns[name]()
            rounds_by_column[name].append(
                {
                    "answers_per_second": figures["answers_per_second"],
                    "cpu_ms_per_answer": figures.get("cpu_ms_per_answer", 0.0),
                    "latency_p99_ms": figures["latency_ms"]["p99"],
                }
            )
    return rounds_by_column


def measure_callers(bench: Bench, rounds: int, seconds: float) -> Rounds:
    """Measure one service with increasing numbers of callers."""
    with bench.run_target("kotae") as target:
        bench.measure_answers(target, seconds)  # the first answers of a process cost more
        return run_rounds(
            {
                f"{count:,} callers": partial(bench.measure_answers, target, seconds, count)
                for count in CALLERS
            },
            rounds,
        )


def measure_rows(bench: Bench, rounds: int, seconds: float, rows: int) -> Rounds:
    """Measure two services, one with a large log."""
    with ExitStack() as stack:
        columns = {
            "empty log": stack.enter_context(bench.run_target("kotae")),
            f"{rows:,} rows": stack.enter_context(
                bench.run_target("kotae", lambda folder: fill_log(folder / "kotae.db", rows))
            ),
        }
        for target in columns.values():
            bench.measure_answers(target, seconds)
        return run_rounds(
            {
                name: partial(bench.measure_answers, target, seconds)
                for name, target in columns.items()
            },
            rounds,
        )


def format_table(columns: Rounds) -> str:
    """Format medians and their share of the first column."""
    lines = [f"{'':26}" + "".join(f"{name:>22}" for name in columns)]
    for key, title in FIGURES.items():
        medians = [
            statistics.median(figures[key] for figures in rounds) for rounds in columns.values()
        ]
        cells = [
            f"{value:,.2f} ({value / medians[0] - 1:+.0%})" if medians[0] else "–"
            for value in medians
        ]
        lines.append(f"{title:26}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3, help="length of a turn, at the least")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the temporary databases go; default: the system's place for such",
    )
    parser.add_argument(
        "--json", type=Path, default=Path(".data/bench-growth.json"), help="where the figures go"
    )
    options = parser.parse_args()
    cores = Cores.split()
    results: dict[str, Rounds] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="kotae-bench-", dir=options.folder) as folder:
            bench = Bench(FULL, Path(folder), cores, None)
            with bench.run_provider():
                results["callers"] = measure_callers(bench, options.rounds, options.seconds)
                print(format_table(results["callers"]), flush=True)
                if options.rows:
                    results["rows"] = measure_rows(
                        bench, options.rounds, options.seconds, options.rows
                    )
                    print("\n" + format_table(results["rows"]))
    except Failed as failure:
        sys.exit(f"the run is void: {failure}")
    about = machine(cores)
    save(options.json, {"machine": about, **results})
    print(f"\n{about}\nfigures of every round: {options.json}")


if __name__ == "__main__":
    main()
