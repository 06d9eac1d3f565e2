"""A disk that separates written from durable data: real files, and a record of the durable state.

The functions of `os` that a journal uses are replaced for the files below `data` (a disk) and
`spool` (a tmpfs). Data written to a file of the disk is durable after a sync of the file, and its
name after a sync of its folder. A failed sync drops the data that it had to sync and never reports
it again, like Linux. A truncation is durable immediately: it may be, and that is the worse case.
Therefore `lose_power` keeps: nothing of the spool; the durable part of each file and, of every
later write, all, a part, or nothing, in no order; the durable names, and any of the others.

`plan` makes one of the next calls go wrong: fail, block while something else happens, or be the
last one of its process.
"""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

PATCHED = (
    "open",
    "close",
    "pwrite",
    "pread",
    "posix_fallocate",
    "fdatasync",
    "fsync",
    "truncate",
    "unlink",
    "replace",
    "rename",
)


class ProcessDied(BaseException):
    """The process ends in this call and executes nothing more."""


class File:
    """A file of the disk: its durable content, and the later writes."""

    def __init__(self) -> None:
        self.safe = bytearray()
        self.unsafe: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: bytes) -> None:
        """Record a write."""
        self.safe.extend(bytes(max(0, offset + len(data) - len(self.safe))))
        self.safe[offset : offset + len(data)] = data

    def sync(self) -> None:
        """Make all of it durable."""
        for offset, data in self.unsafe:
            self.write(offset, data)
        self.unsafe.clear()

    def lose_power(self, choose: Random) -> None:
        """Keep a random part of the data that is not durable."""
        for offset, data in self.unsafe:
            what = choose.randrange(4)
            if what == 0:
                self.write(offset, data)
            elif what == 1:
                self.write(offset, data[: choose.randrange(len(data) + 1)])
            elif what == 2:
                self.write(offset, bytes(len(data)))  # the length was durable, the pages were not
        self.unsafe.clear()


class Disk:
    """`data` and `spool`, observed between `install` and `remove`.

    `full`, `spool_full`: no space left.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.data, self.spool = root, root / "data", root / "spool"
        self.full = self.spool_full = False
        self.open_files: dict[int, str] = {}
        self._files: dict[str, File] = {}  # by current name
        self._safe_names: dict[str, File] = {}
        self._real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in PATCHED}
        self._planned: tuple[int, str | Callable[[], None]] | None = None

    def install(self) -> None:
        """Replace the functions of `os`, with empty folders."""
        for folder in (self.data, self.spool):
            folder.mkdir(parents=True)
        for name in PATCHED:
            setattr(os, name, getattr(self, f"_{name}"))

    def remove(self) -> None:
        """Restore the functions of `os` and remove the files."""
        self.close_all()
        for name, real in self._real.items():
            setattr(os, name, real)
        shutil.rmtree(self.root, ignore_errors=True)

    def plan(self, calls: int, what: str | Callable[[], None] | None) -> None:
        """Make the call after the next `calls` go wrong.

        It fails with "EIO" or "ENOSPC", on the disk only; or the next "sync" fails; or it is the
        last of its process ("die"); or another action happens during the call.
        """
        self._planned = None if what is None else (calls, what)

    def close_all(self) -> None:
        """End the process: close its descriptors and release its locks."""
        self.plan(0, None)
        for fd in list(self.open_files):
            self._close(fd)

    def lose_power(self, choose: Random) -> None:
        """End the process and lose power. The remaining data is durable."""
        self.close_all()
        for path in self.spool.iterdir():
            self._real["unlink"](path)
        for name in sorted(self._files.keys() | self._safe_names.keys()):
            now, safe = self._files.get(name), self._safe_names.get(name)
            left = now if now is safe or choose.randrange(2) else safe
            self._files.pop(name, None)
            if left:
                left.lose_power(choose)
                self._files[name] = left
                Path(name).write_bytes(left.safe)
            else:
                Path(name).unlink(missing_ok=True)
        self._safe_names = dict(self._files)

    def _step(self, name: str, *, sync: bool = False) -> str | None:
        """Count a call and return its fault, if any."""
        if self._planned is None:
            return None
        calls, what = self._planned
        if calls > 0:
            self._planned = (calls - 1, what)
            return None
        if (
            isinstance(what, str)
            and what != "die"
            and (not name.startswith(str(self.data)) or (what == "sync" and not sync))
        ):
            return None  # continue until a call to which the fault applies
        self._planned = None
        if isinstance(what, str):
            return "EIO" if what == "sync" else what
        what()
        return None

    def _fail(self, what: str | None) -> None:
        if what == "die":
            raise ProcessDied
        if what:
            raise OSError(getattr(errno, what), os.strerror(getattr(errno, what)))

    def _open(self, path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        name = os.fspath(path)
        ours = isinstance(name, str) and name.startswith(f"{self.root}/")
        if not ours:
            return int(self._real["open"](path, flags, *arguments, **named))
        self._fail(self._step(name))
        fd = int(self._real["open"](path, flags, *arguments, **named))
        self.open_files[fd] = name
        if self._on_disk(name):
            if flags & os.O_CREAT and name not in self._files:
                self._files[name] = File()
            elif flags & os.O_TRUNC:
                self._cut(name)
        return fd

    def _close(self, fd: int) -> None:
        self.open_files.pop(fd, None)
        self._real["close"](fd)

    def _pwrite(self, fd: int, data: bytes, offset: int) -> int:
        if (name := self.open_files.get(fd)) is None:
            return int(self._real["pwrite"](fd, data, offset))
        what = self._step(name)
        if (
            not what
            and self.full
            and self._on_disk(name)
            and offset + len(data) > os.fstat(fd).st_size
        ):
            what = "ENOSPC"
        part = (
            data[: len(data) // 2] if what else data
        )  # a full disk writes what fits, and so does a death
        written = int(self._real["pwrite"](fd, part, offset))
        if self._on_disk(name):
            self._files[name].unsafe.append((offset, bytes(part)))
        if what != "ENOSPC":
            self._fail(what)
        return written

    def _pread(self, fd: int, size: int, offset: int) -> bytes:
        if (name := self.open_files.get(fd)) is not None:
            self._fail(self._step(name))
        return bytes(self._real["pread"](fd, size, offset))

    def _posix_fallocate(self, fd: int, offset: int, size: int) -> None:
        if (name := self.open_files.get(fd)) is not None:
            what = self._step(name)
            self._fail(
                "ENOSPC"
                if not what and (self.full if self._on_disk(name) else self.spool_full)
                else what
            )
        self._real["posix_fallocate"](fd, offset, size)

    def _fdatasync(self, fd: int) -> None:
        self._fsync(fd)

    def _fsync(self, fd: int) -> None:
        if (name := self.open_files.get(fd)) is None:
            self._real["fsync"](fd)
            return
        what = self._step(name, sync=True)
        file = self._files.get(name)
        if file and what not in (None, "die"):
            file.unsafe.clear()  # its pages count as clean now but are lost
        self._fail(what)
        if file:
            file.sync()
        elif name == str(self.data):
            self._safe_names = dict(self._files)

    def _truncate(self, path: Any, size: int) -> None:
        name = os.fspath(path)
        if isinstance(name, str) and name.startswith(f"{self.root}/"):
            self._fail(self._step(name))
            if self._on_disk(name):
                self._cut(name)
        self._real["truncate"](path, size)

    def _unlink(self, path: Any, **named: Any) -> None:
        name = os.fspath(path)
        if isinstance(name, str) and name.startswith(f"{self.root}/"):
            self._fail(self._step(name))
            self._real["unlink"](path)
            self._files.pop(name, None)
        else:
            self._real["unlink"](path, **named)

    def _replace(self, old: Any, new: Any, **named: Any) -> None:
        was, name = os.fspath(old), os.fspath(new)
        ours = isinstance(was, str) and was.startswith(f"{self.root}/")
        if ours:
            self._fail(self._step(was))
        self._real["replace"](old, new, **named)
        if ours and was in self._files:
            self._files[name] = self._files.pop(was)
            self.open_files = {
                fd: name if path == was else path for fd, path in self.open_files.items()
            }

    _rename = _replace

    def _cut(self, name: str) -> None:
        self._files[name].safe.clear()
        self._files[name].unsafe.clear()

    def _on_disk(self, name: str) -> bool:
        return name.startswith(f"{self.data}/")
