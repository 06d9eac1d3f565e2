"""The commands about who may ask: keys and users. They work on the database, whether the service runs or not.

A running service notices within a few seconds: it asks the database again before it believes a credential for long.
"""

from datetime import timedelta
from typing import Annotated

import typer

from service.cli.database import run_on_database
from service.core.auth import store
from service.core.auth.principals import ALL_SCOPES, BOOTSTRAP, Role, Scope
from service.core.auth.store import ApiKey, NewKey
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.settings import load_settings

keys = typer.Typer(help="API keys: create, list, rotate, revoke.", no_args_is_help=True)


@keys.command("create")
def create_key(
    user: Annotated[str, typer.Option(help="Whose key it is.")],
    role: Annotated[
        Role, typer.Option(help="user: their own things. admin: everybody's.")
    ] = Role.USER,
    scopes: Annotated[
        str, typer.Option(help="Comma-separated: ask, documents, logs, keys. Default: all.")
    ] = "",
    expires_days: Annotated[
        float | None,
        typer.Option("--expires", min=0.001, help="Days until it ends. Default: never."),
    ] = None,
    name: Annotated[str, typer.Option(help="By which people know it.")] = "",
) -> None:
    """Make a key and print it, this once."""
    wanted = NewKey(
        user_id=user,
        role=role,
        scopes=frozenset(_scope(one) for one in scopes.split(",")) if scopes else ALL_SCOPES,
        name=name,
        expires_at=utc_now() + timedelta(days=expires_days) if expires_days else None,
    )
    settings = load_settings()
    made = run_on_database(
        settings,
        lambda database: store.create_key(database, BOOTSTRAP, wanted, keys_max=settings.keys_max),
    )
    _show_made(made)


@keys.command("list")
def list_keys(user: Annotated[str | None, typer.Option(help="Of this user alone.")] = None) -> None:
    """Show keys, newest first: what they are known by, never the keys themselves."""

    async def read(database: Database) -> list[ApiKey]:
        async with database.read_session() as session:
            return await store.list_keys(session, BOOTSTRAP, user_id=user)

    for key in run_on_database(load_settings(), read):
        state = (
            "revoked"
            if key.revoked_at
            else "expired"
            if key.expires_at and key.expires_at <= utc_now()
            else "valid"
        )
        used = f"used {key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never used"
        end = f"until {key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "no end"
        print(
            f"{key.id}  {key.prefix}…  {key.user_id}  {key.role}  {','.join(key.scopes)}  {state}  {end}  {used}  {key.name}"
        )


@keys.command("rotate")
def rotate_key(
    key_id: str,
    grace: Annotated[float, typer.Option(min=0, help="Hours that the old key stays valid.")] = 24,
) -> None:
    """Make a key in the place of another one."""
    settings = load_settings()
    _show_made(
        run_on_database(
            settings,
            lambda database: store.rotate_key(
                database, BOOTSTRAP, key_id, grace_seconds=grace * 3600, keys_max=settings.keys_max
            ),
        )
    )


@keys.command("revoke")
def revoke_key(key_id: str) -> None:
    """End a key now."""
    run_on_database(load_settings(), lambda database: store.revoke_key(database, BOOTSTRAP, key_id))
    print(f"revoked: {key_id}")


def _scope(text: str) -> Scope:
    try:
        return Scope(text.strip())
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(Scope)}") from error


def _show_made(key: ApiKey) -> None:
    print(
        f"{key.key}\n{key.id} of {key.user_id}, {key.role}. This is the only time that the key is shown."
    )
