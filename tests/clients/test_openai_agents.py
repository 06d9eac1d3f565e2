"""openai-agents: agents that call functions until they have an answer."""

from asyncio.subprocess import Process

import pytest

from tests.clients.running import check_case, serve_cases
from tests.conftest import Service, shared_loop
from tests.fakes.provider import ProviderFake

CASES = [
    "grounded",
    "error",
    "chat_plain",
    "chat_stream",
    "chat_tool_loop",
    "chat_tool_loop_stream",
    "chat_parse",
    "responses_plain",
    "responses_stream",
    "responses_tool_loop",
    "responses_tool_loop_stream",
    "responses_parse",
]
pytestmark = [pytest.mark.nightly, shared_loop]
process = serve_cases("sdks", "openai_agents_cases.py")


@pytest.mark.parametrize("case", CASES)
async def test_openai_agents(
    priced: Service, shared_fake: ProviderFake, process: Process, case: str
) -> None:
    """The client has what the provider sent; each call has a row with its tokens and cost."""
    await check_case(priced, shared_fake, process, case)
