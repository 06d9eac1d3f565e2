"""pydantic-ai with chat completions and the Responses API."""

from asyncio.subprocess import Process

import pytest

from tests.clients.running import check_case, serve_cases
from tests.conftest import Service, shared_loop
from tests.fakes.provider import ProviderFake

CASES = [
    "plain",
    "stream",
    "tool_loop",
    "parse",
    "grounded",
    "responses",
    "responses_stream",
    "responses_tool_loop",
    "error",
]
pytestmark = [pytest.mark.nightly, shared_loop]
process = serve_cases("sdks", "pydantic_ai_cases.py")


@pytest.mark.parametrize("case", CASES)
async def test_pydantic_ai(
    priced: Service, shared_fake: ProviderFake, process: Process, case: str
) -> None:
    """The client has what the provider sent; each call has a row with its tokens and cost."""
    await check_case(priced, shared_fake, process, case)
