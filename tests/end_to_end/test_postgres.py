"""A service on PostgreSQL, from outside."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.core.database.engine import Database
from tests.conftest import Serve
from tests.fakes.provider import ProviderFake
from tests.postgres import PostgresServer, temporary_database
from tests.process import kotae
from tests.records import build_intent, build_outcome

pytestmark = pytest.mark.slow
QUESTION = {"prompt": "How many days do I have to return a product?"}


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of a migrated database."""
    async with temporary_database(postgres) as database:
        yield database._url


async def test_a_service_answers_from_documents(serve: Serve, url: str) -> None:
    """Uploads, search, answers, the log, usage and deletion work as with SQLite."""
    service = await serve(seeded=True, database_url=url)
    answer = (await service.client.post("/ai/test", json=QUESTION)).json()
    files = {"files": ("otters.md", b"Otters sleep in kelp, holding hands.")}
    uploaded = (await service.client.post("/ai/upload", files=files)).json()
    results = (
        await service.client.get("/ai/search", params={"q": "Where do otters sleep?"})
    ).json()
    document_id = results["items"][0]["document_id"]
    deleted = await service.client.delete(f"/ai/documents/{document_id}")
    empty = (await service.client.get("/ai/search", params={"q": "Where do otters sleep?"})).json()
    row = await service.row()
    ready = (await service.client.get("/health/ready")).json()

    assert "30" in answer["response"], answer
    assert uploaded
    assert results["answerable"]
    assert deleted.status_code == 204
    assert not empty["answerable"]
    assert (row["id"], row["response"]) == (answer["id"], answer["response"])
    assert ready["status"] == "ready"


async def test_a_second_service_is_refused(serve: Serve, url: str, tmp_path: Path) -> None:
    """It ends with one line that names the first, also with another data directory."""
    await serve(database_url=url)
    folder = tmp_path / "other"
    folder.mkdir()
    status, _, err = await kotae(
        "serve", "--migrate", "--port", "0", data_dir=folder, KOTAE_DATABASE_URL=url
    )

    assert status != 0
    assert "is used by `kotae serve` (pid" in err
    assert "Traceback" not in err


async def test_answers_continue_while_postgresql_is_away(
    serve: Serve, fake: ProviderFake, postgres: PostgresServer, url: str
) -> None:
    """Every answer of before, during and after a crash of the server has exactly one row."""
    service = await serve(
        database_url=url, openai_base_url=fake.base_url, openai_api_key="k", model="m"
    )
    body = {"prompt": "Why?", "grounded": False}

    async def ask(count: int) -> list[str]:
        replies = [await service.client.post("/ai/test", json=body) for _ in range(count)]
        return [reply.json()["id"] for reply in replies]

    ids = await ask(5)
    postgres.stop()
    ids += await ask(5)
    postgres.start()
    ids += await ask(5)
    rows = await service.rows()
    audit = await kotae(
        "audit", data_dir=service.services.settings.data_dir, KOTAE_DATABASE_URL=url
    )

    assert sorted(row["id"] for row in rows) == sorted(ids)
    assert "all agrees" in audit[1], audit


async def test_a_record_that_cannot_be_stored_holds_up_no_other(serve: Serve, url: str) -> None:
    """A text that PostgreSQL refuses ends in quarantine; the next record is written."""
    service = await serve(database_url=url)
    bad, good = build_intent(prompt="a\0b"), build_intent()
    for intent in (bad, good):
        service.services.queue.add_intent(intent)
        service.services.queue.add_outcome(build_outcome(intent))
    async with asyncio.timeout(20):
        rows = await service.rows()
    folder = service.services.settings.data_dir / "quarantine"

    assert [row["id"] for row in rows] == [good.id]
    assert [file.stem for file in folder.iterdir()] == [bad.id]


async def test_commands_work_on_the_configured_database(url: str, tmp_path: Path) -> None:
    """Keys are created and listed; backups refer to `pg_dump`; no output shows the password."""
    secret = url.replace("kotae@", "kotae:hunter2hunter2@")
    created = await kotae(
        "keys", "create", "--user", "u", data_dir=tmp_path, KOTAE_DATABASE_URL=secret
    )
    doctor = await kotae("doctor", data_dir=tmp_path, KOTAE_DATABASE_URL=secret)
    backup = await kotae("backup", "x.db", data_dir=tmp_path, KOTAE_DATABASE_URL=secret)
    database = Database(url)
    async with database.read_session() as session:
        owner = (await session.exec_driver_sql("SELECT user_id FROM api_keys")).scalar_one()
    await database.close()

    assert (created[0], owner) == (0, "u"), created
    assert "revision" in doctor[1]
    assert "pg_dump" in backup[2]
    assert "hunter2" not in str((created, doctor, backup))
