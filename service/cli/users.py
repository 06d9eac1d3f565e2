"""`kotae users`: list, disable, enable, quota, usage."""

from datetime import timedelta
from typing import Annotated

import typer

from service.cli.database import run_on_database
from service.cli.limits import Limit, format_limits, parse_limits
from service.cli.output import Json, print_json, print_table
from service.core.auth import store
from service.core.auth.principals import COMMAND_LINE
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.errors import NotFound
from service.core.quota.history import DAYS_MAX, UsageTotal, read_totals
from service.core.settings import load_settings

users = typer.Typer(help="Users: list, disable, enable, quota, usage.", no_args_is_help=True)


@users.command("list")
def list_users(as_json: Json = False) -> None:
    """List users with keys, settings or a state of their own."""

    async def read(database: Database) -> list[store.User]:
        async with database.read_session() as session:
            return await store.list_users(session, limit=store.KEYS_PAGE_MAX)

    listed = run_on_database(load_settings(), read)
    if as_json:
        print_json(listed)
        return
    print_table(
        ("USER", "STATE", "PLAN", "LIMITS"),
        (
            (
                user.id,
                "disabled" if user.disabled else "enabled",
                user.plan or store.DEFAULT_PLAN,
                format_limits(user.limits) if user.limits else "",
            )
            for user in listed
        ),
        empty="no users yet: kotae keys create --user NAME",
    )


@users.command("disable")
def disable_user(user: str) -> None:
    """Reject all requests of a user, with any credential."""
    _set_disabled(user, disabled=True)


@users.command("enable")
def enable_user(user: str) -> None:
    """Accept requests of a disabled user again."""
    _set_disabled(user, disabled=False)


@users.command("quota")
def set_quota(
    user: str,
    plan: Annotated[
        str | None, typer.Option(help="A plan. Without plan and limits: the plan `default`.")
    ] = None,
    limit: Limit = [],  # noqa: B006 - not modified
) -> None:
    """Assign a plan or individual limits to a user."""
    own = parse_limits(limit) if limit else None
    if own is not None and plan is not None:
        raise typer.BadParameter("give a plan or limits, not both")
    run_on_database(
        load_settings(),
        lambda database: store.put_user(database, COMMAND_LINE, user, plan=plan, limits=own),
    )
    print(f"{user}: {format_limits(own) if own else f'plan {plan or store.DEFAULT_PLAN}'}")


@users.command("usage")
def show_usage(
    user: Annotated[str | None, typer.Argument(help="Default: all users together.")] = None,
    days: Annotated[int, typer.Option(min=1, max=DAYS_MAX)] = 30,
    as_json: Json = False,
) -> None:
    """Print usage by day, model and endpoint."""
    until = utc_now().date() + timedelta(days=1)

    async def read(database: Database) -> list[UsageTotal]:
        async with database.read_session() as session:
            listed = await read_totals(
                session, user_id=user, since=until - timedelta(days=days), until=until
            )
            if user is not None and not listed and not await store.has_user(session, user):
                raise NotFound(f"no user {user!r}: see `kotae users list`")
            return listed

    totals = run_on_database(load_settings(), read)
    if as_json:
        print_json(totals)
        return
    numbers = ("ANSWERS", "PROMPT TOKENS", "COMPLETION TOKENS", "COST (USD)", "OF UNKNOWN COST")
    print_table(
        ("DAY", "MODEL", "ENDPOINT", *numbers),
        (
            (
                total.day,
                total.model,
                total.endpoint,
                f"{total.answers:,}",
                f"{total.prompt_tokens:,}",
                f"{total.completion_tokens:,}",
                total.cost,
                f"{total.unpriced:,}" if total.unpriced else "",
            )
            for total in totals
        ),
        right=numbers,
        empty=f"no answers in the last {days} days",
    )


def _set_disabled(user: str, *, disabled: bool) -> None:
    run_on_database(
        load_settings(),
        lambda database: store.put_user(database, COMMAND_LINE, user, disabled=disabled),
    )
    print(f"{'disabled' if disabled else 'enabled'}: {user}")
