"""The one door to `sse_starlette`: a `Stream` as a `text/event-stream` response.

Bytes are yielded ready-made, one write for all that is ready. Two things of the library are global to the process and
known here: importing it wraps `uvicorn.Server.handle_exit`, and by default it cancels every stream at the first
SIGTERM. The second is switched off: streams get their grace, and `Answers.interrupt` ends them with an event.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus, SendTimeoutError
from starlette.types import Receive, Scope, Send

from service.core.settings import Settings
from service.core.streams import GOODBYE, Stream
from service.core.telemetry import log

AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]

RECONNECT_MS = 2000
_RETRY = b"retry: %d\n\n" % RECONNECT_MS


class StreamResponse(EventSourceResponse):
    """An event stream whose slow readers are dropped without a traceback."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream. A reader that does not read loses its connection, and with it what waits there for it."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("reader.dropped", seconds=self.send_timeout)
            if drop := scope.get("extensions", {}).get("kotae.drop"):
                drop["now"]()
                await asyncio.sleep(0)  # the server learns of it before it is told that the response is not whole


def stream_response(stream: Stream, settings: Settings, after: int = -1) -> StreamResponse:
    """The events of a stream that come after `after`, to its end, as server-sent events."""
    return StreamResponse(
        _encoded(stream, after),
        ping=settings.ping_seconds,
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        send_timeout=settings.send_seconds_max,
        sep="\n",
    )


async def _encoded(stream: Stream, after: int) -> AsyncGenerator[bytes, None]:
    lead = _RETRY
    async with aclosing(stream.read(after)) as batches:
        async for batch in batches:
            yield lead + batch if batch is not GOODBYE else b"retry: %d\n\n" % _spread_ms()
            lead = b""


def _spread_ms() -> int:
    """When the readers of a process that ends shall come back, should they be cut: not all at once."""
    return round(RECONNECT_MS * random.uniform(0.5, 2))  # noqa: S311 - not for secrets
