"""The Open Responses specification: each response and event has its types."""

from asyncio.subprocess import Process

import pytest

from tests.clients.running import check_case, serve_cases
from tests.conftest import Service, shared_loop
from tests.fakes.provider import ProviderFake

CASES = [
    "plain",
    "stream",
    "messages",
    "instructions",
    "tools",
    "tool_stream",
    "parse",
    "grounded",
    "stream_grounded",
    "background",
    "error",
]
pytestmark = [pytest.mark.nightly, shared_loop]
process = serve_cases("sdks", "open_responses_cases.py")


@pytest.mark.parametrize("case", CASES)
async def test_open_responses(
    priced: Service, shared_fake: ProviderFake, process: Process, case: str
) -> None:
    """The client has what the provider sent; each call has a row with its tokens and cost."""
    await check_case(priced, shared_fake, process, case)
