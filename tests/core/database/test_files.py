"""Files of a database: names and permissions."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.core.database.engine import Database
from service.core.database.files import create_private_directory, find_database_file
from tests.process import kotae, serving


@pytest.mark.parametrize(
    "url",
    [
        "sqlite+aiosqlite:///{folder}/data.db",
        "sqlite+aiosqlite:///data.db",
        "sqlite+aiosqlite:///./x/../data.db?timeout=9",
        "sqlite+aiosqlite:///file:{folder}/data.db?uri=true",
        "sqlite+aiosqlite:///link/data.db",
        "sqlite+aiosqlite:///link.db",
        "sqlite+aiosqlite:////proc/self/cwd/data.db",
    ],
)
def test_names_of_one_file(tmp_path: Path, url: str) -> None:
    """Relative paths, URIs, symbolic links and names in /proc lead to the same file."""
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "link.db").symlink_to("data.db")

    assert find_database_file(url.format(folder=tmp_path)) == tmp_path / "data.db"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///file:x?mode=memory&uri=true",
    ],
)
def test_a_database_in_memory_has_no_file(url: str) -> None:
    """Without a file there is nothing to lock or protect."""
    assert find_database_file(url) is None


@pytest.fixture(params=[0o000, 0o022, 0o277])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """A umask of the process that starts the service."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


async def test_a_migrated_database_is_private(tmp_path: Path, umask: int) -> None:
    """The database and its directory have modes 0600 and 0700 for any umask."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/a/b/kotae.db")
    await database.migrate()
    await database.close()

    assert {
        path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777
        for path in tmp_path.rglob("*")
    } == {"a": 0o700, "a/b": 0o700, "a/b/kotae.db": 0o600}


async def test_an_existing_database_becomes_private(tmp_path: Path) -> None:
    """A migration removes the access of others to the database and its WAL."""
    file = tmp_path / "kotae.db"
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (x)")
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    database = Database(f"sqlite+aiosqlite:///{file}")
    await database.migrate()

    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    await database.close()
    connection.close()


def test_an_existing_directory_is_not_changed(tmp_path: Path) -> None:
    """The data directory may be one that others use, such as /tmp."""
    tmp_path.chmod(0o755)
    create_private_directory(tmp_path / "new")

    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.slow
async def test_everything_that_a_service_writes_is_private(tmp_path: Path) -> None:
    """After answers and an upload, no file of the data directory is accessible to others."""
    data_dir = tmp_path / "new"
    before = os.umask(0)
    try:
        async with serving(tmp_path, "--migrate", "--seed", KOTAE_DATA_DIR=data_dir) as service:
            await service.client.post("/ai/test", json={"prompt": "Why?"})
            await service.client.post("/ai/upload", json={"title": "t", "text": "A text."})
            modes = {
                str(path): path.stat().st_mode & 0o077 for path in [data_dir, *data_dir.rglob("*")]
            }
    finally:
        os.umask(before)

    assert len(modes) > 5
    assert {path for path, others in modes.items() if others} == set()


async def test_a_start_without_a_database_creates_none(tmp_path: Path) -> None:
    """`serve` without a database names `kotae migrate` and leaves no empty file."""
    status, _, errors = await kotae("serve", "--port", "0", data_dir=tmp_path)

    assert status != 0
    assert "kotae migrate" in errors
    assert not (tmp_path / "kotae.db").exists()
