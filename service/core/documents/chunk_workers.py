"""Splits documents into chunks in a thread of the service or in a child process.

Chunking is computation in Python: a thread that does it holds the interpreter lock, for which every
stream waits. Therefore only short texts are split in a thread; longer ones go to a child process
with a lower priority. The child starts in half a second and uses 120 MiB. It is ended
`KEEP_SECONDS` after its last task.

The child is isolated (`child_process.py`), as the text comes from outside. It is killed when it
takes too long or when its caller is cancelled. Its responses are MessagePack of a declared type.
"""

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from service.core.documents.child_process import ChildProcess
from service.core.documents.chunker import ChunkRow, ChunkRules, ChunkTask, chunk_documents
from service.core.fair_share import FairTurns
from service.core.telemetry import log
from service.core.text.decoding import split_parts

COMMAND = (sys.executable, "-P", "-m", "service.core.documents.chunker")
THREAD_CHARACTERS_MAX = 50_000  # of the documents of one call: up to 0.2 s in the thread
BATCH_CHARACTERS_MAX = 100_000  # of one task of the child, unless a single document is longer
KEEP_SECONDS = 30.0
TASK_SECONDS_MAX = 60.0  # of a task, and a second more for each `CHARACTERS_PER_SECOND_MIN`
CHARACTERS_PER_SECOND_MIN = 10_000  # a twentieth of the usual speed
MEMORY_BYTES_MAX = 4 * 1024**3  # address space of the child

ChunkInput = Mapping[str, Any]  # with `id`, `title` and `text`
Rows = dict[str, list[ChunkRow]]  # of chunks, by document id


class ChunkProcessDied(Exception):
    """The child could not be started, or did not return the rows of all documents in time."""


class ChunkWorkers:
    """Splits documents into chunks. One per process; `close` it at the end.

    Up to `thread_characters_max` characters in one call are split in a thread, more in the child.
    """

    def __init__(
        self,
        process: "ChunkProcess | None" = None,
        *,
        thread_characters_max: int = THREAD_CHARACTERS_MAX,
    ) -> None:
        self._process = process or ChunkProcess()
        self._thread_characters_max = thread_characters_max
        # Several threads would not be faster, but would delay the event loop more.
        self._thread_turns, self._process_turns = FairTurns(1), FairTurns(1)

    async def chunk_documents(self, documents: Sequence[ChunkInput], rules: ChunkRules) -> Rows:
        """Return the chunk rows of documents by document id."""
        if not documents:
            return {}
        if sum(len(document["text"]) for document in documents) <= self._thread_characters_max:
            return await self._chunk_in_thread(documents, rules)
        rows: Rows = {}
        for batch in _group_batches(documents):
            try:
                async with self._process_turns.turn():
                    rows |= await self._process.chunk_documents(batch, rules)
            except ChunkProcessDied as error:
                remedy = "the text was split in the service instead, which may have delayed streams"
                log.warning("chunk_process.died", error=str(error), remedy=remedy)
                rows |= await self._chunk_in_thread(batch, rules)
        return rows

    def close(self) -> None:
        """End the child."""
        self._process.close()

    async def _chunk_in_thread(self, documents: Sequence[ChunkInput], rules: ChunkRules) -> Rows:
        async with self._thread_turns.turn():
            return await anyio.to_thread.run_sync(chunk_documents, documents, rules)


def _group_batches(documents: Sequence[ChunkInput]) -> Iterator[list[ChunkInput]]:
    """Group documents in order, up to `BATCH_CHARACTERS_MAX` per batch.

    Uploads of other users can use the child between two batches.
    """
    batch: list[ChunkInput] = []
    characters = 0
    for document in documents:
        characters += len(document["text"])
        if batch and characters > BATCH_CHARACTERS_MAX:
            yield batch
            batch, characters = [], len(document["text"])
        batch.append(document)
    if batch:
        yield batch


class ChunkProcess:
    """A child process that splits documents, one task at a time. It is started when needed.

    It is ended `keep_seconds` after its last task, killed if a task takes more than
    `task_seconds_max`, and restricted to `memory_bytes_max` of address space.
    """

    def __init__(
        self,
        command: Sequence[str] = COMMAND,
        *,
        keep_seconds: float = KEEP_SECONDS,
        task_seconds_max: float = TASK_SECONDS_MAX,
        memory_bytes_max: int = MEMORY_BYTES_MAX,
    ) -> None:
        self._command = tuple(command)
        self._keep_seconds, self._task_seconds_max = keep_seconds, task_seconds_max
        self._memory_bytes_max = memory_bytes_max
        self._turn = anyio.Lock()
        self._idle: ChildProcess | None = None
        self._idle_timer: asyncio.TimerHandle | None = None

    async def chunk_documents(self, documents: Sequence[ChunkInput], rules: ChunkRules) -> Rows:
        """Return the chunk rows of documents by document id. Raises `ChunkProcessDied`."""
        async with self._turn:
            child = self._take_idle() or ChildProcess(self._command, self._memory_bytes_max)
            try:
                with anyio.fail_after(self._seconds_max(documents)):
                    rows = await anyio.to_thread.run_sync(
                        _chunk_in_child, child, documents, rules, abandon_on_cancel=True
                    )
            except (
                OSError,
                EOFError,
                msgspec.MsgspecError,
                KeyError,
            ) as error:  # see `_chunk_in_child`
                child.end_in_thread()
                raise ChunkProcessDied(repr(error)) from error
            except BaseException:
                child.end_in_thread()
                raise
            self._idle = child
            self._idle_timer = asyncio.get_running_loop().call_later(self._keep_seconds, self.close)
            return rows

    def _seconds_max(self, documents: Sequence[ChunkInput]) -> float:
        characters = sum(len(document["text"]) for document in documents)
        return self._task_seconds_max + characters / CHARACTERS_PER_SECOND_MIN

    def close(self) -> None:
        """End the child if it is idle; while it works, cancelling its caller kills it."""
        if child := self._take_idle():
            child.end_in_thread()

    def _take_idle(self) -> ChildProcess | None:
        child, self._idle = self._idle, None
        if self._idle_timer:
            self._idle_timer.cancel()
            self._idle_timer = None
        return child if child and child.is_running else None


def _chunk_in_child(
    child: ChildProcess, documents: Sequence[ChunkInput], rules: ChunkRules
) -> Rows:
    """Return the chunk rows of documents by document id.

    Raises `OSError` or `EOFError` if the process does not start or ends early, `MsgspecError` or
    `KeyError` if it returns anything other than rows of these documents.
    """
    rows: Rows = {document["id"]: [] for document in documents}
    for frame in child.exchange(_encode_task(documents, rules)):
        for row in msgspec.msgpack.decode(frame, type=list[ChunkRow]):
            rows[row["document_id"]].append(row)
    return rows


def _encode_task(documents: Sequence[ChunkInput], rules: ChunkRules) -> Iterator[bytes]:
    """Yield texts in parts: encoding a long text holds the interpreter lock."""
    described = [
        (document["id"], document["title"], len(document["text"])) for document in documents
    ]
    task = ChunkTask(
        described, rules.dictionary, rules.chunk_characters, rules.chunk_overlap_characters
    )
    yield msgspec.msgpack.encode(task)
    for part in split_parts("".join(document["text"] for document in documents)):
        yield part.encode()
