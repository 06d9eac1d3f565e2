"""Replicas as processes on one PostgreSQL database, and networks between them that can be cut."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from service.core.database.engine import Database
from tests.fakes.provider import ProviderFake
from tests.postgres import PostgresServer
from tests.process import ServiceProcess, serving

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Cluster:
    """Starts replicas as processes, each in a folder of its own."""

    def __init__(self, database: Database, fake: ProviderFake, folder: Path) -> None:
        self.database, self._fake, self._folder = database, fake, folder
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def start(self, name: str, *arguments: str, **settings: Any) -> ServiceProcess:
        """Start a replica."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        defaults: dict[str, Any] = {
            "KOTAE_DATABASE_URL": self.database._url,
            "KOTAE_PEER_ADDRESS": "127.0.0.1:0",
            "KOTAE_LOST_SECONDS": 30,
            "OPENAI_BASE_URL": self._fake.base_url,
            "OPENAI_API_KEY": "k",
            "KOTAE_MODEL": "m",
        }
        return await self._stack.enter_async_context(
            serving(folder, *arguments, **defaults | settings)
        )

    def lose_disk(self, name: str) -> None:
        """Delete the data directory of a replica that has ended."""
        shutil.rmtree(self._folder / name)

    async def read_rows(self) -> list[Any]:
        """The rows of the log: id, status, usage source, time."""
        query = sa.text("SELECT id, status, usage_source, created_at, prompt FROM request_logs")
        async with self.database.read_session() as session:
            return list(await session.execute(query))


class Network:
    """The network between a replica and a server. `cut_off`: nothing arrives, nothing ends."""

    def __init__(self, connect: Connect) -> None:
        self._connect_server = connect
        self._requests, self._responses = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    @classmethod
    def to_postgres(cls, server: PostgresServer) -> Self:
        """The network to a PostgreSQL server."""
        return cls(lambda: asyncio.open_unix_connection(str(server.folder / ".s.PGSQL.5432")))

    @classmethod
    def to_port(cls, port: int) -> Self:
        """The network to a port of this machine."""
        return cls(lambda: asyncio.open_connection("127.0.0.1", port))

    async def __aenter__(self) -> Self:
        self._requests.set()
        self._responses.set()
        self._listener = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await self._listener.wait_closed()

    @property
    def port(self) -> int:
        """The port at which the server is reached through this network."""
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    def build_url(self, url: str) -> str:
        """The URL of a database of the server, through this network."""
        name = url.partition("@/")[2].partition("?")[0]
        return f"postgresql://kotae@127.0.0.1:{self.port}/{name}?sslmode=disable"

    @contextmanager
    def cut_off(self, *, requests: bool = True, responses: bool = True) -> Iterator[None]:
        """Hold everything back for the block, also of new connections, or one direction."""
        closed = [self._requests] * requests + [self._responses] * responses
        for direction in closed:
            direction.clear()
        try:
            yield
        finally:
            for direction in closed:
                direction.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._requests.wait()
        far_reader, far_writer = await self._connect_server()
        self._writers += (writer, far_writer)
        for source, sink, direction in (
            (reader, far_writer, self._requests),
            (far_reader, writer, self._responses),
        ):
            task = asyncio.create_task(self._forward(source, sink, direction))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                await direction.wait()
                sink.write(data)
                await sink.drain()
        sink.close()


_CREATE_FUNCTION = """
CREATE FUNCTION route_peer() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.slot = CAST(TG_ARGV[0] AS int) THEN NEW.address = TG_ARGV[1]; END IF;
    RETURN NEW;
END $$
"""
_CREATE_TRIGGER = """
CREATE TRIGGER route_peer BEFORE INSERT OR UPDATE ON replicas FOR EACH ROW
    EXECUTE FUNCTION route_peer('{slot}', '127.0.0.1:{port}')
"""


async def route_peer(database: Database, slot: int, port: int) -> None:
    """Let other replicas reach the one with this slot, which has not started yet, at a port."""
    async with database.transaction() as session:
        await session.execute(sa.text(_CREATE_FUNCTION))
        await session.execute(sa.text(_CREATE_TRIGGER.format(slot=slot, port=port)))


def count_by_minute(rows: list[Any]) -> Counter[datetime]:
    """The number of answers that began in each minute, which limits per minute count."""
    return Counter(row.created_at.replace(second=0, microsecond=0) for row in rows)


async def start_answer(service: ServiceProcess, prompt: str = "Why?") -> str:
    """Start an answer and return its id."""
    body = {"prompt": prompt, "grounded": False}
    reply = await service.client.post("/ai/answers", json=body)
    assert reply.status_code == 202, reply.text
    answer_id: str = reply.json()["id"]
    return answer_id


async def wait_members(service: ServiceProcess, count: int) -> None:
    """Wait until a replica sees so many."""
    await wait_membership(service, replicas=count)


async def wait_membership(service: ServiceProcess, **values: Any) -> None:
    """Wait until the membership of a replica has these values."""
    async with asyncio.timeout(30):
        while True:
            member = (await service.client.get("/health/ready")).json()["membership"]
            if values.items() <= member.items():
                return
            await asyncio.sleep(0.1)
