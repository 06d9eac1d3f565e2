"""The record of a provider fake: requests, bytes sent, how each call ended; and waits for them."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from tests.fakes.behaviour import Behaviour, apply_markers, read_prompt

WAIT_SECONDS = 10  # default timeout of wait_…


class Ending(StrEnum):
    """How a call ended, from the provider's view."""

    OPEN = "open"  # not ended
    FINISHED = "finished"  # everything was sent, and the end was correct
    ERROR = "error"  # an error status, or a body that is not an answer, was sent
    CUT = "cut"  # ended by a fault: a cut, an error event, or an end without a finish reason
    ABORTED = "aborted"  # the client closed the connection first
    CLOSED = "closed"  # the fake was closed during the call


@dataclass(eq=False, kw_only=True)
class Call:
    """One request and its response. Times are `time.monotonic()`, which all processes share."""

    number: int
    body: Any
    headers: dict[str, str]
    behaviour: Behaviour
    prompt: str
    started_at: float
    status: int | None = None  # None: no headers were sent
    text: str = ""
    chunks: int = 0
    usages: list[Any] = field(default_factory=list)
    body_bytes: int = 0
    ended: Ending = Ending.OPEN
    ended_at: float | None = None

    @property
    def stream(self) -> bool:
        """True if a stream was requested."""
        return bool(isinstance(self.body, dict) and self.body.get("stream"))

    @property
    def usage(self) -> Any:
        """The last usage, exactly as sent; None if there was none."""
        return self.usages[-1] if self.usages else None

    def truth(self) -> dict[str, Any]:
        """Return the call as JSON."""
        values = {
            attribute.name: getattr(self, attribute.name)
            for attribute in fields(self)
            if attribute.name not in ("behaviour", "usages")
        }
        return values | {"usage": self.usage}


class Truth:
    """The recorded calls, and the behaviours of the next ones."""

    def __init__(self, default: Behaviour | None = None) -> None:
        self.default = default or Behaviour()
        # Chooses the behaviour of a call by its body; None: the default
        self.choose: Callable[[Any], Behaviour | None] = lambda _: None
        self.calls: list[Call] = []
        self.embedded: list[list[str]] = []  # the texts of every embedding request
        self.embedding_bodies: list[Any] = []
        self.embedding_usage = True  # whether responses have usage
        # Statuses of the next embedding requests; then 200
        self.embedding_statuses: deque[int] = deque()
        self.others: list[str] = []  # every other request: "GET /v1/models"
        self.refused = 0
        self.errors: list[BaseException] = []  # errors of the fake; closing it raises one
        self._queued: deque[Behaviour] = deque()
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def next(self, *behaviours: Behaviour) -> None:
        """Queue behaviours, one for each of the next calls in order of arrival."""
        self._queued.extend(behaviours)

    def open_calls(self) -> list[Call]:
        """Return the calls that have not ended."""
        return [call for call in self.calls if call.ended is Ending.OPEN]

    async def wait_calls(self, count: int, seconds: float = WAIT_SECONDS) -> list[Call]:
        """Wait until this number of calls has arrived, and return all."""
        await self.wait(lambda: len(self.calls) >= count, seconds)
        return self.calls

    async def wait_chunks(self, call: Call, count: int, seconds: float = WAIT_SECONDS) -> None:
        """Wait until this number of text chunks of a call was sent."""
        await self.wait(lambda: call.chunks >= count, seconds)

    async def wait_ended(self, call: Call, seconds: float = WAIT_SECONDS) -> Ending:
        """Wait until a call has ended and return how."""
        await self.wait(lambda: call.ended is not Ending.OPEN, seconds)
        return call.ended

    async def wait_idle(self, seconds: float = WAIT_SECONDS) -> list[Call]:
        """Wait until every call that has arrived has ended, and return all."""
        await self.wait(lambda: not self.open_calls(), seconds)
        return self.calls

    async def wait(self, condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
        """Wait for any condition on the record. Raises TimeoutError with the recorded state."""
        if condition():
            return
        waiter = (condition, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter[1]
        except TimeoutError:
            states = [f"{call.number}: {call.ended}, {call.chunks} chunks" for call in self.calls]
            raise TimeoutError(
                f"after {seconds} s the fake has seen {len(self.calls)} calls: {states},"
                f" {self.refused} refused"
            ) from None
        finally:
            self._waiters.remove(waiter)

    def truth(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {
            "refused": self.refused,
            "others": self.others,
            "calls": [call.truth() for call in self.calls],
        }

    # called by connections

    def take_refusal(self) -> bool:
        """True if a new connection is to be refused."""
        if not (self._queued[0] if self._queued else self.default).refuse:
            return False
        if self._queued:
            self._queued.popleft()
        self._refuse()
        return True

    def add_call(self, body: Any, headers: dict[str, str]) -> Call | None:
        """Record a call, or return None if it is refused.

        Raises ValueError for an invalid marker.
        """
        prompt = read_prompt(body)
        behaviour = (
            self._queued.popleft()
            if self._queued
            else self.choose(body) or apply_markers(self.default, prompt)
        )
        if behaviour.refuse:
            self._refuse()
            return None
        at = time.monotonic()
        call = Call(
            number=len(self.calls),
            body=body,
            headers=headers,
            behaviour=behaviour,
            prompt=prompt,
            started_at=at,
        )
        self.calls.append(call)
        self.wake_waiters()
        return call

    def end_call(self, call: Call, ending: Ending) -> None:
        """Record how a call ended. The first ending counts."""
        if call.ended is Ending.OPEN:
            call.ended, call.ended_at = ending, time.monotonic()
            self.wake_waiters()

    def wake_waiters(self) -> None:
        """Wake the waiters whose condition is now true."""
        for condition, future in self._waiters:
            if not future.done() and condition():
                future.set_result(None)

    def _refuse(self) -> None:
        self.refused += 1
        self.wake_waiters()
