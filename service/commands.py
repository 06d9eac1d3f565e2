"""The commands about who may ask: keys and users. They work on the database, whether the service runs or not.

A running service notices within a few seconds: it asks the database again before it believes a credential for long.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, TypeVar

import typer

from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP, EVERYTHING, Role, Scope
from service.core.auth.store import ApiKey, Wanted
from service.core.db import Database
from service.core.events import now
from service.core.ports import QuotaLimits
from service.core.pricing import to_nano
from service.core.quota.history import DAYS_MAX, UsageTotal, totals_of
from service.core.settings import Settings, load_settings

T = TypeVar("T")

keys = typer.Typer(help="API keys: create, list, rotate, revoke.", no_args_is_help=True)
users = typer.Typer(help="Users: list, disable, enable, quota, usage.", no_args_is_help=True)
plans = typer.Typer(help="Plans, which are named sets of limits; `default` is for users without one.", no_args_is_help=True)

Limit = Annotated[
    list[str],
    typer.Option("--limit", metavar="NAME=VALUE", help="As in the API, such as tokens_per_day=50000 or cost_usd_per_month=20. Repeat."),
]


@keys.command("create")
def create_key(
    user: Annotated[str, typer.Option(help="Whose key it is.")],
    role: Annotated[Role, typer.Option(help="user: their own things. admin: everybody's.")] = Role.USER,
    scopes: Annotated[str, typer.Option(help="Comma-separated: ask, documents, logs, keys. Default: all.")] = "",
    expires_days: Annotated[float | None, typer.Option("--expires", min=0.001, help="Days until it ends. Default: never.")] = None,
    name: Annotated[str, typer.Option(help="By which people know it.")] = "",
) -> None:
    """Make a key and print it, this once."""
    wanted = Wanted(
        user_id=user,
        role=role,
        scopes=frozenset(_scope(one) for one in scopes.split(",")) if scopes else EVERYTHING,
        name=name,
        expires_at=now() + timedelta(days=expires_days) if expires_days else None,
    )
    settings = load_settings()
    made = _run(settings, lambda database: store.create_key(database, BOOTSTRAP, wanted, keys_max=settings.keys_max))
    _show_made(made)


@keys.command("list")
def list_keys(user: Annotated[str | None, typer.Option(help="Of this user alone.")] = None) -> None:
    """Show keys, newest first: what they are known by, never the keys themselves."""

    async def read(database: Database) -> list[ApiKey]:
        async with database.reading() as session:
            return await store.list_keys(session, BOOTSTRAP, user_id=user)

    for key in _run(load_settings(), read):
        state = "revoked" if key.revoked_at else "expired" if key.expires_at and key.expires_at <= now() else "valid"
        used = f"used {key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never used"
        end = f"until {key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "no end"
        print(f"{key.id}  {key.prefix}…  {key.user_id}  {key.role}  {','.join(key.scopes)}  {state}  {end}  {used}  {key.name}")


@keys.command("rotate")
def rotate_key(key_id: str, grace: Annotated[float, typer.Option(min=0, help="Hours that the old key stays valid.")] = 24) -> None:
    """Make a key in the place of another one."""
    settings = load_settings()
    _show_made(
        _run(
            settings,
            lambda database: store.rotate_key(database, BOOTSTRAP, key_id, grace_seconds=grace * 3600, keys_max=settings.keys_max),
        )
    )


@keys.command("revoke")
def revoke_key(key_id: str) -> None:
    """End a key now."""
    _run(load_settings(), lambda database: store.revoke_key(database, BOOTSTRAP, key_id))
    print(f"revoked: {key_id}")


@users.command("list")
def list_users() -> None:
    """Show users."""

    async def read(database: Database) -> list[store.User]:
        async with database.reading() as session:
            return await store.list_users(session, limit=store.KEYS_PAGE_MAX)

    for user in _run(load_settings(), read):
        limits = user.limits.wire() if user.limits else ""
        print(f"{user.id}  {'disabled' if user.disabled else 'enabled'}  plan {user.plan or store.DEFAULT_PLAN}  {limits}")


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
    plan: Annotated[str | None, typer.Option(help="A plan; without it and without limits: the default plan.")] = None,
    limit: Limit = [],  # noqa: B006 - typer's, and not changed
) -> None:
    """Give a user a plan, or limits of their own."""
    own = _limits(limit) if limit else None
    if own is not None and plan is not None:
        raise typer.BadParameter("give a plan or limits, not both")
    _run(load_settings(), lambda database: store.put_user(database, user, plan=plan, limits=own))
    print(f"{user}: {own.wire() if own else f'plan {plan or store.DEFAULT_PLAN}'}")


@users.command("usage")
def show_usage(
    user: Annotated[str | None, typer.Argument(help="Default: everybody together.")] = None,
    days: Annotated[int, typer.Option(min=1, max=DAYS_MAX)] = 30,
) -> None:
    """Show what was used, by day, model and endpoint."""
    until = now().date() + timedelta(days=1)

    async def read(database: Database) -> list[UsageTotal]:
        async with database.reading() as session:
            return await totals_of(session, user_id=user, since=until - timedelta(days=days), until=until)

    for one in _run(load_settings(), read):
        unpriced = f"  {one.unpriced} of unknown cost" if one.unpriced else ""
        tokens = f"{one.prompt_tokens:,} + {one.completion_tokens:,} tokens"
        print(f"{one.day}  {one.model}  {one.endpoint}  {one.answers:,} answers  {tokens}  ${one.cost}{unpriced}")


@plans.command("list")
def list_plans() -> None:
    """Show plans."""

    async def read(database: Database) -> dict[str, QuotaLimits]:
        async with database.reading() as session:
            return await store.list_plans(session)

    for name, limits in _run(load_settings(), read).items():
        print(f"{name}  {limits.wire()}")


@plans.command("set")
def set_plan(
    name: str,
    limit: Limit = [],  # noqa: B006 - typer's, and not changed
) -> None:
    """Make or change a plan: what is not given is not limited."""
    limits = _limits(limit)
    _run(load_settings(), lambda database: store.put_plan(database, name, limits))
    print(f"{name}: {limits.wire()}")


@plans.command("delete")
def delete_plan(name: str) -> None:
    """Delete a plan; whoever had it has the default one."""
    _run(load_settings(), lambda database: store.delete_plan(database, name))
    print(f"deleted: {name}")


def _limits(given: list[str]) -> QuotaLimits:
    found: dict[str, int] = {}
    for one in given:
        shown, _, value = one.partition("=")
        name = shown.strip().replace("usd", "nano_usd")
        if name not in QuotaLimits.__struct_fields__:
            known = ", ".join(field.replace("nano_usd", "usd") for field in QuotaLimits.__struct_fields__)
            raise typer.BadParameter(f"{shown!r} is none of {known}")
        try:
            found[name] = to_nano(Decimal(value)) if "nano_usd" in name else int(value)
        except (ArithmeticError, ValueError) as error:
            raise typer.BadParameter(f"{one!r} has no number") from error
        if found[name] < 0:
            raise typer.BadParameter(f"{one!r} is less than nothing")
    return QuotaLimits(**found)


def _set_disabled(user: str, *, disabled: bool) -> None:
    _run(load_settings(), lambda database: store.put_user(database, user, disabled=disabled))
    print(f"{'disabled' if disabled else 'enabled'}: {user}")


def _scope(text: str) -> Scope:
    try:
        return Scope(text.strip())
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(Scope)}") from error


def _show_made(key: ApiKey) -> None:
    print(f"{key.key}\n{key.id} of {key.user_id}, {key.role}. This is the only time that the key is shown.")


def _run(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    async def run(database: Database) -> T:
        await database.require_newest()
        return await work(database)

    return asyncio.run(with_database(settings, run))


async def with_database(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    """Do something with the database of the settings, and close it."""
    database = Database(settings.database, settings.database_busy_seconds)
    try:
        return await work(database)
    finally:
        await database.close()
