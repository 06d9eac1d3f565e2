"""Who cuts texts: a thread of the service, or a child process.

A large text takes seconds of computing, in which a thread of the service would hold the interpreter's lock again and again:
every stream would wait for it, each time its turn comes. So it is cut by a child, which is nicer than the service. Of many small
texts, or where others wait for the thread, the child cuts its part, if there is a core for it. It takes half a second to start
and some 120 MiB, so that it is kept, but for `KEPT_SECONDS` only. Who is no longer waited for is killed.
"""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress
from subprocess import PIPE
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from service.core.documents.chunker import Rules, Task, cut_here, frame_of, tell
from service.core.settings import child_environment
from service.core.telemetry import log
from service.core.text.decoding import parts

TOGETHER_CHARACTERS_MAX = 4_000  # of several documents in one visit of the thread, or of the child
HERE_CHARACTERS_MAX = 100_000  # of one document: a tenth of a second
APART_CHARACTERS_MIN = 20_000  # of small documents, in uploads that follow each other, of which the child may have its part
FOLLOWING_SECONDS = 2.0  # one upload after another
NICENESS = 10
KEPT_SECONDS = 30.0
CHILD = (sys.executable, "-P", "-m", "service.core.documents.chunker")

Rows = list[dict[str, Any]]  # of chunks
Batch = list[Mapping[str, Any]]  # of documents, each with `id`, `title` and `text`


class CutterDied(Exception):
    """The child has not told all rows."""


async def cut_all(documents: Sequence[Mapping[str, Any]], rules: Rules) -> dict[str, Rows]:
    """By id, the rows of the documents' chunks."""
    small = deque(_batches([each for each in documents if len(each["text"]) <= HERE_CHARACTERS_MAX]))
    large = deque([each] for each in documents if len(each["text"]) > HERE_CHARACTERS_MAX)
    made: dict[str, Rows] = {}
    lanes = [_here(small, rules, made), _apart(large, rules, made)]
    if _thread.borrowed_tokens or (len(small) > 1 and cutter.is_worth_it(small)):
        if cutter.ready:
            lanes.append(_apart(small, rules, made))
        else:
            cutter.warm(rules)  # for the next ones

    async def follow(lane: Awaitable[None]) -> None:
        await lane
        if len(made) == len(documents):
            group.cancel_scope.cancel()  # a lane that still waits for its turn would have nothing to do

    async with anyio.create_task_group() as group:
        for lane in lanes:
            group.start_soon(follow, lane)
    return made


async def _here(waiting: deque[Batch], rules: Rules, made: dict[str, Rows]) -> None:
    """Cut what waits, a batch at a time, in the thread."""
    while waiting:
        async with _thread:
            if waiting:
                some = waiting.popleft()
                made |= _by_id(some, await anyio.to_thread.run_sync(cut_here, some, rules))


async def _apart(waiting: deque[Batch], rules: Rules, made: dict[str, Rows]) -> None:
    """Cut what waits, a batch at a time, in the child, or here should it die."""
    while waiting:
        async with cutter.turn:
            if not waiting:
                return
            some = waiting.popleft()
            try:
                made |= _by_id(some, await cutter.cut(some, rules))
            except CutterDied as error:
                log.warning("cutter.died", detail=str(error), remedy="the text was cut in the service: streams may have felt it")
                await _here(deque([some]), rules, made)


def _by_id(documents: Batch, rows: list[Rows]) -> dict[str, Rows]:
    return {each["id"]: its for each, its in zip(documents, rows, strict=True)}


def _batches(documents: Sequence[Mapping[str, Any]]) -> list[Batch]:
    """Documents in order, together while their texts are short together: a visit costs as much as one of them."""
    batches: list[Batch] = []
    room = 0
    for each in documents:
        room -= len(each["text"])
        if room < 0 or not batches:
            batches.append([])
            room = TOGETHER_CHARACTERS_MAX - len(each["text"])
        batches[-1].append(each)
    return batches


class Cutter:
    """The child, one task at a time: who asks it holds `turn`. All but the asking itself happens on the loop."""

    def __init__(self) -> None:
        self.turn = anyio.CapacityLimiter(1)
        self._idle: subprocess.Popen[bytes] | None = None
        self._end_of_idleness: asyncio.TimerHandle | None = None
        self._warming: asyncio.Task[None] | None = None
        self._characters, self._last = 0, 0.0  # of uploads that followed each other, and when the last one came

    def is_worth_it(self, batches: Iterable[Batch]) -> bool:
        """Whether these small documents, with those of the uploads just before, are worth a child."""
        before, self._last = self._last, time.monotonic()
        self._characters = self._characters if self._last - before < FOLLOWING_SECONDS else 0
        self._characters += sum(len(each["text"]) for batch in batches for each in batch)
        return self._characters > APART_CHARACTERS_MIN

    @property
    def ready(self) -> bool:
        """Whether a child waits for its next task, and has a core to do it on."""
        return self._idle is not None and _cores() > 1

    def warm(self, rules: Rules) -> None:
        """Begin to make it ready, unless it is, or is at work, or would have no core to do it on."""
        if not self._idle and not self.turn.borrowed_tokens and _cores() > 1:
            self._warming = asyncio.create_task(self._warm(rules), name="cutter")

    async def cut(self, documents: Sequence[Mapping[str, Any]], rules: Rules) -> list[list[dict[str, Any]]]:
        """The rows of each document. Raises `CutterDied`, also if none can be started."""
        mine: list[subprocess.Popen[bytes]] = []
        given_up = threading.Event()
        before, self._idle = self._idle, None
        if self._end_of_idleness:
            self._end_of_idleness.cancel()
        try:
            rows = await anyio.to_thread.run_sync(_asked, before, documents, rules, mine, given_up, abandon_on_cancel=True)
        except (OSError, EOFError) as error:
            raise CutterDied(str(error)) from error
        except asyncio.CancelledError:
            given_up.set()  # before the look at the child: one that is starting right now finds it set
            for child in mine:
                child.kill()
            raise
        (self._idle,) = mine
        self._end_of_idleness = asyncio.get_running_loop().call_later(KEPT_SECONDS, self.let_go)
        return [[row for row in rows if row["document_id"] == document["id"]] for document in documents]

    async def _warm(self, rules: Rules) -> None:
        async with self.turn:
            with suppress(CutterDied):  # whoever needs it will say so
                await self.cut([], rules)

    def let_go(self) -> None:
        """End the child if it has nothing to do."""
        if child := self._idle:
            self._idle = None
            threading.Thread(target=_end, args=[child], daemon=True).start()  # which waits for it


def _asked(
    child: subprocess.Popen[bytes] | None,
    documents: Sequence[Mapping[str, Any]],
    rules: Rules,
    mine: list[subprocess.Popen[bytes]],
    given_up: threading.Event,
) -> list[dict[str, Any]]:
    """What the child tells, or a new one, which is put into `mine`. Raises `OSError`, `EOFError`.

    A thread starts it: to start a process from the loop takes tens of milliseconds of the loop's.
    """
    if child and child.poll() is not None:
        _end(child)
        child = None
    child = child or _start()
    mine.append(child)
    if given_up.is_set():
        child.kill()
    try:
        return _ask(child, documents, rules)
    except BaseException:
        _end(child)
        raise


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start() -> subprocess.Popen[bytes]:
    child = subprocess.Popen(CHILD, stdin=PIPE, stdout=PIPE, env=child_environment())  # noqa: S603 - a constant
    with suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, child.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)  # now: its imports take a second
    return child


def _ask(child: subprocess.Popen[bytes], documents: Sequence[Mapping[str, Any]], rules: Rules) -> list[dict[str, Any]]:
    """What the child tells. Raises `OSError`, `EOFError`."""
    assert child.stdin is not None  # noqa: S101 - asked for at its start, both
    assert child.stdout is not None  # noqa: S101
    named = [(document["id"], document["title"]) for document in documents]
    task = Task(named, rules.dictionary, rules.chunk_characters, rules.chunk_overlap_characters)
    tell(child.stdin, msgspec.msgpack.encode(task))
    for document in documents:
        for part in parts(document["text"]):
            tell(child.stdin, part.encode())
        tell(child.stdin, b"")
    child.stdin.flush()
    rows: list[dict[str, Any]] = []
    while frame := frame_of(child.stdout):
        rows += msgspec.msgpack.decode(frame)
    return rows


def _end(child: subprocess.Popen[bytes]) -> None:
    """Let it end, and wait for that: it has nothing to do, or nobody who waits for it."""
    child.kill()
    child.communicate()


_thread = anyio.CapacityLimiter(1)  # that cuts
cutter = Cutter()
