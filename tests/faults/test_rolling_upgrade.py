"""A rolling upgrade: replicas of two versions on one database.

The later version is a copy of this one with another migration. So what two versions say to each
other is tested for the database, not for changes of the code, which reviews have to consider.
"""

import asyncio
import shutil
import signal
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random

import httpx2
import pytest

from service.core.database.engine import MIGRATIONS
from tests.fakes.behaviour import Behaviour
from tests.fakes.provider import ProviderFake
from tests.faults.cluster import Cluster, wait_members
from tests.process import ServiceProcess, kotae

pytestmark = pytest.mark.slow
NAMES = "abc"
MIGRATION = """
from alembic import op

revision, down_revision = "9999", "{newest}"
runs_beside_previous = {beside}


def upgrade() -> None:
    op.execute("ALTER TABLE request_logs ADD COLUMN later text NOT NULL DEFAULT 'x'")
    op.execute("CREATE TABLE later (id int)")


def downgrade() -> None:
    raise NotImplementedError
"""


def copy_later_version(folder: Path, *, beside: bool) -> Path:
    """Create the later version, and return the folder to import it from."""
    for source in (Path(__file__).parents[2] / "service", MIGRATIONS):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / source.name, ignore=ignored)
    steps = folder / "alembic" / "postgresql"
    newest = max(file.name.partition("_")[0] for file in steps.glob("[0-9]*_*.py"))
    text = MIGRATION.format(newest=newest, beside=beside)
    (steps / "9999_later.py").write_text(text)
    return folder


class Caller:
    """Asks each question with a key, at one replica after the other, until it is answered."""

    def __init__(self, services: dict[str, ServiceProcess]) -> None:
        self._services, self._random = services, Random(7)
        self.answered: dict[str, str] = {}  # ids by prompt
        self.stopping = asyncio.Event()

    async def ask(self, name: str) -> None:
        """Ask until the end."""
        for number in count():
            if self.stopping.is_set():
                return
            prompt = f"{name} question {number}"
            async with asyncio.timeout(60):
                while prompt not in self.answered:
                    await self._ask_once(prompt)

    async def _ask_once(self, prompt: str) -> None:
        service = self._services[self._random.choice(NAMES)]
        with suppress(httpx2.HTTPError):
            reply = await service.client.post(
                "/ai/test",
                json={"prompt": prompt, "grounded": False},
                headers={"Idempotency-Key": prompt.replace(" ", "-")},
            )
            assert reply.status_code in {200, 503}, reply.text
            if reply.status_code == 200:
                self.answered[prompt] = reply.json()["id"]
                return
        await asyncio.sleep(0.05)


@pytest.mark.timeout(300)
async def test_versions_are_replaced_and_returned_to_under_load(
    cluster: Cluster, fake: ProviderFake, tmp_path: Path
) -> None:
    """Each question is answered by one provider call, and has one row, in both directions."""
    fake.default = Behaviour(gap=0.01)
    later = {"PYTHONPATH": copy_later_version(tmp_path / "later", beside=True)}
    options = {"KOTAE_SHUTDOWN_GRACE_SECONDS": 20}
    services = {name: await cluster.start(name, **options) for name in NAMES}
    caller = Caller(services)
    asking = [asyncio.create_task(caller.ask(f"caller {number}")) for number in range(4)]
    revisions = []
    for settings, arguments in ((later, ["--migrate"]), ({}, [])):
        for name in NAMES:
            await wait_members(services[name], 3)
            services[name].signal(signal.SIGTERM)
            assert await services[name].wait(40) == 0
            services[name] = await cluster.start(name, *arguments, **options | settings)
            revisions.append(await cluster.database.read_revision())
    caller.stopping.set()
    await asyncio.gather(*asking)
    async with asyncio.timeout(20):
        while len(rows := await cluster.read_rows()) < len(caller.answered):
            await asyncio.sleep(0.1)

    assert {present for present, _ in revisions} == {"9999"}
    assert len(caller.answered) > 20
    assert {row.prompt: row.id for row in rows} == caller.answered
    assert len(rows) == len(fake.calls) == len(caller.answered)


async def test_a_version_that_cannot_run_beside_this_one_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Its migration waits for the end of all replicas; then this version does not start."""
    later = {
        "PYTHONPATH": copy_later_version(tmp_path / "later", beside=False),
        "KOTAE_DATABASE_URL": cluster.database._url,
    }
    service = await cluster.start("a")
    refused = await kotae("migrate", data_dir=tmp_path, **later)
    answered = await service.client.post("/ai/test", json={"prompt": "Why?", "grounded": False})
    service.signal(signal.SIGTERM)
    await service.wait()
    migrated = await kotae("migrate", data_dir=tmp_path, **later)
    outdated = await kotae(
        "serve", "--port", "0", data_dir=tmp_path, KOTAE_DATABASE_URL=cluster.database._url
    )

    assert refused[0] != 0
    assert "used by a service" in refused[2]
    assert answered.status_code == 200
    assert migrated[0] == 0, migrated
    assert outdated[0] != 0
    assert "install a newer version" in outdated[2]
