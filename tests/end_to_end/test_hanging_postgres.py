"""PostgreSQL stops responding: known users without limits are answered, all others get 503."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from service.core.auth.authenticator import FRESH_SECONDS
from tests.access import bearer, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import ProviderFake
from tests.postgres import PostgresServer, hanging, running_server, temporary_database

pytestmark = pytest.mark.slow
FREE = {"prompt": "Why?", "grounded": False}
SLOW_SECONDS = 0.5
SECRET = "root-secret-of-the-tests-with-32-characters"


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of this test."""
    with running_server() as server:
        yield server


@pytest.fixture
async def service(
    server: PostgresServer, serve: Serve, fake: ProviderFake
) -> AsyncIterator[Service]:
    """A service with access control and a provider, on this server."""
    async with temporary_database(server) as database:
        yield await serve(
            auth="keys",
            secret=SECRET,
            database_url=database._url,
            openai_base_url=fake.base_url,
            openai_api_key="k",
            model="m",
        )


async def test_known_users_without_limits_go_on(server: PostgresServer, service: Service) -> None:
    """With limits the answer is 503 at once; afterwards every row is there, and limits count."""
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
    waited = [seconds for _, seconds in results if seconds > SLOW_SECONDS]
    assert len(waited) <= 3, "the first hold, and the first lookups"
    async with asyncio.timeout(60):
        while (await ask(limited))[0] != 200:
            pass
    rows = await service.rows(user_id="free")

    assert len(rows) == min(200, 1 + len(results) // 2)


FIRST_SECONDS = 8.0  # of the requests that notice it: two probes of a second, on a busy machine
NEXT_SECONDS = 1.0
NEEDS_DATABASE: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/ai/test", {"json": {"prompt": "Why is the sky blue?"}}),
    ("POST", "/ai/test", {"json": FREE, "headers": {"Idempotency-Key": "k"}}),
    ("POST", "/ai/stream", {"json": FREE, "headers": {"Idempotency-Key": "k"}}),
    ("POST", "/ai/answers", {"json": {"prompt": "Why is the sky blue?"}}),
    ("POST", "/v1/chat/completions", {"json": {"model": "kotae/m", "messages": [
        {"role": "user", "content": "Why is the sky blue?"}]}}),
    ("POST", "/ai/test", {"json": FREE, "headers": {"Authorization": "Bearer kt_" + "0" * 43}}),
    ("POST", "/ai/upload", {"json": {"title": "t", "text": "The sky is blue."}}),
    ("GET", "/ai/search?q=sky", {}),
    ("GET", "/ai/documents", {}),
    ("GET", "/ai/logs", {}),
    ("GET", "/ai/logs/0198c0de-0000-7000-8000-000000000000", {}),
    ("GET", "/ai/answers/0198c0de-0000-7000-8000-000000000000", {}),
    ("GET", "/ai/conversations", {}),
    ("GET", "/ai/keys", {}),
    ("GET", "/ai/usage?user_id=u", {}),
    ("PUT", "/ai/users/u/quota", {"json": {"limits": {"requests_per_minute": 1}}}),
]  # fmt: skip


async def test_everything_else_is_refused_at_once(server: PostgresServer, service: Service) -> None:
    """Requests that wait when the server stops are answered; later ones do not wait at all."""

    async def request(method: str, path: str, options: dict[str, Any]) -> tuple[str, float]:
        begun = time.monotonic()
        reply = await service.client.request(method, path, **options)
        return f"{reply.status_code} {method} {path}", time.monotonic() - begun

    async def request_all() -> tuple[dict[str, float], str]:
        replies = dict(await asyncio.gather(*(request(*one) for one in NEEDS_DATABASE)))
        return replies, " ".join(reply for reply in replies if not reply.startswith("503"))

    await service.client.post("/ai/test", json=FREE)  # a row waits for its commit
    with hanging(server):
        first, answered_first = await request_all()
        later, answered_later = await request_all()
        retry_after = (await service.client.get("/ai/documents")).headers["retry-after"]
        ready = (await service.client.get("/health/ready")).json()
    async with asyncio.timeout(60):
        while any(reply.startswith("5") for reply in (await request_all())[0]):
            pass
    rows = await service.rows()

    assert (answered_first, answered_later) == ("", "")
    assert max(first.values()) < FIRST_SECONDS
    assert max(later.values()) < NEXT_SECONDS
    assert int(retry_after) > 0
    assert ready["database"] == "the database does not respond"
    assert "database_probe" in ready["degraded"]
    assert "Why?" in {row["prompt"] for row in rows}
