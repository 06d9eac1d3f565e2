"""Fixtures that every test may use: a migrated database, a provider fake, and a real service on a port of its own."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import settings as hypothesis_settings

from service.api.dependencies import Rooms
from service.core.database.engine import Database
from service.core.documents import library
from service.core.settings import Settings
from service.core.telemetry import configure_logging
from service.http_server.connections import HttpLimits
from service.main import create_app
from service.server import Server
from tests.fakes.provider import ProviderFake
from tests.schema import migrated_database

# No deadline: a busy machine is not a failure. The same examples every time: a red run can be repeated.
hypothesis_settings.register_profile("kotae", deadline=None, derandomize=True)
hypothesis_settings.load_profile("kotae")


@pytest.fixture(autouse=True, scope="session")
def _plain_logs() -> None:
    """Log lines as the service writes them: without the local variables of a traceback."""
    configure_logging("warning", "json")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine reaches a test."""
    for name in list(os.environ):
        if name.startswith(("KOTAE_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def migrated() -> Path:
    """A database file with the schema that Alembic makes; tests take copies."""
    return migrated_database()


@pytest.fixture
async def database(migrated: Path, tmp_path: Path) -> AsyncIterator[Database]:
    """A database of this test alone."""
    shutil.copy(migrated, tmp_path / "kotae.db")
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'kotae.db'}")
    yield database
    await database.close()


@dataclass(frozen=True)
class Service:
    """A running service, seen from outside (`url`, `client`) and from inside (`rooms`)."""

    url: str
    client: httpx2.AsyncClient
    rooms: Rooms
    server: Server

    async def wait_idle(self) -> None:
        """Until every answer has ended and is in the database."""
        async with asyncio.timeout(20):
            while self.rooms.queue.statistics().open:
                await asyncio.sleep(0.002)
            await self.rooms.queue.wait_committed()

    async def rows(self, **params: Any) -> list[dict[str, Any]]:
        """The log, newest first, once everything that was begun is in it."""
        await self.wait_idle()
        response = await self.client.get("/ai/logs", params={"limit": 200, **params})
        assert response.status_code == 200, response.text
        items: list[dict[str, Any]] = response.json()["items"]
        return items

    async def row(self) -> dict[str, Any]:
        """The only row of the log."""
        (row,) = await self.rows()
        return row


def http_client(url: str, **options: Any) -> httpx2.AsyncClient:
    """A client for plain HTTP: reading the certificates of the system would take 20 ms each time."""
    return httpx2.AsyncClient(base_url=url, verify=False, **{"timeout": 20, **options})


Serve = Callable[..., Awaitable[Service]]


@pytest.fixture
async def serve(migrated: Path, tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts real services, with settings as named arguments; `seeded=True` gives one the sample documents.

    `limits` are those of its connections.
    """
    async with AsyncExitStack() as stack:

        async def start(*, seeded: bool = False, limits: HttpLimits | None = None, **overrides: Any) -> Service:
            data_dir = Path(overrides.setdefault("data_dir", tmp_path / "data"))
            data_dir.mkdir(exist_ok=True)
            if not (data_dir / "kotae.db").exists():
                shutil.copy(migrated, data_dir / "kotae.db")
            values: dict[str, Any] = {
                "port": 0,
                "shutdown_grace_seconds": 0.2,
                "log_level": "error",
                "journal_spool": str(tmp_path / "spool"),
            } | overrides
            settings = Settings(**values)
            return await stack.enter_async_context(running(settings, seeded=seeded, limits=limits))

        yield start


@asynccontextmanager
async def running(settings: Settings, *, seeded: bool = False, limits: HttpLimits | None = None) -> AsyncIterator[Service]:
    """Run a service on a free port of this event loop."""
    listening = asyncio.get_running_loop().create_future()
    app = create_app(settings)
    server = Server(app, settings, lambda _, port: listening.set_result(port), limits)
    task = asyncio.create_task(server.serve())
    await asyncio.wait([listening, task], return_when=asyncio.FIRST_COMPLETED)
    assert listening.done(), "the service did not start"
    url = f"http://127.0.0.1:{listening.result()}"
    rooms = app.state.rooms
    if seeded:
        await library.seed(rooms.database, settings, user_id="local")
    headers = {"Authorization": f"Bearer {settings.secret.get_secret_value()}"} if settings.secret else {}
    async with http_client(url, headers=headers) as client:
        yield Service(url, client, rooms, server)
    server.handle_exit(signal.SIGTERM, None)
    await asyncio.wait_for(task, 20)


@pytest.fixture
async def fake() -> AsyncIterator[ProviderFake]:
    """An OpenAI-compatible provider on a socket, which does as it is told and keeps the truth."""
    async with ProviderFake() as fake:
        yield fake


@pytest.fixture
async def service(serve: Serve, fake: ProviderFake) -> Service:
    """A service that answers through the provider fake, without documents."""
    return await serve(openai_base_url=fake.base_url, openai_api_key="sk-test", model="fake-model")


@pytest.fixture
async def service_url(serve: Serve) -> str:
    """The address of a service with the extractive model and the sample documents."""
    return (await serve(seeded=True)).url
