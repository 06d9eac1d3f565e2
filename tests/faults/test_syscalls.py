"""The journal's system calls broken one by one: killed before, failed at, or failing from each."""

import asyncio
import platform
import shutil
import sqlite3
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from service.core.database.engine import Database
from service.workers.recovery import JournalRecovery, RecoveryState

pytestmark = pytest.mark.slow

WHEN = 60  # the broken call of each child, and the maximum number of runs
RUNS = {"pwrite64": 30, "fdatasync": 10, "fallocate": 8, "unlink": 12}
FAULTS = [
    ("pwrite64", "error=ENOSPC", "once"),
    ("pwrite64", "error=EIO", "for ever"),
    ("pwrite64", "retval=7", "once"),
    ("fdatasync", "error=EIO", "once"),
    ("fdatasync", "error=EIO", "for ever"),
    ("fallocate", "error=ENOSPC", "once"),
    ("fallocate", "error=ENOSPC", "for ever"),
    ("unlink", "error=EIO", "once"),
    ("unlink", "error=EIO", "for ever"),
]
Reported = dict[Path, dict[str, set[str]]]  # output of the program in every run: ids by word


def run_with_fault(tmp_path: Path, call: str, fault: str, *, for_ever: bool = False) -> Reported:
    """Run the program with this call broken."""
    if not shutil.which("strace") or platform.machine() != "x86_64":
        pytest.skip("not run: strace on x86-64 is needed")
    quick = [] if "signal" in fault else ["--seccomp-bpf"]  # with it the tracer cannot send signals
    inject = f"inject={call}:{fault}:when={WHEN}{'+' if for_ever else ''}"
    done = subprocess.run(
        ["strace", "-f", "-qq", *quick, "-o", tmp_path / "trace", "-e", f"trace={call}",
         "-e", inject,
         sys.executable, "-m", "tests.faults.journal_program", tmp_path / "runs", call,
         str(RUNS[call]), str(WHEN)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "ptrace" in done.stderr:
        pytest.skip(f"not run: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    reported: Reported = {}
    for folder in (tmp_path / "runs").iterdir():
        words = reported.setdefault(folder, defaultdict(set))
        for line in (folder / "said").read_text().splitlines():
            word, _, name = line.partition(" ")
            words[word].add(name)
    assert len(reported) == 2 * RUNS[call]
    last = (tmp_path / "runs" / f"{RUNS[call]}-{place}" for place in ("spool", "disk"))
    assert all("clean" in reported[folder] for folder in last), (
        "more runs are needed to reach the end"
    )
    return reported


async def count_recovered(database: Database, folder: Path) -> int:
    """Return the number of rows that recovery writes for a run."""
    recovery = JournalRecovery(
        database, folder / "journal", folder / "spool", quarantine=folder / "quarantine"
    )
    recovery.start()
    await asyncio.wait_for(recovery.wait_done(), 20)
    assert recovery.statistics().state is RecoveryState.DONE
    return recovery.statistics().rows


def read_statuses(database: Database) -> dict[str, str]:
    """Return status by id."""
    assert database.file
    with sqlite3.connect(database.file) as connection:
        return dict(connection.execute("SELECT id, status FROM request_logs").fetchall())


async def check_all(database: Database, reported: Reported) -> None:
    """Check one row per begun answer without a row yet, completed if it was acknowledged."""
    recovered_rows = {folder: await count_recovered(database, folder) for folder in reported}
    statuses = read_statuses(database)
    assert sum(recovered_rows.values()) == len(statuses)
    for folder, words in reported.items():
        left = words["begun"] - words["applied"]
        assert left <= statuses.keys(), folder
        assert not statuses.keys() & words["full"], folder
        assert recovered_rows[folder] - len(statuses.keys() & words["begun"]) <= (
            "clean" not in words
        ), folder  # written, and killed before the acknowledgement
        assert {statuses[name] for name in words["ended"] - words["applied"]} <= {"completed"}, (
            folder
        )
    assert await count_recovered(database, next(iter(reported))) == 0


@pytest.mark.parametrize("call", RUNS)
async def test_killed_before_any_call(database: Database, tmp_path: Path, call: str) -> None:
    """After a kill before the N-th call, for every N, acknowledged answers are completed."""
    reported = run_with_fault(tmp_path, call, "signal=KILL")

    assert sum("clean" not in words for words in reported.values()) > 1
    await check_all(database, reported)


@pytest.mark.parametrize(
    ("call", "fault", "lasting"), FAULTS, ids=[" ".join(parameters) for parameters in FAULTS]
)
async def test_failed_at_any_call(
    database: Database, tmp_path: Path, call: str, fault: str, lasting: str
) -> None:
    """After a failed or short N-th call, for every N, rows are right; refused answers have none."""
    reported = run_with_fault(tmp_path, call, fault, for_ever=lasting == "for ever")

    assert all("clean" in words for words in reported.values())
    assert "(INJECTED)" in (tmp_path / "trace").read_text()
    assert lasting == "for ever" or not any(words["doubtful"] for words in reported.values())
    await check_all(database, reported)
