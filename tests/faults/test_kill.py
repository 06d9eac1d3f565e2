"""Repeated kill -9 under load: the log compared with the record of the provider."""

import asyncio
import random
import signal
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from tests.conftest import http_client
from tests.fakes.provider import Behaviour, ProviderFake
from tests.faults.oracle import check
from tests.process import ServiceProcess, serving
from tests.sse import collect


class Load:
    """Callers that send prompts continuously and record the acknowledged ones."""

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self._number = 0

    async def run(self, service: ServiceProcess, callers: int = 12) -> None:
        """Send prompts until the service has ended."""
        async with http_client(service.url) as client:
            await asyncio.gather(*(self._ask_on(client) for _ in range(callers)))

    async def wait_acknowledged(self, count: int) -> None:
        """Wait until this number of further answers has been acknowledged."""
        enough = len(self.acknowledged) + count
        while len(self.acknowledged) < enough:
            await asyncio.sleep(0.001)

    async def _ask_on(self, client: httpx2.AsyncClient) -> None:
        with suppress(httpx2.TransportError):
            while True:
                self._number += 1
                prompt = f"question {self._number}"
                body = {"prompt": prompt, "grounded": False}
                if self._number % 3:
                    async with client.stream("POST", "/ai/stream", json=body) as response:
                        done = (await collect(response))[-1].name == "done"
                else:
                    done = (await client.post("/ai/test", json=body)).status_code == 200
                if done:
                    self.acknowledged.append(prompt)


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(260)]),
        pytest.param(200, marks=[pytest.mark.nightly, pytest.mark.timeout(4060)]),
    ],
)
async def test_no_row_is_lost_or_duplicated(tmp_path: Path, fake: ProviderFake, kills: int) -> None:
    """After every recovery no row is missing, duplicated or not final; totals equal rows."""
    choose = random.Random(5)
    fake.default = Behaviour(chunks=6, gap=0.004)
    load = Load()
    settings = {
        "OPENAI_BASE_URL": fake.base_url,
        "KOTAE_MODEL": "gpt-4o-mini",
        "KOTAE_LOG_LEVEL": "error",
    }
    for _ in range(kills):
        async with serving(tmp_path, **settings) as service:
            callers = asyncio.create_task(load.run(service))
            await load.wait_acknowledged(choose.randint(1, 40))
            await asyncio.sleep(choose.uniform(0, 0.02))  # a random moment of an answer
            service.signal(signal.SIGKILL)
            await asyncio.gather(service.wait(), callers)
    async with serving(tmp_path, **settings) as service:
        await wait_recovered(service)
        service.signal(signal.SIGTERM)
        assert await service.wait() == 0
    await fake.wait_idle()

    rows = check(tmp_path, fake.calls, load.acknowledged)
    assert len(load.acknowledged) >= kills
    assert {row["status"] for row in rows} == {"completed", "interrupted"}
    assert [*(tmp_path / "journal").glob("*"), *(tmp_path / "spool").glob("*")] == []


async def wait_recovered(service: ServiceProcess) -> None:
    """Wait until recovery is done."""
    async with asyncio.timeout(30):
        while (await service.client.get("/health/ready")).json()["recovery"]["state"] != "done":
            await asyncio.sleep(0.02)
