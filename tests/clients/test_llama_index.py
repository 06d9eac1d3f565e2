"""LlamaIndex, which requires openai 2."""

from asyncio.subprocess import Process

import pytest

from tests.clients.running import check_case, serve_cases
from tests.conftest import Service, shared_loop
from tests.fakes.provider import ProviderFake

CASES = ["plain", "stream", "tools", "tool_stream", "parse", "grounded", "error"]
pytestmark = [pytest.mark.nightly, shared_loop]
process = serve_cases("llama-index", "llama_index_cases.py")


@pytest.mark.parametrize("case", CASES)
async def test_llama_index(
    priced: Service, shared_fake: ProviderFake, process: Process, case: str
) -> None:
    """The client has what the provider sent; each call has a row with its tokens and cost."""
    await check_case(priced, shared_fake, process, case)
