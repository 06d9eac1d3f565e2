"""Recovery: the journals of dead processes become rows."""

from datetime import timedelta
from pathlib import Path

import pytest

from service.core.accounting.journal import COPYING, HEADER, find_orphans
from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable
from service.workers.recovery import RecoveryState
from tests.core.accounting.test_journal import drop_locks, left, opened, recovered, rows
from tests.records import intent, outcome


@pytest.mark.parametrize("spool", [True, False])
async def test_the_records_of_a_dead_process_become_rows(
    database: Database, tmp_path: Path, spool: bool
) -> None:
    """Outcomes are applied, intents without outcome are interrupted, and the files are removed; a second time changes nothing."""
    journal = opened(tmp_path, spool=spool, segment_bytes=30_000)
    ended, cut = (
        [intent(prompt=f"{n}") for n in range(20)],
        [intent(prompt="cut") for _ in range(3)],
    )
    for begun in (*ended, *cut):
        journal.append_intent(begun)
    for begun in ended:
        journal.append_outcome(outcome(begun, response=begun.prompt * 2))
    drop_locks(journal)

    recovery = await recovered(database, tmp_path)

    found = await rows(database)
    assert found == {one.id: ("completed", one.prompt, one.prompt * 2) for one in ended} | {
        one.id: ("interrupted", "cut", "") for one in cut
    }
    assert (recovery.statistics().rows, recovery.statistics().interrupted) == (23, 3)
    assert left(tmp_path) == []
    assert (await recovered(database, tmp_path)).statistics().segments == 0


async def test_the_segments_of_a_living_process_are_left_alone(
    database: Database, tmp_path: Path
) -> None:
    """Nobody recovers what its owner still holds."""
    journal = opened(tmp_path)
    journal.append_intent(intent())

    assert (await recovered(database, tmp_path)).statistics().segments == 0
    assert find_orphans(tmp_path / "journal", tmp_path / "spool") == {}
    assert len(left(tmp_path)) == 1
    drop_locks(journal)


async def test_without_the_spool_the_copies_are_read(database: Database, tmp_path: Path) -> None:
    """After a loss of power the disk has everything that was synced."""
    journal = opened(tmp_path)
    begun = intent()
    journal.append_intent(begun)
    journal.append_outcome(outcome(begun))
    journal._round()
    late = intent()
    journal.append_intent(late)
    drop_locks(journal)
    for file in (tmp_path / "spool").iterdir():
        file.unlink()

    await recovered(database, tmp_path)

    assert list(await rows(database)) == [begun.id]


async def test_damage_is_kept_and_told(database: Database, tmp_path: Path) -> None:
    """A flipped bit costs one record; the rest become rows, the file stays as .bad, and health says degraded."""
    journal = opened(tmp_path)
    intents = [intent() for _ in range(3)]
    for begun in intents:
        journal.append_intent(begun)
        journal.append_outcome(outcome(begun))
    drop_locks(journal)
    (file,) = left(tmp_path)
    data = bytearray(file.read_bytes())
    data[data.rindex(b"Because.")] ^= 1
    file.write_bytes(data)

    recovery = await recovered(database, tmp_path)

    statuses = {id_: status for id_, (status, _, _) in (await rows(database)).items()}
    assert statuses == dict(
        zip([begun.id for begun in intents], ["completed", "completed", "interrupted"], strict=True)
    )
    assert recovery.degraded()
    assert recovery.statistics().state is RecoveryState.DONE
    assert [path.suffix for path in left(tmp_path)] == [".bad"]


async def test_a_copy_that_is_torn_is_not_what_remains(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recovery ends while it removes the files, of which one is the beginning of a copy: the next one finds no damage in what is left."""
    journal = opened(tmp_path)
    begun = intent()
    journal.append_intent(begun)
    journal.append_outcome(outcome(begun))
    drop_locks(journal)
    (file,) = left(tmp_path)
    (tmp_path / "journal" / file.name).with_suffix(COPYING).write_bytes(
        file.read_bytes()[: len(HEADER) + 30]
    )
    remove = Path.unlink
    removed: list[Path] = []

    def remove_one(path: Path, *, missing_ok: bool = False) -> None:
        if removed:
            raise OSError("the process has ended")
        removed.append(path)
        remove(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", remove_one)
    with pytest.raises(DatabaseUnavailable):
        await recovered(database, tmp_path)
    monkeypatch.setattr(Path, "unlink", remove)

    recovery = await recovered(database, tmp_path)

    assert not recovery.degraded()
    assert left(tmp_path) == []
    assert [status for status, _, _ in (await rows(database)).values()] == ["completed"]


async def test_a_record_that_no_database_takes_stops_no_recovery(
    database: Database, tmp_path: Path
) -> None:
    """Two rows of one key, or a number too large: the bad one goes to a file, the rest become rows."""
    journal = opened(tmp_path)
    good, large = intent(idempotency_key="k"), intent()
    twice = intent(idempotency_key="k", at=good.created_at + timedelta(milliseconds=1))
    for begun in (good, twice, large):
        journal.append_intent(begun)
    journal.append_outcome(outcome(good))
    journal.append_outcome(outcome(twice))
    journal.append_outcome(outcome(large, response_time_ms=2**63))
    drop_locks(journal)

    recovery = await recovered(database, tmp_path)

    assert list(await rows(database)) == [good.id]
    assert recovery.degraded()
    assert sorted(path.stem for path in (tmp_path / "quarantine").iterdir()) == sorted(
        [twice.id, large.id]
    )
