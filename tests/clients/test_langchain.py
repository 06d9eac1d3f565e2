"""LangChain with chat completions and the Responses API."""

import asyncio
import os
import re
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from tests.clients.running import PROGRAMS, Environment, build_variables, check_case, serve_cases
from tests.conftest import Service, shared_loop
from tests.fakes.obliging import oblige
from tests.fakes.provider import ProviderFake

CASES = [
    "plain",
    "stream",
    "tools",
    "tool_stream",
    "parse",
    "grounded",
    "responses",
    "responses_stream",
    "responses_tools",
    "error",
]
STANDARD_TESTS = 43  # that the provider fake supports
pytestmark = [pytest.mark.nightly, shared_loop]
process = serve_cases("sdks", "langchain_cases.py")


@pytest.mark.parametrize("case", CASES)
async def test_langchain(
    priced: Service, shared_fake: ProviderFake, process: Process, case: str
) -> None:
    """The client has what the provider sent; each call has a row with its tokens and cost."""
    await check_case(priced, shared_fake, process, case)


async def test_standard_tests(priced: Service, shared_fake: ProviderFake, tmp_path: Path) -> None:
    """LangChain's own tests of a chat model pass; every call has a row with its tokens and cost."""
    environment = Environment("sdks")
    environment.require()
    shared_fake.choose = oblige
    calls, before = len(shared_fake.calls), len(await priced.rows())

    process = await asyncio.create_subprocess_exec(
        environment.command, "-m", "pytest", PROGRAMS / "langchain_standard.py", "-q",
        "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", tmp_path, "--noconftest",
        "--asyncio-mode", "auto", "-o", "asyncio_default_test_loop_scope=session",
        stdout=PIPE, env=os.environ | build_variables(priced.url),
    )  # fmt: skip
    async with asyncio.timeout(100):
        output = (await process.communicate())[0].decode()

    assert process.returncode == 0, output[-6000:]
    assert int(re.findall(r"(\d+) passed", output)[-1]) >= STANDARD_TESTS
    rows = (await priced.rows())[::-1][before:]
    assert len(rows) == len(shared_fake.calls) - calls
    assert {(row["status"], row["usage_source"]) for row in rows} == {("completed", "provider")}
