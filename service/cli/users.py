"""`kotae users`: list, disable, enable, quota, usage."""

from datetime import timedelta
from typing import Annotated

import typer

from service.cli.database import run_on_database
from service.cli.limits import Limit, parse_limits
from service.core.auth import store
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.quota.history import DAYS_MAX, UsageTotal, read_totals
from service.core.settings import load_settings

users = typer.Typer(help="Users: list, disable, enable, quota, usage.", no_args_is_help=True)


@users.command("list")
def list_users() -> None:
    """List users."""

    async def read(database: Database) -> list[store.User]:
        async with database.read_session() as session:
            return await store.list_users(session, limit=store.KEYS_PAGE_MAX)

    for user in run_on_database(load_settings(), read):
        limits = user.limits.to_wire() if user.limits else ""
        state = "disabled" if user.disabled else "enabled"
        print(f"{user.id}  {state}  plan {user.plan or store.DEFAULT_PLAN}  {limits}")


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
        load_settings(), lambda database: store.put_user(database, user, plan=plan, limits=own)
    )
    print(f"{user}: {own.to_wire() if own else f'plan {plan or store.DEFAULT_PLAN}'}")


@users.command("usage")
def show_usage(
    user: Annotated[str | None, typer.Argument(help="Default: all users together.")] = None,
    days: Annotated[int, typer.Option(min=1, max=DAYS_MAX)] = 30,
) -> None:
    """Print usage by day, model and endpoint."""
    until = utc_now().date() + timedelta(days=1)

    async def read(database: Database) -> list[UsageTotal]:
        async with database.read_session() as session:
            return await read_totals(
                session, user_id=user, since=until - timedelta(days=days), until=until
            )

    for total in run_on_database(load_settings(), read):
        unpriced = f"  {total.unpriced} of unknown cost" if total.unpriced else ""
        tokens = f"{total.prompt_tokens:,} + {total.completion_tokens:,} tokens"
        group = f"{total.day}  {total.model}  {total.endpoint}"
        print(f"{group}  {total.answers:,} answers  {tokens}  ${total.cost}{unpriced}")


def _set_disabled(user: str, *, disabled: bool) -> None:
    run_on_database(
        load_settings(), lambda database: store.put_user(database, user, disabled=disabled)
    )
    print(f"{'disabled' if disabled else 'enabled'}: {user}")
