"""A service with prices and one document, shared by the clients of a module."""

import pytest

from tests.conftest import Serve, Service, shared_fixture
from tests.fakes.provider import ProviderFake
from tests.mcp_clients import DOCUMENT
from tests.openai_clients import PRICES

pytest.register_assert_rewrite("tests.clients.running")


@shared_fixture
async def priced(serve_shared: Serve, shared_fake: ProviderFake) -> Service:
    """A service whose answers have a cost."""
    service = await serve_shared(
        openai_base_url=shared_fake.base_url, model="fake-model", prices=PRICES
    )
    await service.client.post("/ai/upload", json=DOCUMENT)
    return service
