"""`kotae plans`: named sets of limits."""

from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from service.cli.database import run_on_database
from service.cli.limits import Limit, format_limits, parse_limits
from service.cli.output import Json, print_json, print_table
from service.core.auth import store
from service.core.auth.principals import COMMAND_LINE
from service.core.database.engine import Database
from service.core.pricing import format_markup
from service.core.settings import load_settings

MARKUP_MAX, MARKUP_DIGITS = 1000, 6  # as in the API

plans = typer.Typer(
    help="Plans: named sets of limits. Users without a plan have the plan `default`.",
    no_args_is_help=True,
)


@plans.command("list")
def list_plans(as_json: Json = False) -> None:
    """List plans."""

    async def read(database: Database) -> dict[str, store.UserPlan]:
        async with database.read_session() as session:
            return await store.list_plans(session)

    listed = run_on_database(load_settings(), read)
    if as_json:
        print_json(
            {
                "name": name,
                "limits": plan.limits.to_wire(),
                "prepaid": plan.prepaid,
                "markup": None if plan.markup is None else format_markup(plan.markup),
            }
            for name, plan in listed.items()
        )
        return
    print_table(
        ("PLAN", "LIMITS", "TERMS"),
        (
            (name, format_limits(plan.limits), _format_terms(plan.prepaid, plan.markup))
            for name, plan in listed.items()
        ),
        empty="no plans yet: kotae plans set NAME --limit requests_per_minute=60",
    )


@plans.command("set")
def set_plan(
    name: str,
    limit: Limit = [],  # noqa: B006 - not modified
    prepaid: Annotated[
        bool, typer.Option("--prepaid", help="Answers are paid from the wallet of the user.")
    ] = False,
    markup: Annotated[
        str | None, typer.Option(help="Factor of the cost that users pay, such as 1.25.")
    ] = None,
) -> None:
    """Create or replace a plan. Limits and terms that are not given do not apply."""
    limits, factor = parse_limits(limit), _parse_markup(markup)
    run_on_database(
        load_settings(),
        lambda database: store.put_plan(
            database, COMMAND_LINE, name, limits, prepaid=prepaid, markup=factor
        ),
    )
    print(f"{name}: {format_limits(limits)} {_format_terms(prepaid, factor)}".rstrip())


@plans.command("delete")
def delete_plan(name: str) -> None:
    """Delete a plan. Its users get the plan `default`."""
    run_on_database(
        load_settings(), lambda database: store.delete_plan(database, COMMAND_LINE, name)
    )
    print(f"deleted: {name}")


def _parse_markup(text: str | None) -> Decimal | None:
    """Raises `typer.BadParameter`."""
    if text is None:
        return None
    try:
        markup = Decimal(text)
        is_valid = markup.is_finite() and 0 < markup <= MARKUP_MAX
    except InvalidOperation:
        is_valid = False
    if not is_valid or markup != round(markup, MARKUP_DIGITS):
        raise typer.BadParameter(
            f"{text!r} is not a number above 0 and up to {MARKUP_MAX} with at most "
            f"{MARKUP_DIGITS} decimals"
        )
    return markup


def _format_terms(prepaid: bool, markup: Decimal | None) -> str:
    terms = ["prepaid"] if prepaid else []
    return " ".join([*terms, *([f"markup={format_markup(markup)}"] if markup is not None else [])])
