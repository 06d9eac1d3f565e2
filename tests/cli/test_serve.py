"""`kotae serve`: errors at start, and limits of the process."""

import json
import resource
import socket
from pathlib import Path

import pytest

from tests.process import kotae, serving

pytestmark = pytest.mark.slow


async def test_common_mistakes_are_reported_without_traceback(tmp_path: Path) -> None:
    """An invalid setting, a missing schema and an absent service end a command with a message."""
    bad = await kotae("serve", data_dir=tmp_path, KOTAE_PORT="many")
    beyond = await kotae("serve", data_dir=tmp_path, KOTAE_HOST="0.0.0.0")
    unmigrated = await kotae("serve", "--port", "0", data_dir=tmp_path)
    absent = await kotae("ask", "x", "--url", "http://127.0.0.1:9", data_dir=tmp_path)

    for (code, _, errors), expected in zip(
        (bad, beyond, unmigrated, absent),
        ("KOTAE_PORT", "KOTAE_AUTH", "kotae migrate", "no service"),
        strict=True,
    ):
        assert code != 0
        assert expected in errors
        assert "Traceback" not in errors


async def test_a_port_in_use_is_reported_before_the_migration(tmp_path: Path) -> None:
    """One line names the port and the setting; the database is not touched."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, errors = await kotae(
            "serve", "--migrate", "--port", str(port), data_dir=tmp_path, KOTAE_LOG_FORMAT="json"
        )

    assert code == 2
    assert errors == (
        f"kotae: port {port} of 127.0.0.1 is in use: stop its process, or choose another port "
        "with --port or KOTAE_PORT\n"
    )
    assert not (tmp_path / "kotae.db").exists()


async def test_an_ignored_variable_is_logged(tmp_path: Path) -> None:
    """A variable with the prefix of settings that is not one causes a warning with a remedy."""
    _, _, logged = await kotae(
        "serve", "--port", "0", data_dir=tmp_path, KOTAE_DATABASE_BUSY_SECONDS="1"
    )

    warning = next(json.loads(line) for line in logged.splitlines() if "setting.ignored" in line)
    assert (warning["level"], warning["name"]) == ("warning", "KOTAE_DATABASE_BUSY_SECONDS")
    assert "?timeout=" in warning["remedy"]


async def test_the_limit_of_open_files_is_raised(tmp_path: Path) -> None:
    """The low soft limit of most systems does not limit the number of answers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        async with serving(tmp_path) as service:
            assert resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
