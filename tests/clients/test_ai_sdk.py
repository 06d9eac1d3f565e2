"""The Vercel AI SDK: its default model, its chat model, and its provider for other services."""

from asyncio.subprocess import Process

import pytest

from tests.clients.running import check_case, serve_cases
from tests.conftest import Service, shared_loop
from tests.fakes.provider import ProviderFake

CASES = [
    "responses_plain",
    "responses_stream",
    "responses_tools",
    "responses_tool_stream",
    "responses_parse",
    "responses_grounded",
    "responses_error",
    "chat_plain",
    "chat_stream",
    "chat_tools",
    "chat_tool_stream",
    "chat_parse",
    "chat_grounded",
    "chat_error",
    "compatible_plain",
    "compatible_stream",
    "compatible_tools",
    "compatible_tool_stream",
    "compatible_parse",
    "compatible_grounded",
    "compatible_error",
]
pytestmark = [pytest.mark.nightly, shared_loop]
process = serve_cases("node", "ai_sdk.mjs")


@pytest.mark.parametrize("case", CASES)
async def test_ai_sdk(
    priced: Service, shared_fake: ProviderFake, process: Process, case: str
) -> None:
    """The client has what the provider sent; each call has a row with its tokens and cost."""
    await check_case(priced, shared_fake, process, case)
