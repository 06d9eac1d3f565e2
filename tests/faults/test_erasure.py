"""Erasure survives the death of the process: texts in its journal do not return."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.provider import Behaviour, ProviderFake
from tests.process import ServiceProcess, serving

pytestmark = pytest.mark.slow

SECRET = "the-secret-text"


async def ask(service: ServiceProcess, **body: Any) -> dict[str, Any]:
    """Ask without documents."""
    response = await service.client.post("/ai/test", json={"grounded": False} | body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def find_secret(folder: Path, pattern: str) -> list[Path]:
    """Return the files that contain the text."""
    return [
        file
        for file in folder.glob(pattern)
        if file.is_file() and SECRET.encode() in file.read_bytes()
    ]


async def test_a_kill_between_erasure_and_removal_of_the_journal(
    tmp_path: Path, fake: ProviderFake
) -> None:
    """Segments with erased texts are recovered after kill -9 without restoring any text.

    A running answer keeps its segment, and with it the records of the erased answers.
    """
    provider = {"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "k", "KOTAE_MODEL": "m"}
    async with serving(tmp_path, **provider) as service:
        fake.next(Behaviour(hold=asyncio.Event()))
        running = asyncio.create_task(
            service.client.post("/ai/test", json={"prompt": "running", "grounded": False})
        )
        await fake.wait_calls(1)
        fake.next(Behaviour(text=SECRET))
        first = await ask(service, prompt=SECRET)
        later = await ask(service, prompt=SECRET, conversation_id=first["id"])
        erased = await service.client.delete(f"/ai/conversations/{first['id']}")
        service.signal(signal.SIGKILL)
        await service.wait()
        await asyncio.gather(running, return_exceptions=True)
    assert erased.status_code == 204
    assert find_secret(tmp_path, "spool/**/*") + find_secret(tmp_path, "journal/*")

    async with serving(tmp_path, **provider) as service:
        answers = [
            await service.client.get(f"/ai/answers/{answer['id']}") for answer in (first, later)
        ]
        rows: list[dict[str, Any]] = []
        async with asyncio.timeout(20):
            while len(rows) < 3:  # the running answer is recovered in the background
                rows = (await service.client.get("/ai/logs")).json()["items"]
        service.signal(signal.SIGTERM)
        await service.wait()

    assert [answer.status_code for answer in answers] == [410, 410]
    for row in rows:
        assert bool(row["erased_at"]) == (row["id"] in {first["id"], later["id"]})
        assert SECRET not in str(row)
    assert not find_secret(tmp_path, "spool/**/*") + find_secret(tmp_path, "journal/*")
