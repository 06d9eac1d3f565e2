"""The command line: every command of `kotae`, and its exit codes."""

import sys

import httpx2
import typer

from service.cli import (
    ask,
    audit,
    backup,
    doctor,
    evaluate,
    keys,
    logs,
    plans,
    serve,
    settings,
    users,
)
from service.core.errors import KotaeError

app = typer.Typer(
    help="Kotae: a self-hosted question-answering server with exact accounting.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve.serve)
app.command()(serve.migrate)
app.command()(serve.seed)
app.command()(ask.ask)
app.command()(logs.logs)
app.command()(settings.token)
app.command("settings")(settings.print_settings)
app.command("env-example", hidden=True)(settings.print_env_example)
app.command("settings-reference", hidden=True)(settings.print_reference)
app.command()(doctor.doctor)
app.command()(audit.audit)
app.command()(backup.backup)
app.command()(backup.restore)
app.command("eval")(evaluate.evaluate)
app.add_typer(keys.keys, name="keys")
app.add_typer(users.users, name="users")
app.add_typer(plans.plans, name="plans")


def main() -> None:
    """Run the command line. Expected errors are printed as one line, without a traceback."""
    try:
        app()
    except KotaeError as error:
        print(f"kotae: {error.detail}", file=sys.stderr)
        sys.exit(2)
    except httpx2.TransportError as error:
        print(
            f"kotae: no service responds ({error}); start one with `kotae serve`, or pass --url",
            file=sys.stderr,
        )
        sys.exit(1)
    except BrokenPipeError:  # the reader of the pipe has exited
        sys.exit(0)
