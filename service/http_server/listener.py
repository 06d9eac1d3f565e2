"""An additional listener of a service, with limits of its own, for an application of its own."""

import asyncio
import socket
from contextlib import suppress

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from service.core.errors import SettingsInvalid
from service.http_server.connections import ConnectionTable, HttpLimits
from service.http_server.protocol import HttpProtocol

TICK_SECONDS = 0.1


class Listener:
    """Listens at HOST:PORT from its creation, and answers between `start` and `close`.

    Port 0 selects a free port. Raises `SettingsInvalid` if it cannot listen.
    """

    def __init__(self, address: str, limits: HttpLimits) -> None:
        host, _, port = address.rpartition(":")
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host.strip("[]"), int(port)), family=family)
        except OSError as error:
            raise SettingsInvalid(
                f"KOTAE_PEER_ADDRESS: cannot listen on {address}: {error.strerror}"
            ) from error
        self.address = f"{host}:{self._socket.getsockname()[1]}"
        self._table, self._state = ConnectionTable(limits), ServerState()
        self._server: asyncio.Server | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def start(self, app: ASGIApp) -> None:
        """Answer requests."""
        config = Config(
            app,
            interface="asgi3",
            ws="none",
            lifespan="off",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            server_header=False,
        )
        config.load()
        state, loop = self._state, asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: HttpProtocol(config, state, {}, loop, table=self._table),
            sock=self._socket,
            backlog=1024,
        )
        self._ticking = asyncio.create_task(self._tick(), name="listener")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._table.tick()

    async def _wait_idle(self) -> None:
        while self._table.busy:  # noqa: ASYNC110 - the table has no event
            await asyncio.sleep(TICK_SECONDS / 10)

    async def close(self, seconds: float) -> None:
        """Stop listening, and close all connections; busy ones after up to `seconds`."""
        if self._server is None or self._ticking is None:
            self._socket.close()
            return
        self._table.draining = True
        self._server.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wait_idle()
        self._ticking.cancel()
        for connection in list(self._state.connections):
            connection.transport.abort()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._server.wait_closed()
