"""Reads uploaded files: plain text in a thread, all other formats in isolated child processes.

A child belongs to one upload and is ended with it, so that a file that takes over its reader can
only change the documents of its own upload. At most `CHILDREN_MAX` exist at once, one per user; an
upload gives its turn to others after `TURN_SECONDS`. A child is killed when a file takes too long
or when its upload is cancelled; the upload of the file fails, and nothing else.
"""

import io
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import BinaryIO

import anyio
import anyio.to_thread
import msgspec

from service.core.documents.child_process import ChildProcess
from service.core.documents.readers.child import ReadFailure, ReadResult, ReadTask
from service.core.documents.readers.extracted import Extracted, Format, clean_title
from service.core.documents.readers.formats import HEAD_BYTES, detect_format
from service.core.errors import FileUnreadable, NotText, TooLarge
from service.core.telemetry import log
from service.core.text.decoding import decode_text

COMMAND = (sys.executable, "-P", "-m", "service.core.documents.readers.child")
CHILDREN_MAX = 2
TURN_SECONDS = 5.0
FILE_SECONDS_MAX = 60.0
MEMORY_BYTES_MAX = 1024**3  # address space of a child
PART_BYTES = 256 * 1024
# Files of other formats contain more than text. Plain text may have `text_bytes_max`.
FILE_BYTES_PER_TEXT_BYTE = 10
TEXT_BYTES_FACTOR_MAX = 2  # the marks of headings and pages are not counted by readers
DETAIL_CHARACTERS_MAX, ENCODING_CHARACTERS_MAX = 300, 20

_FAILURES = {error.code: error for error in (NotText, FileUnreadable, TooLarge)}


class FileReaders:
    """Creates the readers of uploads. One per process."""

    def __init__(
        self,
        command: Sequence[str] = COMMAND,
        *,
        children_max: int = CHILDREN_MAX,
        turn_seconds: float = TURN_SECONDS,
        file_seconds_max: float = FILE_SECONDS_MAX,
        memory_bytes_max: int = MEMORY_BYTES_MAX,
    ) -> None:
        self.command = tuple(command)
        self.turn_seconds, self.file_seconds_max = turn_seconds, file_seconds_max
        self.memory_bytes_max = memory_bytes_max
        self.children = anyio.Semaphore(children_max)
        self._users: dict[str, tuple[anyio.Semaphore, int]] = {}  # with the number of their uploads

    @asynccontextmanager
    async def open_reader(self, user_id: str, text_bytes_max: int) -> AsyncIterator["FileReader"]:
        """A reader for the files of one upload."""
        turn, uploads = self._users.get(user_id, (anyio.Semaphore(1), 0))
        self._users[user_id] = (turn, uploads + 1)
        reader = FileReader(self, turn, text_bytes_max)
        try:
            yield reader
        finally:
            reader.end_turn()
            _, uploads = self._users.pop(user_id)
            if uploads > 1:
                self._users[user_id] = (turn, uploads - 1)


class FileReader:
    """Reads the files of one upload, one after the other."""

    def __init__(
        self, readers: FileReaders, user_turn: anyio.Semaphore, text_bytes_max: int
    ) -> None:
        self._readers, self._user_turn = readers, user_turn
        self._text_bytes_max = text_bytes_max
        self._child: ChildProcess | None = None
        self._turn_ends_at = 0.0

    async def read_file(self, file: BinaryIO, name: str) -> Extracted:
        """Read a file; its name decides between formats that are text as well.

        Raises `NotText`, `FileUnreadable`, `TooLarge`.
        """
        extracted = await anyio.to_thread.run_sync(_read_text, file, name, self._text_bytes_max)
        return extracted or await self._read_in_child(file, name)

    def end_turn(self) -> None:
        """End the child and let other uploads start theirs."""
        if self._child:
            self._child.end_in_thread()
            self._child = None
            self._readers.children.release()
            self._user_turn.release()

    async def _begin_turn(self) -> ChildProcess:
        if self._child is None:
            await self._user_turn.acquire()
            try:
                await self._readers.children.acquire()
            except BaseException:
                self._user_turn.release()
                raise
            self._child = ChildProcess(
                self._readers.command, self._readers.memory_bytes_max, keeps_errors=False
            )
            self._turn_ends_at = time.monotonic() + self._readers.turn_seconds
        return self._child

    async def _read_in_child(self, file: BinaryIO, name: str) -> Extracted:
        child, seconds = await self._begin_turn(), self._readers.file_seconds_max
        try:
            with anyio.fail_after(seconds):
                extracted = await anyio.to_thread.run_sync(
                    _exchange, child, file, name, self._text_bytes_max, abandon_on_cancel=True
                )
        except TimeoutError:
            self.end_turn()
            raise FileUnreadable(f"reading the file took more than {seconds:g} seconds") from None
        except (OSError, EOFError, ValueError, msgspec.MsgspecError) as error:
            self.end_turn()
            log.warning("file_reader.died", error=repr(error), remedy="the file was rejected")
            raise FileUnreadable(
                "the reader of this format failed: the file is damaged or needs too much memory"
            ) from error
        if time.monotonic() > self._turn_ends_at:
            self.end_turn()
        return extracted


def _read_text(file: BinaryIO, name: str, bytes_max: int) -> Extracted | None:
    """Read plain text; None for a file that a child has to read. Raises `NotText`, `TooLarge`."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if detect_format(file.read(HEAD_BYTES), name) is not Format.TEXT:
        if size > bytes_max * FILE_BYTES_PER_TEXT_BYTE:
            raise TooLarge(f"the file is larger than {bytes_max * FILE_BYTES_PER_TEXT_BYTE} bytes")
        return None
    if size > bytes_max:
        raise TooLarge(f"the file is larger than {bytes_max} bytes")
    file.seek(0)
    text, encoding = decode_text(file.read())
    return Extracted(text=text, format=Format.TEXT, encoding=encoding)


def _exchange(child: ChildProcess, file: BinaryIO, name: str, text_bytes_max: int) -> Extracted:
    """Let a child read a file. Raises what it reports, and the exceptions of `exchange`."""
    file.seek(0)
    task = msgspec.msgpack.encode(ReadTask(name, text_bytes_max))
    response = child.exchange(chain([task], iter(lambda: file.read(PART_BYTES), b"")))
    result = msgspec.msgpack.decode(next(response, b""), type=ReadResult | ReadFailure)
    parts, size = [], 0
    for part in response:
        size += len(part)
        if size > TEXT_BYTES_FACTOR_MAX * text_bytes_max + PART_BYTES:
            raise ValueError("the child returns too much text")
        parts.append(part)
    if isinstance(result, ReadFailure):
        error_class = _FAILURES.get(result.code, FileUnreadable)
        raise error_class(result.detail[:DETAIL_CHARACTERS_MAX])
    return Extracted(
        text=b"".join(parts).decode(),
        format=result.format,
        title=clean_title(result.title),
        date=result.date,
        encoding=result.encoding[:ENCODING_CHARACTERS_MAX],
        has_pages=result.has_pages,
    )
