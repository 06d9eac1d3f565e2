"""Sends a `Stream` as a `text/event-stream` response. The only importer of `sse_starlette`.

The library defines what such a response looks like; sending is ours, because a task per concern
and a timeout around each send cost more than the events. Bytes are sent as they are, in one write
per batch, from one task created outside the middleware stack (otherwise every event would wake all
layers of the application). The request task waits for the disconnect. One timer detects silence,
which is broken by a ping, and sends that block because the client does not read.

Two effects of the library are process-wide: importing it wraps `uvicorn.Server.handle_exit`, and
by default it cancels every stream at the first SIGTERM. The second is disabled: streams get the
grace period, and `Answers.interrupt` ends them with an event.
"""

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.types import Receive, Scope, Send

from service.api.waiting import wait_done
from service.core.answering.answers import SHUTDOWN_NOTICE, Stream
from service.core.errors import OwnerUnavailable
from service.core.limits import ServiceLimits
from service.core.ports import PeerResponse
from service.core.telemetry import log

AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]

RECONNECT_MS = 2000
# The first line of the next block, not a block: some clients take any block for an event.
_RETRY = b"retry: %d\n" % RECONNECT_MS
_PING = b": ping\n\n"


Enter = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a function that disconnects the reader, returns one to call when the reader has left."""


class StreamResponse(EventSourceResponse):
    """Batches of events, to their end. Slow readers are disconnected.

    `enter` registers the reader. `resumable`: the client is told when to reconnect.
    """

    def __init__(
        self,
        batches: AsyncGenerator[bytes, None],
        limits: ServiceLimits,
        enter: Enter | None,
        *,
        resumable: bool,
    ) -> None:
        self._enter = enter
        self._batches = batches
        self._resumable = resumable
        self.completed = False  # everything was sent
        super().__init__(self._batches)
        self._ping_seconds, self._send_seconds = limits.ping_seconds, limits.send_seconds_max
        self._sending_since: float | None = None
        self._dropped = False
        self._pinging: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream. A reader that does not read is disconnected and its buffer discarded."""
        sending = asyncio.create_task(self._send_all(send))
        self._sent_at = asyncio.get_running_loop().time()
        self._check_timeouts(send, sending)
        leave = self._enter(lambda: self._drop_reader(sending)) if self._enter else None
        try:
            await wait_done(scope, receive, sending)
        finally:
            if leave:
                leave()
            self._timer.cancel()
            if self._pinging:
                self._pinging.cancel()
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
        if self._dropped:
            log.info("reader.dropped", seconds=self._send_seconds)
            if drop := scope.get("extensions", {}).get("kotae.drop"):
                drop["now"]()
                # The server must learn of it before it learns that the response is incomplete.
                await asyncio.sleep(0)

    def end_incomplete(self) -> None:
        """Close the connection at the end of the batches, so that the client reconnects."""
        self._dropped = True

    def disable_ping(self) -> None:
        """Send no comments in silence."""
        self._ping_seconds = math.inf

    def _drop_reader(self, sending: asyncio.Task[None]) -> None:
        """Disconnect a reader that is slow or no longer authorised."""
        self._dropped = True
        sending.cancel()

    async def _send_all(self, send: Send) -> None:
        loop, lead = asyncio.get_running_loop(), _RETRY if self._resumable else b""
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async with aclosing(self._batches) as batches:
            async for batch in batches:
                if batch is SHUTDOWN_NOTICE and not self._resumable:
                    continue
                data = (
                    b"retry: %d\n" % _jitter_reconnect_ms()
                    if batch is SHUTDOWN_NOTICE
                    else lead + batch
                )
                lead = b""
                self._sending_since = loop.time()
                await send({"type": "http.response.body", "body": data, "more_body": True})
                self._sending_since, self._sent_at = None, loop.time()
        if self._dropped:  # the client must not take this for the end
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self.completed = True

    def _check_timeouts(self, send: Send, sending: asyncio.Task[None]) -> None:
        """Ping or disconnect. The timer runs often enough to notice a send that started since."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if sending.done():
            return
        if self._sending_since is not None:
            due = self._sending_since + self._send_seconds
            if now >= due:
                self._drop_reader(sending)
                return
        else:
            due = self._sent_at + self._ping_seconds
            if now >= due:
                self._pinging = loop.create_task(self._send_ping(send))
                due = now + self._ping_seconds
        self._timer = loop.call_at(
            min(due, now + self._send_seconds / 4), self._check_timeouts, send, sending
        )

    async def _send_ping(self, send: Send) -> None:
        self._sending_since = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": _PING, "more_body": True})
        self._sending_since, self._sent_at = None, asyncio.get_running_loop().time()


def create_stream_response(
    stream: Stream,
    limits: ServiceLimits,
    after: int = -1,
    enter: Enter | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> StreamResponse:
    """The events of a stream after `after`, to its end, as server-sent events."""
    return StreamResponse(stream.read_events(after, on_batch), limits, enter, resumable=True)


def create_batches_response(
    batches: AsyncGenerator[bytes, None], limits: ServiceLimits, enter: Enter | None = None
) -> StreamResponse:
    """Events in another protocol, which has no reconnect, to their end."""
    return StreamResponse(batches, limits, enter, resumable=False)


def create_relayed_response(
    response: PeerResponse, limits: ServiceLimits, enter: Enter | None
) -> StreamResponse:
    """The events of another replica as it sends them, with its own comments in silence."""

    async def read_batches() -> AsyncGenerator[bytes, None]:
        try:
            while data := await response.read():
                yield data
        except OwnerUnavailable:
            relayed.end_incomplete()
        finally:
            await response.close()

    relayed = StreamResponse(read_batches(), limits, enter, resumable=False)
    relayed.disable_ping()
    return relayed


def _jitter_reconnect_ms() -> int:
    """Reconnect delay during shutdown, with jitter so that clients do not return all at once."""
    return round(RECONNECT_MS * random.uniform(0.5, 2))  # noqa: S311 - not for secrets
