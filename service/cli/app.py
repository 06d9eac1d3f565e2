"""The command line: every command of `kotae`, and its exit codes."""

import sys
from typing import Annotated

import httpx2
import typer

from service import __version__
from service.cli import (
    add,
    ask,
    audit,
    audit_log,
    backup,
    billing,
    budgets,
    doctor,
    documents,
    evaluate,
    keys,
    logs,
    migrate_data,
    plans,
    receipts,
    serve,
    settings,
    usage,
    users,
    wallets,
)
from service.core.errors import KotaeError, NotFound

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"kotae {__version__}")
        raise typer.Exit


@app.callback()
def configure(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Kotae: a self-hosted question-answering server with exact accounting."""


app.command()(serve.serve)
app.command()(serve.migrate)
app.command("migrate-data")(migrate_data.migrate_data)
app.command()(serve.seed)
app.command()(ask.ask)
app.command()(ask.stop)
app.command()(add.add)
app.command()(documents.documents)
app.command()(documents.search)
app.command()(documents.rm)
app.command()(documents.export)
app.command()(usage.usage)
app.command()(receipts.receipts)
app.command()(receipts.verify)
app.command()(settings.token)
app.command("settings")(settings.print_settings)
app.command("env-example", hidden=True)(settings.print_env_example)
app.command("settings-reference", hidden=True)(settings.print_reference)
app.command()(doctor.doctor)
app.command()(audit.audit)
app.command("audit-log")(audit_log.list_audit_log)
app.command()(backup.backup)
app.command()(backup.restore)
app.command("eval")(evaluate.evaluate)
app.add_typer(logs.logs, name="logs")
app.add_typer(keys.keys, name="keys")
app.add_typer(users.users, name="users")
app.add_typer(plans.plans, name="plans")
app.add_typer(budgets.budgets, name="budgets")
app.add_typer(billing.billing, name="billing")
billing.billing.command("balance")(wallets.show_balance)
billing.billing.command("entries")(wallets.list_entries)
billing.billing.command("grant", context_settings={"ignore_unknown_options": True})(
    wallets.add_grant  # the amount of an adjustment can begin with a minus
)
billing.billing.command("assign")(wallets.assign_payer)


def main() -> None:
    """Run the command line. Expected errors are printed as one line, without a traceback."""
    try:
        app()
    except KotaeError as error:
        print(f"kotae: {error.detail}", file=sys.stderr)
        sys.exit(1 if isinstance(error, NotFound) else 2)
    except httpx2.TransportError as error:
        print(
            f"kotae: no service responds ({error}); start one with `kotae serve`, or pass --url",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of the pipe has exited
        sys.exit(0)
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        print(f"kotae: {path}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
