"""Recovery: the journals of dead processes become rows."""

from datetime import timedelta
from pathlib import Path

import pytest

from service.core.accounting import log as request_log
from service.core.accounting.audit import audit_log
from service.core.accounting.journal import COPYING, HEADER, find_orphans
from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable
from service.core.records import Answer
from service.workers.recovery import RecoveryState
from tests.core.accounting.test_journal import (
    drop_locks,
    list_files,
    open_journal,
    read_rows,
    run_recovery,
)
from tests.records import build_ended_attempt, build_intent, build_outcome


@pytest.mark.parametrize("spool", [True, False])
async def test_the_records_of_a_dead_process_become_rows(
    database: Database, tmp_path: Path, spool: bool
) -> None:
    """Outcomes are applied, other intents are interrupted, files removed; idempotent."""
    journal = open_journal(tmp_path, spool=spool, segment_bytes=30_000)
    ended, cut = (
        [build_intent(prompt=f"{n}") for n in range(20)],
        [build_intent(prompt="cut") for _ in range(3)],
    )
    for intent in (*ended, *cut):
        journal.append_intent(intent)
    for intent in ended:
        journal.append_outcome(build_outcome(intent, response=intent.prompt * 2))
    drop_locks(journal)

    recovery = await run_recovery(database, tmp_path)

    stored = await read_rows(database)
    assert stored == {
        intent.id: ("completed", intent.prompt, intent.prompt * 2) for intent in ended
    } | {intent.id: ("interrupted", "cut", "") for intent in cut}
    assert (recovery.statistics().rows, recovery.statistics().interrupted) == (23, 3)
    assert list_files(tmp_path) == []
    assert (await run_recovery(database, tmp_path)).statistics().segments == 0


async def test_segments_of_live_processes_are_skipped(database: Database, tmp_path: Path) -> None:
    """Locked segments are not recovered."""
    journal = open_journal(tmp_path)
    journal.append_intent(build_intent())

    assert (await run_recovery(database, tmp_path)).statistics().segments == 0
    assert find_orphans(tmp_path / "journal", tmp_path / "spool") == {}
    assert len(list_files(tmp_path)) == 1
    drop_locks(journal)


async def test_without_the_spool_the_copies_are_read(database: Database, tmp_path: Path) -> None:
    """After a power loss the disk has everything that was synced."""
    journal = open_journal(tmp_path)
    intent = build_intent()
    journal.append_intent(intent)
    journal.append_outcome(build_outcome(intent))
    journal._sync_segments()
    late = build_intent()
    journal.append_intent(late)
    drop_locks(journal)
    for file in (tmp_path / "spool").iterdir():
        file.unlink()

    await run_recovery(database, tmp_path)

    assert list(await read_rows(database)) == [intent.id]


async def test_damaged_files_are_kept(database: Database, tmp_path: Path) -> None:
    """A flipped bit costs one record; the file is renamed to .bad and health is degraded."""
    journal = open_journal(tmp_path)
    intents = [build_intent() for _ in range(3)]
    for intent in intents:
        journal.append_intent(intent)
        journal.append_outcome(build_outcome(intent))
    drop_locks(journal)
    (file,) = list_files(tmp_path)
    data = bytearray(file.read_bytes())
    data[data.rindex(b"Because.")] ^= 1
    file.write_bytes(data)

    recovery = await run_recovery(database, tmp_path)

    statuses = {id_: status for id_, (status, _, _) in (await read_rows(database)).items()}
    assert statuses == dict(
        zip(
            [intent.id for intent in intents],
            ["completed", "completed", "interrupted"],
            strict=True,
        )
    )
    assert recovery.degraded()
    assert recovery.statistics().state is RecoveryState.DONE
    assert [path.suffix for path in list_files(tmp_path)] == [".bad"]


async def test_an_interrupted_removal_leaves_no_torn_copy(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recovery that dies while removing files leaves no torn copy behind."""
    journal = open_journal(tmp_path)
    intent = build_intent()
    journal.append_intent(intent)
    journal.append_outcome(build_outcome(intent))
    drop_locks(journal)
    (file,) = list_files(tmp_path)
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
        await run_recovery(database, tmp_path)
    monkeypatch.setattr(Path, "unlink", remove)

    recovery = await run_recovery(database, tmp_path)

    assert not recovery.degraded()
    assert list_files(tmp_path) == []
    assert [status for status, _, _ in (await read_rows(database)).values()] == ["completed"]


async def test_rejected_records_do_not_stop_recovery(database: Database, tmp_path: Path) -> None:
    """Records that the database rejects are quarantined; the rest become rows."""
    journal = open_journal(tmp_path)
    good, large = build_intent(idempotency_key="k"), build_intent()
    twice = build_intent(idempotency_key="k", at=good.created_at + timedelta(milliseconds=1))
    for intent in (good, twice, large):
        journal.append_intent(intent)
    journal.append_outcome(build_outcome(good))
    journal.append_outcome(build_outcome(twice))
    journal.append_outcome(build_outcome(large, response_time_ms=2**63))
    drop_locks(journal)

    recovery = await run_recovery(database, tmp_path)

    assert list(await read_rows(database)) == [good.id]
    assert recovery.degraded()
    assert sorted(path.stem for path in (tmp_path / "quarantine").iterdir()) == sorted(
        [twice.id, large.id]
    )


async def test_attempts_before_the_death_are_kept(database: Database, tmp_path: Path) -> None:
    """An answer whose process died between two providers has both attempts, the last unknown."""
    journal = open_journal(tmp_path)
    intent = build_intent(model="chat")
    journal.append_intent(intent)
    journal.append_attempt(build_ended_attempt(intent))
    drop_locks(journal)

    await run_recovery(database, tmp_path)

    async with database.read_session() as session:
        row = await request_log.read_row(session, intent.id, user_id=None)
    assert isinstance(row, Answer)
    assert (row.status, row.usage_source, row.attempts) == ("interrupted", "unknown", 2)
    assert (row.provider, row.provider_model) == ("second", "large")
    assert isinstance(row.attempt_list, list)
    assert [(a.provider, a.error_code, a.unbilled) for a in row.attempt_list] == [
        ("first", "provider_busy", True),
        ("second", "shutting_down", False),
    ]
    assert (await audit_log(database, tmp_path)).details == []
