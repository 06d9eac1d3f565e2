"""A service with keys, as a process of its own: what attacks are tried on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.process import ServiceProcess, serving

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
async def victim(tmp_path: Path) -> AsyncIterator[ServiceProcess]:
    """A service that wants credentials, with the embedded model."""
    async with serving(tmp_path, "--seed", KOTAE_AUTH="keys", KOTAE_SECRET=KEY) as service:
        service.client.headers["Authorization"] = f"Bearer {KEY}"
        for _ in range(20):  # everything is loaded
            await service.client.post(
                "/ai/test", json={"prompt": "How many days?", "grounded": False}
            )
        yield service
