"""Every file of `examples/` runs against a service with the sample documents."""

import asyncio
import os
import shutil
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from tests.clients.running import MODULES, ROOT, Environment, build_variables
from tests.conftest import Serve

EXAMPLES = ROOT / "examples"
ENVIRONMENTS = {
    "openai_python.py": "own",
    "openai_python_background.py": "own",
    "mcp_client.py": "own",
    "openai_node.mjs": "node",
    "ai_sdk.mjs": "node",
    "langchain_chat.py": "sdks",
    "llama_index_chat.py": "llama-index",
    "litellm_chat.py": "sdks",
    "openai_agents_agent.py": "sdks",
    "pydantic_ai_agent.py": "sdks",
}
# The others print no sources.
WITH_SOURCES = {
    "ai_sdk.mjs",
    "litellm_chat.py",
    "mcp_client.py",
    "openai_node.mjs",
    "openai_python.py",
}


def test_every_example_is_run() -> None:
    """The table has all files."""
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == set(ENVIRONMENTS)


def list_examples() -> list[Any]:
    """The examples; those of clients in environments of their own are nightly."""
    return [
        pytest.param(
            name,
            marks=pytest.mark.nightly if where in {"sdks", "llama-index"} else pytest.mark.slow,
        )
        for name, where in ENVIRONMENTS.items()
    ]


@pytest.mark.parametrize("name", list_examples())
async def test_an_example_prints_the_answer(serve: Serve, tmp_path: Path, name: str) -> None:
    """The answer cites the sample document; there is one row."""
    service = await serve(seeded=True)
    environment, program = Environment(ENVIRONMENTS[name]), EXAMPLES / name
    environment.require()
    if environment.name == "node":  # modules are found next to the program
        (tmp_path / "node_modules").symlink_to(MODULES)
        program = Path(shutil.copy(program, tmp_path))
    variables = build_variables(service.url) | {"MCP_URL": f"{service.url}/mcp"}

    process = await asyncio.create_subprocess_exec(
        environment.command, program, stdout=PIPE, stderr=PIPE, env=os.environ | variables
    )
    async with asyncio.timeout(100):
        out, errors = await process.communicate()

    assert process.returncode == 0, errors.decode()[-2000:]
    row = await service.row()
    assert row["response"] in out.decode()
    assert "30 days" in row["response"]
    url = f"{service.url}/ai/documents/{row['sources'][0]['document_id']}"
    assert (url in out.decode()) == (name in WITH_SOURCES)
