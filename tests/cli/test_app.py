"""The command line as a whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from service import __version__
from service.cli.app import app, main
from tests.command import run


def list_commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every command."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from list_commands(inner, (*path, name))
    else:
        yield path


COMMANDS = [path for path in list_commands(typer.main.get_command(app)) if path != ("serve",)]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("data_dir", ["absent", "file", "random"])
def test_no_command_prints_a_traceback(
    path: tuple[str, ...],
    data_dir: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Missing or damaged files and absent services end a command with one line, not a traceback."""
    folder = tmp_path / "data"
    if data_dir == "file":
        folder.write_text("a file instead of a folder")
    elif data_dir == "random":
        folder.mkdir()
        (folder / "kotae.db").write_bytes(b"no database" * 1000)
    arguments = ["/nowhere/file"] if path in {("backup",), ("restore",), ("audit",)} else ["x"]
    monkeypatch.setenv("KOTAE_DATA_DIR", str(folder))
    monkeypatch.setenv("KOTAE_PORT", "9")
    monkeypatch.setattr("sys.argv", ["kotae", *path, *arguments])

    with pytest.raises(SystemExit):  # no other exception
        main()
    assert "Traceback" not in capsys.readouterr().err


async def test_version_is_printed() -> None:
    """`kotae --version`."""
    assert await run("--version") == (0, f"kotae {__version__}\n")


async def test_help_contains_brackets() -> None:
    """Help texts are not interpreted as markup."""
    _, text = await run("eval", "--help", COLUMNS="200")

    assert "relevant: [ids], answers?: [texts]" in text
