"""Locks that allow one service per data directory and per SQLite database.

Two services with the same files would double every quota, and call the provider twice for one
idempotency key. Each lock is an `flock` on a file that is never deleted: `kotae.lock` in the data
directory, and the database file's name with the suffix `.lock` beside it. The kernel releases the
locks when the process ends, however it ends. The file contains the process id and the address of
its holder, for the error message of the next one.

Symbolic links and relative paths are resolved first. A database with several hard links is
rejected, as SQLite requires. Not detected: a database file that is mounted alone under another
path, and services on several machines that share a network file system whose locks are local.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from service.core.database.files import (
    create_private_directory,
    create_private_file,
    find_database_file,
)
from service.core.errors import SettingsInvalid
from service.core.settings import Settings

SERVE = "serve"  # the command of a holder that keeps the locks
WAIT_SECONDS = 30.0  # for a holder that only migrates or restores
POLL_SECONDS = 0.05
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class LockHolder(msgspec.Struct):
    """The content of a lock file. `address` is empty while the service starts."""

    pid: int
    host: str
    command: str
    address: str = ""

    def describe(self) -> str:
        """The command, the process and its address."""
        host = "" if self.host == socket.gethostname() else f" on {self.host}"
        address = f", {self.address}" if self.address else ""
        return f"`kotae {self.command}` (pid {self.pid}{host}{address})"


class InstanceLock:
    """The locks of this process. They are held until `close`."""

    def __init__(self, command: str, address: str = "") -> None:
        self._holder = LockHolder(os.getpid(), socket.gethostname(), command, address)
        self._files: list[int] = []

    def acquire(self, path: Path, subject: str, setting: str, wait_seconds: float) -> None:
        """Lock a file, creating it if necessary. Raises `SettingsInvalid`."""
        fd = _open_lock_file(path, setting)
        self._files.append(fd)
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(fd, path, setting):
            holder = _read_holder(fd)
            if holder is None or holder.command == SERVE or time.monotonic() > deadline:
                name = holder.describe() if holder else "another process"
                raise SettingsInvalid(
                    f"{subject} is used by {name}: stop it, or set another {setting}"
                )
            time.sleep(POLL_SECONDS)
        _write_holder(fd, self._holder)

    def set_address(self, address: str) -> None:
        """Publish the address at which this process listens."""
        self._holder.address = address
        for fd in self._files:
            _write_holder(fd, self._holder)

    def close(self) -> None:
        """Release the locks. Idempotent."""
        while self._files:
            os.close(self._files.pop())


def lock_instance(
    settings: Settings, command: str, *, address: str = "", wait_seconds: float = WAIT_SECONDS
) -> InstanceLock:
    """Lock the data directory and the database of the settings.

    Waits for a command other than `serve` to end. Raises `SettingsInvalid`, which names the holder.
    """
    lock = InstanceLock(command, address)
    try:
        folder = settings.data_dir
        lock.acquire(folder / "kotae.lock", str(folder), "KOTAE_DATA_DIR", wait_seconds)
        if file := find_database_file(settings.database):
            _require_single_name(file)
            path = file.with_name(f"{file.name}.lock")
            lock.acquire(path, str(file), "KOTAE_DATABASE_URL", wait_seconds)
    except BaseException:
        lock.close()
        raise
    return lock


def _open_lock_file(path: Path, setting: str) -> int:
    try:
        create_private_directory(path.parent)
        create_private_file(path)
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise SettingsInvalid(f"{setting}: cannot open {path}: {error.strerror}") from error


def _try_lock(fd: int, path: Path, setting: str) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        remedy = ": use a local disk" if error.errno in _UNSUPPORTED else ""
        raise SettingsInvalid(f"{setting}: cannot lock {path}: {error.strerror}{remedy}") from error
    return True


def _require_single_name(file: Path) -> None:
    """Raise `SettingsInvalid` if the file has several hard links, each of which has another WAL."""
    if file.exists() and (links := file.stat().st_nlink) > 1:
        raise SettingsInvalid(
            f"KOTAE_DATABASE_URL: {file} has {links} hard links, which SQLite does not support: "
            "keep one name, and copy the file instead"
        )


def _read_holder(fd: int, seconds: float = 1.0) -> LockHolder | None:
    """Read who holds a lock. A holder that has just acquired it may not have written its record."""
    return _poll(lambda: _read_live_holder(fd), seconds) or _read_record(fd)


def _poll(read: Callable[[], LockHolder | None], seconds: float) -> LockHolder | None:
    deadline = time.monotonic() + seconds
    while (holder := read()) is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return holder


def _read_live_holder(fd: int) -> LockHolder | None:
    """The recorded holder, unless it is an earlier one on this machine that has ended."""
    holder = _read_record(fd)
    if holder is None or holder.host != socket.gethostname():
        return holder
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # a process of another user
        return holder
    return holder


def _read_record(fd: int) -> LockHolder | None:
    try:
        return msgspec.json.decode(os.pread(fd, 4096, 0), type=LockHolder)
    except msgspec.MsgspecError:
        return None


def _write_holder(fd: int, holder: LockHolder) -> None:
    record = msgspec.json.encode(holder) + b"\n"
    os.pwrite(fd, record, 0)
    os.ftruncate(fd, len(record))
