"""Third-party clients of event streams: each reads a stream to its end.

`make test` installs the npm clients.
"""

import asyncio
import json
import shutil
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse

from tests.conftest import Service
from tests.fakes.provider import ProviderFake, default_text
from tests.sse import Parser, text_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MODULES = ROOT / ".cache" / "clients"
PROMPT = "Say こんにちは."


async def run_program(*command: str) -> bytes:
    """Run a program and return its output."""
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(60):
        out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return out


async def events_url(service: Service) -> str:
    """Start an answer and return the URL of its events."""
    response = await service.client.post("/ai/answers", json={"prompt": PROMPT, "grounded": False})
    return f"{service.url}{response.json()['events_url']}"


async def test_curl(service: Service) -> None:
    """`curl -N` prints a complete stream."""
    if not (curl := shutil.which("curl")):
        pytest.skip("not run: curl is absent")

    events = Parser().feed(await run_program(curl, "-sSN", await events_url(service)))

    assert [event.name for event in (events[0], events[-1])] == ["start", "done"]
    assert text_of(events) == default_text(PROMPT)


async def test_httpx_sse(service: Service) -> None:
    """httpx-sse reads names, ids and data, and does not reconnect."""
    async with (
        httpx.AsyncClient(timeout=20, trust_env=False) as client,
        aconnect_sse(client, "GET", await events_url(service)) as source,
    ):
        events = [event async for event in source.aiter_sse()]

    assert [event.event for event in events] == ["start", *["message"] * (len(events) - 2), "done"]
    assert "".join(event.json()["delta"] for event in events[1:-1]) == default_text(PROMPT)
    assert events[0].retry == 2000


@pytest.mark.parametrize("client", ["eventsource", "fetch-event-source"])
async def test_clients_of_npm(service: Service, fake: ProviderFake, client: str) -> None:
    """The EventSource of Node, and the common one with headers."""
    if not (node := shutil.which("node")):
        pytest.skip("not run: node is absent")
    if not (MODULES / "node_modules").exists():
        pytest.skip(
            "not run: the modules are not installed (make .cache/clients/.installed needs npm)"
        )

    results: dict[str, Any] = json.loads(
        await run_program(
            node,
            str(Path(__file__).parents[1] / "clients" / "read.mjs"),
            client,
            await events_url(service),
            str(MODULES),
        )
    )

    assert results["text"] == default_text(PROMPT)
    assert [results["events"][0], results["events"][-1]] == ["start", "done"]
    assert results["ids"][0].endswith(".0")
    assert len(fake.calls) == 1
