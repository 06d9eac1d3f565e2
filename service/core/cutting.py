"""A document → the rows of its chunks: cut, and its terms made. In the process, or in one of its own.

A large text takes seconds of computing, in which a thread of the service would hold the interpreter's lock again and again:
every stream would wait for it, each time its turn comes. So it is cut by a child (`python -m service.core.cutting`), which
is started for it, is nicer than the service, and ends with it: nothing of it stays in memory. It is given the document on
its standard input, and tells the rows on its standard output, some at a time, each time as one frame: its length in four
bytes, then MessagePack. A frame of no bytes says that this was all; without it the child has died.

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
from service.core.texts import is_heading, split

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
    """What the child is told: the `id`, `title` and `text` of a document, and `Rules`."""

    document: dict[str, str]
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
    given = {name: document[name] for name in ("id", "title", "text")}
    task = Task(given, rules.dictionary, rules.chunk_characters, rules.chunk_overlap_characters)
    children: list[subprocess.Popen[bytes]] = []
    given_up = threading.Event()
    try:
        return await anyio.to_thread.run_sync(_told, task, children, given_up, abandon_on_cancel=True)
    except (OSError, EOFError) as error:
        raise CutterDied(str(error)) from error
    finally:
        given_up.set()  # before the look at the children: one that is starting right now finds it set
        for child in children:
            child.kill()


def _told(task: Task, children: list[subprocess.Popen[bytes]], given_up: threading.Event) -> list[dict[str, Any]]:
    """What a child tells. A thread starts it: to start a process from the loop takes tens of milliseconds of the loop's."""
    rows: list[dict[str, Any]] = []
    with subprocess.Popen(CHILD, stdin=PIPE, stdout=PIPE, env=child_environment()) as child:  # noqa: S603 - a constant
        children.append(child)
        if given_up.is_set():
            child.kill()
        assert child.stdin is not None  # noqa: S101 - asked for above, both
        assert child.stdout is not None  # noqa: S101
        with child.stdin:
            child.stdin.write(msgspec.msgpack.encode(task))
        while length := int.from_bytes(_exactly(child.stdout, 4), "big"):
            rows += msgspec.msgpack.decode(_exactly(child.stdout, length))
    return rows


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    if len(data := pipe.read(size)) < size:
        raise EOFError("the child ended before it had told all rows")
    return data


def main() -> None:
    """The child. It stays in the service's session: Linux may share the processor among sessions first, whatever their niceness."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the service, which ends what it began
    os.nice(NICENESS)
    task = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Task)
    rows = cut(task.document, task)
    with suppress(BrokenPipeError):  # nobody waits any more
        while some := list(islice(rows, ROWS_AT_ONCE)):
            _tell(msgspec.msgpack.encode(some))
        _tell(b"")


def _tell(frame: bytes) -> None:
    sys.stdout.buffer.write(len(frame).to_bytes(4, "big") + frame)
    sys.stdout.buffer.flush()


def hash_text(text: str) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _last_heading(text: str, start: int, end: int) -> str:
    """The last Markdown heading that begins in `text[start:end]`, or nothing."""
    at = text.rfind("\n#", start, end) + 1 if not is_heading(text, start) or text.rfind("\n#", start, end) >= 0 else start
    return text[at:end].partition("\n")[0] if is_heading(text, at) and start <= at < end else ""


if __name__ == "__main__":
    main()
