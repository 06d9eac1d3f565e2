"""The built distributions: what `pipx install` and the container image use."""

import asyncio
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from tests.process import environment

ROOT = Path(__file__).parents[2]
TOOLS = Path(sysconfig.get_path("scripts"))  # of this environment: hatchling and uv
QUESTION = "How many days do I have to return an item?"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command: str | Path, cwd: Path, variables: Mapping[str, str] = os.environ) -> str:
    """Run a command and return its output. Fails with the output of the command."""
    finished = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def build(target: str, source: Path, folder: Path) -> Path:
    """Build a wheel or an sdist of a source tree."""
    run(TOOLS / "hatchling", "build", "-t", target, "-d", folder, cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this checkout."""
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the locked dependencies and the wheel; return the path of `kotae`."""
    folder = tmp_path_factory.mktemp("environment")
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    locked: list[str | Path] = ["--require-hashes", "-r", ROOT / "requirements" / "base.txt"]
    for packages in (locked, ["--no-deps", wheel]):
        run(
            TOOLS / "uv",
            "pip",
            "install",
            "--python",
            python,
            *packages,
            cwd=folder,
            variables=os.environ | {"UV_SYSTEM_CERTS": "true"},
        )
    return python.with_name("kotae")


@asynccontextmanager
async def serving(kotae: Path, data_dir: Path) -> AsyncGenerator[str, None]:
    """Run the installed `kotae serve` on a free port; yields its URL."""
    process = await asyncio.create_subprocess_exec(
        kotae, "serve", "--port", "0", "--seed",
        cwd=data_dir, env=environment(data_dir), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    try:
        async with asyncio.timeout(60):
            async for line in process.stdout:
                if line.strip().startswith(b"http://"):
                    break
        yield line.decode().strip().rstrip("/")
    finally:
        process.terminate()
        await process.communicate()


def files(archive: Path) -> dict[str, bytes]:
    """Return the files of a wheel by name, without the record of their hashes."""
    with zipfile.ZipFile(archive) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("RECORD")}


def test_wheel_contains_what_the_service_reads(wheel: Path) -> None:
    """Migrations, pages and sample documents are in the wheel, and nothing outside the package."""
    names = set(files(wheel))
    expected = {
        f"service/{path.relative_to(ROOT / root)}"
        for root, patterns in {
            "service": ["web/**/*", "samples/*", "**/*.py"],
            ".": ["alembic/versions/*.py"],
        }.items()
        for pattern in patterns
        for path in (ROOT / root).glob(pattern)
        if path.is_file()
    }

    assert expected - names == set()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"service", "kotae"}


def test_readme_names_the_wheel(wheel: Path) -> None:
    """README.md installs the file that the build creates."""
    assert f"dist/{wheel.name}" in (ROOT / "README.md").read_text()


def test_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """A wheel built from the sdist equals the wheel built from the checkout."""
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()

    assert files(build("wheel", source, tmp_path / "wheel")) == files(wheel)


async def test_installed_wheel_works_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    """`kotae migrate`, `serve` and `ask` work, and the pages and sample documents are served."""
    variables = environment(tmp_path)
    run(installed, "migrate", cwd=tmp_path, variables=variables)
    async with serving(installed, tmp_path) as url, httpx2.AsyncClient(base_url=url) as client:
        answer = await asyncio.to_thread(
            run, installed, "ask", QUESTION, "--url", url, cwd=tmp_path, variables=variables
        )
        pages = [
            await client.get(path)
            for path in ("/", "/web/app.js", "/signin", "/docs", "/openapi.json")
        ]
        documents = (await client.get("/ai/documents")).json()["items"]

    assert "30 days" in answer
    assert [page.status_code for page in pages] == [200] * 5
    assert len(documents) == len(list((ROOT / "service" / "samples").glob("*.md")))


def test_installed_wheel_is_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    """The environment imports the wheel, although the tests run from a checkout."""
    location = run(
        installed.with_name("python"), "-c", "import service; print(service.__file__)", cwd=tmp_path
    )

    assert Path(location.strip()).is_relative_to(installed.parents[1])
    assert sys.prefix not in location
