"""`kotae doctor` with PostgreSQL and Redis."""

from pathlib import Path

import pytest

from tests.command import run
from tests.conftest import SECRET_KEY
from tests.postgres import PostgresServer, temporary_database
from tests.proxies import find_free_port
from tests.quotas import Clock, open_redis_quota
from tests.redis import running_redis

pytestmark = pytest.mark.slow


async def test_doctor_checks_the_settings_of_postgresql(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """The server of the tests does without `fsync`; a missing secret key is reported as well."""
    async with temporary_database(postgres) as database:
        status, output = await run(
            "doctor",
            KOTAE_DATA_DIR=str(tmp_path),
            KOTAE_DATABASE_URL=database._url,
            KOTAE_DATABASE_POOL="1",
        )

    assert status == 1
    assert "ok   postgresql 1" in output
    assert "enough for 24 replicas with up to 8 each" in output
    assert "BAD  postgresql durability: fsync, full_page_writes off" in output
    assert "BAD  KOTAE_SECRET_KEY: missing" in output
    assert "ok   clock: 0." in output


async def test_doctor_checks_redis(postgres: PostgresServer, tmp_path: Path) -> None:
    """Its version, eviction, persistence, functions and epoch, before and after a restart."""

    async def run_doctor(url: str, redis_url: str) -> list[str]:
        _, output = await run(
            "doctor",
            KOTAE_DATA_DIR=str(tmp_path),
            KOTAE_DATABASE_URL=url,
            KOTAE_REDIS_URL=redis_url,
            KOTAE_REDIS_SECONDS="10",
            KOTAE_SECRET_KEY=SECRET_KEY,
        )
        return [line for line in output.splitlines() if line[5:].startswith("redis")]

    with running_redis() as server:
        async with temporary_database(postgres) as database:
            unused = await run_doctor(database._url, server.url)
        async with open_redis_quota(server.url, postgres, Clock()) as (_, database):
            used = await run_doctor(database._url, server.url)
            server.stop()
            away = await run_doctor(database._url, f"redis://127.0.0.1:{find_free_port()}/0")
            server.start("--maxmemory-policy", "allkeys-lru", "--appendonly", "yes")
            restarted = await run_doctor(database._url, server.url)

    assert unused[-2:] == [
        "ok   redis functions: loaded by the next start",
        "ok   redis epoch: none, no replica has used Redis yet",
    ]
    assert used[-3:] == [
        "ok   redis persistence: none, after each restart the replicas register their holds again",
        "ok   redis functions: loaded",
        "ok   redis epoch: 1, open",
    ]
    assert away[0].startswith("BAD  redis: Redis reported:")
    assert "BAD  redis maxmemory-policy: allkeys-lru" in restarted
    assert "BAD  redis epoch: 1, closed, limited users get 503" in restarted
