"""The suites of llm-comply against both protocols."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Service
from tests.fakes.provider import ProviderFake
from tests.openai_clients import completion_of

PROGRAM = Path(__file__).parents[3] / ".cache/openapi/bin/llm-comply"
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PROGRAM.exists(), reason="not run: `make .cache/openapi/.installed` installs llm-comply"
    ),
]


async def run_suite(service: Service, suite: str, *options: str) -> list[dict[str, Any]]:
    """Run a suite and return its results."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "--format", suite, "--base-url", f"{service.url}/v1", "--json",
        "--api-key", "any", "--model", "gpt-5", *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    report = json.loads(output)
    assert isinstance(report, dict), errors
    results: list[dict[str, Any]] = report["results"]
    return results


@pytest.mark.parametrize(
    ("suite", "tool_case", "count"),
    [("open-responses", "tool-calling", 13), ("openai-chat", "chat-tool-calling", 9)],
)
async def test_the_protocol_is_followed(
    service: Service, fake: ProviderFake, suite: str, tool_case: str, count: int
) -> None:
    """No case fails or is skipped; the provider calls a function where the case expects it."""
    results = {result["id"]: result for result in await run_suite(service, suite)}
    fake.next(completion_of({"content": None, "tool_calls": [CALL]}, finish_reason="tool_calls"))
    (results[tool_case],) = await run_suite(service, suite, "--filter", tool_case)

    failed = {
        name: result.get("errors")
        for name, result in results.items()
        if result["status"] != "passed"
    }
    assert (failed, len(results)) == ({}, count)
