"""PostgreSQL stops responding: known users without limits are answered, all others get 503."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from service.core.auth.authenticator import FRESH_SECONDS, REFRESH_SECONDS
from tests.access import bearer, make_key
from tests.conftest import Serve
from tests.fakes.provider import ProviderFake
from tests.postgres import PostgresServer, hanging, running_server, temporary_database

pytestmark = pytest.mark.slow
FREE = {"prompt": "Why?", "grounded": False}
SECRET = "root-secret-of-the-tests-with-32-characters"


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of this test."""
    with running_server() as server:
        yield server


async def test_known_users_without_limits_go_on(
    server: PostgresServer, serve: Serve, fake: ProviderFake
) -> None:
    """With limits the answer is 503 at once; afterwards every row is there, and limits count."""
    async with temporary_database(server) as database:
        service = await serve(
            auth="keys",
            secret=SECRET,
            database_url=database._url,
            openai_base_url=fake.base_url,
            openai_api_key="k",
            model="m",
        )
        free, limited = [await make_key(service, user) for user in ("free", "limited")]
        body = {"limits": {"requests_per_minute": 100}}
        (await service.client.put("/ai/users/limited/quota", json=body)).raise_for_status()

        async def ask(key: object) -> tuple[int, float]:
            begun = time.monotonic()
            reply = await service.client.post("/ai/test", json=FREE, headers=bearer(key))  # type: ignore[arg-type]
            return reply.status_code, time.monotonic() - begun

        assert [(await ask(key))[0] for key in (free, limited)] == [200, 200]
        await service.wait_idle()
        with hanging(server):
            until, results = time.monotonic() + FRESH_SECONDS + 2, []
            while time.monotonic() < until:
                results += [await ask(key) for key in (free, limited)]
        assert [status for status, _ in results] == [200, 503] * (len(results) // 2)
        waited = [seconds for _, seconds in results if seconds > REFRESH_SECONDS]
        assert len(waited) <= 4, "the first hold, and the first lookups"
        async with asyncio.timeout(60):
            while (await ask(limited))[0] != 200:
                pass
        rows = await service.rows(user_id="free")

    assert len(rows) == min(200, 1 + len(results) // 2)
