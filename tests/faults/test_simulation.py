"""Simulation of the journal with random faults.

Answers are begun, go on to other providers, are finished, committed, copied, truncated and killed
in any order on disks that fill up and fail.

The real journal (its thread replaced by explicit rounds) and the real recovery run on a disk
(`disk.py`) that records durable data; the database is a dictionary with the rule of the ranks,
compared with the real `logs.apply` at intervals. A step is one operation on the journal; operations
may interrupt a round of the thread, as the event loop does.

Checked after each recovery. *Death of the process*: every begun answer has one row; every finished
one is final and exact, including its texts unless it was written lean; others have the attempts
that were written. *Loss of power*: the same
for everything that was on the disk when `when_synced` was called; other answers may be missing or
interrupted, never wrong. Always: a committed row does not change; files whose answers are committed
are removed; the spool does not exceed its limit; only a death, or a disk that fails during a write,
tears frames; without faults the journal works.

KOTAE_TEST_SEED: of the first run; each run uses the next one, and a failure reports its seed.
KOTAE_TEST_SHRINK: search for a shorter history that fails too, which needs minutes.
"""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import combinations, count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from service.core.accounting import journal as journals
from service.core.accounting import log as request_log
from service.core.accounting.journal import Journal, decode_frames, strip_texts
from service.core.accounting.outcomes import build_interrupted
from service.core.accounting.rows import build_attempt_rows, build_row
from service.core.database.tables import attempts, metadata, request_logs
from service.core.errors import DatabaseUnavailable, JournalFull
from service.core.pricing import Usage
from service.core.records import RANKS, EndedAttempt, Intent, Outcome, Status, UsageSource
from service.workers import recovery as recoveries
from service.workers.recovery import JournalRecovery, RecoveryState
from tests.faults.disk import Disk, ProcessDied
from tests.records import build_attempt, build_ended_attempt, build_intent, build_outcome

SEED = int(os.environ.get("KOTAE_TEST_SEED", "1"))
EXAMPLES = 25  # of one run of hypothesis
ATTEMPTS_MAX = 3  # of an answer that another one follows
COMPARED = 10  # every n-th example, the rows are compared with those of SQLite
SEGMENT_BYTES, BYTES_MAX = 60_000, 240_000
PROMPTS = (0, 10, 300, 3000, 9000, 30_000)
RESPONSES = (0, 50, 1000, 6000, 20_000, 70_000)
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SOURCES = list(UsageSource)
_NOTHING: Iterator[int] = iter(())


class Answer:
    """The expected state of one answer."""

    def __init__(self, begun: Intent) -> None:
        self.intent = begun
        self.outcome: Outcome | None = None
        self.attempts: list[EndedAttempt] = []
        self.journaled = 0  # of the attempts: certainly written; later ones may be
        self.written = ""  # outcome: "full", "lean", or "maybe" (death or error during the write)
        self.begun = False
        self.intent_safe = self.outcome_safe = False
        self.committed = self.released = self.powerless = False
        self.declared_lost = False  # by another replica, which has written a row
        self.row: Outcome | None = None  # set when the row may no longer change

    def rows(self) -> list[Outcome | None]:
        """Return every allowed row."""
        if self.declared_lost:  # without the attempts, which the other replica did not know
            return [*filter(None, self._rows()), build_interrupted(self.intent)]
        return self._rows()

    def _rows(self) -> list[Outcome | None]:
        interrupted = self._list_interrupted()
        if not self.outcome:
            return (
                [*interrupted]
                if self.begun and not self._lost(self.intent_safe)
                else [*interrupted, None]
            )
        short = strip_texts(self.outcome)
        whole = {
            "full": [self.outcome],
            "lean": [msgspec.structs.replace(short, intent=self.intent)],
            "maybe": [
                self.outcome,
                msgspec.structs.replace(short, intent=self.intent),
                *interrupted,
            ],
        }[self.written]
        if not self._lost(self.outcome_safe):
            return [*whole]
        return [*whole, short, *interrupted, *([] if self.intent_safe else [None])]

    def _list_interrupted(self) -> list[Outcome]:
        """The rows of the intent without an outcome: with the attempts that were written."""
        certain = 0 if self.powerless else self.journaled
        optional = self.attempts[certain:]
        return [
            build_interrupted(self.intent, [*self.attempts[:certain], *chosen])
            for size in range(len(optional) + 1)
            for chosen in combinations(optional, size)
        ]

    def _lost(self, safe: bool) -> bool:
        return self.powerless and not safe


class SimulatedDatabase:
    """Rows with the rule of the ranks, and the transactions that were committed.

    `crash`: in the next transaction, "before" or "after" its commit, which nobody learns.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Outcome] = {}
        self.applied: list[list[Outcome]] = []
        self.crash: str | None = None

    def apply(self, outcomes: list[Outcome]) -> None:
        """Apply one transaction. Raises `DatabaseUnavailable` in a crash."""
        crash, self.crash = self.crash, None
        if crash != "before":
            self.applied.append(outcomes)
            for outcome in outcomes:
                there = self.rows.get(outcome.intent.id)
                if there is None or RANKS[there.usage_source] < RANKS[outcome.usage_source]:
                    self.rows[outcome.intent.id] = outcome
        if crash:
            raise DatabaseUnavailable("crashed")


class SimulatedRecovery(JournalRecovery):
    """Recovery into the dictionary; it dies before its batch number `cut`."""

    def __init__(self, disk: Disk, world: "World", cut: int | None) -> None:
        super().__init__(
            None,  # type: ignore[arg-type]  # its rows go to the world
            disk.data,
            disk.spool,
            quarantine=disk.root,
            batch_records=4,
        )
        self._world, self._cut = world, cut

    async def _apply_batch(self, outcomes: list[Outcome]) -> None:
        if self._cut == 0:
            raise ProcessDied
        self._cut = None if self._cut is None else self._cut - 1
        assert len({outcome.intent.id for outcome in outcomes}) == len(outcomes)
        try:
            self._world.store.apply(outcomes)
        except DatabaseUnavailable:  # the batch is repeated
            self._world.store.apply(outcomes)

    def run(self) -> None:
        """Run to the end without waiting."""
        with suppress(StopIteration):
            self._run().send(None)
        assert self._state is RecoveryState.DONE


async def _at_once(call: Any, *arguments: Any) -> Any:
    return call(*arguments)


class World(RuleBasedStateMachine):
    """State machine of the simulation; see the module docstring."""

    steps = deaths = power_losses = recoveries = compared = examples = 0  # of all runs

    def __init__(self, store: SimulatedDatabase | None = None, slot: int = 0) -> None:
        super().__init__()
        World.examples += 1
        self.store, self.slot = store or SimulatedDatabase(), slot
        place = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.disk = Disk(Path(tempfile.mkdtemp(prefix="kotae-simulation-", dir=place)))
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(
            journals,
            "time",
            SimpleNamespace(sleep=lambda _: None, time_ns=partial(next, count(10**6))),
        )
        self.patch.setattr(
            journals,
            "log",
            SimpleNamespace(error=lambda *_, **__: None, warning=self._note_skipped),
        )
        self.skipped = 0  # attempts for which there was no space
        self.patch.setattr(
            recoveries,
            "log",
            SimpleNamespace(info=lambda *_, **__: None, exception=self._note_failure),
        )
        self.patch.setattr(
            recoveries,
            "asyncio",
            SimpleNamespace(to_thread=_at_once, CancelledError=asyncio.CancelledError),
        )
        self.disk.install()
        self.database = self.store.rows
        self.living: dict[str, Answer] = {}  # of the running process
        self.dead: dict[str, Answer] = {}  # waiting for recovery
        self.settled: dict[str, Answer] = {}
        self.torn = False
        self.faulty = False  # True if the open files are on a disk that has failed

    @initialize(spool=st.sampled_from([True, True, False]))
    def start(self, spool: bool) -> None:
        """Start the first process."""
        self.spool = self.disk.spool if spool else None
        self._open()

    def teardown(self) -> None:
        """Without faults every answer gets its row and no file remains."""
        try:
            if hasattr(self, "journal"):
                self._faults_off()
        finally:
            self.disk.remove()
            self.patch.undo()
        if World.examples % COMPARED == 1:
            self._compare()

    # events

    @rule(
        script=st.binary(min_size=16, max_size=80),
        fault=st.sampled_from([None, None, None, "EIO", "ENOSPC"]),
        calls=st.integers(0, 30),
    )
    def work(self, script: bytes, fault: str | None, calls: int) -> None:
        """Run event loop and thread: one operation per byte."""
        self.faulty |= fault is not None and self.spool is None
        self.disk.plan(calls, fault)
        self._play(iter(script))
        self.disk.plan(0, None)
        self.torn |= self.faulty

    @rule(script=st.binary(min_size=4, max_size=40), calls=st.integers(0, 40))
    def work_and_die(self, script: bytes, calls: int) -> None:
        """The process dies in one of its calls, or after the last."""
        self.disk.plan(calls, "die")
        try:
            self._play(iter(script))
        except ProcessDied:
            self.torn = True
        World.deaths += 1
        self.disk.close_all()
        self._bury()

    @rule(
        seed_of_loss=st.integers(0, 2**32),
        script=st.binary(max_size=20),
        calls=st.integers(0, 30),
        failing=st.booleans(),
    )
    def work_and_lose_power(
        self, seed_of_loss: int, script: bytes, calls: int, failing: bool
    ) -> None:
        """Power is lost in one of the calls or after the last, or a sync fails before."""
        if failing:
            self._round()
            self._play(byte for byte in script if byte & 15 < 8)
            self.disk.plan(0, "sync")
            self._round()
            script = b""
        self.disk.plan(calls, "die")
        with suppress(ProcessDied):
            self._play(iter(script))
        World.power_losses += 1
        self.disk.lose_power(Random(seed_of_loss))
        self.torn = True
        self._bury(powerless=True)

    @rule()
    def stop(self) -> None:
        """Stop the process regularly. Without holds and faults, no file remains."""
        mine = self.journal._process
        self.journal.stop(1)
        assert not self.disk.open_files or self.journal._failures
        if (
            not self.journal._failures
            and not self.faulty
            and all(answer.released for answer in self.living.values())
        ):
            assert not [path for path in self._files() if path.name.startswith(mine)]
        self.disk.close_all()
        self._bury()

    @rule(
        cut=st.sampled_from([None, None, None, 0, 1, 2]),
        calls=st.sampled_from([None, None, *range(12)]),
    )
    def recover(self, cut: int | None, calls: int | None) -> None:
        """Recover in the background of the running process. It may die, and the process with it."""
        recovery = SimulatedRecovery(self.disk, self, cut)
        self.disk.plan(calls or 0, "die" if calls is not None else None)
        try:
            recovery.run()
        except ProcessDied:
            World.deaths += 1
            self.disk.close_all()
            self._bury()
            return
        self.disk.plan(0, None)
        World.recoveries += 1
        assert recovery.statistics().bad_frames == 0 or self.torn
        self._check_recovered()

    @rule()
    def look(self) -> None:
        """A successful round removes files whose answers are all committed, except the open one."""
        self._round()
        if (
            self.journal._failures or self.faulty
        ):  # files that could not be written or removed stay for the next start
            return
        current = self.journal._current.path.name if self.journal._current else None
        for path in self._files():
            if (
                path.name.startswith(self.journal._process)
                and path.suffix == ".journal"
                and path.name != current
            ):
                records = [record for record in decode_frames(path.read_bytes()) if record]
                remaining = {
                    record.id
                    if isinstance(record, Intent)
                    else record.answer_id
                    if isinstance(record, EndedAttempt)
                    else record.intent.id
                    for record in records
                }
                assert any(not self.living[id_].released for id_ in remaining), path.name

    @invariant()
    def the_spool_is_bounded(self) -> None:
        """The open files never exceed their limit."""
        place = self.spool or self.disk.data
        if hasattr(self, "journal") and place.is_dir():
            mine = [
                path.stat().st_size
                for path in place.iterdir()
                if path.name.startswith(self.journal._process)
            ]
            assert sum(mine) <= BYTES_MAX or self.faulty

    # operations

    def _play(self, script: Iterator[int]) -> None:
        commit, release = [self._commit] * 3, [self._release] * 2
        table = [
            *[self._begin] * 4,
            *[self._finish] * 3,
            *commit,
            *release,
            self._redeliver,
            self._space,
            self._fail_attempt,
        ]
        for byte in script:
            World.steps += 1
            which, argument = byte & 15, byte >> 4
            if which == 15:
                self._round(script, argument)
            else:
                table[which](argument)

    def _round(self, script: Iterator[int] = _NOTHING, argument: int = 0) -> None:
        """Run a round of the thread.

        Arguments from 8 on insert the next three operations into it.
        """
        if self.journal._ending:
            return
        written = [
            (answer, answer.begun, answer.outcome is not None and answer.written != "maybe")
            for answer in self.living.values()
        ]

        def synced() -> None:
            for answer, begun, finished in written:
                answer.intent_safe |= begun
                answer.outcome_safe |= finished

        self.journal.add_synced_callback(synced)
        meanwhile = argument >= 8 and self.disk._planned is None
        if meanwhile:
            self.disk.plan(
                argument - 8,
                lambda: self._play(
                    byte for byte, _ in zip(script, range(3), strict=False) if byte & 15 != 15
                ),
            )
        self.journal._sync_segments()
        if meanwhile:
            self.disk.plan(0, None)

    def _begin(self, argument: int) -> None:
        number = len(self.living) + len(self.dead) + len(self.settled)
        answer = Answer(
            build_intent(
                id=f"{self.slot}{number:035d}",
                at=BEGAN,
                prompt=chr(97 + number % 26) * PROMPTS[argument % 6],
            )
        )
        try:
            self.living[answer.intent.id] = answer
            self.journal.append_intent(answer.intent)
            answer.begun = True
        except JournalFull:
            pass  # it may be readable, if the disk failed after the write

    def _fail_attempt(self, argument: int) -> None:
        """An attempt of an open answer ends, and another one begins."""
        open_ = [answer for answer in self.living.values() if answer.begun and not answer.outcome]
        if not open_ or len((answer := open_[argument % len(open_)]).attempts) == ATTEMPTS_MAX:
            return
        number = len(answer.attempts)
        record = build_ended_attempt(answer.intent, model=f"model {number}")
        skipped = self.skipped
        in_order = answer.journaled == number
        answer.attempts.append(record)
        self.journal.append_attempt(record)
        answer.journaled += in_order and self.skipped == skipped

    def _note_skipped(self, *_: Any, **__: Any) -> None:
        self.skipped += 1

    def _finish(self, argument: int) -> None:
        open_ = [answer for answer in self.living.values() if answer.begun and not answer.outcome]
        if not open_:
            return
        answer = open_[argument % len(open_)]
        number = int(answer.intent.id[1:])
        source = SOURCES[(number + argument) % len(SOURCES)]
        answer.outcome = build_outcome(
            answer.intent,
            attempts=len(answer.attempts) + 1,
            provider="second" if answer.attempts else None,
            attempt_list=[*(record.attempt for record in answer.attempts), build_attempt()]
            if answer.attempts
            else None,
            status=Status.TIMEOUT if source is UsageSource.UNKNOWN else Status.COMPLETED,
            usage_source=source,
            usage=None
            if source is UsageSource.UNKNOWN
            else Usage(prompt_tokens=number, completion_tokens=argument),
            cost_nano_usd=None if source is UsageSource.UNKNOWN else number * 1000 + argument,
            response=chr(65 + argument) * RESPONSES[(number + argument) % 6],
        )
        before = (self.journal._lean, self.journal._failures)
        answer.written = "maybe"
        self.journal.append_outcome(answer.outcome)
        if self.journal._failures == before[1]:
            answer.written = "lean" if self.journal._lean > before[0] else "full"
        else:
            assert self.faulty  # there is always space

    def _commit(self, argument: int) -> None:
        """The writer's transaction: the oldest, or from 8 on the newest."""
        waiting = [
            answer for answer in self.living.values() if answer.outcome and not answer.committed
        ]
        chosen = waiting[: 1 + argument] if argument < 8 else waiting[-(argument - 6) :]
        if chosen and not self._apply([answer.outcome for answer in chosen if answer.outcome]):
            return
        for answer in chosen:
            answer.committed = True
            answer.row = self.database[answer.intent.id]

    def _release(self, argument: int) -> None:
        committed = [
            answer for answer in self.living.values() if answer.committed and not answer.released
        ]
        chosen = committed[: 2 + 2 * argument] if argument < 8 else committed[-(argument - 6) :]
        for answer in chosen:
            answer.released = True
        self.journal.release([answer.intent.id for answer in chosen])

    def _redeliver(self, argument: int) -> None:
        """Redeliver outcomes that are still referenced, in the wrong order."""
        everyone = [*self.settled.values(), *self.dead.values(), *self.living.values()]
        finished = [
            answer
            for answer in everyone
            if answer.outcome and answer.outcome.intent.id in self.database
        ]
        chosen = finished[:: -(argument + 1)][:6]
        if chosen:
            self._apply([answer.outcome for answer in chosen if answer.outcome])
        for answer in chosen:
            answer.row = self.database[answer.intent.id]

    def _space(self, argument: int) -> None:
        self.disk.full, self.disk.spool_full = argument in {1, 3}, argument in {2, 3}

    # state

    def _apply(self, outcomes: list[Outcome]) -> bool:
        """Apply one transaction; return whether it is known to be committed."""
        try:
            self.store.apply(outcomes)
        except DatabaseUnavailable:
            return False
        return True

    def _open(self) -> None:
        for folder in (self.disk.data, self.disk.spool):
            folder.mkdir(exist_ok=True)
        self.journal = Journal(
            self.disk.data, self.spool, sync_ms=50, bytes_max=BYTES_MAX, segment_bytes=SEGMENT_BYTES
        )
        self.journal._thread = SimpleNamespace(join=lambda _: self.journal._run_thread())  # type: ignore[assignment]

    def _bury(self, *, powerless: bool = False) -> None:
        """End the process; the next one starts."""
        self.dead |= self.living
        self.living = {}
        if powerless:
            for answer in self.dead.values():
                answer.powerless = True
        self._open()

    def _check_recovered(self) -> None:
        for id_, answer in (self.settled | self.dead).items():
            row = self.database.get(id_)
            # Lost files may return: the next loss may restore names of removed files, even of a
            # copy that was never read.
            is_final = answer.row or (id_ in self.settled and not answer.powerless)
            allowed = [answer.row] if is_final else answer.rows()
            assert row in allowed, (id_, row, allowed, vars(answer))
            answer.row = row
        self.settled |= self.dead
        self.dead = {}

    def _faults_off(self) -> None:
        self.disk.full = self.disk.spool_full = False
        self.disk.plan(0, None)
        self.recover(None, None)
        self._round()
        assert not self.journal._failures
        for answer in [*self.living.values()]:
            if answer.begun and not answer.outcome:
                self._finish(0)
        self._commit(7)
        while any(answer.outcome and not answer.committed for answer in self.living.values()):
            self._commit(7)
        while any(answer.committed and not answer.released for answer in self.living.values()):
            self._release(7)
        self._round()
        self._begin(0)
        assert [*self.living.values()][-1].begun
        assert not self.journal.degraded()
        self._finish(0)
        self._commit(0)
        self._release(0)
        self.stop()
        self.recover(None, None)
        assert [path.name for path in self._files() if path.suffix != ".bad"] == []

    def _compare(self) -> None:
        """Apply the same transactions to SQLite with the real `apply`: the same rows, each once."""
        World.compared += 1
        engine = sa.create_engine("sqlite://")
        metadata.create_all(engine)
        with engine.connect() as connection:
            session: Any = SimpleNamespace(
                dialect=connection.dialect,
                execute=partial(_at_once, connection.execute),
                run_sync=lambda read, *args: _at_once(read, connection, *args),
            )
            for outcomes in self.store.applied:
                with suppress(StopIteration):
                    request_log.apply_outcomes(session, outcomes).send(None)
            stored = {
                str(row["id"]): dict(row)
                for row in connection.execute(sa.select(request_logs)).mappings()
            }
            stored_attempts: dict[str, list[dict[str, Any]]] = {}
            for row in connection.execute(sa.select(attempts).order_by(attempts.c.n)).mappings():
                stored_attempts.setdefault(row["answer_id"], []).append(
                    {str(name): value for name, value in row.items()}
                )
            rows: int = connection.execute(
                sa.select(sa.func.count()).select_from(request_logs)
            ).scalar_one()
        engine.dispose()
        assert rows == len(self.database)
        for id_, outcome in self.database.items():
            assert {
                str(name): value for name, value in stored[id_].items() if name != "seq"
            } == build_row(outcome)
            assert stored_attempts.get(id_, []) == build_attempt_rows(outcome)

    def _files(self) -> list[Path]:
        return sorted(
            path
            for place in (self.disk.data, self.disk.spool)
            if place.is_dir()
            for path in place.iterdir()
        )

    def _note_failure(self, *_: Any) -> None:
        pytest.fail("recovery failed")


def run_histories(machine: type[RuleBasedStateMachine], steps: int, *, history_steps: int) -> int:
    """Run histories of a state machine for so many steps. Returns the number of runs."""
    runs, steps_before = 0, World.steps
    while World.steps - steps_before < steps:
        try:
            run_state_machine_as_test(
                seed(SEED + runs)(machine),
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=history_steps,
                    deadline=None,
                    database=None,
                    print_blob=False,
                    phases=[
                        Phase.generate,
                        *([Phase.shrink] if "KOTAE_TEST_SHRINK" in os.environ else []),
                    ],
                    suppress_health_check=list(HealthCheck),
                ),
            )
        except BaseException as error:
            error.add_note(f"KOTAE_TEST_SEED={SEED + runs}, after {World.steps} steps")
            raise
        runs += 1
    return runs


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(290)]),
        pytest.param(2_000_000, marks=[pytest.mark.nightly, pytest.mark.timeout(4090)]),
    ],
)
def test_the_journal_keeps_its_guarantees(
    capsys: pytest.CaptureFixture[str], record_property: Any, steps: int
) -> None:
    """All guarantees of the journal hold over many thousand steps with faults."""
    runs = run_histories(World, steps, history_steps=30)
    summary = (
        f"{World.steps} steps, seeds {SEED} to {SEED + runs - 1}: {World.deaths} deaths,"
        f" {World.power_losses} losses of power, {World.recoveries} recoveries,"
        f" {World.compared} of {World.examples} histories compared with SQLite"
    )
    record_property("simulation", summary)
    with capsys.disabled():
        print(f"\nsimulation: {summary}")  # noqa: T201 - what was run is part of the result
