"""`kotae backup` and `kotae restore`."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.core.database.engine import Database
from service.core.database.instance_lock import SERVE, lock_instance
from service.core.errors import KotaeError, SettingsInvalid
from service.core.settings import Settings
from tests.command import command, run
from tests.conftest import Serve
from tests.process import kotae, serving
from tests.records import build_intent, build_outcome
from tests.rows import write


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of the commands, which contains the database of the fixture `database`."""
    monkeypatch.setenv("KOTAE_DATA_DIR", str(tmp_path))
    return tmp_path


async def add_rows(database: Database, *users: str) -> None:
    """Insert a log row per user."""
    await write(database, [build_outcome(build_intent(user_id=user)) for user in users])


def read_users(file: Path) -> list[str]:
    """The users in the log, in order."""
    with closing(sqlite3.connect(file)) as connection:
        return [
            user
            for (user,) in connection.execute("SELECT user_id FROM request_logs ORDER BY user_id")
        ]


def change(file: Path, statement: str) -> None:
    """Execute SQL on a database."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute(statement)


async def test_a_backup_while_the_database_is_in_use(database: Database, data_dir: Path) -> None:
    """The backup contains all committed rows, including those in the WAL, in one private file."""
    await add_rows(database, "a", "b")
    output = await command("backup", "copy.db")

    assert "audit: all agrees" in output
    assert read_users(data_dir / "copy.db") == ["a", "b"]
    assert (data_dir / "copy.db").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in data_dir.glob("copy*")) == ["copy.db"]


async def test_restore_keeps_the_replaced_database(database: Database, data_dir: Path) -> None:
    """The database has the rows of the backup, and the replaced one is kept as `.before`."""
    await add_rows(database, "a")
    await command("backup", "copy.db")
    await add_rows(database, "b")
    await database.close()
    await command("restore", "copy.db")

    assert read_users(data_dir / "kotae.db") == ["a"]
    assert read_users(data_dir / "kotae.db.before") == ["a", "b"]
    assert (data_dir / "kotae.db").stat().st_mode & 0o777 == 0o600
    assert read_users(data_dir / "copy.db") == ["a"]


async def test_restore_twice_keeps_both_databases(database: Database, data_dir: Path) -> None:
    """An earlier `.before` is renamed."""
    await add_rows(database, "a")
    await command("backup", "copy.db")
    await add_rows(database, "b")
    await database.close()
    await command("restore", "copy.db")
    await command("restore", "copy.db")

    assert read_users(data_dir / "kotae.db.before") == ["a"]
    assert read_users(data_dir / "kotae.db.before.1") == ["a", "b"]


async def test_restore_into_an_empty_directory(
    database: Database, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup can be restored on a new machine."""
    await add_rows(database, "a")
    await command("backup", "copy.db")
    monkeypatch.setenv("KOTAE_DATA_DIR", str(data_dir / "new"))
    output = await command("restore", "copy.db")

    assert ".before" not in output
    assert read_users(data_dir / "new" / "kotae.db") == ["a"]


async def test_the_wal_of_a_killed_service_is_kept(database: Database, data_dir: Path) -> None:
    """Rows that are only in the WAL of the replaced database are in `.before`."""
    await command("backup", "copy.db")
    await add_rows(database, "late")
    wal = (data_dir / "kotae.db-wal").read_bytes()
    main = (data_dir / "kotae.db").read_bytes()
    await database.close()
    (data_dir / "kotae.db").write_bytes(main)
    (data_dir / "kotae.db-wal").write_bytes(wal)
    await command("restore", "copy.db")

    assert read_users(data_dir / "kotae.db") == []
    assert read_users(data_dir / "kotae.db.before") == ["late"]


async def test_restore_is_refused_while_a_service_runs(database: Database, data_dir: Path) -> None:
    """The error names the process, and nothing is changed."""
    await command("backup", "copy.db")
    await add_rows(database, "a")
    await database.close()
    with (
        closing(lock_instance(Settings(data_dir=data_dir), SERVE)),
        pytest.raises(SettingsInvalid, match="pid"),
    ):
        await command("restore", "copy.db")

    assert read_users(data_dir / "kotae.db") == ["a"]
    assert not (data_dir / "kotae.db.before").exists()


def flip_pages(file: Path) -> None:
    """Damage the headers of half of the pages."""
    data = bytearray(file.read_bytes())
    for offset in range(8192, len(data), 8192):
        data[offset : offset + 12] = b"\xff" * 12
    file.write_bytes(data)


@pytest.mark.parametrize("content", ["damaged", "text", "empty", "another application", "absent"])
async def test_an_invalid_backup_is_refused(
    database: Database, data_dir: Path, content: str
) -> None:
    """A file that is not an intact database of Kotae replaces nothing."""
    await add_rows(database, "a")
    copy = data_dir / "copy.db"
    match content:
        case "damaged":
            await command("backup", "copy.db")
            flip_pages(copy)
        case "text":
            copy.write_text("not a database" * 1000)
        case "empty":
            copy.touch()
        case "another application":
            change(copy, "CREATE TABLE t (x)")
    await database.close()
    with pytest.raises(KotaeError):
        await command("restore", "copy.db")

    assert read_users(data_dir / "kotae.db") == ["a"]
    assert not list(data_dir.glob("*.before*")) + list(data_dir.glob("*.restoring*"))


async def test_a_damaged_database_is_not_backed_up(database: Database, data_dir: Path) -> None:
    """The command fails, and leaves no file."""
    await database.close()
    flip_pages(data_dir / "kotae.db")
    with pytest.raises(KotaeError, match=r"damaged|malformed"):
        await command("backup", "copy.db")

    assert not list(data_dir.glob("copy*"))


async def test_a_backup_does_not_overwrite_a_file(database: Database, data_dir: Path) -> None:
    """Neither another backup nor the database itself."""
    (data_dir / "copy.db").write_text("precious")
    for name in ("copy.db", "kotae.db"):
        with pytest.raises(KotaeError, match="exists"):
            await command("backup", name)

    assert (data_dir / "copy.db").read_text() == "precious"


async def test_an_older_backup_is_migrated(database: Database, data_dir: Path) -> None:
    """The restored database has the newest revision; the backup itself is not changed."""
    await database.migrate("0008")
    _, output = await run("backup", "copy.db")
    await database.close()
    await command("restore", "copy.db")

    assert "not audited" in output
    database = Database(f"sqlite+aiosqlite:///{data_dir}/kotae.db")
    assert await database.is_current()
    await database.close()
    with closing(sqlite3.connect(data_dir / "copy.db")) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    assert revision == "0008"


async def test_a_newer_backup_is_refused(database: Database, data_dir: Path) -> None:
    """A backup of a newer version names both revisions."""
    await command("backup", "copy.db")
    change(data_dir / "copy.db", "UPDATE alembic_version SET version_num = '9999'")
    await database.close()

    with pytest.raises(KotaeError, match="9999"):
        await command("restore", "copy.db")


@contextmanager
def read_only_directory(folder: Path) -> Iterator[None]:
    """A directory without write access, except for root."""
    folder.chmod(0o500)
    try:
        yield
    finally:
        folder.chmod(0o700)


async def test_a_backup_on_read_only_media(database: Database, data_dir: Path) -> None:
    """Reading a backup creates no files beside it, also if it is a raw copy in WAL mode."""
    await add_rows(database, "a")
    await database.close()
    media = data_dir / "media"
    media.mkdir()
    (media / "copy.db").write_bytes((data_dir / "kotae.db").read_bytes())
    with read_only_directory(media):
        await command("restore", str(media / "copy.db"))

    assert [path.name for path in media.iterdir()] == ["copy.db"]
    assert read_users(data_dir / "kotae.db") == ["a"]


async def test_a_backup_whose_accounts_do_not_agree(database: Database, data_dir: Path) -> None:
    """The backup is created with exit code 1; `restore` requires --force."""
    await add_rows(database, "a")
    change(data_dir / "kotae.db", "UPDATE rollups SET answers = 7")
    status, output = await run("backup", "copy.db")
    await database.close()
    with pytest.raises(KotaeError, match="--force"):
        await command("restore", "copy.db")
    forced, _ = await run("restore", "--force", "copy.db")

    assert (status, forced) == (1, 1)
    assert "rollups" in output
    assert (data_dir / "kotae.db.before").exists()


async def test_an_interrupted_backup_is_repeated(database: Database, data_dir: Path) -> None:
    """A partial file of an interrupted command does not disturb the next one."""
    (data_dir / "copy.db.partial").write_text("half")
    await command("backup", "copy.db")

    assert sorted(path.name for path in data_dir.glob("copy*")) == ["copy.db"]


@pytest.mark.slow
async def test_backup_and_restore_of_a_service(tmp_path: Path) -> None:
    """A service continues with the documents and rows of the backup."""

    async def ask(service: Any) -> None:
        await service.client.post("/ai/test", json={"prompt": "How much is shipping?"})

    async with serving(tmp_path, "--seed") as service:
        await ask(service)
        status, out, errors = await kotae("backup", "copy.db", data_dir=tmp_path)
        assert status == 0, out + errors
        await ask(service)
        refused, _, errors = await kotae("restore", "copy.db", data_dir=tmp_path)
        assert refused == 2
        assert f"pid {service.process.pid}" in errors
    status, out, errors = await kotae("restore", "copy.db", data_dir=tmp_path)
    assert status == 0, out + errors
    async with serving(tmp_path) as service:
        documents = (await service.client.get("/ai/documents")).json()["items"]
        health = (await service.client.get("/health/ready")).json()

    assert len(documents) == 10
    assert health["status"] == "ready"


async def test_a_running_service_is_backed_up(serve: Serve, tmp_path: Path) -> None:
    """A backup during uploads contains complete documents."""
    service = await serve(seeded=True, data_dir=tmp_path)
    status, _ = await run("backup", str(tmp_path / "copy.db"), KOTAE_DATA_DIR=str(tmp_path))
    with closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
        (count,) = connection.execute("SELECT count(*) FROM documents").fetchone()

    assert (status, count) == (0, 10)
    assert (await service.client.get("/health/ready")).json()["status"] == "ready"
