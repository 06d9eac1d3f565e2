"""The target of attacks: a service with keys in a separate process."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.process import ServiceProcess, serving

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
async def victim(tmp_path: Path) -> AsyncIterator[ServiceProcess]:
    """Start a service that requires credentials, with the extractive model."""
    async with serving(tmp_path, "--seed", KOTAE_AUTH="keys", KOTAE_SECRET=KEY) as service:
        await warm(service)
        yield service


@pytest.fixture
async def small_victim(tmp_path: Path) -> AsyncIterator[ServiceProcess]:
    """The same with few connections."""
    settings = {"KOTAE_AUTH": "keys", "KOTAE_SECRET": KEY, "KOTAE_CONNECTIONS_MAX": 200}
    async with serving(tmp_path, "--seed", **settings) as service:
        await warm(service)
        yield service


async def warm(service: ServiceProcess) -> None:
    """Send requests until everything is loaded."""
    service.client.headers["Authorization"] = f"Bearer {KEY}"
    for _ in range(20):
        await service.client.post("/ai/test", json={"prompt": "How many days?", "grounded": False})
