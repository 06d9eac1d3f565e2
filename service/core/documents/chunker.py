"""A document → the rows of its chunks: cut, and its terms made. In the process, or in one of its own (`chunk_workers.py`).

The parent and the child (`python -m service.core.documents.chunker`) exchange length-prefixed frames: four bytes of
length, then the payload. A request is a `Task` in MessagePack, then each document's text in parts, ended by an empty
frame. The response is batches of rows in MessagePack, ended by an empty frame; without it the child has died. The child
then waits for the next task and ends when the pipe closes.
"""

import hashlib
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import IO, Any, Protocol

import msgspec

from service.core.text.chunking import is_heading, split, title_of
from service.core.text.decoding import parts
from service.core.text.tokenizer import japanese_share, tokenizer

HEADLINE_CHARACTERS_MAX = 100  # of a first line that is the title of all chunks; a longer one is a paragraph like any other
SHARE_CHARACTERS = 20_000  # of a text's beginning, by which its language is judged
CHUNKS_A_TURN = 3  # about a millisecond; after each one alone, streams were no quicker, and cutting a tenth slower
YIELD_SECONDS = 0.0001  # after a turn: cutting is work of Python, and the loop would wait for its own
ROWS_AT_ONCE = 50  # in a frame: decoding it keeps the interpreter's lock


class Rules(Protocol):
    """What chunks depend on besides their text; the settings have it."""

    @property
    def dictionary(self) -> Any: ...  # noqa: D102 - see the settings, all three
    @property
    def chunk_characters(self) -> int: ...  # noqa: D102
    @property
    def chunk_overlap_characters(self) -> int: ...  # noqa: D102


class Task(msgspec.Struct, frozen=True):
    """What the child is told besides the texts: `Rules`, and the id and title of each document."""

    documents: list[tuple[str, str]]
    dictionary: str
    chunk_characters: int
    chunk_overlap_characters: int


def cut(document: Mapping[str, Any], rules: Rules) -> Iterator[dict[str, Any]]:
    """The rows of a document's chunks. The index also knows each chunk by the title and the heading that it stands under, once."""
    text, heading, position = document["text"], "", 0
    title = document["title"]
    begins_with_title = title == title_of(text)
    made = tokenizer(rules.dictionary)
    # A Japanese character says about as much as two Latin letters.
    scale = 1 if japanese_share(text[:SHARE_CHARACTERS]) >= 0.1 else 2
    for n, piece in enumerate(split(text, rules.chunk_characters * scale, rules.chunk_overlap_characters * scale), 1):
        heading = _last_heading(text, position, piece.start) or heading
        above = "" if is_heading(text, piece.start) else heading
        said = title == title_of(above) or (begins_with_title and (n == 1 or len(title) > HEADLINE_CHARACTERS_MAX))
        known = made.terms(f"{'' if said else title}\n{above}\n{piece.text}")
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


def tell(pipe: IO[bytes], frame: bytes) -> None:
    """Send a frame, when the pipe is flushed."""
    pipe.write(len(frame).to_bytes(4, "big") + frame)


def frame_of(pipe: IO[bytes]) -> bytes:
    """The next frame. Raises `EOFError`."""
    return _exactly(pipe, int.from_bytes(_exactly(pipe, 4), "big"))


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    if len(data := pipe.read(size)) < size:
        raise EOFError("the pipe ended in the middle")
    return data


def main() -> None:
    """The child. It stays in the service's session: Linux may share the processor among sessions first, whatever their niceness."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the service, which ends what it began
    with suppress(EOFError, BrokenPipeError):  # nobody waits any more
        while True:
            _do(sys.stdin.buffer, sys.stdout.buffer)


def _do(given: IO[bytes], told: IO[bytes]) -> None:
    """One task."""
    task = msgspec.msgpack.decode(frame_of(given), type=Task)
    tokenizer(task.dictionary).terms("\u3042")  # which loads the dictionary, also where there is no document yet
    texts = [b"".join(iter(partial(frame_of, given), b"")).decode() for _ in task.documents]
    rows = chain.from_iterable(
        cut({"id": id_, "title": title, "text": text}, task) for (id_, title), text in zip(task.documents, texts, strict=True)
    )
    while some := list(islice(rows, ROWS_AT_ONCE)):
        tell(told, msgspec.msgpack.encode(some))
        told.flush()
    tell(told, b"")
    told.flush()


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
