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
    """Show users."""

    async def read(database: Database) -> list[store.User]:
        async with database.read_session() as session:
            return await store.list_users(session, limit=store.KEYS_PAGE_MAX)

    for user in run_on_database(load_settings(), read):
        limits = user.limits.to_wire() if user.limits else ""
        print(
            f"{user.id}  {'disabled' if user.disabled else 'enabled'}  plan {user.plan or store.DEFAULT_PLAN}  {limits}"
        )


@users.command("disable")
def disable_user(user: str) -> None:
    """Refuse everything that this user sends, whatever the credential."""
    _set_disabled(user, disabled=True)


@users.command("enable")
def enable_user(user: str) -> None:
    """Take requests of this user again."""
    _set_disabled(user, disabled=False)


@users.command("quota")
def set_quota(
    user: str,
    plan: Annotated[
        str | None, typer.Option(help="A plan; without it and without limits: the default plan.")
    ] = None,
    limit: Limit = [],  # noqa: B006 - typer's, and not changed
) -> None:
    """Give a user a plan, or limits of their own."""
    own = parse_limits(limit) if limit else None
    if own is not None and plan is not None:
        raise typer.BadParameter("give a plan or limits, not both")
    run_on_database(
        load_settings(), lambda database: store.put_user(database, user, plan=plan, limits=own)
    )
    print(f"{user}: {own.to_wire() if own else f'plan {plan or store.DEFAULT_PLAN}'}")


@users.command("usage")
def show_usage(
    user: Annotated[str | None, typer.Argument(help="Default: everybody together.")] = None,
    days: Annotated[int, typer.Option(min=1, max=DAYS_MAX)] = 30,
) -> None:
    """Show what was used, by day, model and endpoint."""
    until = utc_now().date() + timedelta(days=1)

    async def read(database: Database) -> list[UsageTotal]:
        async with database.read_session() as session:
            return await read_totals(
                session, user_id=user, since=until - timedelta(days=days), until=until
            )

    for one in run_on_database(load_settings(), read):
        unpriced = f"  {one.unpriced} of unknown cost" if one.unpriced else ""
        tokens = f"{one.prompt_tokens:,} + {one.completion_tokens:,} tokens"
        print(
            f"{one.day}  {one.model}  {one.endpoint}  {one.answers:,} answers  {tokens}  ${one.cost}{unpriced}"
        )


def _set_disabled(user: str, *, disabled: bool) -> None:
    run_on_database(
        load_settings(), lambda database: store.put_user(database, user, disabled=disabled)
    )
    print(f"{'disabled' if disabled else 'enabled'}: {user}")
