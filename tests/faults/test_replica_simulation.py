"""Simulation of two replicas and one database, with crashes of each.

Each replica is a simulated process with its own disk (`test_simulation.py`), and both write to one
database. It crashes before a commit, or after one that the replica does not learn of. A replica is
declared lost by the other, rightly or because it paused: rows of its open answers are written.
Its volume may be lost for good, or return.

Checked beside the guarantees of each journal: a row that was final does not change, whoever writes
later; an answer that was declared lost has a row, and its own record replaces it.

KOTAE_TEST_SEED and KOTAE_TEST_SHRINK: as there.
"""

import os
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from service.core.accounting.outcomes import build_interrupted
from service.core.records import RANKS, Outcome
from tests.faults.test_simulation import SEED, Answer, SimulatedDatabase, World, run_histories

REPLICAS = 2
which = st.integers(0, REPLICAS - 1)


class Replicas(RuleBasedStateMachine):
    """State machine of the simulation; see the module docstring."""

    crashes = losses = volumes = 0  # of all runs

    def __init__(self) -> None:
        super().__init__()
        self.store = SimulatedDatabase()
        # The functions of `os` are replaced by one disk after the other, and restored in reverse.
        self.replicas = [World(self.store, slot) for slot in range(REPLICAS)]
        self.seen: dict[str, Outcome] = {}

    @initialize(spools=st.lists(st.booleans(), min_size=REPLICAS, max_size=REPLICAS))
    def start(self, spools: list[bool]) -> None:
        """Start both."""
        for replica, spool in zip(self.replicas, spools, strict=True):
            replica.start(spool=spool)

    def teardown(self) -> None:
        """Without faults every answer gets its row."""
        self.store.crash = None
        for replica in reversed(self.replicas):
            replica.teardown()
        for replica in self.replicas:
            for answer in (replica.settled | replica.dead).values():
                assert not answer.declared_lost or answer.intent.id in self.store.rows

    @rule(replica=which, script=st.binary(min_size=16, max_size=60), calls=st.integers(0, 30),
          fault=st.sampled_from([None, None, None, "EIO", "ENOSPC"]))  # fmt: skip
    def work(self, replica: int, script: bytes, fault: str | None, calls: int) -> None:
        """One replica works."""
        self.replicas[replica].work(script=script, fault=fault, calls=calls)

    @rule(replica=which, script=st.binary(min_size=4, max_size=40), calls=st.integers(0, 40))
    def work_and_die(self, replica: int, script: bytes, calls: int) -> None:
        """One process dies."""
        self.replicas[replica].work_and_die(script=script, calls=calls)

    @rule(replica=which, seed_of_loss=st.integers(0, 2**32), script=st.binary(max_size=20),
          calls=st.integers(0, 30), failing=st.booleans())  # fmt: skip
    def work_and_lose_power(self, replica: int, **options: Any) -> None:
        """One machine loses power."""
        self.replicas[replica].work_and_lose_power(**options)

    @rule(replica=which)
    def stop(self, replica: int) -> None:
        """One process stops regularly."""
        self.replicas[replica].stop()

    @rule(replica=which, cut=st.sampled_from([None, None, 0, 1]),
          calls=st.sampled_from([None, None, *range(12)]))  # fmt: skip
    def recover(self, replica: int, cut: int | None, calls: int | None) -> None:
        """One process recovers what earlier ones have left."""
        self.replicas[replica].recover(cut=cut, calls=calls)

    @rule(when=st.sampled_from(["before", "after"]))
    def crash_database(self, when: str) -> None:
        """The next transaction of any replica fails; what was committed remains."""
        Replicas.crashes += 1
        self.store.crash = when

    @rule(replica=which)
    def declare_lost(self, replica: int) -> None:
        """The leader writes rows of the open answers of a replica that has died, or pauses."""
        world = self.replicas[replica]
        self._interrupt_open([*world.dead.values(), *world.living.values()])

    @rule(replica=which)
    def lose_volume(self, replica: int) -> None:
        """A process dies and its files are gone; the leader writes rows of its open answers."""
        Replicas.volumes += 1
        world = self.replicas[replica]
        world.disk.close_all()
        world._bury(powerless=True)
        for file in world._files():
            os.unlink(file)  # noqa: PTH108 - the disk observes this function
        for answer in world.dead.values():
            answer.intent_safe = answer.outcome_safe = False
        self._interrupt_open([*world.dead.values()])

    @invariant()
    def rows_only_improve(self) -> None:
        """A row never disappears, and is only replaced by one with better usage."""
        for answer_id, before in self.seen.items():
            now = self.store.rows[answer_id]
            assert now is before or RANKS[now.usage_source] > RANKS[before.usage_source]
        self.seen = dict(self.store.rows)

    def _interrupt_open(self, answers: list[Answer]) -> None:
        """Write rows of the answers that were stored as open: here every second one."""
        self.store.crash = None  # the leader repeats it
        lost = [
            answer
            for answer in answers
            if answer.begun and not answer.committed and int(answer.intent.id[1:]) % 2 == 0
        ]
        Replicas.losses += len(lost)
        for answer in lost:
            answer.declared_lost = True
        if lost:
            self.store.apply([build_interrupted(answer.intent) for answer in lost])


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(40_000, marks=[pytest.mark.slow, pytest.mark.timeout(290)]),
        pytest.param(1_000_000, marks=[pytest.mark.nightly, pytest.mark.timeout(4090)]),
    ],
)
def test_replicas_and_their_database_keep_the_guarantees(
    capsys: pytest.CaptureFixture[str], record_property: Any, steps: int
) -> None:
    """All guarantees hold over many thousand steps with crashes of replicas and the database."""
    steps_before = World.steps
    runs = run_histories(Replicas, steps, history_steps=40)
    summary = (
        f"{World.steps - steps_before} steps, seeds {SEED} to {SEED + runs - 1}:"
        f" {Replicas.crashes} crashes of the database, {Replicas.volumes} lost volumes,"
        f" {Replicas.losses} answers declared lost"
    )
    record_property("simulation", summary)
    with capsys.disabled():
        print(f"\nsimulation of replicas: {summary}")  # noqa: T201 - as in test_simulation
