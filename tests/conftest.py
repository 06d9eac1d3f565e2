"""Fixtures for all tests: a migrated database, a provider fake, a real service on a free port."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from hypothesis import settings as hypothesis_settings

from service.api.dependencies import Services
from service.core.database.engine import Database
from service.core.documents import library
from service.core.limits import ServiceLimits
from service.core.settings import Settings
from service.core.telemetry import configure_logging
from service.http_server.connections import HttpLimits
from service.main import create_app
from service.server import Server
from tests.fakes.provider import ProviderFake
from tests.postgres import PostgresServer, running_server, temporary_database
from tests.schema import migrated_database

# No deadline, because a busy machine is not a failure; the same examples in every run.
hypothesis_settings.register_profile("kotae", deadline=None, derandomize=True)
hypothesis_settings.load_profile("kotae")


@pytest.fixture(autouse=True, scope="session")
def _plain_logs() -> None:
    """Log lines like the service's: without the local variables of a traceback."""
    configure_logging("warning", "json")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the machine's settings from the environment."""
    for name in list(os.environ):
        if name.startswith(("KOTAE_", "OPENAI_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def migrated() -> Path:
    """Create a database file with the Alembic schema; tests copy it."""
    return migrated_database()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server with a template of the schema."""
    with running_server() as server:
        yield server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests marked `every_database` on SQLite and on PostgreSQL, but for those of SQLite."""
    marks = metafunc.definition
    if (
        "database" in metafunc.fixturenames
        and marks.get_closest_marker("every_database")
        and not marks.get_closest_marker("sqlite")
    ):
        postgresql = pytest.param("postgresql", marks=pytest.mark.slow)
        metafunc.parametrize("database", ["sqlite", postgresql], indirect=True)


@pytest.fixture
async def database(
    request: pytest.FixtureRequest, migrated: Path, tmp_path: Path
) -> AsyncIterator[Database]:
    """A database for one test; on PostgreSQL for tests marked `every_database`."""
    if getattr(request, "param", "sqlite") == "postgresql":
        async with temporary_database(request.getfixturevalue("postgres")) as database:
            yield database
        return
    shutil.copy(migrated, tmp_path / "kotae.db")
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'kotae.db'}")
    yield database
    await database.close()


@dataclass(frozen=True)
class Service:
    """A running service with its URL, a client, and its internal `services`."""

    url: str
    client: httpx2.AsyncClient
    services: Services
    server: Server

    async def wait_idle(self) -> None:
        """Wait until every answer has ended and is in the database."""
        async with asyncio.timeout(20):
            while self.services.queue.statistics().open:
                await asyncio.sleep(0.002)
            await self.services.queue.wait_committed()

    async def rows(self, **params: Any) -> list[dict[str, Any]]:
        """Return the log, newest first, once all started answers are in it."""
        await self.wait_idle()
        response = await self.client.get("/ai/logs", params={"limit": 200, **params})
        assert response.status_code == 200, response.text
        items: list[dict[str, Any]] = response.json()["items"]
        return items

    async def row(self) -> dict[str, Any]:
        """Return the only row of the log."""
        (row,) = await self.rows()
        return row


def http_client(url: str, **options: Any) -> httpx2.AsyncClient:
    """Create a client without TLS: loading the system's certificates costs 20 ms."""
    return httpx2.AsyncClient(base_url=url, verify=False, **{"timeout": 20, **options})


SECRET_KEY = "5e" * 32  # of the replicas of tests; required with PostgreSQL
Serve = Callable[..., Awaitable[Service]]


@asynccontextmanager
async def service_starter(migrated: Path, folder: Path) -> AsyncIterator[Serve]:
    """Yield a function that starts services with files in this folder; stop them at the end."""
    async with AsyncExitStack() as stack:

        async def start(
            *,
            seeded: bool = False,
            limits: ServiceLimits | None = None,
            http_limits: HttpLimits | None = None,
            **overrides: Any,
        ) -> Service:
            data_dir = Path(overrides.setdefault("data_dir", folder / "data"))
            data_dir.mkdir(exist_ok=True)
            if not (data_dir / "kotae.db").exists():
                shutil.copy(migrated, data_dir / "kotae.db")
            values: dict[str, Any] = {
                "port": 0,
                "shutdown_grace_seconds": 0.2,
                "log_level": "error",
                "journal_spool": str(folder / "spool"),
                "secret_key": SECRET_KEY,
            } | overrides
            settings = Settings(**values)
            return await stack.enter_async_context(
                running(settings, seeded=seeded, limits=limits, http_limits=http_limits)
            )

        yield start


@pytest.fixture
async def serve(migrated: Path, tmp_path: Path) -> AsyncIterator[Serve]:
    """Start real services with settings as arguments; `seeded=True` inserts the samples."""
    async with service_starter(migrated, tmp_path) as start:
        yield start


# For tests that share a service of their module, which runs in the module's event loop.
shared_loop = pytest.mark.asyncio(loop_scope="module")
shared_fixture = pytest_asyncio.fixture(scope="module", loop_scope="module")


@shared_fixture
async def serve_shared(
    migrated: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Serve]:
    """Like `serve`, for a service that the tests of a module share and do not change."""
    async with service_starter(migrated, tmp_path_factory.mktemp("shared")) as start:
        yield start


@shared_fixture
async def shared_fake() -> AsyncIterator[ProviderFake]:
    """The provider of `shared_service`."""
    async with ProviderFake() as fake:
        yield fake


@shared_fixture
async def shared_service(serve_shared: Serve, shared_fake: ProviderFake) -> Service:
    """Like `service`, shared by the tests of a module, which do not change it."""
    return await serve_shared(
        openai_base_url=shared_fake.base_url, openai_api_key="sk-test", model="fake-model"
    )


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    seeded: bool = False,
    limits: ServiceLimits | None = None,
    http_limits: HttpLimits | None = None,
) -> AsyncIterator[Service]:
    """Run a service on a free port of this event loop."""
    listening = asyncio.get_running_loop().create_future()
    app = create_app(settings, limits)
    server = Server(app, settings, lambda _, port: listening.set_result(port), http_limits)
    task = asyncio.create_task(server.serve())
    await asyncio.wait([listening, task], return_when=asyncio.FIRST_COMPLETED)
    assert listening.done(), "the service did not start"
    url = f"http://127.0.0.1:{listening.result()}"
    services = app.state.services
    if seeded:
        await library.seed_documents(
            services.database, settings, services.chunk_workers, user_id="local"
        )
    headers = (
        {"Authorization": f"Bearer {settings.secret.get_secret_value()}"} if settings.secret else {}
    )
    async with http_client(url, headers=headers) as client:
        yield Service(url, client, services, server)
    server.handle_exit(signal.SIGTERM, None)
    await asyncio.wait_for(task, 20)


@pytest.fixture
async def fake() -> AsyncIterator[ProviderFake]:
    """An OpenAI-compatible provider fake on a socket."""
    async with ProviderFake() as fake:
        yield fake


@pytest.fixture
async def service(serve: Serve, fake: ProviderFake) -> Service:
    """A service that uses the provider fake, without documents."""
    return await serve(openai_base_url=fake.base_url, openai_api_key="sk-test", model="fake-model")


@pytest.fixture
async def service_url(serve: Serve) -> str:
    """The URL of a service with the extractive model and the sample documents."""
    return (await serve(seeded=True)).url
