"""Runs an application on uvicorn within the limits of `service.http_server`; ordered shutdown.

Differences from uvicorn: at the first SIGTERM or SIGINT the service refuses new answers and gives
those in progress `shutdown_grace_seconds`. It keeps listening during that time: a client that
connects gets a 503 with `Retry-After`, not a refused connection. A second signal skips the
remaining grace period, but never the end of the lifespan, which writes the remaining records to the
database. The process exits with 0, not by the signal.
"""

import asyncio
import errno
import resource
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from service.core.answering.answers import Answers
from service.core.errors import KotaeError, SettingsInvalid
from service.core.settings import Settings
from service.core.telemetry import Metrics, log
from service.http_server.connections import ConnectionTable, HttpLimits
from service.http_server.forwarded import ForwardedHeaders
from service.http_server.protocol import HttpProtocol

INTERRUPT_SECONDS = 1.0  # in which interrupted streams send their last event
ABORT_SECONDS = 0.5  # in which requests notice that their client has been disconnected
TICK_SECONDS = 0.1
FILES_RESERVED = 256  # for the database, the journal, and other open files
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind_sockets(host: str, port: int) -> list[socket.socket]:
    """Bind the addresses of a host, so that a port in use is noticed before anything is changed.

    Port 0 selects a free port. Raises `SettingsInvalid`.
    """
    sockets: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(addresses):
            listener = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound_port = sockets[0].getsockname()[1]  # 0 before the first one is bound
            listener.bind((address[0], port or bound_port, *address[2:]))
    except OSError as error:
        for listener in sockets:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsInvalid(
                f"port {port} of {host} is in use: stop its process, or choose another port with "
                "--port or KOTAE_PORT"
            ) from error
        raise SettingsInvalid(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    return sockets


class Server(uvicorn.Server):
    """A uvicorn server for one service.

    `announce` is called with the effective settings and the port once the server listens.
    """

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        announce: Callable[[Settings, int], None] = lambda *_: None,
        limits: HttpLimits | None = None,
    ) -> None:
        self.connections = ConnectionTable(
            limits or HttpLimits(connections_max=settings.connections_max)
        )
        super().__init__(
            uvicorn.Config(
                ForwardedHeaders(_StartupReporter(app), settings),  # type: ignore[arg-type]  # starlette's types
                host=settings.host,
                port=settings.port,
                loop="uvloop",
                http=partial(HttpProtocol, table=self.connections),  # type: ignore[arg-type]  # called like the class
                ws="none",
                lifespan="on",
                proxy_headers=False,  # see above
                log_config=None,
                access_log=False,
                server_header=False,
            )
        )
        self._app = app
        self._grace_seconds = settings.shutdown_grace_seconds
        self._announce = announce
        self._loop: asyncio.AbstractEventLoop | None = None
        self._provider_calls_max = settings.provider_calls_max
        self._stopping, self._hurried = asyncio.Event(), asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say where."""
        self._loop = asyncio.get_running_loop()
        self._limit_connections(_raise_files_max())
        await super().startup(sockets=sockets)
        if self.started:
            for listener in (listener for server in self.servers for listener in server.sockets):
                # Inherited by the sockets of accepted connections.
                listener.setsockopt(
                    socket.SOL_SOCKET, socket.SO_SNDBUF, self.connections.limits.send_buffer_bytes
                )
            self._publish_metrics(self._app.state.services.metrics)
            self._announce(
                self._app.state.services.settings, self.servers[0].sockets[0].getsockname()[1]
            )

    async def main_loop(self) -> None:
        """Tick until the process ends. Unlike uvicorn, do not wait for the next tick then."""
        counter = 0
        stopping = asyncio.create_task(self._stopping.wait())
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864_000
            await asyncio.wait([stopping], timeout=TICK_SECONDS)
        stopping.cancel()

    async def on_tick(self, counter: int) -> bool:
        """Enforce the deadlines of connections, ten times per second."""
        self.connections.tick()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - as in the base class
        """End answers within the grace period, then connections, then the lifespan."""
        answers: Answers = self._app.state.services.answers
        answers.refuse_new()
        self.connections.draining = True
        self._shut_connections()
        grace = asyncio.create_task(self._wait_idle(answers, self._grace_seconds))
        hurry = asyncio.create_task(self._hurried.wait())
        await asyncio.wait([grace, hurry], return_when=asyncio.FIRST_COMPLETED)
        grace.cancel()
        hurry.cancel()
        answers.interrupt_all()
        for server in self.servers:
            server.close()
        await self._wait_idle(answers, INTERRUPT_SECONDS)
        await self._abort_connections()
        await self.lifespan.shutdown()

    async def _abort_connections(self) -> None:
        """Disconnect every client; cancel what does not end then.

        A cancelled request is logged as an exception, and hundreds of those would delay the exit.
        """
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if self.server_state.tasks:
            await asyncio.wait(list(self.server_state.tasks), timeout=ABORT_SECONDS)
        for task in self.server_state.tasks:
            task.cancel()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle the signals, and do not raise them again at the end."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        """Start the shutdown; a second signal skips the grace period."""
        again, self.should_exit = self.should_exit, True
        if self._loop and self.started:
            self._loop.call_soon_threadsafe(self._start_shutdown, again)

    def _start_shutdown(self, hurry: bool) -> None:
        answers: Answers = self._app.state.services.answers
        answers.refuse_new()
        self._stopping.set()
        if hurry:
            self._hurried.set()

    def _publish_metrics(self, metrics: Metrics) -> None:
        metrics.connections.set_function(lambda: len(self.connections))
        self.connections.on_drop = lambda limit: metrics.connections_dropped.labels(limit).inc()

    def _shut_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.shutdown()

    def _limit_connections(self, files_max: int) -> None:
        """Allow no more connections than there can be open files, besides those to the provider."""
        limits = self.connections.limits
        possible = max(files_max - FILES_RESERVED - self._provider_calls_max, files_max // 2)
        if possible < limits.connections_max:
            log.warning("connections.limited", connections_max=possible, files_max=files_max)
            self.connections.limits = replace(limits, connections_max=possible)

    async def _wait_idle(self, answers: Answers, seconds: float) -> None:
        """Wait up to `seconds` until no answer is in progress and no connection is busy."""
        deadline = self.connections.now + seconds
        while (
            answers.statistics().in_progress or self.connections.busy
        ) and self.connections.now < deadline:
            await asyncio.sleep(TICK_SECONDS / 2)
            self.connections.tick()


def _raise_files_max() -> int:
    """Raise the limit of open files to the hard limit and return it: 1,024 are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems name a hard limit that they do not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return soft


class _StartupReporter:
    """The application, with errors at startup logged as one line instead of a traceback."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_reported(message: Message) -> None:
            refusal = getattr(self._app.state, "refusal", None)
            if refusal and message["type"] == "lifespan.startup.failed":
                message = {"type": "lifespan.startup.failed", "message": f"kotae: {refusal.detail}"}
            await send(message)

        with suppress(KotaeError):  # already reported
            await self._app(scope, receive, send_reported)
