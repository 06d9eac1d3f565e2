"""The one door to `uvicorn`: serving an application, and ending it well.

What differs from uvicorn alone: the first SIGTERM or SIGINT makes the service refuse new answers at once and gives
those in progress `shutdown_grace_seconds`; a second one takes the rest of the grace away, but never skips the lifespan,
which would lose what is not yet written; and the process ends with 0, not by the signal.
"""

import asyncio
import math
import resource
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.core.errors import KotaeError
from service.core.settings import Settings

WRITE_BUFFER_BYTES = 16_384  # what may wait in this process for a connection that does not take it, before its stream waits
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Connection(HttpToolsProtocol):
    """A connection that holds little for a client that does not read, and that an application can drop (`kotae.drop`).

    Closing is not enough to be rid of such a client: what was written for it is still delivered first, so never.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        """Bound what waits."""
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        super().connection_made(transport)

    def on_message_begin(self) -> None:
        """Give each request the means to drop its connection."""
        super().on_message_begin()
        self.scope["extensions"] = {**self.scope.get("extensions", {}), "kotae.drop": {"now": self.transport.abort}}


class Server(uvicorn.Server):
    """A uvicorn server for one service. `announce` is called with the settings in force and the port once it listens."""

    def __init__(self, app: FastAPI, settings: Settings, announce: Callable[[Settings, int], None] = lambda *_: None) -> None:
        super().__init__(
            uvicorn.Config(
                _Plain(app),
                host=settings.host,
                port=settings.port,
                loop="uvloop",
                http=Connection,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_seconds) + 1,
            )
        )
        self._app = app
        self._send_buffer_bytes = settings.send_buffer_bytes
        self._grace_seconds = settings.shutdown_grace_seconds
        self._announce = announce
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say where."""
        self._loop = asyncio.get_running_loop()
        _raise_files_max()
        await super().startup(sockets=sockets)
        if self.started:
            for each in (listener for server in self.servers for listener in server.sockets):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer_bytes)  # connections inherit it
            self._announce(self._app.state.rooms.settings, self.servers[0].sockets[0].getsockname()[1])

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take the signals, and do not raise them again at the end."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        """The first signal begins the end, a second one hurries it."""
        again, self.should_exit = self.should_exit, True
        if self._loop and self.started:
            self._loop.call_soon_threadsafe(self._begin_end, again)

    def _begin_end(self, hurry: bool) -> None:
        answers = self._app.state.rooms.answers
        answers.refuse_new()
        if hurry:
            answers.interrupt()
        else:
            asyncio.get_running_loop().call_later(self._grace_seconds, answers.interrupt)


def _raise_files_max() -> None:
    """Allow as many open files as this process may allow itself: the usual 1,024 are two for each of 500 answers."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems name a hard limit that they do not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Plain:
    """The application, whose refusal to start is one line in the log instead of a page of traceback."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def say(message: Message) -> None:
            refusal = getattr(self._app.state, "refusal", None)
            if refusal and message["type"] == "lifespan.startup.failed":
                message = {"type": "lifespan.startup.failed", "message": f"kotae: {refusal.detail}"}
            await send(message)

        with suppress(KotaeError):  # it has been said
            await self._app(scope, receive, say)
