r"""The journal: an append-only log of records that survives the process.

A *segment* is a file written by one process: 8 bytes `KOTAEJ01`, then frames, then zeros to its
end. A *frame* is

    mark "\xc5KJ\x9d" | kind u8 | version u8 | zero u16 | length u32 | crc32 u32 | payload

in big-endian order, with the payload in MessagePack (`Intent`, `EndedAttempt` or `Outcome`) and the
checksum over kind, version, zero, length and payload. A frame is valid if its mark, length (within
the file), checksum and version are valid and its payload decodes. Decoding continues after invalid
data at the next mark that starts a valid frame: a torn tail, a flipped bit, a block of zeros or a
frame of a later version never stops a replay.

**Space.** Segments are allocated completely, so writing into one cannot fail with ENOSPC.
`append_intent` writes the intent and reserves space for a *lean* outcome (without texts) in the
same segment. `append_outcome` writes the full outcome if it fits, in a new segment if necessary; on
a full disk it writes the lean outcome into the reserved space. A full disk therefore rejects new
answers before the provider is called. Of running answers it loses at most the texts, and only if
the process dies before the writer has stored the outcome from memory.

**Latency.** Segments are created on a tmpfs (the *spool*), where a write takes microseconds
regardless of the disk; a thread copies them into the data directory and syncs each copy every
`sync_ms`. Without a usable tmpfs they are created in the data directory, and a write can block with
its filesystem: `statistics().spool` reports which.

**Lifetime.** A segment holds the ids of the answers whose row may still depend on it. It is removed
when all of them are committed; when it is full, has no reservations and is copied, only the copy is
kept. Files are locked (`flock`) while their process is alive; the process that gets the lock
replays them (`find_orphans`, used by `workers/recovery.py`).

**Durability.** If the process dies, the spool has everything. After a power loss the copies have
everything older than `sync_ms` plus the duration of one sync; with `sync_ms` 0 answers wait for the
sync (`wait_synced`).
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
from service.core.records import VERSION, EndedAttempt, Intent, Outcome
from service.core.telemetry import log

HEADER = b"KOTAEJ01"
SEGMENT_BYTES = 4 * 1024 * 1024
COPYING = ".copying"  # suffix of a new copy until it is synced
_SHARED = Path("/dev/shm")  # noqa: S108 - shared: see `find_spool`
SPOOL_BYTES_MIN = 16 * 1024 * 1024  # a tmpfs with less space is not used
LEAN_BYTES = 8192  # upper bound of a lean outcome: `tables` and settings bound its fields
_MARK = b"\xc5KJ\x9d"
_HEAD = struct.Struct(">4sBBHII")
Record = Intent | EndedAttempt | Outcome
_TYPES: dict[int, type[Record]] = {1: Intent, 2: Outcome, 3: EndedAttempt}
_KINDS = {record_type: kind for kind, record_type in _TYPES.items()}


class JournalStatistics(msgspec.Struct, frozen=True):
    """An immutable snapshot of the counters.

    `spool`: whether records are written to a tmpfs first. `lean`: outcomes written without texts.
    `unsynced_bytes`: lost in a power failure. `failures`: disk errors since the last success, plus
    answers rejected since the last accepted one.
    """

    spool: bool
    segments: int
    bytes: int
    unsynced_bytes: int
    lean: int
    failures: int


def encode_frame(record: Record, version: int = VERSION) -> bytes:
    """Encode a record as a frame of this format version."""
    payload = msgspec.msgpack.encode(record)
    kind = _KINDS[type(record)]
    checked = struct.pack(">BBHI", kind, version, 0, len(payload))
    return (
        _HEAD.pack(_MARK, kind, version, 0, len(payload), zlib.crc32(payload, zlib.crc32(checked)))
        + payload
    )


def decode_frames(data: bytes) -> Iterator[Record | None]:
    """Decode a segment; None stands for a run of invalid bytes other than zeros."""
    position = len(HEADER) if data.startswith(HEADER) else 0
    while position < len(data):
        if decoded := _decode_frame(data, position):
            yield decoded[0]
            position = decoded[1]
            continue
        following = data.find(_MARK, position + 1)
        while following >= 0 and not _decode_frame(data, following):
            following = data.find(_MARK, following + 1)
        end = len(data) if following < 0 else following
        if data.count(0, position, end) < end - position:
            yield None
        position = end


def _decode_frame(data: bytes, position: int) -> tuple[Record, int] | None:
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
    """A locked segment file; `copy_path` is its copy in the data directory, if any."""

    def __init__(self, path: Path, size: int, copy_path: Path | None) -> None:
        self.path, self.size, self.copy_path = path, size, copy_path
        self.offset = len(HEADER)
        self.reserved_bytes = 0
        self.answer_ids: set[str] = set()
        self.sealed = False
        self.retired = False  # its space counts as free
        self.synced_bytes = 0
        self.copy_fd: int | None = None
        self.fd: int | None = _create_file(path)
        try:
            os.posix_fallocate(self.fd, 0, size)
            _write_at(self.fd, HEADER, 0)
        except OSError:
            self.close()
            path.unlink()
            raise

    @property
    def free_bytes(self) -> int:
        return self.size - self.offset - self.reserved_bytes

    def append(self, frame: bytes) -> None:
        """Write at the end. Raises OSError; then nothing has been written."""
        assert self.fd is not None  # noqa: S101 - only sealed segments are closed
        _write_at(self.fd, frame, self.offset)
        self.offset += len(frame)

    def sync(self) -> None:
        """Sync new data to the disk, in the thread. Raises OSError; then all is written again.

        After a failed fsync the kernel may mark lost pages as clean, so another fsync would succeed
        without writing them.
        """
        end = self.offset
        if self.synced_bytes == end or self.fd is None:
            return
        if self.copy_path:
            self._copy_tail(self.fd, self.copy_path, end)
        else:
            if not self.synced_bytes:  # new, or the last sync failed
                _write_at(self.fd, os.pread(self.fd, end, 0), 0)
                if self.retired:  # in the meantime: free its space again
                    os.truncate(self.path, 0)
            synced_before, self.synced_bytes = self.synced_bytes, 0
            os.fdatasync(self.fd)
            if not synced_before:
                _sync_folder(self.path.parent)
        self.synced_bytes = end

    def _copy_tail(self, fd: int, path: Path, end: int) -> None:
        """Update the copy up to `end`. After a failed sync, a new copy replaces it once synced."""
        is_new, copy_fd = (
            self.copy_fd is None,
            self.copy_fd if self.copy_fd is not None else _create_file(path.with_suffix(COPYING)),
        )
        try:
            _write_at(
                copy_fd, os.pread(fd, end - self.synced_bytes, self.synced_bytes), self.synced_bytes
            )
            os.fdatasync(copy_fd)
            if is_new:
                path.with_suffix(COPYING).replace(path)
                _sync_folder(path.parent)
        except OSError:
            self.copy_fd, self.synced_bytes = None, 0
            os.close(copy_fd)
            raise
        self.copy_fd = copy_fd

    def drop_spool(self) -> None:
        """Delete the spool file of a full, copied segment without reservations, in the thread."""
        if (
            self.copy_path
            and self.fd is not None
            and self.sealed
            and not self.reserved_bytes
            and self.synced_bytes == self.offset
        ):
            fd, self.fd = self.fd, None
            os.close(fd)
            self.path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the files, in the thread. Raises OSError; then it can be repeated."""
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
    """The journal of one process.

    `append_intent`, `append_outcome` and `release` run on the event loop and never block on a
    spool.
    """

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
        self._process = f"{_read_boot_id()}-{os.getpid()}-{time.time_ns()}"
        self._count = 0
        self._segments: list[_Segment] = []
        self._current: _Segment | None = None
        self._reservations: dict[str, _Segment] = {}  # the segment with the space for each outcome
        self._holders: dict[str, set[_Segment]] = {}
        self._retired: deque[_Segment] = deque()
        self._lean = 0
        self._failures = 0
        self._refused = 0
        self._wake = threading.Event()
        self._ending = False
        self._synced_callbacks: deque[Callable[[], None]] = deque()
        self._thread = threading.Thread(target=self._run_thread, name="journal", daemon=True)

    @property
    def synchronous(self) -> bool:
        """True if answers wait for the disk."""
        return self._sync_ms == 0

    def start(self) -> None:
        """Create the directories and start the thread."""
        for folder in filter(None, (self._folder, self._spool)):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Sync, remove committed segments, and end the thread. The rest is left for recovery."""
        if self._current and not self._current.answer_ids:
            self._retire_segment(self._current)
        self._ending = True
        self._wake.set()
        self._thread.join(seconds)
        if self._spool:
            with suppress(OSError):  # not empty
                self._spool.rmdir()

    def append_intent(self, intent: Intent) -> None:
        """Write the intent and reserve space for its outcome. Raises `JournalFull`."""
        frame = encode_frame(intent)
        try:
            segment = self._ensure_space(len(frame) + LEAN_BYTES)
            segment.append(frame)
        except OSError as error:
            self._refused += 1
            raise JournalFull(
                f"the journal cannot accept another answer: {error.strerror}"
            ) from error
        self._refused = 0
        segment.reserved_bytes += LEAN_BYTES
        self._reservations[intent.id] = segment
        self._add_holder(segment, intent.id)

    def append_attempt(self, record: EndedAttempt) -> None:
        """Write an attempt of a recorded intent. Never raises.

        Without space it is not written: the outcome has it too, unless the process dies before.
        """
        try:
            frame = encode_frame(record)
            segment = self._ensure_space(len(frame))
            segment.append(frame)
        except OSError as error:
            log.warning("attempt.not_journaled", answer_id=record.answer_id, error=str(error))
        else:
            self._add_holder(segment, record.answer_id)

    def append_outcome(self, outcome: Outcome) -> None:
        """Write the outcome of a recorded intent, without texts if space is short. Never raises."""
        home = self._reservations.pop(outcome.intent.id)
        try:
            frame = encode_frame(outcome)
            try:
                segment = self._ensure_space(len(frame))
                segment.append(frame)
            except OSError:
                segment = home
                segment.append(encode_frame(strip_texts(outcome)))
                self._lean += 1
        except (
            OSError,
            ValueError,
            OverflowError,
        ) as error:  # disk error; a record that cannot be encoded
            self._failures += 1
            log.error("outcome.not_journaled", answer_id=outcome.intent.id, error=str(error))
        else:
            self._add_holder(segment, outcome.intent.id)
        finally:
            home.reserved_bytes -= LEAN_BYTES

    def release(self, answer_ids: list[str]) -> None:
        """Release the records of answers that are in the database."""
        for answer_id in answer_ids:
            for segment in self._holders.pop(answer_id, ()):
                segment.answer_ids.discard(answer_id)
                if not segment.answer_ids and segment is not self._current:
                    self._retire_segment(segment)

    def add_synced_callback(self, callback: Callable[[], None]) -> None:
        """Call this from the thread once everything written so far is on the disk."""
        self._synced_callbacks.append(callback)
        self._wake.set()

    def degraded(self) -> bool:
        """True if the last disk operation failed, or the last answer was rejected."""
        return self._failures > 0 or self._refused > 0

    def statistics(self) -> JournalStatistics:
        """Return an immutable snapshot of the counters."""
        segments = list(self._segments)
        return JournalStatistics(
            spool=self._spool is not None,
            segments=len(segments),
            bytes=sum(segment.size for segment in segments),
            unsynced_bytes=sum(
                segment.offset - segment.synced_bytes
                for segment in segments
                if segment.fd is not None
            ),
            lean=self._lean,
            failures=self._failures + self._refused,
        )

    def _ensure_space(self, size: int) -> _Segment:
        """Return a segment with `size` free bytes, the current or a new one. Raises OSError."""
        if self._current is None or self._current.free_bytes < size:
            self._rotate_segment(max(self._segment_bytes, size + len(HEADER)))
        assert self._current is not None  # noqa: S101 - set by _rotate_segment
        return self._current

    def _rotate_segment(self, size: int) -> None:
        if self._current and not self._current.answer_ids:
            self._retire_segment(self._current)  # first: its space may be needed for the next
        if (
            sum(segment.size for segment in self._segments if segment.fd is not None) + size
            > self._bytes_max
        ):
            raise OSError(28, "KOTAE_JOURNAL_BYTES_MAX is reached")
        self._count += 1
        name = f"{self._process}-{self._count:06d}.journal"
        if self._spool:
            # Another process may have removed it at its end.
            self._spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        segment = _Segment(
            (self._spool or self._folder) / name, size, self._folder / name if self._spool else None
        )
        previous, self._current = self._current, segment
        self._segments.append(segment)
        if previous:
            previous.sealed = True

    def _add_holder(self, segment: _Segment, answer_id: str) -> None:
        segment.answer_ids.add(answer_id)
        self._holders.setdefault(answer_id, set()).add(segment)

    def _retire_segment(self, segment: _Segment) -> None:
        if segment in self._segments:
            self._segments.remove(segment)
            self._retired.append(segment)
            segment.retired = True
            if segment is self._current:
                self._current = None
            with suppress(
                OSError
            ):  # frees the space now; a slow disk may delay the thread that removes it
                os.truncate(segment.path, 0)

    def _run_thread(self) -> None:
        while not self._ending:
            self._wake.wait(self._sync_ms / 1000 if self._sync_ms else 1)
            self._wake.clear()
            self._sync_segments()
        self._sync_segments()
        for segment in self._segments:
            segment.close()

    def _sync_segments(self) -> None:
        """Sync every segment, delete unneeded files, and call the callbacks."""
        callbacks = [self._synced_callbacks.popleft() for _ in range(len(self._synced_callbacks))]
        try:
            while self._retired:
                self._retired[0].remove()
                self._retired.popleft()
            for segment in list(self._segments):
                segment.sync()
                segment.drop_spool()
        except OSError as error:
            if not self._failures:
                log.error("journal.delayed", error=str(error))
            self._failures += 1
            self._synced_callbacks.extendleft(reversed(callbacks))
            time.sleep(0.05)
            return
        self._failures = 0
        for callback in callbacks:
            with suppress(RuntimeError):  # the event loop is closed
                callback()


def strip_texts(outcome: Outcome) -> Outcome:
    """Return the outcome without texts. Price labels are cut; the costs are numbers."""
    intent = msgspec.structs.replace(outcome.intent, prompt="", messages=None)
    return msgspec.structs.replace(
        outcome,
        intent=intent,
        response="",
        sources=[],
        nearest=outcome.nearest and [],
        choices=None,
        price=outcome.price and outcome.price[:500],
        attempt_list=outcome.attempt_list
        and [
            msgspec.structs.replace(attempt, price=attempt.price and attempt.price[:50])
            for attempt in outcome.attempt_list
        ],
    )


def choose_spool(data_dir: Path, setting: str, bytes_max: int) -> tuple[Path | None, int]:
    """Return a directory on a tmpfs, or None, and the number of bytes that may be used.

    `setting`: `auto` for a directory under /dev/shm, `none`, or a path.
    """
    if setting != "auto":
        return (None if setting == "none" else Path(setting)), bytes_max
    try:
        status = os.statvfs(_SHARED)
        # Half of the free space: it is shared.
        free_bytes = min(bytes_max, status.f_bavail * status.f_frsize // 2)
        if not os.path.ismount(_SHARED) or free_bytes < SPOOL_BYTES_MIN:
            return None, bytes_max
        _build_spool_path(data_dir).mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return None, bytes_max
    folder = find_spool(data_dir, setting)
    return folder, (free_bytes if folder else bytes_max)


def find_spool(data_dir: Path, setting: str) -> Path | None:
    """Return where an earlier process may have left segments, even without free space.

    The shared directory is world-writable: a directory of our name that has another owner, or that
    others can access, is not used.
    """
    if setting != "auto":
        return None if setting == "none" else Path(setting)
    folder = _build_spool_path(data_dir)
    try:
        status = folder.lstat()
    except OSError:
        return None
    return (
        folder
        if stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.getuid()
        and status.st_mode & 0o077 == 0
        else None
    )


def _build_spool_path(data_dir: Path) -> Path:
    return (
        _SHARED / f"kotae-{os.getuid()}-{hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]}"
    )


def find_orphans(folder: Path, spool: Path | None) -> dict[str, list[tuple[int, Path, list[Path]]]]:
    """Return the segments of dead processes, by process.

    Each is (locked descriptor, file to read, all files of that segment). A segment on the spool is
    read there: its copy may be behind. The caller reads, then removes or closes them.
    """
    orphans: dict[str, list[tuple[int, Path, list[Path]]]] = {}
    folders = [folder_ for folder_ in (spool, folder) if folder_ and folder_.is_dir()]
    stems = {
        path.stem
        for folder_ in folders
        for path in folder_.iterdir()
        if path.suffix in (".journal", COPYING)
    }
    for stem in sorted(stems):
        paths = [
            path
            for suffix in (".journal", COPYING)
            for folder_ in folders
            if (path := folder_ / f"{stem}{suffix}").exists()
        ]
        locks = [fd for path in paths if (fd := _lock_file(path)) is not None]
        if len(locks) < len(paths) or not paths:
            for fd in locks:
                os.close(fd)
            continue
        for fd in locks[1:]:
            os.close(fd)
        orphans.setdefault(stem.rpartition("-")[0], []).append((locks[0], paths[0], paths))
    return orphans


def _lock_file(path: Path) -> int | None:
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


def _create_file(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def _sync_folder(folder: Path) -> None:
    """Sync the directory entries."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of it or raise OSError; the next write overwrites a short one."""
    if os.pwrite(fd, data, offset) != len(data):
        raise OSError(28, "short write")


def _read_boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    return "00000000"
