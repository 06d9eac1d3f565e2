"""Idempotency keys: a repeated request gets the answer of the first one.

A *key* is the value of `Idempotency-Key`. It belongs to one user and one request, which is
identified by the hash of its content. The first request with a key starts the answer. Later
requests attach to it while it runs, and are answered from its row afterwards (see `replay`).

`IdempotencyRegistry` holds the keys whose answer may not be in the database yet: being looked up,
running, or waiting in the record queue. A key is inserted without an await between lookup and
insertion. It is removed when the request is rejected, when its row was found, or when its row is
committed. A key is therefore always in the registry or in the database, and one process never
writes two rows for a key. The registry needs no limit: it is bounded by the requests in progress
and by the record queue. Starting an answer is a separate task, so a client that disconnects does
not cancel it for others.

Failure policy: closed. Without the database it is unknown whether a key is new, and the request is
rejected (503).

Keys of other replicas are in the database (`claiming.py`); the registry is in front of it, so a
replica has at most one request for a key there.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from service.core.answering.retries import RetriableAnswer
from service.core.answering.streams import Stream
from service.core.encoding import sanitize_text, to_json
from service.core.errors import IdempotencyConflict, ShuttingDown
from service.core.ports import RecordQueue
from service.core.records import Message
from service.core.telemetry import log


class IdempotencyKey(msgspec.Struct, frozen=True):
    """A key of one user."""

    user_id: str
    name: str


class StartedAnswer(msgspec.Struct, frozen=True):
    """An answer. `replayed`: an earlier request has started it.

    `retriable`: what its reader reports to, so that a retry can attach.
    """

    stream: Stream
    replayed: bool
    retriable: RetriableAnswer | None = None


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
    tags: list[str] | None = None,
    history: Sequence[Message] = (),
    conversation_id: str | None = None,
) -> str:
    """Return the SHA-256 of a request in hexadecimal.

    Parameters that were not sent stay None, so a changed default is not a different request. Hashes
    are stored in the log: changing this encoding would turn repeated requests into conflicts.
    """
    fields: list[Any] = [
        1,
        stream,
        sanitize_text(prompt),
        grounded,
        model,
        max_tokens,
        temperature,
    ]
    # Later fields: without them the hash does not change.
    fields += [] if documents is None else [documents]
    fields += [] if tags is None else [{"tags": tags}]
    fields += [{"history": history}] if history else []
    fields += [] if conversation_id is None else [{"conversation_id": conversation_id}]
    return hashlib.sha256(to_json(fields)).hexdigest()


def require_same_request(first_hash: str | None, body_hash: str) -> None:
    """Raise `IdempotencyConflict` if the key was used for a different request."""
    if first_hash != body_hash:
        raise IdempotencyConflict(
            "this Idempotency-Key was used for a different request;"
            " send another key, or the same request"
        )


class IdempotencyRegistry:
    """The keys of this process; see the module. Call `stop` before the event loop ends."""

    def __init__(self, queue: RecordQueue) -> None:
        self._queue = queue
        self._entries: dict[IdempotencyKey, _Entry] = {}
        self._finished_keys: list[IdempotencyKey] = []  # their rows are not committed yet
        self._removal: asyncio.Task[None] | None = None
        self._stopping = False

    def __len__(self) -> int:
        """Return the number of keys held."""
        return len(self._entries)

    async def start_once(
        self,
        key: IdempotencyKey,
        body_hash: str,
        start: Callable[[], Coroutine[Any, Any, StartedAnswer]],
    ) -> StartedAnswer:
        """Return the answer of this key: a running one, or the result of `start`.

        Raises `IdempotencyConflict`, and the errors of `start`, for every waiting request.
        """
        while (entry := self._entries.get(key)) is not None and entry.body_hash != body_hash:
            if entry.task.done():
                require_same_request(entry.body_hash, body_hash)
            await asyncio.wait([entry.task])  # if it is rejected, the key is free
        is_first = entry is None
        if entry is None:
            entry = self._entries[key] = _Entry(
                body_hash, asyncio.create_task(self._start_answer(key, start), name="begin keyed")
            )
            entry.task.add_done_callback(_retrieve_exception)
        try:
            started = await asyncio.shield(entry.task)
        except asyncio.CancelledError:
            if entry.task.cancelled():
                raise ShuttingDown("this process is shutting down") from None
            raise
        return started if is_first else StartedAnswer(started.stream, replayed=True)

    async def stop(self) -> None:
        """Start and remove nothing more. Idempotent."""
        self._stopping = True
        tasks: list[asyncio.Task[Any]] = [entry.task for entry in self._entries.values()]
        if self._removal:
            tasks.append(self._removal)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, Exception):  # its waiters got the exception
                await task

    async def _start_answer(
        self, key: IdempotencyKey, start: Callable[[], Coroutine[Any, Any, StartedAnswer]]
    ) -> StartedAnswer:
        try:
            started = await start()
        except BaseException:
            del self._entries[key]
            raise
        if started.replayed:
            del self._entries[key]
        else:
            started.stream.add_finish_callback(partial(self._schedule_removal, key))
        return started

    def _schedule_removal(self, key: IdempotencyKey) -> None:
        """Remove the key once its outcome, which is in the queue, is committed."""
        self._finished_keys.append(key)
        if self._removal is None and not self._stopping:
            self._removal = asyncio.create_task(self._remove_committed(), name="forget keys")
            self._removal.add_done_callback(self._check_removal)

    async def _remove_committed(self) -> None:
        while count := len(self._finished_keys):
            await self._queue.wait_committed()
            for key in self._finished_keys[:count]:
                del self._entries[key]
            del self._finished_keys[:count]

    def _check_removal(self, task: asyncio.Task[None]) -> None:
        self._removal = None
        if not task.cancelled() and (error := task.exception()):
            # The next finished answer retries.
            log.error("keys.not_forgotten", keys=len(self._finished_keys), exc_info=error)


def _retrieve_exception(task: asyncio.Task[StartedAnswer]) -> None:
    """Retrieve the exception, so that asyncio does not log a rejection without waiters."""
    if not task.cancelled():
        task.exception()
