"""Repeated kill -9 under load: the log compared with the record of the provider."""

import asyncio
import json
import random
import signal
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import http_client
from tests.fakes.provider import Behaviour, ProviderFake
from tests.faults.oracle import check, check_attempts
from tests.process import ServiceProcess, kotae, serving
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


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(8, marks=[pytest.mark.slow, pytest.mark.timeout(260)]),
        pytest.param(200, marks=[pytest.mark.nightly, pytest.mark.timeout(4060)]),
    ],
)
async def test_no_attempt_is_lost_or_doubled(
    tmp_path: Path, fake: ProviderFake, request: pytest.FixtureRequest, dialect: str, kills: int
) -> None:
    """Killed while answers go on to another provider, the log has every call of both, once."""
    choose = random.Random(7)
    fake.default = Behaviour(status=503, body=b"", headers_delay=0.003)
    file, load = tmp_path / "providers.json", Load()
    settings: dict[str, Any] = {
        "KOTAE_PROVIDERS": file,
        "KOTAE_MODEL": "chat",
        "KOTAE_LOG_LEVEL": "error",
    }
    async with AsyncExitStack() as stack:
        if dialect == "postgresql":
            server = request.getfixturevalue("postgres")
            settings["KOTAE_DATABASE_URL"] = url = await server.create_database()
            stack.push_async_callback(server.drop_database, url)
        second = await stack.enter_async_context(ProviderFake(Behaviour(chunks=6, gap=0.004)))
        file.write_text(json.dumps(build_providers(first=fake, second=second)))
        for _ in range(kills):
            async with serving(tmp_path, **settings) as service:
                callers = asyncio.create_task(load.run(service))
                # Afterwards the first provider is in its cool-down.
                await fake.wait_calls(len(fake.calls) + 1)
                await asyncio.sleep(choose.uniform(0, 0.03))
                service.signal(signal.SIGKILL)
                await asyncio.gather(service.wait(), callers)
        async with serving(tmp_path, **settings) as service:
            await wait_recovered(service)
            export = await service.client.get(
                "/ai/logs", headers={"Accept": "application/x-ndjson"}
            )
            service.signal(signal.SIGTERM)
            assert await service.wait() == 0
        await fake.wait_idle()
        await second.wait_idle()

        rows = [json.loads(line) for line in export.text.splitlines()]
        assert {*load.acknowledged} <= {row["prompt"] for row in rows}
        calls = {"first": fake.calls, "second": second.calls}
        assert check_attempts(rows, calls) >= 2 * kills
        status, output, _ = await kotae("audit", data_dir=tmp_path, **settings)
        assert status == 0, output


def build_providers(**fakes: ProviderFake) -> dict[str, Any]:
    """The content of a file with these providers, and a route `chat` through all of them."""
    price = {"input": "1", "output": "2"}
    return {
        "providers": [
            {
                "name": name,
                "base_url": fake.base_url,
                "models": [{"name": f"model-{name}", "price": price}],
            }
            for name, fake in fakes.items()
        ],
        "routes": [
            {
                "alias": "chat",
                "targets": [{"provider": name, "model": f"model-{name}"} for name in fakes],
            }
        ],
    }


async def wait_recovered(service: ServiceProcess) -> None:
    """Wait until recovery is done."""
    async with asyncio.timeout(30):
        while (await service.client.get("/health/ready")).json()["recovery"]["state"] != "done":
            await asyncio.sleep(0.02)
