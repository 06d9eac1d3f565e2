"""`kotae keys`: create, list, rotate and revoke API keys.

The commands change the database, whether or not the service runs. A running service applies changes
within a few seconds, because it caches credentials only that long.
"""

from datetime import timedelta
from typing import Annotated

import typer

from service.cli.database import run_on_database
from service.cli.output import Json, format_time, print_json, print_table
from service.core.auth import store
from service.core.auth.principals import ALL_SCOPES, COMMAND_LINE, Role, Scope
from service.core.auth.store import ApiKey, NewKey
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.settings import load_settings

keys = typer.Typer(help="API keys: create, list, rotate, revoke.", no_args_is_help=True)


@keys.command("create")
def create_key(
    user: Annotated[str, typer.Option(help="Owner of the key.")],
    role: Annotated[
        Role, typer.Option(help="user: access to own data. admin: access to all data.")
    ] = Role.USER,
    scopes: Annotated[
        str, typer.Option(help="Comma-separated: ask, documents, logs, keys. Default: all.")
    ] = "",
    expires_days: Annotated[
        float | None,
        typer.Option("--expires", min=0.001, help="Days until the key expires. Default: never."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the key, for people.")] = "",
) -> None:
    """Create a key and print it. It is not shown again."""
    new_key = NewKey(
        user_id=user,
        role=role,
        scopes=frozenset(_parse_scope(scope) for scope in scopes.split(","))
        if scopes
        else ALL_SCOPES,
        name=name,
        expires_at=utc_now() + timedelta(days=expires_days) if expires_days else None,
    )
    key = run_on_database(
        load_settings(), lambda database: store.create_key(database, COMMAND_LINE, new_key)
    )
    _print_key(key)


@keys.command("list")
def list_keys(
    user: Annotated[str | None, typer.Option(help="Only of this user.")] = None,
    as_json: Json = False,
) -> None:
    """List keys, newest first, by id and prefix."""

    async def read(database: Database) -> list[ApiKey]:
        async with database.read_session() as session:
            return await store.list_keys(session, COMMAND_LINE, user_id=user)

    listed = run_on_database(load_settings(), read)
    if as_json:
        print_json(listed)
        return
    print_table(
        ("ID", "KEY", "USER", "ROLE", "SCOPES", "STATE", "EXPIRES", "LAST USED", "NAME"),
        (
            (
                key.id,
                f"{key.prefix}…",
                key.user_id,
                key.role,
                ",".join(key.scopes),
                _describe_state(key),
                format_time(key.expires_at, "never"),
                format_time(key.last_used_at, "never"),
                key.name,
            )
            for key in listed
        ),
        empty="no keys yet: kotae keys create --user NAME",
    )


def _describe_state(key: ApiKey) -> str:
    if key.revoked_at:
        return "revoked"
    return "expired" if key.expires_at and key.expires_at <= utc_now() else "valid"


@keys.command("rotate")
def rotate_key(
    key_id: str,
    grace: Annotated[float, typer.Option(min=0, help="Hours that the old key stays valid.")] = 24,
) -> None:
    """Create a key that replaces another one."""
    _print_key(
        run_on_database(
            load_settings(),
            lambda database: store.rotate_key(
                database, COMMAND_LINE, key_id, grace_seconds=grace * 3600
            ),
        )
    )


@keys.command("revoke")
def revoke_key(
    key_id: str,
    cascade: Annotated[bool, typer.Option(help="Also revoke the keys that it created.")] = False,
) -> None:
    """Revoke a key immediately."""
    revoked = run_on_database(
        load_settings(),
        lambda database: store.revoke_key(database, COMMAND_LINE, key_id, cascade=cascade),
    )
    for revoked_id in revoked or [key_id]:
        print(f"revoked: {revoked_id}")


def _parse_scope(text: str) -> Scope:
    try:
        return Scope(text.strip())
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(Scope)}") from error


def _print_key(key: ApiKey) -> None:
    print(f"{key.key}\n{key.id} of {key.user_id}, {key.role}. The key is not shown again.")
