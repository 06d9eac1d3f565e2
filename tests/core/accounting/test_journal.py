"""The journal: what was written is read again, whatever happened to the file, and nothing that was begun lacks room."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.accounting import journal as journals
from service.core.accounting import log as request_log
from service.core.accounting.journal import (
    HEADER,
    LEAN_BYTES,
    Journal,
    decode_frames,
    encode_frame,
    without_texts,
)
from service.core.accounting.log import LogFilter
from service.core.database.engine import Database
from service.core.errors import JournalFull
from service.core.records import Intent, Outcome, Passage
from service.workers.recovery import JournalRecovery
from tests.records import intent, outcome

INTENTS = [intent(prompt=f"prompt {n} 質問") for n in range(4)]
FRAMES = [encode_frame(record) for begun in INTENTS for record in (begun, outcome(begun))]


def opened(tmp_path: Path, *, spool: bool = True, **options: int) -> Journal:
    """A journal whose thread does not run: the test is its disk."""
    (tmp_path / "journal").mkdir(exist_ok=True)
    (tmp_path / "spool").mkdir(exist_ok=True)
    return Journal(
        tmp_path / "journal",
        tmp_path / "spool" if spool else None,
        **({"sync_ms": 50, "bytes_max": 2**26} | options),
    )


def left(tmp_path: Path) -> list[Path]:
    """The files of the journal."""
    return sorted(path for place in ("journal", "spool") for path in (tmp_path / place).glob("*"))


def drop_locks(journal: Journal) -> None:
    """What the death of the process does: its descriptors are closed, its memory is gone."""
    for segment in [*journal._segments, *journal._dead]:
        segment.close()


def begin_all(journal: Journal, **fields: Any) -> list[Intent]:
    """Begin answers until the journal is full; the begun ones."""
    begun: list[Intent] = []
    while True:
        one = intent(**fields)
        try:
            journal.append_intent(one)
        except JournalFull:
            return begun
        begun.append(one)


async def recovered(database: Database, tmp_path: Path) -> JournalRecovery:
    """A recovery, done."""
    recovery = JournalRecovery(
        database, tmp_path / "journal", tmp_path / "spool", quarantine=tmp_path / "quarantine"
    )
    recovery.start()
    await asyncio.wait_for(recovery.wait_done(), 20)
    return recovery


async def rows(database: Database) -> dict[str, tuple[str, str, str]]:
    """(status, prompt, response) by id."""
    async with database.read_session() as session:
        page = await request_log.read_page(session, LogFilter(), limit=1000)
    return {row.id: (row.status, str(row.prompt), str(row.response)) for row in page.items}


def test_records_are_read_as_they_were_written() -> None:
    """Frames give their records back, in order, up to the zeros behind them."""
    records: list[Intent | Outcome] = [
        intent(),
        outcome(sources=[Passage(1, "d", "d.1", "題", "text\0\r\n")]),
        intent(idempotency_key="k"),
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
def test_a_damaged_file_loses_the_damaged_frames_only(data: st.DataObject) -> None:
    """One changed run of bytes, anywhere: every frame outside of it is still read, and the damage is noticed."""
    whole = HEADER + b"".join(FRAMES) + bytes(200)
    start = data.draw(st.integers(0, len(whole) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=60))
    damaged = whole[:start] + noise + whole[start + len(noise) :]

    position = len(HEADER)
    expected: list[Intent | Outcome | None] = []
    for frame in FRAMES:
        if damaged[position : position + len(frame)] == frame:
            expected += decode_frames(frame)
        position += len(frame)
    found = list(decode_frames(damaged))

    assert [record for record in found if record is not None] == expected
    assert None in found or len(expected) == len(FRAMES)


@given(st.integers(0, len(HEADER + b"".join(FRAMES))))
def test_a_torn_file_gives_what_is_whole(size: int) -> None:
    """Cut at any byte, the frames before the cut are read."""
    whole = HEADER + b"".join(FRAMES)
    ends = [len(HEADER) + sum(map(len, FRAMES[: n + 1])) for n in range(len(FRAMES))]

    found = [record for record in decode_frames(whole[:size]) if record is not None]

    assert len(found) == sum(end <= size for end in ends)


@given(st.binary(max_size=300))
def test_any_bytes_can_be_read(data: bytes) -> None:
    """No file makes the decoder raise."""
    assert all(
        record is None or isinstance(record, Intent | Outcome) for record in decode_frames(data)
    )


def test_a_frame_of_another_version_is_passed_over() -> None:
    """What a later version wrote is noticed and left alone, and the frames around it are read."""
    foreign = encode_frame(intent(), version=99)

    assert [
        type(record).__name__ for record in decode_frames(HEADER + FRAMES[0] + foreign + FRAMES[1])
    ] == [
        "Intent",
        "NoneType",
        "Outcome",
    ]


def test_a_lean_outcome_has_room_at_its_longest() -> None:
    """The room reserved with an intent is enough for the longest account without texts."""
    long = intent(
        user_id="ん" * 200,
        model="ん" * 200,
        endpoint="x" * 50,
        request_id="x" * 64,
        idempotency_key="x" * 255,
        body_hash="x" * 64,
        prompt="x" * 9000,
    )
    longest = outcome(
        long,
        response="x" * 9000,
        finish_reason="ん" * 50,
        error_code="x" * 50,
        price="ん" * 9000,
        sources=[Passage(1, "x" * 9000, "", "", "")],
    )

    assert len(encode_frame(without_texts(longest))) < LEAN_BYTES


def test_what_is_committed_is_removed(tmp_path: Path) -> None:
    """When every answer has its row, the files are gone, on the spool and on the disk."""
    journal = Journal(
        tmp_path / "journal", tmp_path / "spool", sync_ms=1, bytes_max=2**26, segment_bytes=40_000
    )
    journal.start()
    intents = [intent() for _ in range(50)]
    for begun in intents:
        journal.append_intent(begun)
    for begun in intents:
        journal.append_outcome(outcome(begun))
    journal.release([begun.id for begun in intents])
    journal.stop(5)

    assert left(tmp_path) == []
    assert journal.statistics().segments == 0


async def test_a_full_journal_refuses_new_answers_and_loses_nothing_begun(
    database: Database, tmp_path: Path
) -> None:
    """At the limit `begin` raises; every outcome still fits, lean where the full one does not; room makes it work again."""
    journal = opened(tmp_path, bytes_max=100_000, segment_bytes=50_000)
    begun = begin_all(journal, prompt="p" * 500)

    for one in begun:
        journal.append_outcome(outcome(one, response="r" * 20_000))
    assert journal.statistics().lean > 0
    drop_locks(journal)
    await recovered(database, tmp_path)

    found = await rows(database)
    assert {status for status, _, _ in found.values()} == {"completed"}
    assert {prompt for _, prompt, _ in found.values()} == {"p" * 500}
    assert len(found) == len(begun)


def test_room_makes_a_full_journal_take_answers_again(tmp_path: Path) -> None:
    """When rows are committed, their segments make room."""
    journal = opened(tmp_path, bytes_max=100_000, segment_bytes=50_000)
    begun = begin_all(journal)
    for one in begun:
        journal.append_outcome(outcome(one))
    journal.release([one.id for one in begun])

    journal.append_intent(intent())
    drop_locks(journal)


def test_a_segment_that_goes_while_it_is_synced_takes_no_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a spool the thread writes anew what it is about to sync. What is committed meanwhile has given up its room."""
    journal = opened(tmp_path, spool=False, bytes_max=200_000, segment_bytes=50_000)
    begun: list[Intent] = []
    while len(journal._segments) < 2:
        begun.append(intent(prompt="p" * 5_000))
        journal.append_intent(begun[-1])
        journal.append_outcome(outcome(begun[-1]))
    first, read = journal._segments[0].path, os.pread

    def release_meanwhile(fd: int, size: int, offset: int) -> bytes:
        data = read(fd, size, offset)
        journal.release([one.id for one in begun])
        return data

    monkeypatch.setattr(os, "pread", release_meanwhile)
    journal._round()

    assert first.stat().st_size == 0
    journal._round()
    assert not first.exists()
    drop_locks(journal)


def test_a_full_spool_disk_is_a_full_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An allocation that fails refuses the answer, leaves no file behind, and heals by itself."""
    journal = opened(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.posix_fallocate", full)
        with pytest.raises(JournalFull, match="No space left"):
            journal.append_intent(intent())
    assert left(tmp_path) == []
    assert journal.degraded()

    journal.append_intent(intent())
    journal._round()
    assert not journal.degraded()
    drop_locks(journal)


@pytest.mark.parametrize("call", ["os.pwrite", "os.fdatasync"])
async def test_a_disk_that_fails_delays_the_copies_only(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """While copies fail, answers go on and health says degraded; afterwards the copies are made anew, whole."""
    journal = opened(tmp_path)
    first, second = intent(), intent()
    journal.append_intent(first)

    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(call, failing)
        journal._round()
        assert journal.degraded()
    journal.append_intent(second)
    journal._round()
    assert not journal.degraded()
    drop_locks(journal)
    for file in (tmp_path / "spool").iterdir():
        file.unlink()

    await recovered(database, tmp_path)
    assert set(await rows(database)) == {first.id, second.id}


def test_a_shared_folder_of_somebody_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spool that others may read or that is not ours is refused, openly: the journal is on the disk then."""
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


def test_a_small_tmpfs_is_used_for_half_of_its_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers have 64 MB there: the journal takes half, and less than 16 MiB is not worth it."""
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
