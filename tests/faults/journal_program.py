"""Child program of `test_syscalls.py`: uses a journal under a tracer that breaks one system call.

    python -m tests.faults.journal_program FOLDER CALL RUNS WHEN

A tracer can break the N-th call of every process, but N is the same for all of them. So this
program forks a child for each N from 1 to RUNS, and each child first makes WHEN - N calls without
effect: the broken call, its WHEN-th, is then the N-th call of the journal. One interpreter and one
tracer serve all runs, and the runs share nothing. Every N has two runs, one with a spool and one
without.

A child writes to `said` in its folder, one word and an id per line: `begun` (accepted by the
journal), `full` (rejected), `ended` (acknowledged), `doubtful` (the same, but the journal has
counted a failure), `applied` (its row is committed, before the journal releases it); `clean` at its
end.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from service.core.accounting.journal import Journal
from service.core.errors import JournalFull
from tests.records import build_intent, build_outcome

ANSWERS = 8
_NOTHING = os.open("/dev/null", os.O_RDWR)
_MEMORY = os.memfd_create("nothing")


def _unlink_nothing() -> None:
    Path("/nothing/is/here").unlink(missing_ok=True)


MEANINGLESS: dict[str, Callable[[], object]] = {
    "pwrite64": lambda: os.pwrite(_NOTHING, b"x", 0),
    "fdatasync": lambda: os.fdatasync(_MEMORY),
    "fallocate": lambda: os.posix_fallocate(_MEMORY, 0, 1),
    "unlink": _unlink_nothing,
}


def use(folder: Path, spool: Path | None) -> None:
    """Begin, end, apply and release answers in several segments, with periodic syncs."""
    log = os.open(folder / "said", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def say(word: str, name: str = "") -> None:
        os.write(log, f"{word} {name}\n".encode())

    journal = Journal(folder / "journal", spool, sync_ms=50, bytes_max=2**22, segment_bytes=20_000)
    begun, ended = [], []
    for number in range(ANSWERS):
        intent = build_intent(prompt=f"prompt {number} " + "p" * 1500)
        try:
            journal.append_intent(intent)
        except JournalFull:
            say("full", intent.id)
        else:
            say("begun", intent.id)
            begun.append(intent)
        if number % 2:
            journal._sync_segments()
        if number % 3 != 1 and begun:
            last = begun.pop(0)
            failures = journal.statistics().failures
            journal.append_outcome(build_outcome(last, response="r" * 1500))
            say("ended" if journal.statistics().failures == failures else "doubtful", last.id)
            ended.append(last.id)
        if number == ANSWERS // 2:
            for name in ended:
                say("applied", name)
            journal.release(ended)
            ended = []
    journal._sync_segments()
    say("clean")


def main() -> None:
    """Run all children in parallel."""
    folder, call, runs, when = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    children = []
    for number in range(1, runs + 1):
        for spool in (True, False):
            place = folder / f"{number}-{'spool' if spool else 'disk'}"
            for name in ("journal", "spool"):
                (place / name).mkdir(parents=True)
            if (child := os.fork()) == 0:
                for _ in range(when - number):
                    MEANINGLESS[call]()
                use(place, place / "spool" if spool else None)
                os._exit(0)
            children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
