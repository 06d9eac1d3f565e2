"""The journal: records survive damage to its files, and begun answers have space."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.accounting import journal as journals
from service.core.accounting.journal import (
    HEADER,
    LEAN_BYTES,
    Journal,
    Record,
    decode_frames,
    encode_frame,
    strip_texts,
)
from service.core.accounting.log_pages import LogFilter, read_page
from service.core.database.engine import Database
from service.core.errors import JournalFull
from service.core.provider_file import TARGETS_MAX
from service.core.records import Intent, Outcome, Passage
from service.workers.recovery import JournalRecovery
from tests.records import build_attempt, build_intent, build_outcome

INTENTS = [build_intent(prompt=f"prompt {n} 質問") for n in range(4)]
FRAMES = [encode_frame(record) for intent in INTENTS for record in (intent, build_outcome(intent))]


def open_journal(tmp_path: Path, *, spool: bool = True, **options: int) -> Journal:
    """Create a journal without its thread: the test syncs."""
    (tmp_path / "journal").mkdir(exist_ok=True)
    (tmp_path / "spool").mkdir(exist_ok=True)
    return Journal(
        tmp_path / "journal",
        tmp_path / "spool" if spool else None,
        **({"sync_ms": 50, "bytes_max": 2**26} | options),
    )


def list_files(tmp_path: Path) -> list[Path]:
    """List the files of the journal."""
    return sorted(path for place in ("journal", "spool") for path in (tmp_path / place).glob("*"))


def drop_locks(journal: Journal) -> None:
    """Close the descriptors, as the death of the process does."""
    for segment in [*journal._segments, *journal._retired]:
        segment.close()


def fill_journal(journal: Journal, **fields: Any) -> list[Intent]:
    """Add intents until the journal is full, and return them."""
    intents: list[Intent] = []
    while True:
        intent = build_intent(**fields)
        try:
            journal.append_intent(intent)
        except JournalFull:
            return intents
        intents.append(intent)


async def run_recovery(database: Database, tmp_path: Path) -> JournalRecovery:
    """Run a recovery to its end."""
    recovery = JournalRecovery(
        database, tmp_path / "journal", tmp_path / "spool", quarantine=tmp_path / "quarantine"
    )
    recovery.start()
    await asyncio.wait_for(recovery.wait_done(), 20)
    return recovery


async def read_rows(database: Database) -> dict[str, tuple[str, str, str]]:
    """Read (status, prompt, response) by id."""
    async with database.read_session() as session:
        page = await read_page(session, LogFilter(), limit=1000)
    return {row.id: (str(row.status), str(row.prompt), str(row.response)) for row in page.items}


def test_frames_round_trip() -> None:
    """Frames decode to their records, in order, up to the trailing zeros."""
    records: list[Intent | Outcome] = [
        build_intent(),
        build_outcome(sources=[Passage(1, "d", "d.1", "題", "text\0\r\n")]),
        build_intent(idempotency_key="k"),
    ]

    assert (
        list(
            decode_frames(
                HEADER + b"".join(encode_frame(record) for record in records) + bytes(5000)
            )
        )
        == records
    )


@given(st.data())
def test_damage_loses_only_damaged_frames(data: st.DataObject) -> None:
    """After one damaged run of bytes, all other frames are decoded and the damage is reported."""
    whole = HEADER + b"".join(FRAMES) + bytes(200)
    start = data.draw(st.integers(0, len(whole) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=60))
    damaged = whole[:start] + noise + whole[start + len(noise) :]

    position = len(HEADER)
    expected: list[Record | None] = []
    for frame in FRAMES:
        if damaged[position : position + len(frame)] == frame:
            expected += decode_frames(frame)
        position += len(frame)
    decoded = list(decode_frames(damaged))

    assert [record for record in decoded if record is not None] == expected
    assert None in decoded or len(expected) == len(FRAMES)


@given(st.integers(0, len(HEADER + b"".join(FRAMES))))
def test_complete_frames_of_a_torn_file_are_decoded(size: int) -> None:
    """The frames before a cut at any byte are decoded."""
    whole = HEADER + b"".join(FRAMES)
    ends = [len(HEADER) + sum(map(len, FRAMES[: n + 1])) for n in range(len(FRAMES))]

    decoded = [record for record in decode_frames(whole[:size]) if record is not None]

    assert len(decoded) == sum(end <= size for end in ends)


@given(st.binary(max_size=300))
def test_any_bytes_can_be_decoded(data: bytes) -> None:
    """No file makes the decoder raise."""
    assert all(
        record is None or isinstance(record, Intent | Outcome) for record in decode_frames(data)
    )


def test_frames_of_other_versions_are_skipped() -> None:
    """A frame of a later version is reported and skipped."""
    foreign = encode_frame(build_intent(), version=99)

    assert [
        type(record).__name__ for record in decode_frames(HEADER + FRAMES[0] + foreign + FRAMES[1])
    ] == [
        "Intent",
        "NoneType",
        "Outcome",
    ]


def test_the_longest_lean_outcome_fits() -> None:
    """The reserved space fits the longest outcome without texts."""
    long = build_intent(
        user_id="ん" * 200,
        model="ん" * 200,
        endpoint="x" * 50,
        request_id="x" * 64,
        idempotency_key="x" * 255,
        body_hash="x" * 64,
        prompt="x" * 9000,
    )
    longest = build_outcome(
        long,
        response="x" * 9000,
        finish_reason="ん" * 50,
        error_code="x" * 50,
        price="ん" * 9000,
        sources=[Passage(1, "x" * 9000, "", "", "")],
        provider="x" * 50,
        provider_model="x" * 200,
        attempt_list=[
            build_attempt(provider="x" * 50, model="x" * 200, error_code="x" * 50, price="x" * 9000)
        ]
        * TARGETS_MAX,
    )

    assert len(encode_frame(strip_texts(longest))) < LEAN_BYTES


def test_committed_segments_are_removed(tmp_path: Path) -> None:
    """When every answer has its row, the files are removed from spool and disk."""
    journal = Journal(
        tmp_path / "journal", tmp_path / "spool", sync_ms=1, bytes_max=2**26, segment_bytes=40_000
    )
    journal.start()
    intents = [build_intent() for _ in range(50)]
    for intent in intents:
        journal.append_intent(intent)
    for intent in intents:
        journal.append_outcome(build_outcome(intent))
    journal.release([intent.id for intent in intents])
    journal.stop(5)

    assert list_files(tmp_path) == []
    assert journal.statistics().segments == 0


async def test_a_full_journal_loses_no_outcome(database: Database, tmp_path: Path) -> None:
    """A full journal rejects intents; every outcome still fits, some without texts."""
    journal = open_journal(tmp_path, bytes_max=100_000, segment_bytes=50_000)
    intents = fill_journal(journal, prompt="p" * 500)

    for intent in intents:
        journal.append_outcome(build_outcome(intent, response="r" * 20_000))
    assert journal.statistics().lean > 0
    drop_locks(journal)
    await run_recovery(database, tmp_path)

    stored = await read_rows(database)
    assert {status for status, _, _ in stored.values()} == {"completed"}
    assert {prompt for _, prompt, _ in stored.values()} == {"p" * 500}
    assert len(stored) == len(intents)


def test_commits_free_a_full_journal(tmp_path: Path) -> None:
    """Committed rows free the space of their segments."""
    journal = open_journal(tmp_path, bytes_max=100_000, segment_bytes=50_000)
    intents = fill_journal(journal)
    for intent in intents:
        journal.append_outcome(build_outcome(intent))
    journal.release([intent.id for intent in intents])

    journal.append_intent(build_intent())
    drop_locks(journal)


def test_a_segment_retired_during_a_sync_stays_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment retired during its first sync without a spool does not grow again."""
    journal = open_journal(tmp_path, spool=False, bytes_max=200_000, segment_bytes=50_000)
    intents: list[Intent] = []
    while len(journal._segments) < 2:
        intents.append(build_intent(prompt="p" * 5_000))
        journal.append_intent(intents[-1])
        journal.append_outcome(build_outcome(intents[-1]))
    first, read = journal._segments[0].path, os.pread

    def read_and_release(fd: int, size: int, offset: int) -> bytes:
        data = read(fd, size, offset)
        journal.release([intent.id for intent in intents])
        return data

    monkeypatch.setattr(os, "pread", read_and_release)
    journal._sync_segments()

    assert first.stat().st_size == 0
    journal._sync_segments()
    assert not first.exists()
    drop_locks(journal)


def test_a_full_spool_disk_is_a_full_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed allocation rejects the answer and leaves no file; the next one may succeed."""
    journal = open_journal(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.posix_fallocate", full)
        with pytest.raises(JournalFull, match="No space left"):
            journal.append_intent(build_intent())
    assert list_files(tmp_path) == []
    assert journal.degraded()

    journal.append_intent(build_intent())
    journal._sync_segments()
    assert not journal.degraded()
    drop_locks(journal)


@pytest.mark.parametrize("call", ["os.pwrite", "os.fdatasync"])
async def test_failed_syncs_are_repeated(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """While syncs fail, health is degraded; afterwards the copies are written completely."""
    journal = open_journal(tmp_path)
    first, second = build_intent(), build_intent()
    journal.append_intent(first)

    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(call, failing)
        journal._sync_segments()
        assert journal.degraded()
    journal.append_intent(second)
    journal._sync_segments()
    assert not journal.degraded()
    drop_locks(journal)
    for file in (tmp_path / "spool").iterdir():
        file.unlink()

    await run_recovery(database, tmp_path)
    assert set(await read_rows(database)) == {first.id, second.id}


def test_an_accessible_spool_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool that is accessible to others is not used: the journal is on the disk."""
    size = 2**24
    chosen, room = journals.choose_spool(tmp_path, "auto", size)
    if chosen is None:
        pytest.skip("not run: /dev/shm is no tmpfs with room here")
    try:
        assert room == size
        chosen.chmod(0o755)
        assert journals.choose_spool(tmp_path, "auto", size) == (None, size)
        chosen.chmod(0o700)
        assert journals.choose_spool(tmp_path, "auto", size) == (chosen, size)
        assert journals.choose_spool(tmp_path, "none", size) == (None, size)
        monkeypatch.setattr("os.path.ismount", lambda _: False)
        assert journals.choose_spool(tmp_path, "auto", size) == (None, size)
    finally:
        chosen.rmdir()


def test_half_of_a_small_tmpfs_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a 64 MB tmpfs is used, as in containers; less than 16 MiB is not used."""
    monkeypatch.setattr("os.path.ismount", lambda _: True)
    for free, expected in ((64 * 2**20, 32 * 2**20), (2**30, 2**28)):
        monkeypatch.setattr(
            "os.statvfs",
            lambda _, free=free: os.statvfs_result(
                (4096, 4096, free // 4096, 0, free // 4096, 0, 0, 0, 0, 255)
            ),
        )
        chosen, room = journals.choose_spool(tmp_path, "auto", 2**28)
        assert room == expected
        if chosen:
            chosen.rmdir()
    monkeypatch.setattr(
        "os.statvfs", lambda _: os.statvfs_result((4096, 4096, 1000, 0, 1000, 0, 0, 0, 0, 255))
    )
    assert journals.choose_spool(tmp_path, "auto", 2**28) == (None, 2**28)
