"""A provider fake: an OpenAI-compatible server on a real socket with faults and a record of calls.

    async with ProviderFake() as fake:
        fake.next(Behaviour(cut_after=3))
        ...                                  # something calls fake.base_url
        await fake.wait_idle()
        assert fake.calls[0].ended is Ending.CUT

`fake.calls` has one `Call` for every chat completion that was read from a socket, with the bytes
that were written to the socket, and how it ended. The fake runs inside the loop of a test, or as a
separate process, which survives the one under test and returns its record at `GET /truth`:

    python -m tests.fakes.provider --port 9100 --behaviour 'chunks=20 gap=0.01'

A call uses the next queued behaviour, or else the default with the markers in the prompt applied.
"""

import argparse
import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

from tests.fakes.behaviour import (
    HTML,
    Behaviour,
    Point,
    default_deltas,
    default_text,
    parse_markers,
)
from tests.fakes.connection import Connection
from tests.fakes.truth import Call, Ending, Truth

__all__ = [
    "HTML",
    "Behaviour",
    "Call",
    "Ending",
    "Point",
    "ProviderFake",
    "default_deltas",
    "default_text",
]


class ProviderFake(Truth):
    """The server. Start it with `async with`, or `start()` and `close()`."""

    def __init__(
        self,
        default: Behaviour | None = None,
        *,
        port: int = 0,
        models: Iterable[str] = ("fake-model",),
    ) -> None:
        super().__init__(default)
        self._models = list(models)
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    @property
    def base_url(self) -> str:
        """The value for OPENAI_BASE_URL."""
        return f"http://127.0.0.1:{self._port}/v1"

    async def start(self) -> None:
        """Listen. The port stays the same when it listens again."""
        listener = socket.create_server(("127.0.0.1", self._port), backlog=4096)
        self._port = listener.getsockname()[1]
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self, self._connections, self._models), sock=listener
        )

    async def close(self) -> None:
        """Stop listening and end every connection. Idempotent."""
        if self._server:
            self._server.close()
            self._server = None
        connections = list(self._connections)
        for connection in connections:
            connection.end(Ending.CLOSED)
            connection.transport.abort()
        await asyncio.gather(*(connection.wait_lost() for connection in connections))
        if self.errors:
            raise self.errors.pop()

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Simulate a provider that is down: open connections are lost, new ones are refused."""
        await self.close()
        try:
            yield
        finally:
            await self.start()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()


async def _serve(port: int, behaviour: Behaviour) -> None:
    async with ProviderFake(behaviour, port=port) as fake:
        print(fake.base_url, flush=True)  # noqa: T201 - whoever started it reads this
        await asyncio.Future[None]()


def main() -> None:
    """Serve until killed; print the base URL first."""
    parser = argparse.ArgumentParser(
        description="An OpenAI-compatible provider fake; GET /truth tells what it has seen."
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--behaviour", default="", help="fields of a Behaviour, such as 'chunks=20 gap=0.01'"
    )
    options = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.port, Behaviour(**parse_markers(options.behaviour))))


if __name__ == "__main__":
    main()
