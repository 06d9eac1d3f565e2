"""The command line as a whole."""

import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import anyio.to_thread
import pytest
import typer

from service import __version__
from service.cli.app import app, main
from tests.command import run
from tests.conftest import Service


def list_commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every command, also of those that have subcommands."""
    if not hasattr(command, "commands"):
        yield path
        return
    if path and command.invoke_without_command:
        yield path
    for name, inner in command.commands.items():
        yield from list_commands(inner, (*path, name))


def find_command(path: tuple[str, ...]) -> Any:
    """The command with this path."""
    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    return command


def list_types(annotation: Any) -> set[Any]:
    """The types of the values of an option: of list[int] | None they are {int}."""
    inner = set(get_args(annotation)) - {type(None)}
    return set().union(*map(list_types, inner)) if inner else {annotation}


EVERY_COMMAND = list(list_commands(typer.main.get_command(app)))
COMMANDS = [path for path in EVERY_COMMAND if path != ("serve",)]
OPTIONS = [
    (path, parameter.name, parameter.opts[0])
    for path in EVERY_COMMAND
    for parameter in find_command(path).params
    if parameter.opts[0].startswith("--")
]
UNCONVERTED = {bool, str, Path, type(None)}  # types of which any word is a value
CONVERTED = [
    (path, option)
    for path, name, option in OPTIONS
    if list_types(get_type_hints(find_command(path).callback)[name]).isdisjoint(UNCONVERTED)
]
NAMES = {"answer_id", "document_ids", "key_id", "user", "name", "alert_id"}
# Arguments that may be new: users of JWTs are unknown until they are named; the others create.
MAY_BE_NEW = {
    *(("users", name) for name in ("disable", "enable", "quota", "usage")),
    ("plans", "set"),
    ("budgets", "create"),
}
NAMED = [
    path
    for path in EVERY_COMMAND
    if path not in MAY_BE_NEW
    and any(
        parameter.name in NAMES and parameter.param_type_name == "argument"
        for parameter in find_command(path).params
    )
]
# Commands that need an argument, or whose JSON is a document or a file.
NO_LISTS = {("export",), ("add",), ("verify",)}
LISTS = [
    path
    for path, _, option in OPTIONS
    if option == "--json"
    and path not in NO_LISTS
    and not any(parameter.required for parameter in find_command(path).params)
]


def run_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Run the program in this process; return (exit status, standard output, standard error)."""
    monkeypatch.setattr("sys.argv", ["kotae", *arguments])
    status: int | str | None = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return int(status or 0), captured.out, captured.err


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("data_dir", ["absent", "file", "random", "unwritable"])
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
    elif data_dir == "unwritable":
        folder = Path("/proc/kotae")  # not even root can create it
    arguments = ["/nowhere/file"] if path in {("backup",), ("restore",), ("audit",)} else ["x"]
    monkeypatch.setenv("KOTAE_DATA_DIR", str(folder))
    monkeypatch.setenv("KOTAE_PORT", "9")
    monkeypatch.setattr("sys.argv", ["kotae", *path, *arguments])

    with pytest.raises(SystemExit):  # no other exception
        main()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("path", EVERY_COMMAND, ids=" ".join)
def test_unknown_options_are_refused(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that a command does not have is an error of the command line: status 2."""
    status, output, error = run_main(monkeypatch, capsys, *path, "--no-such-option")

    assert (status, output) == (2, "")
    assert "--no-such-option" in error


@pytest.mark.parametrize(("path", "option"), CONVERTED, ids=str)
def test_values_of_the_wrong_type_are_refused(
    path: tuple[str, ...],
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A word in place of a number, a date or a choice is an error of the command line: status 2."""
    required = [
        "word"
        for parameter in find_command(path).params
        if parameter.required and parameter.param_type_name == "argument"
    ]
    status, output, error = run_main(monkeypatch, capsys, *path, *required, option, "no-value")

    assert (status, output) == (2, "")
    assert option in error


@pytest.fixture
async def empty(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service without answers, users and documents, which commands use with its database."""
    monkeypatch.setenv("KOTAE_DATA_DIR", str(service.services.settings.data_dir))
    monkeypatch.setenv("KOTAE_PORT", service.url.rpartition(":")[2])
    return service


@pytest.mark.slow
@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("path", NAMED, ids=" ".join)
async def test_unknown_names_have_their_status(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name or an id that does not exist is status 1 with one line."""
    run_named = partial(run_main, monkeypatch, capsys, *path, "no-such-name")
    status, output, error = await anyio.to_thread.run_sync(run_named)

    assert (status, output) == (1, "")
    assert error.count("\n") == 1, error


@pytest.mark.slow
@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("path", LISTS, ids=" ".join)
async def test_empty_lists_are_hints_or_no_lines(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without entries a list is a hint on standard error, and with --json nothing."""
    listed = await anyio.to_thread.run_sync(partial(run_main, monkeypatch, capsys, *path))
    as_json = await anyio.to_thread.run_sync(
        partial(run_main, monkeypatch, capsys, *path, "--json")
    )

    assert (listed[0], listed[1]) == (0, "")
    assert listed[2].count("\n") == 1, listed
    assert as_json == (0, "", "")


def test_every_table_can_be_printed_as_json() -> None:
    """A command that prints a table has the option --json."""
    with_json = {path for path, _, option in OPTIONS if option == "--json"}

    assert [
        path
        for path in EVERY_COMMAND
        if path not in with_json
        and "print_table(" in inspect.getsource(find_command(path).callback)
    ] == []


async def test_version_is_printed() -> None:
    """`kotae --version`."""
    assert await run("--version") == (0, f"kotae {__version__}\n")


async def test_help_contains_brackets() -> None:
    """Help texts are not interpreted as markup."""
    _, text = await run("eval", "--help", COLUMNS="200")

    assert "relevant: [ids], answers?: [texts]" in text
