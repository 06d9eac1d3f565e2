r"""The journal: records survive the process, and nobody waits for a disk.

A *segment* is a file of this process alone: 8 bytes `KOTAEJ01`, then frames, then zeros to its end. A *frame* is

    mark "\xc5KJ\x9d" | kind u8 | version u8 | zero u16 | length u32 | crc32 u32 | payload      (big-endian)

with the payload in MessagePack (`Intent` or `Outcome`) and the checksum over kind … length and payload. A frame is valid
if its mark, its length (inside the file), its checksum and its version are right and its payload decodes. Reading goes
on behind anything invalid, at the next mark that begins a valid frame: a torn tail, a flipped bit, a block of zeros or a
frame of a later version never stops a replay.

**Space.** Segments are allocated whole, so writing into one cannot fail for want of space. `begin` writes the intent
and reserves room for a *lean* outcome (the account without its texts) in the same segment. `finish` writes the full
outcome where it fits, in a new segment if need be; if the disk is full it writes the lean one into its reserved room.
So a full disk refuses new answers, before the provider is called, and loses nothing that was begun but texts, and those
only if the process dies before the writer has the outcome from memory.

**Speed.** Segments live on a tmpfs (the *spool*), where a write takes microseconds whatever the disks do; a thread copies
them into the data folder and syncs each copy every `sync_ms`. Without a usable tmpfs they are in the data folder from
the start, and a write may block with its filesystem: `statistics().spool` says which.

**Life.** A segment holds the ids of answers whose row may still have to be made from it. When each is committed it is
removed; when it is full, reserved by nobody and copied, only its copy is kept. Files are locked (`flock`) while their
process lives: whoever gets the lock owns the replay (`read_segments`, used by `workers/recovery.py`).

After the death of the process the spool has everything. After the loss of power the copies have everything older than
`sync_ms` and the duration of one sync; with `sync_ms` 0 answers wait for the sync (`wait_synced`).
"""

import fcntl
import hashlib
import os
import stat
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from service.core.errors import JournalFull
from service.core.records import VERSION, Intent, Outcome
from service.core.telemetry import log

HEADER = b"KOTAEJ01"
SEGMENT_BYTES = 4 * 1024 * 1024
COPYING = (
    ".copying"  # suffix of a copy that is being made; it becomes the copy when all of it is safe
)
_SHARED = Path("/dev/shm")  # noqa: S108 - anybody's: see `existing_spool`
SPOOL_BYTES_MIN = 16 * 1024 * 1024  # a tmpfs with less room for us is not used
LEAN_BYTES = 8192  # more than any lean outcome has; see the bounds of its fields in `tables` and the settings
_MARK = b"\xc5KJ\x9d"
_HEAD = struct.Struct(">4sBBHII")
_INTENT, _OUTCOME = 1, 2
_TYPES: dict[int, type[Intent] | type[Outcome]] = {_INTENT: Intent, _OUTCOME: Outcome}


class JournalStatistics(msgspec.Struct, frozen=True):
    """`spool`: whether records stay off the disk at first. `lean`: outcomes written without texts for want of space.

    `unsynced_bytes`: what the loss of power would take. `failures`: errors of the disk since its last success, and
    answers refused since the last that was taken.
    """

    spool: bool
    segments: int
    bytes: int
    unsynced_bytes: int
    lean: int
    failures: int


def encode_frame(record: Intent | Outcome, version: int = VERSION) -> bytes:
    """A record as a frame of this version of the format."""
    payload = msgspec.msgpack.encode(record)
    kind = _INTENT if isinstance(record, Intent) else _OUTCOME
    checked = struct.pack(">BBHI", kind, version, 0, len(payload))
    return (
        _HEAD.pack(_MARK, kind, version, 0, len(payload), zlib.crc32(payload, zlib.crc32(checked)))
        + payload
    )


def decode_frames(data: bytes) -> Iterator[Intent | Outcome | None]:
    """The records of a segment in order; None stands for each run of bytes that is no valid frame and not all zeros."""
    position = len(HEADER) if data.startswith(HEADER) else 0
    while position < len(data):
        if found := _frame_at(data, position):
            yield found[0]
            position = found[1]
            continue
        following = data.find(_MARK, position + 1)
        while following >= 0 and not _frame_at(data, following):
            following = data.find(_MARK, following + 1)
        end = len(data) if following < 0 else following
        if data.count(0, position, end) < end - position:
            yield None
        position = end


def _frame_at(data: bytes, position: int) -> tuple[Intent | Outcome, int] | None:
    if len(data) - position < _HEAD.size:
        return None
    mark, kind, version, _, length, crc = _HEAD.unpack_from(data, position)
    start = position + _HEAD.size
    if mark != _MARK or version != VERSION or kind not in _TYPES or length > len(data) - start:
        return None
    payload = data[start : start + length]
    if zlib.crc32(payload, zlib.crc32(data[position + 4 : position + 12])) != crc:
        return None
    try:
        return msgspec.msgpack.decode(payload, type=_TYPES[kind]), start + length
    except msgspec.MsgspecError:
        return None


class _Segment:
    """One file of ours, locked; `copy_path` is where the thread copies it, if it is on the spool."""

    def __init__(self, path: Path, size: int, copy_path: Path | None) -> None:
        self.path, self.size, self.copy_path = path, size, copy_path
        self.offset = len(HEADER)
        self.reserved = 0
        self.holds: set[str] = set()
        self.sealed = False
        self.retired = False  # its room is counted as free
        self.synced = 0
        self.copy_fd: int | None = None
        self.fd: int | None = _create(path)
        try:
            os.posix_fallocate(self.fd, 0, size)
            _write_at(self.fd, HEADER, 0)
        except OSError:
            self.close()
            path.unlink()
            raise

    @property
    def free(self) -> int:
        return self.size - self.offset - self.reserved

    def append(self, frame: bytes) -> None:
        """Write behind what is there. Raises OSError, and then nothing has been written."""
        assert self.fd is not None  # noqa: S101 - only sealed segments without reservations give up their file
        _write_at(self.fd, frame, self.offset)
        self.offset += len(frame)

    def sync(self) -> None:
        """For the thread: bring what is new to the disk. Raises OSError; then everything is written again next time.

        For what a failed sync had to sync may count as clean although it is nowhere: a second sync would not see it.
        """
        end = self.offset
        if self.synced == end or self.fd is None:
            return
        if self.copy_path:
            self._copy(self.fd, self.copy_path, end)
        else:
            if not self.synced:  # new, or failed
                _write_at(self.fd, os.pread(self.fd, end, 0), 0)
                if self.retired:  # meanwhile: it must not take its room again
                    os.truncate(self.path, 0)
            synced, self.synced = self.synced, 0
            os.fdatasync(self.fd)
            if not synced:
                _sync_folder(self.path.parent)
        self.synced = end

    def _copy(self, fd: int, path: Path, end: int) -> None:
        """Bring the copy up to `end`. One whose sync failed is not touched until a new one is safe and takes its place."""
        anew, copy_fd = (
            self.copy_fd is None,
            self.copy_fd if self.copy_fd is not None else _create(path.with_suffix(COPYING)),
        )
        try:
            _write_at(copy_fd, os.pread(fd, end - self.synced, self.synced), self.synced)
            os.fdatasync(copy_fd)
            if anew:
                path.with_suffix(COPYING).replace(path)
                _sync_folder(path.parent)
        except OSError:
            self.copy_fd, self.synced = None, 0
            os.close(copy_fd)
            raise
        self.copy_fd = copy_fd

    def drop_spool(self) -> None:
        """For the thread: a full segment that nobody will write to, and that is copied, needs its copy only."""
        if (
            self.copy_path
            and self.fd is not None
            and self.sealed
            and not self.reserved
            and self.synced == self.offset
        ):
            fd, self.fd = self.fd, None
            os.close(fd)
            self.path.unlink(missing_ok=True)

    def remove(self) -> None:
        """For the thread: every answer in it has its row. Raises OSError; then it can be tried again."""
        self.close()
        if self.copy_path:
            self.copy_path.unlink(missing_ok=True)
            self.copy_path.with_suffix(COPYING).unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        for fd in (self.fd, self.copy_fd):
            if fd is not None:
                os.close(fd)
        self.fd = self.copy_fd = None


class Journal:
    """The journal of one process. `begin`, `finish` and `release` are called on the event loop and never block on a spool."""

    def __init__(
        self,
        folder: Path,
        spool: Path | None,
        *,
        sync_ms: float,
        bytes_max: int,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._folder, self._spool = folder, spool
        self._sync_ms, self._bytes_max, self._segment_bytes = (
            sync_ms,
            bytes_max,
            min(segment_bytes, bytes_max // 2),
        )
        self._process = f"{_boot()}-{os.getpid()}-{time.time_ns()}"
        self._count = 0
        self._segments: list[_Segment] = []
        self._current: _Segment | None = None
        self._homes: dict[str, _Segment] = {}  # where the room of each begun answer is reserved
        self._holders: dict[str, set[_Segment]] = {}
        self._dead: deque[_Segment] = deque()
        self._lean = 0
        self._failures = 0
        self._refused = 0
        self._wake = threading.Event()
        self._ending = False
        self._synced_calls: deque[Callable[[], None]] = deque()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    @property
    def synchronous(self) -> bool:
        """Whether answers wait for the disk."""
        return self._sync_ms == 0

    def start(self) -> None:
        """Make the folders and start the thread."""
        for folder in filter(None, (self._folder, self._spool)):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Sync what is there, remove what is done with, and end the thread. What is still held stays for the next process."""
        if self._current and not self._current.holds:
            self._retire(self._current)
        self._ending = True
        self._wake.set()
        self._thread.join(seconds)
        if self._spool:
            with suppress(OSError):  # something is left in it, or somebody else's
                self._spool.rmdir()

    def append_intent(self, intent: Intent) -> None:
        """Write the intent and reserve room for its outcome. Raises `JournalFull`; then nothing was begun."""
        frame = encode_frame(intent)
        try:
            segment = self._room(len(frame) + LEAN_BYTES)
            segment.append(frame)
        except OSError as error:
            self._refused += 1
            raise JournalFull(
                f"the journal cannot take another answer: {error.strerror}"
            ) from error
        self._refused = 0
        segment.reserved += LEAN_BYTES
        self._homes[intent.id] = segment
        self._hold(segment, intent.id)

    def append_outcome(self, outcome: Outcome) -> None:
        """Write the outcome of a begun intent, full or, for want of space, lean. Never raises."""
        home = self._homes.pop(outcome.intent.id)
        try:
            frame = encode_frame(outcome)
            try:
                segment = self._room(len(frame))
                segment.append(frame)
            except OSError:
                segment = home
                segment.append(encode_frame(without_texts(outcome)))
                self._lean += 1
        except (
            OSError,
            ValueError,
            OverflowError,
        ) as error:  # a broken file; a record that cannot be encoded
            self._failures += 1
            log.error("outcome.not_journaled", answer_id=outcome.intent.id, error=str(error))
        else:
            self._hold(segment, outcome.intent.id)
        finally:
            home.reserved -= LEAN_BYTES

    def release(self, answer_ids: list[str]) -> None:
        """These are in the database: their records are needed no more."""
        for answer_id in answer_ids:
            for segment in self._holders.pop(answer_id, ()):
                segment.holds.discard(answer_id)
                if not segment.holds and segment is not self._current:
                    self._retire(segment)

    def when_synced(self, call: Callable[[], None]) -> None:
        """Call from the thread once everything written by now is on the disk."""
        self._synced_calls.append(call)
        self._wake.set()

    def degraded(self) -> bool:
        """Whether the disk refused the last thing it was asked, or the last answer was refused for want of room."""
        return self._failures > 0 or self._refused > 0

    def statistics(self) -> JournalStatistics:
        """A frozen look at the journal."""
        segments = list(self._segments)
        return JournalStatistics(
            spool=self._spool is not None,
            segments=len(segments),
            bytes=sum(segment.size for segment in segments),
            unsynced_bytes=sum(
                segment.offset - segment.synced for segment in segments if segment.fd is not None
            ),
            lean=self._lean,
            failures=self._failures + self._refused,
        )

    def _room(self, size: int) -> _Segment:
        """The current segment, or a new one if it has not this much free. Raises OSError."""
        if self._current is None or self._current.free < size:
            self._rotate(max(self._segment_bytes, size + len(HEADER)))
        assert self._current is not None  # noqa: S101 - _rotate has made it
        return self._current

    def _rotate(self, size: int) -> None:
        if self._current and not self._current.holds:
            self._retire(self._current)  # first of all: its room may be the last there is
        if (
            sum(segment.size for segment in self._segments if segment.fd is not None) + size
            > self._bytes_max
        ):
            raise OSError(28, "KOTAE_JOURNAL_BYTES_MAX is reached")
        self._count += 1
        name = f"{self._process}-{self._count:06d}.journal"
        if self._spool:
            self._spool.mkdir(
                parents=True, exist_ok=True, mode=0o700
            )  # the end of another process may have taken it away
        new = _Segment(
            (self._spool or self._folder) / name, size, self._folder / name if self._spool else None
        )
        old, self._current = self._current, new
        self._segments.append(new)
        if old:
            old.sealed = True

    def _hold(self, segment: _Segment, answer_id: str) -> None:
        segment.holds.add(answer_id)
        self._holders.setdefault(answer_id, set()).add(segment)

    def _retire(self, segment: _Segment) -> None:
        if segment in self._segments:
            self._segments.remove(segment)
            self._dead.append(segment)
            segment.retired = True
            if segment is self._current:
                self._current = None
            with suppress(
                OSError
            ):  # its room is free at once; the thread that removes it may be held up by the disk
                os.truncate(segment.path, 0)

    def _run(self) -> None:
        while not self._ending:
            self._wake.wait(self._sync_ms / 1000 if self._sync_ms else 1)
            self._wake.clear()
            self._round()
        self._round()
        for segment in self._segments:
            segment.close()

    def _round(self) -> None:
        """Sync every segment, drop what need not be kept, tell those who wait."""
        calls = [self._synced_calls.popleft() for _ in range(len(self._synced_calls))]
        try:
            while self._dead:
                self._dead[0].remove()
                self._dead.popleft()
            for segment in list(self._segments):
                segment.sync()
                segment.drop_spool()
        except OSError as error:
            if not self._failures:
                log.error("journal.delayed", error=str(error))
            self._failures += 1
            self._synced_calls.extendleft(reversed(calls))
            time.sleep(0.05)
            return
        self._failures = 0
        for call in calls:
            with suppress(RuntimeError):  # the loop that waited is closed
                call()


def without_texts(outcome: Outcome) -> Outcome:
    """The account without its texts; what a price says is cut, its number is on the cost."""
    intent = msgspec.structs.replace(outcome.intent, prompt="")
    return msgspec.structs.replace(
        outcome, intent=intent, response="", sources=[], price=outcome.price and outcome.price[:500]
    )


def choose_spool(data_dir: Path, wanted: str, bytes_max: int) -> tuple[Path | None, int]:
    """A folder of ours on a tmpfs, or None, openly, if there is none with room; and how many bytes may be on it.

    `wanted`: `auto` for one under /dev/shm, `none`, or a path.
    """
    if wanted != "auto":
        return (None if wanted == "none" else Path(wanted)), bytes_max
    try:
        status = os.statvfs(_SHARED)
        room = min(
            bytes_max, status.f_bavail * status.f_frsize // 2
        )  # half of what is free: it is shared
        if not os.path.ismount(_SHARED) or room < SPOOL_BYTES_MIN:
            return None, bytes_max
        _folder_of(data_dir).mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return None, bytes_max
    folder = find_spool(data_dir, wanted)
    return folder, (room if folder else bytes_max)


def find_spool(data_dir: Path, wanted: str) -> Path | None:
    """Where an earlier process may have left its segments, whether or not there is room for more.

    The shared folder is anybody's: one of our name that is not ours, or open to others, is not used.
    """
    if wanted != "auto":
        return None if wanted == "none" else Path(wanted)
    folder = _folder_of(data_dir)
    try:
        found = folder.lstat()
    except OSError:
        return None
    return (
        folder
        if stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and found.st_mode & 0o077 == 0
        else None
    )


def _folder_of(data_dir: Path) -> Path:
    return (
        _SHARED / f"kotae-{os.getuid()}-{hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]}"
    )


def find_orphans(folder: Path, spool: Path | None) -> dict[str, list[tuple[int, Path, list[Path]]]]:
    """Segments of processes that are gone, by process: (locked descriptor, file to read, all files of that segment).

    Where a segment is on the spool it is read there: the copy may be behind. The caller reads, then removes or closes.
    """
    found: dict[str, list[tuple[int, Path, list[Path]]]] = {}
    places = [place for place in (spool, folder) if place and place.is_dir()]
    stems = {
        path.stem
        for place in places
        for path in place.iterdir()
        if path.suffix in (".journal", COPYING)
    }
    for stem in sorted(stems):
        paths = [
            path
            for suffix in (".journal", COPYING)
            for place in places
            if (path := place / f"{stem}{suffix}").exists()
        ]
        locks = [fd for path in paths if (fd := _lock(path)) is not None]
        if len(locks) < len(paths) or not paths:
            for fd in locks:
                os.close(fd)
            continue
        for fd in locks[1:]:
            os.close(fd)
        found.setdefault(stem.rpartition("-")[0], []).append((locks[0], paths[0], paths))
    return found


def _lock(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _create(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def _sync_folder(folder: Path) -> None:
    """Make the names in it safe."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_at(fd: int, data: bytes, offset: int) -> None:
    """All of it or OSError: a short write is one too, and what it wrote is overwritten by the next."""
    if os.pwrite(fd, data, offset) != len(data):
        raise OSError(28, "short write")


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    return "00000000"
