"""Splits documents into chunks and determines the terms of each, in this process or in a child.

The child (`python -m service.core.documents.chunker`) is started by `chunk_workers.py`. Both sides
exchange frames (bytes with a length prefix) over a socket, which is the standard input of the
child:

- request: a `ChunkTask` in MessagePack; the texts of its documents, concatenated, as UTF-8, in any
  number of frames; an empty frame
- response: batches of chunk rows in MessagePack; an empty frame

After a response the child waits for the next task. It ends when the socket is closed.
"""

import hashlib
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypedDict

import msgspec

from service.core.text.chunking import derive_title, split_chunks
from service.core.text.decoding import split_parts
from service.core.text.languages import (
    MARKED_LANGUAGES,
    mark_language,
    recognize_language,
    recognize_part,
)
from service.core.text.tokenizer import compute_japanese_share, get_tokenizer

HEADLINE_CHARACTERS_MAX = 100  # a longer first line is a paragraph, not the title of every chunk
LANGUAGE_CHARACTERS = 20_000  # the beginning of a text, from which its language is determined
YIELD_CHUNKS = 3  # about a millisecond; yielding after each chunk did not help streams further
YIELD_SECONDS = 0.0001  # chunking holds the interpreter lock, for which the event loop waits
# A line break within Japanese text, where it may be within a word.
_WRAP = re.compile("(?<=[\u3041-\u30ff\u4e00-\u9fff])\n(?=[\u3041-\u30ff\u4e00-\u9fff])")
ROWS_PER_FRAME = 50  # decoding a frame holds the interpreter lock of the parent


class ChunkRules(Protocol):
    """What chunks depend on besides their text. `Settings` has these attributes."""

    @property
    def dictionary(self) -> Any: ...  # noqa: D102 - see the settings, all three
    @property
    def chunk_characters(self) -> int: ...  # noqa: D102
    @property
    def chunk_overlap_characters(self) -> int: ...  # noqa: D102


class ChunkRow(TypedDict):
    """A row of the table `chunks`."""

    document_id: str
    n: int
    start: int
    end: int
    text: str
    words: str
    grams: str
    content_hash: str


class ChunkTask(msgspec.Struct, frozen=True):
    """A request to the child: `ChunkRules`, and (id, title, characters) of each document."""

    documents: list[tuple[str, str, int]]
    dictionary: str
    chunk_characters: int
    chunk_overlap_characters: int


def chunk_document(document: Mapping[str, Any], rules: ChunkRules) -> Iterator[ChunkRow]:
    """Yield the chunk rows of a document, which has an `id`, a `title` and a `text`.

    A chunk is also indexed by the title and by the heading above it, once each, and by the mark of
    its language, if that has other rules than English and Japanese.
    """
    text, title = document["text"], document["title"]
    begins_with_title = title == derive_title(text)
    terms_of = get_tokenizer(rules.dictionary).extract_terms
    # A Japanese character carries about as much information as two Latin letters.
    scale = 1 if compute_japanese_share(text[:LANGUAGE_CHARACTERS]) >= 0.1 else 2
    whole_language = recognize_language(text[:LANGUAGE_CHARACTERS])
    pieces = split_chunks(
        text, rules.chunk_characters * scale, rules.chunk_overlap_characters * scale
    )
    for n, piece in enumerate(pieces, 1):
        first_or_long = n == 1 or len(title) > HEADLINE_CHARACTERS_MAX
        has_title = title == derive_title(piece.heading) or (begins_with_title and first_or_long)
        body = _WRAP.sub("", piece.text)
        language = recognize_part(body, whole_language)
        terms = terms_of(f"{'' if has_title else title}\n{piece.heading}\n{body}", language)
        marks = [mark_language(language)] if language in MARKED_LANGUAGES else []
        yield {
            "document_id": document["id"],
            "n": n,
            "start": piece.start,
            "end": piece.end,
            "text": piece.text,
            "words": " ".join(terms.words),
            "grams": " ".join([*terms.grams, *marks]),
            "content_hash": hash_text(piece.text),
        }


def chunk_documents(
    documents: Sequence[Mapping[str, Any]], rules: ChunkRules
) -> dict[str, list[ChunkRow]]:
    """Return the chunk rows of documents by document id.

    Runs in a thread of the service and regularly yields the interpreter lock to the event loop.
    """
    rows: dict[str, list[ChunkRow]] = {document["id"]: [] for document in documents}
    for n, row in enumerate(_chunk_all(documents, rules), 1):
        rows[row["document_id"]].append(row)
        if n % YIELD_CHUNKS == 0:
            time.sleep(YIELD_SECONDS)
    return rows


def _chunk_all(documents: Sequence[Mapping[str, Any]], rules: ChunkRules) -> Iterator[ChunkRow]:
    return chain.from_iterable(chunk_document(document, rules) for document in documents)


def main() -> None:
    """Run the child: process tasks until the parent closes the socket.

    The child stays in the session of the service: Linux may share the processor between sessions
    first (autogroup), whatever the priorities of their processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the service, which ends the child
    with Connection(sys.stdin.fileno()) as connection, suppress(EOFError, ConnectionError):
        while True:
            _process_task(connection)


def _process_task(connection: Connection) -> None:
    task = msgspec.msgpack.decode(connection.recv_bytes(), type=ChunkTask)
    # Loads the dictionary, also for a task without documents.
    get_tokenizer(task.dictionary).extract_terms("\u3042")
    text = b"".join(iter(connection.recv_bytes, b"")).decode()
    documents = []
    for document_id, title, characters in task.documents:
        documents.append({"id": document_id, "title": title, "text": text[:characters]})
        text = text[characters:]
    rows = _chunk_all(documents, task)
    while batch := list(islice(rows, ROWS_PER_FRAME)):
        connection.send_bytes(msgspec.msgpack.encode(batch))
    connection.send_bytes(b"")


def hash_text(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal."""
    digest = hashlib.sha256()
    for part in split_parts(text):
        digest.update(part.encode())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
