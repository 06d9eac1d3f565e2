"""PostgreSQL is replaced by a standby under load."""

import asyncio
from contextlib import suppress
from itertools import count
from pathlib import Path

import httpx2
import pytest

from service.core.database.engine import Database
from tests.fakes.behaviour import Behaviour
from tests.fakes.provider import ProviderFake
from tests.faults.cluster import Cluster, Network, wait_members
from tests.postgres import running_server, running_standby
from tests.process import ServiceProcess, kotae

pytestmark = pytest.mark.slow
ANSWERS = 20  # before the failover, in it, and afterwards


async def ask(service: ServiceProcess, name: str, acknowledged: list[str]) -> None:
    """Ask until the task is cancelled."""
    for number in count():
        prompt = f"{name} question {number}"
        with suppress(httpx2.HTTPError):
            body = {"prompt": prompt, "grounded": False}
            reply = await service.client.post("/ai/test", json=body)
            if reply.status_code == 200:
                acknowledged.append(prompt)


async def wait_more(acknowledged: list[str]) -> None:
    """Wait for further answers."""
    enough = len(acknowledged) + ANSWERS
    async with asyncio.timeout(60):
        while len(acknowledged) < enough:
            await asyncio.sleep(0.05)


@pytest.mark.timeout(240)
async def test_replicas_go_on_with_a_standby(fake: ProviderFake, tmp_path: Path) -> None:
    """With synchronous replication, no row is lost or doubled, and answers never stop."""
    fake.default = Behaviour(gap=0.01)
    acknowledged: list[str] = []
    with (
        running_server(wal_level="replica", max_wal_senders="4") as primary,
        running_standby(primary) as standby,
    ):
        servers = [primary]
        network = Network(
            lambda: asyncio.open_unix_connection(str(servers[-1].folder / ".s.PGSQL.5432"))
        )
        async with network:
            database = Database(network.build_url(await primary.create_database()))
            async with Cluster(database, fake, tmp_path) as cluster:
                services = [await cluster.start(name) for name in "ab"]
                asking = [
                    asyncio.create_task(ask(service, f"caller {number}", acknowledged))
                    for number, service in enumerate(services * 2)
                ]
                await wait_more(acknowledged)
                await asyncio.to_thread(primary.stop)
                await wait_more(acknowledged)
                await asyncio.to_thread(standby.run, "pg_ctl", "-w", "promote")
                servers.append(standby)
                await wait_more(acknowledged)
                for task in asking:
                    task.cancel()
                await asyncio.gather(*asking, return_exceptions=True)
                await fake.wait_idle()
                calls = {call.prompt for call in fake.calls}
                async with asyncio.timeout(60):
                    rows = await cluster.read_rows()
                    while not calls <= {row.prompt for row in rows}:
                        await asyncio.sleep(0.2)
                        rows = await cluster.read_rows()
                for service in services:
                    await wait_members(service, 2)
                members = [
                    (await service.client.get("/health/ready")).json()["membership"]
                    for service in services
                ]
                audit = await kotae(
                    "audit", data_dir=tmp_path / "a", KOTAE_DATABASE_URL=database._url
                )
            await database.close()
        await asyncio.to_thread(primary.start)  # so that it can be stopped

    assert len(rows) == len({row.prompt for row in rows}) == len(fake.calls)
    assert set(acknowledged) <= {row.prompt for row in rows}
    assert sorted(member["leader"] for member in members) == [False, True]
    assert "all agrees" in audit[1], audit
