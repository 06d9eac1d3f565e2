"""The commands of README.md and of the tutorial, as a reader would paste them."""

import asyncio
import re
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from tests.process import ServiceProcess, environment, serving

ROOT = Path(__file__).parents[2]
README, TUTORIAL = (ROOT / "README.md").read_text(), (ROOT / "docs" / "tutorial.md").read_text()
# Executed elsewhere: the wheel by test_wheel.py. Building the image requires a container engine.
EXECUTED_ELSEWHERE = ('echo "KOTAE_SECRET=', "docker compose ", "uv build ", "uvx ", "pipx ")

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="not run: curl is not installed")


def scripts(page: str) -> list[str]:
    """Return the shell and Python blocks of a page except those executed elsewhere."""
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [
        f"{sys.executable} - <<'EOF'\n{block}EOF\n" if language == "python" else block
        for language, block in blocks
        if not block.startswith((*EXECUTED_ELSEWHERE, "make "))
    ]


async def execute(script: str, service: ServiceProcess, folder: Path) -> str:
    """Execute a script of a page against a running service; return its output. Fails on errors."""
    (folder / ".curlrc").write_text("fail-with-body\n")  # an error status is a failure
    (folder / "kotae").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m service "$@"\n')
    (folder / "kotae").chmod(0o755)
    script = script.replace("http://127.0.0.1:8000", service.url).replace(
        ".venv/bin/kotae", str(folder / "kotae")
    )
    variables = environment(
        folder, KOTAE_PORT=service.url.rpartition(":")[2], PYTHONPATH=ROOT, CURL_HOME=folder
    )
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-euo",
        "pipefail",
        "-c",
        script,
        cwd=folder,
        env=variables,
        stdout=PIPE,
        stderr=STDOUT,
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("page", [README, TUTORIAL], ids=["README", "tutorial"])
def test_make_targets_exist(page: str) -> None:
    """Each `make` command of the page is a target of the Makefile."""
    targets = re.findall(
        r"^make ([a-z-]+)", "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)), re.MULTILINE
    )

    assert targets
    for target in targets:
        subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, stdout=subprocess.DEVNULL, check=True
        )


def test_the_two_commands_of_the_readme() -> None:
    """README.md begins with `make run` and `make test`."""
    block = re.search(r"```sh\n(.*?)```", README, re.DOTALL)

    assert block
    assert re.findall(r"^make ([a-z]+)", block[1], re.MULTILINE) == ["run", "test"]


@pytest.mark.slow
@needs_curl
async def test_readme_answers_from_the_readers_document(tmp_path: Path) -> None:
    """The code of README.md uploads a document and answers a question from it, twice."""
    async with serving(tmp_path, "--seed") as service:
        output = [await execute(script, service, tmp_path) for script in scripts(README)]

    assert len(output) == 2
    assert output[1] == "Employees may borrow a company bicycle for three days. [1]\n"
    assert '"response":"Employees may borrow a company bicycle for three days. [1]"' in output[0]
    assert '"title":"bicycles.md"' in output[0]


@needs_curl
@pytest.mark.slow
async def test_tutorial_works_from_start_to_end(tmp_path: Path) -> None:
    """The commands of the tutorial succeed in their order, with the results that it describes."""
    async with serving(tmp_path, "--seed") as service:
        outputs = [await execute(script, service, tmp_path) for script in scripts(TUTORIAL)]

    english, japanese, refused, uploaded, helmets, search, stream, resumed, *_, audited = outputs
    assert "within 30 days" in english
    assert "30日" in japanese
    assert "no_context  0 tokens" in refused
    assert '"title":"bicycles.md"' in uploaded
    assert "room 204" in helmets
    assert '"answerable":true' in search
    assert "event: start" in stream
    assert "event: start" not in resumed
    assert "event: done" in resumed
    assert audited
    assert (tmp_path / "answers.csv").read_text().count("\n") >= 7
