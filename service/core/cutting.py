"""A document → the rows of its chunks: cut, and its terms made. In the process, or in one of its own.

A large text takes seconds of computing, in which a thread of the service would hold the interpreter's lock again and again:
every stream would wait for it, each time its turn comes. So it is cut by a child (`python -m service.core.cutting`), which
is started for it, is nicer than the service, and ends with it: nothing of it stays in memory. It is given what it needs on
its standard input, a frame and then the text, and tells the rows on its standard output, some at a time, each time as one frame:
its length in four bytes, then MessagePack. A frame of no bytes says that this was all; without it the child has died.

It outlives nobody: a service that dies closes the pipe, and the child ends at its next frame. Who is no longer waited for
is killed.
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from subprocess import PIPE
from typing import IO, Any, Protocol

import anyio
import anyio.to_thread
import msgspec

from service.core.settings import child_environment
from service.core.terms import japanese_share, tokenizer
from service.core.texts import is_heading, parts, split

SHARE_CHARACTERS = 20_000  # of a text's beginning, by which its language is judged
CHUNKS_A_TURN = 3  # about a millisecond; after each one alone, streams were no quicker, and cutting a tenth slower
YIELD_SECONDS = 0.0001  # after a turn: cutting is work of Python, and the loop would wait for its own
ROWS_AT_ONCE = 50  # in a frame: decoding it keeps the interpreter's lock
NICENESS = 10
CHILD = (sys.executable, "-P", "-m", "service.core.cutting")


class CutterDied(Exception):
    """The child has not told all rows."""


class Rules(Protocol):
    """What chunks depend on besides their text; the settings have it."""

    @property
    def dictionary(self) -> Any: ...  # noqa: D102 - see the settings, all three
    @property
    def chunk_characters(self) -> int: ...  # noqa: D102
    @property
    def chunk_overlap_characters(self) -> int: ...  # noqa: D102


class Task(msgspec.Struct, frozen=True):
    """What the child is told besides the text: the `id` and `title` of its document, and `Rules`."""

    id: str
    title: str
    dictionary: str
    chunk_characters: int
    chunk_overlap_characters: int


def cut(document: Mapping[str, Any], rules: Rules) -> Iterator[dict[str, Any]]:
    """The rows of a document's chunks. The index also knows each chunk by the title and the heading that it stands under."""
    text, heading, position = document["text"], "", 0
    made = tokenizer(rules.dictionary)
    # A Japanese character says about as much as two Latin letters.
    scale = 1 if japanese_share(text[:SHARE_CHARACTERS]) >= 0.1 else 2
    for n, piece in enumerate(split(text, rules.chunk_characters * scale, rules.chunk_overlap_characters * scale), 1):
        heading = _last_heading(text, position, piece.start) or heading
        above = "" if is_heading(text, piece.start) else heading
        known = made.terms(f"{document['title']}\n{above}\n{piece.text}")
        position = piece.start
        yield {
            "document_id": document["id"],
            "n": n,
            "start": piece.start,
            "end": piece.end,
            "text": piece.text,
            "words": " ".join(known.words),
            "grams": " ".join(known.grams),
            "content_hash": hash_text(piece.text),
        }


def cut_here(documents: Sequence[Mapping[str, Any]], rules: Rules) -> list[list[dict[str, Any]]]:
    """The rows of each document, made by a thread of this process. It gives way now and then."""
    made: list[list[dict[str, Any]]] = []
    chunks = 0
    for document in documents:
        made.append([])
        for row in cut(document, rules):
            made[-1].append(row)
            chunks += 1
            if chunks % CHUNKS_A_TURN == 0:
                time.sleep(YIELD_SECONDS)
    return made


async def cut_apart(document: Mapping[str, Any], rules: Rules) -> list[dict[str, Any]]:
    """The rows, made by a child. Raises `CutterDied`, also if none can be started."""
    task = Task(document["id"], document["title"], rules.dictionary, rules.chunk_characters, rules.chunk_overlap_characters)
    children: list[subprocess.Popen[bytes]] = []
    given_up = threading.Event()
    try:
        return await anyio.to_thread.run_sync(_told, task, document["text"], children, given_up, abandon_on_cancel=True)
    except (OSError, EOFError) as error:
        raise CutterDied(str(error)) from error
    finally:
        given_up.set()  # before the look at the children: one that is starting right now finds it set
        for child in children:
            child.kill()


def _told(task: Task, text: str, children: list[subprocess.Popen[bytes]], given_up: threading.Event) -> list[dict[str, Any]]:
    """What a child tells. A thread starts it: to start a process from the loop takes tens of milliseconds of the loop's."""
    rows: list[dict[str, Any]] = []
    with subprocess.Popen(CHILD, stdin=PIPE, stdout=PIPE, env=child_environment()) as child:  # noqa: S603 - a constant
        children.append(child)
        os.setpriority(os.PRIO_PROCESS, child.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)  # now: its imports take a second
        if given_up.is_set():
            child.kill()
        assert child.stdin is not None  # noqa: S101 - asked for above, both
        assert child.stdout is not None  # noqa: S101
        with child.stdin:
            _tell(child.stdin, msgspec.msgpack.encode(task))
            for part in parts(text):
                child.stdin.write(part.encode())
        while frame := _frame(child.stdout):
            rows += msgspec.msgpack.decode(frame)
    return rows


def _tell(pipe: IO[bytes], frame: bytes) -> None:
    pipe.write(len(frame).to_bytes(4, "big") + frame)
    pipe.flush()


def _frame(pipe: IO[bytes]) -> bytes:
    return _exactly(pipe, int.from_bytes(_exactly(pipe, 4), "big"))


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    if len(data := pipe.read(size)) < size:
        raise EOFError("the pipe ended in the middle")
    return data


def main() -> None:
    """The child. It stays in the service's session: Linux may share the processor among sessions first, whatever their niceness."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the service, which ends what it began
    given, told = sys.stdin.buffer, sys.stdout.buffer
    task = msgspec.msgpack.decode(_frame(given), type=Task)
    rows = cut({"id": task.id, "title": task.title, "text": given.read().decode()}, task)
    with suppress(BrokenPipeError):  # nobody waits any more
        while some := list(islice(rows, ROWS_AT_ONCE)):
            _tell(told, msgspec.msgpack.encode(some))
        _tell(told, b"")


def hash_text(text: str) -> str:
    """SHA-256, hexadecimal."""
    made = hashlib.sha256()
    for part in parts(text):
        made.update(part.encode())
    return made.hexdigest()


def _last_heading(text: str, start: int, end: int) -> str:
    """The last Markdown heading that begins in `text[start:end]`, or nothing."""
    at = text.rfind("\n#", start, end) + 1 if not is_heading(text, start) or text.rfind("\n#", start, end) >= 0 else start
    return text[at:end].partition("\n")[0] if is_heading(text, at) and start <= at < end else ""


if __name__ == "__main__":
    main()
