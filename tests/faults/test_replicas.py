"""Replicas that are killed, stopped or lost, as processes with one PostgreSQL database."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Self

import httpx2
import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.replicas.slots import LEASE_SECONDS
from tests.core.replicas.test_slots import age_slot
from tests.fakes.behaviour import Behaviour
from tests.fakes.provider import ProviderFake
from tests.postgres import PostgresServer, temporary_database
from tests.process import ServiceProcess, kotae, serving
from tests.sse import events

pytestmark = pytest.mark.slow


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A migrated database of PostgreSQL."""
    async with temporary_database(postgres) as database:
        yield database


class Cluster:
    """Starts replicas as processes, each in a folder of its own."""

    def __init__(self, database: Database, fake: ProviderFake, folder: Path) -> None:
        self._database, self._fake, self._folder = database, fake, folder
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def start(self, name: str, **settings: Any) -> ServiceProcess:
        """Start a replica."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        defaults: dict[str, Any] = {
            "KOTAE_DATABASE_URL": self._database._url,
            "KOTAE_PEER_ADDRESS": "127.0.0.1:0",
            "KOTAE_LOST_SECONDS": 30,
            "OPENAI_BASE_URL": self._fake.base_url,
            "OPENAI_API_KEY": "k",
            "KOTAE_MODEL": "m",
        }
        return await self._stack.enter_async_context(serving(folder, **defaults | settings))

    def lose_disk(self, name: str) -> None:
        """Delete the data directory of a replica that has ended."""
        shutil.rmtree(self._folder / name)

    async def read_rows(self) -> list[Any]:
        """The rows of the log: id, status, usage source, time."""
        query = sa.text("SELECT id, status, usage_source, created_at, prompt FROM request_logs")
        async with self._database.read_session() as session:
            return list(await session.execute(query))


@pytest.fixture
async def cluster(database: Database, fake: ProviderFake, tmp_path: Path) -> AsyncIterator[Cluster]:
    """Replicas with one provider fake."""
    async with Cluster(database, fake, tmp_path) as cluster:
        yield cluster


class Network:
    """The network between a replica and PostgreSQL. `cut_off`: nothing arrives, nothing ends."""

    def __init__(self, server: PostgresServer) -> None:
        self._socket = str(server.folder / ".s.PGSQL.5432")
        self._connected = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._connected.set()
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

    def build_url(self, url: str) -> str:
        """The URL of a database of the server, through this network."""
        name = url.partition("@/")[2].partition("?")[0]
        port = self._listener.sockets[0].getsockname()[1]
        return f"postgresql://kotae@127.0.0.1:{port}/{name}?sslmode=disable"

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Hold everything back for the block, both ways and for new connections."""
        self._connected.clear()
        try:
            yield
        finally:
            self._connected.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._connected.wait()
        far_reader, far_writer = await asyncio.open_unix_connection(self._socket)
        self._writers += (writer, far_writer)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._forward(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                await self._connected.wait()
                sink.write(data)
                await sink.drain()
        sink.close()


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


async def test_a_killed_replica_leaves_one_row_for_each_call(
    cluster: Cluster, database: Database, fake: ProviderFake
) -> None:
    """Its answers get 503 at the other replica until it has started again, never 404."""
    first, second = await cluster.start("a"), await cluster.start("b")
    await wait_members(first, 2)
    fake.default = Behaviour(endless=True, gap=0.01)
    ids = [await start_answer(service, str(n)) for n in range(3) for service in (first, second)]
    for call in await fake.wait_calls(6):
        await fake.wait_chunks(call, 3)
    reading = asyncio.create_task(second.client.get(f"/ai/answers/{ids[0]}/events", timeout=20))
    first.signal(signal.SIGKILL)
    await first.wait()
    await asyncio.gather(reading, return_exceptions=True)
    away = [(await second.client.get(f"/ai/answers/{n}")).status_code for n in ids[::2]]
    await age_slot(database, 0, LEASE_SECONDS)
    expired = await second.client.delete(f"/ai/answers/{ids[0]}")
    restarted = await cluster.start("a")
    await wait_members(second, 2)
    returned = [(await second.client.get(f"/ai/answers/{n}")).json() for n in ids[::2]]
    for answer_id in ids[1::2]:
        await restarted.client.delete(f"/ai/answers/{answer_id}")
    await fake.wait_idle()
    async with asyncio.timeout(20):
        while len(rows := await cluster.read_rows()) < 6:
            await asyncio.sleep(0.05)

    assert away == [503] * 3
    assert (expired.status_code, expired.json()["code"]) == (503, "owner_unavailable")
    assert [answer["status"] for answer in returned] == ["interrupted"] * 3
    assert sorted(row.id for row in rows) == sorted(ids)
    assert sorted(row.status for row in rows) == ["interrupted"] * 3 + ["stopped"] * 3
    assert len(fake.calls) == 6


async def test_answers_of_a_lost_disk_become_rows(
    cluster: Cluster, database: Database, fake: ProviderFake
) -> None:
    """The leader writes them when the replica has not been seen for a while."""
    first, second = await cluster.start("a"), await cluster.start("b")
    await wait_members(first, 2)
    fake.default = Behaviour(endless=True, gap=0.01)
    answer_id = await start_answer(second)
    query = sa.text("SELECT count(*) FROM open_answers")
    async with asyncio.timeout(20):
        stored = 0
        while not stored:
            await asyncio.sleep(0.1)
            async with database.read_session() as session:
                stored = (await session.execute(query)).scalar_one()
    second.signal(signal.SIGKILL)
    await second.wait()
    cluster.lose_disk("b")
    await age_slot(database, 1, 31)
    async with asyncio.timeout(20):
        while (reply := await first.client.get(f"/ai/answers/{answer_id}")).status_code == 503:
            await asyncio.sleep(0.1)

    assert reply.json()["status"] == "interrupted"
    assert reply.json()["usage_source"] == "unknown"


async def test_a_leader_that_was_stopped_does_not_lead(
    cluster: Cluster, database: Database
) -> None:
    """Another replica has taken over; when the first one continues, it follows."""
    first, second = await cluster.start("a"), await cluster.start("b")
    await wait_members(second, 2)
    await wait_membership(first, leader=True, term=1)
    first.signal(signal.SIGSTOP)
    await age_slot(database, 0, LEASE_SECONDS)
    await wait_membership(second, leader=True, term=2)
    first.signal(signal.SIGCONT)
    await wait_membership(first, leader=False, lease=True, replicas=2)
    await wait_membership(second, leader=True, term=2)


async def test_a_stopping_replica_is_read_through_another_one(
    cluster: Cluster, fake: ProviderFake
) -> None:
    """Its peers can reach it until its answers have ended."""
    first = await cluster.start("a", KOTAE_SHUTDOWN_GRACE_SECONDS=20)
    second = await cluster.start("b")
    await wait_members(second, 2)
    hold = asyncio.Event()
    fake.next(Behaviour(hold=hold, hold_after=3))
    answer_id = await start_answer(first)
    await fake.wait_chunks((await fake.wait_calls(1))[0], 3)
    first.signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        while (await first.client.get("/health/ready")).status_code != 503:
            await asyncio.sleep(0.05)
    async with (
        second.client.stream("GET", f"/ai/answers/{answer_id}/events") as response,
        aclosing(events(response)) as received,
    ):
        await anext(received)
        hold.set()
        names = [event.name async for event in received]
    status = await first.wait()
    row = await second.client.get(f"/ai/answers/{answer_id}")

    assert names[-1] == "done"
    assert status == 0
    assert row.json()["status"] == "completed"


async def test_replicas_with_different_time_zones_agree(
    cluster: Cluster, database: Database
) -> None:
    """Times of rows are those of their ids, leases are valid, and answers are found."""
    first = await cluster.start("a", TZ="Asia/Tokyo")
    second = await cluster.start("b", TZ="America/Los_Angeles")
    await wait_members(first, 2)
    await wait_members(second, 2)
    ids = [await start_answer(service) for service in (first, second)]
    replies = [
        await service.client.get(f"/ai/answers/{answer_id}/events")
        for answer_id, service in zip(ids, (second, first), strict=True)
    ]
    async with asyncio.timeout(20):
        while len(rows := await cluster.read_rows()) < 2:
            await asyncio.sleep(0.05)

    assert all(reply.content.count(b"event: done") == 1 for reply in replies)
    for row in rows:
        assert int(row.created_at.timestamp() * 1000) == int(row.id.replace("-", "")[:12], 16)


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(10, marks=pytest.mark.timeout(360)),
        pytest.param(200, marks=[pytest.mark.nightly, pytest.mark.timeout(4000)]),
    ],
)
async def test_kills_under_load_lose_and_double_nothing(
    cluster: Cluster, database: Database, fake: ProviderFake, tmp_path: Path, kills: int
) -> None:
    """Every call of the provider has one row, and every acknowledged answer its usage."""
    random = Random(7)
    fake.default = Behaviour(gap=0.01)
    services = {name: await cluster.start(name) for name in "abc"}
    acknowledged: dict[str, int] = {}
    stopping = asyncio.Event()

    async def ask(caller: int) -> None:
        number = 0
        while not stopping.is_set():
            service = services[random.choice("abc")]
            body = {"prompt": f"caller {caller} question {number}", "grounded": False}
            number += 1
            with suppress(httpx2.HTTPError):
                reply = await service.client.post("/ai/test", json=body, timeout=10)
                if reply.status_code == 200:
                    answer = reply.json()
                    acknowledged[answer["id"]] = answer["total_tokens"]
                    continue
            await asyncio.sleep(0.05)

    callers = [asyncio.create_task(ask(caller)) for caller in range(6)]
    for _ in range(kills):
        await asyncio.sleep(random.uniform(0.2, 1))
        name = random.choice("abc")
        services[name].signal(signal.SIGKILL)
        await services[name].wait()
        services[name] = await cluster.start(name)
    stopping.set()
    await asyncio.gather(*callers)
    await fake.wait_idle()
    calls = {call.prompt for call in fake.calls}
    async with asyncio.timeout(30):
        rows = await cluster.read_rows()
        while not calls <= {row.prompt for row in rows}:
            await asyncio.sleep(0.1)
            rows = await cluster.read_rows()
    query = sa.text("SELECT id, prompt_tokens + completion_tokens AS total FROM request_logs")
    async with database.read_session() as session:
        totals = {row.id: row.total for row in await session.execute(query)}

    audit = await kotae("audit", data_dir=tmp_path / "a", KOTAE_DATABASE_URL=database._url)

    assert "all agrees" in audit[1], audit
    assert len(calls) == len(fake.calls)
    assert len(rows) == len({row.prompt for row in rows})
    # An intent whose process was killed before it called the provider.
    assert {row.status for row in rows if row.prompt not in calls} <= {"interrupted"}
    assert acknowledged.items() <= totals.items()
    assert len(acknowledged) > 10


def list_server_processes(server: PostgresServer) -> list[int]:
    """The process ids of a PostgreSQL server."""
    postmaster = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text()
    return [postmaster, *map(int, children.split())]


@contextmanager
def suspended(server: PostgresServer) -> Iterator[None]:
    """Stop all processes of a PostgreSQL server for the block; connections stay open."""
    pids = list_server_processes(server)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


async def test_replicas_without_a_lease_answer(
    cluster: Cluster, fake: ProviderFake, postgres: PostgresServer
) -> None:
    """While PostgreSQL hangs, longer than leases last, no answer waits; later one leads again."""
    services = [await cluster.start(name) for name in "ab"]
    for service in services:
        await wait_members(service, 2)
    statuses: list[int] = []
    with suspended(postgres):
        until = time.monotonic() + LEASE_SECONDS + 3
        while time.monotonic() < until:
            body = {"prompt": f"question {len(statuses)}", "grounded": False}
            async with asyncio.timeout(5):
                for service in services:
                    reply = await service.client.post("/ai/test", json=body)
                    statuses.append(reply.status_code)
    async with asyncio.timeout(60):
        while len(await cluster.read_rows()) < len(statuses):
            await asyncio.sleep(0.2)
    members = []
    for service in services:
        await wait_membership(service, lease=True, replicas=2)
        members.append((await service.client.get("/health/ready")).json()["membership"])

    assert set(statuses) == {200}
    assert len(statuses) > 10
    assert sorted(member["leader"] for member in members) == [False, True]


@pytest.fixture
async def network(postgres: PostgresServer) -> AsyncIterator[Network]:
    """A network that can be cut; requested before `cluster`, it outlives the replicas."""
    async with Network(postgres) as network:
        yield network


async def test_a_replica_that_is_cut_off_from_the_database_answers_but_does_not_lead(
    network: Network, cluster: Cluster, database: Database, fake: ProviderFake
) -> None:
    """Another one takes over; afterwards all rows are there, once, and one replica leads."""
    first = await cluster.start("a", KOTAE_DATABASE_URL=network.build_url(database._url))
    second = await cluster.start("b")
    await wait_members(second, 2)
    await wait_membership(first, leader=True)
    statuses: list[int] = []
    with network.cut_off():
        until = time.monotonic() + LEASE_SECONDS + 3
        while time.monotonic() < until:
            body = {"prompt": f"question {len(statuses)}", "grounded": False}
            async with asyncio.timeout(5):
                reply = await first.client.post("/ai/test", json=body)
            statuses.append(reply.status_code)
        await wait_membership(second, leader=True)
    await wait_membership(first, leader=False, lease=True, replicas=2)
    async with asyncio.timeout(60):
        while len(await cluster.read_rows()) < len(statuses):
            await asyncio.sleep(0.2)
    rows = await cluster.read_rows()
    members = [
        (await service.client.get("/health/ready")).json()["membership"]
        for service in (first, second)
    ]

    assert set(statuses) == {200}
    assert len(statuses) > 10
    assert len(rows) == len({row.prompt for row in rows}) == len(fake.calls) == len(statuses)
    assert [member["leader"] for member in members] == [False, True]
