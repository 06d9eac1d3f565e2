"""openai-python, the version that Kotae uses."""

from asyncio.subprocess import Process

import pytest

from tests.clients.running import OPENAI_CASES, check_case, serve_cases
from tests.conftest import Service, shared_loop
from tests.fakes.provider import ProviderFake

pytestmark = [pytest.mark.slow, shared_loop]
process = serve_cases("own", "openai_python.py")


@pytest.mark.parametrize("case", [*OPENAI_CASES, "responses_tools"])
async def test_openai_python(
    priced: Service, shared_fake: ProviderFake, process: Process, case: str
) -> None:
    """The client has what the provider sent; each call has a row with its tokens and cost."""
    await check_case(priced, shared_fake, process, case)
