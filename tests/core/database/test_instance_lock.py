"""One service per data directory and per database."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from service.core.database.instance_lock import SERVE, InstanceLock, lock_instance
from service.core.errors import SettingsInvalid
from service.core.settings import Settings
from tests.process import kotae, migrate, serving

HOLDER = """
import sys
from service.core.database.instance_lock import lock_instance
from service.core.settings import Settings
lock = lock_instance(Settings(_env_file=None, data_dir=sys.argv[1]), "serve", address="http://x:1")
print("locked", flush=True)
sys.stdin.read()
"""


def settings(data_dir: Path, database: str | None = None) -> Settings:
    """Settings with a data directory and, optionally, another database file."""
    url = None if database is None else f"sqlite+aiosqlite:///{database}"
    return Settings(_env_file=None, data_dir=data_dir, database_url=url)


def start_holder(data_dir: Path) -> subprocess.Popen[str]:
    """Start a process that holds the locks of a data directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_holder_learns_process_and_address(tmp_path: Path) -> None:
    """The error names the process and the address of the first one, on one line."""
    with start_holder(tmp_path) as process:
        with pytest.raises(SettingsInvalid) as caught:
            lock_instance(settings(tmp_path), SERVE)
        process.kill()

    assert f"pid {process.pid}, http://x:1" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_kernel_releases_the_locks_of_a_killed_process(tmp_path: Path) -> None:
    """A process that was killed does not block the next one."""
    with start_holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)

    lock_instance(settings(tmp_path), SERVE).close()


def test_a_child_does_not_inherit_the_locks(tmp_path: Path) -> None:
    """A process that outlives the service, such as a model, does not hold its locks."""
    lock = lock_instance(settings(tmp_path), SERVE)
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        lock.close()
        lock_instance(settings(tmp_path), SERVE).close()
        child.kill()


@pytest.mark.parametrize(
    "name", ["{shared}/x.db", "link/x.db", "link.db", "file:{shared}/x.db?uri=true", "./d/../x.db"]
)
def test_one_database_under_several_names(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services with separate data directories cannot share a database, whatever its name."""
    shared = tmp_path / "shared"
    (shared / "d").mkdir(parents=True)
    monkeypatch.chdir(shared)
    (shared / "link").symlink_to(shared)
    (shared / "link.db").symlink_to("x.db")

    with (
        closing(lock_instance(settings(tmp_path / "a", f"{shared}/x.db"), SERVE)),
        pytest.raises(SettingsInvalid, match=r"shared/x\.db is used by .* KOTAE_DATABASE_URL"),
    ):
        lock_instance(settings(tmp_path / "b", name.format(shared=shared)), SERVE)


def test_one_data_directory_under_several_names(tmp_path: Path) -> None:
    """A symbolic link to a locked data directory is locked."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    with (
        closing(lock_instance(settings(tmp_path / "real", ":memory:"), SERVE)),
        pytest.raises(SettingsInvalid, match="KOTAE_DATA_DIR"),
    ):
        lock_instance(settings(tmp_path / "link", ":memory:"), SERVE)


def test_a_database_with_several_hard_links_is_rejected(tmp_path: Path) -> None:
    """Each name of a hard link would have its own WAL, which corrupts the database."""
    (tmp_path / "kotae.db").touch()
    os.link(tmp_path / "kotae.db", tmp_path / "other.db")

    with pytest.raises(SettingsInvalid, match="2 hard links"):
        lock_instance(settings(tmp_path), SERVE)


def test_a_failure_releases_the_first_lock(tmp_path: Path) -> None:
    """A locked database does not leave the data directory locked."""
    with closing(lock_instance(settings(tmp_path / "a", f"{tmp_path}/x.db"), SERVE)):
        with pytest.raises(SettingsInvalid):
            lock_instance(settings(tmp_path / "b", f"{tmp_path}/x.db"), SERVE)
        lock_instance(settings(tmp_path / "b", f"{tmp_path}/y.db"), SERVE).close()


def test_the_lock_of_a_short_command_is_awaited(tmp_path: Path) -> None:
    """A service that starts during a migration waits for its end."""
    migration = lock_instance(settings(tmp_path), "migrate")
    locks: list[InstanceLock] = []
    waiter = threading.Thread(target=lambda: locks.append(lock_instance(settings(tmp_path), SERVE)))
    waiter.start()
    migration.close()
    waiter.join(20)

    (lock,) = locks
    lock.close()


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """The error names the setting and the file."""
    (tmp_path / "file").touch()

    with pytest.raises(SettingsInvalid, match="KOTAE_DATA_DIR: cannot open"):
        lock_instance(settings(tmp_path / "file" / "data"), SERVE)


@pytest.mark.slow
async def test_a_second_service_does_not_start(tmp_path: Path) -> None:
    """`serve` on a data directory in use ends with one line that names the first service."""
    async with serving(tmp_path) as first:
        status, out, errors = await kotae("serve", "--port", "0", "--migrate", data_dir=tmp_path)
        alive = (await first.client.get("/health/live")).status_code

    assert status != 0
    assert out == ""
    assert errors.count("\n") == 1
    assert f"pid {first.process.pid}, {first.url}" in errors
    assert alive == 200


@pytest.mark.slow
async def test_services_cannot_share_a_database(tmp_path: Path) -> None:
    """Of several services with separate directories and one database, one starts."""
    await migrate(tmp_path)
    url = f"sqlite+aiosqlite:///{tmp_path}/kotae.db"
    folders = [tmp_path / str(n) for n in range(3)]
    for folder in folders:
        folder.mkdir()
    async with serving(folders[0], "--migrate", KOTAE_DATABASE_URL=url) as first:
        others = await asyncio.gather(
            *(
                kotae("serve", "--port", "0", data_dir=folder, KOTAE_DATABASE_URL=url)
                for folder in folders[1:]
            )
        )

    for status, _, errors in others:
        assert status != 0
        assert errors.count("\n") == 1
        assert f"pid {first.process.pid}, {first.url}" in errors


@pytest.mark.slow
async def test_commands_while_a_service_runs(tmp_path: Path) -> None:
    """`seed`, `keys`, `audit` and a `migrate` without work succeed; a downgrade does not."""
    async with serving(tmp_path) as service:
        for arguments in (
            ["migrate"],
            ["seed"],
            ["keys", "create", "--user", "a"],
            ["keys", "list"],
            ["audit"],
        ):
            status, _, errors = await kotae(*arguments, data_dir=tmp_path)
            assert status == 0, (arguments, errors)
        status, _, errors = await kotae("migrate", "0008", data_dir=tmp_path)

    assert status == 2
    assert f"pid {service.process.pid}" in errors


@pytest.mark.slow
async def test_a_service_starts_after_the_first_was_killed(tmp_path: Path) -> None:
    """SIGKILL releases the locks, also while a child process of the service is alive."""
    async with serving(tmp_path) as first:
        first.signal(signal.SIGKILL)
        await first.wait()
        async with serving(tmp_path) as second:
            assert (await second.client.get("/health/live")).status_code == 200
