"""One answer per key: a request that is sent again gets the answer that it has already.

A *key* is what a caller sends as `Idempotency-Key`. It belongs to one user and to one request, which is known again by
the hash of what it asks. The first request with a key begins the answer; every other gets the same one: attached to it
while it runs, made anew from its row (`replay`) later, for as long as the row is there.

`Keys` holds the keys whose answer is not, or not surely, in the database: being looked up, running, or waiting in the
record queue. A key is entered without an await between looking and entering. It leaves when nothing was begun (refused:
the key is free again), when its row was found, or when its row is committed. So there is no moment at which a key is in
neither place, and one process never makes a second row for a key. The number of keys needs no limit of its own: it is
bounded by the requests being served and the room of the record queue. Beginning is a task of its own, so that a
client who leaves meanwhile takes nothing with it; what comes after the record was begun does not await.

Failure policy: closed. Without the database nobody knows whether a new key is new, so it is refused (503).

What this does not do: know of another process. Two on one database that get one key at the same time both call the
provider; both accounts are kept, but the unique index admits one row, and the writer puts the other into quarantine.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from service.core.answering.streams import Stream
from service.core.encoding import replace_surrogates, to_json
from service.core.errors import IdempotencyConflict, ShuttingDown
from service.core.ports import RecordQueue
from service.core.telemetry import log


class IdempotencyKey(msgspec.Struct, frozen=True):
    """Two users may use the same name."""

    user_id: str
    name: str


class StartedAnswer(msgspec.Struct, frozen=True):
    """An answer. `replayed`: an earlier request has begun it."""

    stream: Stream
    replayed: bool


class _Entry(msgspec.Struct, frozen=True):
    body_hash: str
    task: asyncio.Task[StartedAnswer]


def hash_request(
    *,
    stream: bool,
    prompt: str,
    grounded: bool,
    model: str | None,
    max_tokens: int | None,
    temperature: float | None,
    documents: list[str] | None = None,
) -> str:
    """SHA-256, hexadecimal, of what was asked, as asked: None stays None, so that a changed default makes no other request.

    The hashes are in the log: a change of this encoding would turn every repetition across it into a conflict.
    """
    asked = [1, stream, replace_surrogates(prompt), grounded, model, max_tokens, temperature]
    asked += (
        [] if documents is None else [documents]
    )  # a field of later days: without it the hash is that of then
    return hashlib.sha256(to_json(asked)).hexdigest()


def require_same_request(known: str | None, body_hash: str) -> None:
    """Raises `IdempotencyConflict` if the key came with another request before."""
    if known != body_hash:
        raise IdempotencyConflict(
            "this Idempotency-Key came with another request before; send another key, or the same request"
        )


class IdempotencyRegistry:
    """The keys of this process; see the module. `stop` before the event loop ends."""

    def __init__(self, queue: RecordQueue) -> None:
        self._queue = queue
        self._entries: dict[IdempotencyKey, _Entry] = {}
        self._ended: list[IdempotencyKey] = []  # their rows are on the way
        self._forgetting: asyncio.Task[None] | None = None
        self._stopping = False

    def __len__(self) -> int:
        """How many keys are held."""
        return len(self._entries)

    async def start_once(
        self,
        key: IdempotencyKey,
        body_hash: str,
        begin: Callable[[], Coroutine[Any, Any, StartedAnswer]],
    ) -> StartedAnswer:
        """The answer of this key: a running one, or what `begin` finds or begins.

        Raises `IdempotencyConflict`, and what `begin` raises: to everyone who waits for it.
        """
        while (entry := self._entries.get(key)) is not None and entry.body_hash != body_hash:
            if entry.task.done():
                require_same_request(entry.body_hash, body_hash)
            await asyncio.wait([entry.task])  # it may yet be refused; then the key is free
        first = entry is None
        if entry is None:
            entry = self._entries[key] = _Entry(
                body_hash, asyncio.create_task(self._begin(key, begin), name="begin keyed")
            )
            entry.task.add_done_callback(_look)
        try:
            begun = await asyncio.shield(entry.task)
        except asyncio.CancelledError:
            if entry.task.cancelled():
                raise ShuttingDown("this process is ending") from None
            raise
        return begun if first else StartedAnswer(begun.stream, replayed=True)

    async def stop(self) -> None:
        """Begin nothing more, and forget nothing more. Idempotent."""
        self._stopping = True
        tasks: list[asyncio.Task[Any]] = [entry.task for entry in self._entries.values()]
        if self._forgetting:
            tasks.append(self._forgetting)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, Exception):  # whoever waits for it has been told
                await task

    async def _begin(
        self, key: IdempotencyKey, begin: Callable[[], Coroutine[Any, Any, StartedAnswer]]
    ) -> StartedAnswer:
        try:
            begun = await begin()
        except BaseException:
            del self._entries[key]
            raise
        if begun.replayed:
            del self._entries[key]
        else:
            begun.stream.when_finished(partial(self._end, key))
        return begun

    def _end(self, key: IdempotencyKey) -> None:
        """The outcome is in the queue: forget the key when the database has it."""
        self._ended.append(key)
        if self._forgetting is None and not self._stopping:
            self._forgetting = asyncio.create_task(self._forget(), name="forget keys")
            self._forgetting.add_done_callback(self._forgot)

    async def _forget(self) -> None:
        while count := len(self._ended):
            await self._queue.wait_committed()
            for key in self._ended[:count]:
                del self._entries[key]
            del self._ended[:count]

    def _forgot(self, task: asyncio.Task[None]) -> None:
        self._forgetting = None
        if not task.cancelled() and (error := task.exception()):
            log.error(
                "keys.not_forgotten", keys=len(self._ended), exc_info=error
            )  # the next end tries again


def _look(task: asyncio.Task[StartedAnswer]) -> None:
    """A refusal that nobody waits for any more is no fault."""
    if not task.cancelled():
        task.exception()
