"""`kotae plans`: named sets of limits."""

import typer

from service.cli.database import run_on_database
from service.cli.limits import Limit, format_limits, parse_limits
from service.cli.output import Json, print_json, print_table
from service.core.auth import store
from service.core.auth.principals import COMMAND_LINE
from service.core.database.engine import Database
from service.core.ports import QuotaLimits
from service.core.settings import load_settings

plans = typer.Typer(
    help="Plans: named sets of limits. Users without a plan have the plan `default`.",
    no_args_is_help=True,
)


@plans.command("list")
def list_plans(as_json: Json = False) -> None:
    """List plans."""

    async def read(database: Database) -> dict[str, QuotaLimits]:
        async with database.read_session() as session:
            return await store.list_plans(session)

    listed = run_on_database(load_settings(), read)
    if as_json:
        print_json({"name": name, "limits": limits.to_wire()} for name, limits in listed.items())
        return
    print_table(
        ("PLAN", "LIMITS"),
        ((name, format_limits(limits)) for name, limits in listed.items()),
        empty="no plans yet: kotae plans set NAME --limit requests_per_minute=60",
    )


@plans.command("set")
def set_plan(
    name: str,
    limit: Limit = [],  # noqa: B006 - not modified
) -> None:
    """Create or replace a plan. Limits that are not given do not apply."""
    limits = parse_limits(limit)
    run_on_database(
        load_settings(), lambda database: store.put_plan(database, COMMAND_LINE, name, limits)
    )
    print(f"{name}: {format_limits(limits)}")


@plans.command("delete")
def delete_plan(name: str) -> None:
    """Delete a plan. Its users get the plan `default`."""
    run_on_database(
        load_settings(), lambda database: store.delete_plan(database, COMMAND_LINE, name)
    )
    print(f"deleted: {name}")
