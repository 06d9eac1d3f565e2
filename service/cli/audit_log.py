"""`kotae audit-log`: who changed keys, users, plans or data of others, or read their texts."""

from typing import Annotated, Any

import typer

from service.cli.client import Url, get_json, open_client
from service.cli.output import Json, print_json, print_table
from service.core.audit_log import PAGE_MAX

_Values = list[str] | None


def list_audit_log(
    url: Url = None,
    limit: Annotated[int, typer.Option(min=1, max=PAGE_MAX)] = 20,
    actor: Annotated[_Values, typer.Option(help="Only what these users did.")] = None,
    action: Annotated[_Values, typer.Option(help="Only these actions, as key.created.")] = None,
    user: Annotated[_Values, typer.Option(help="Only what concerns these users.")] = None,
    since: Annotated[str | None, typer.Option(help="A time, or before now: -24h.")] = None,
    until: Annotated[str | None, typer.Option(help="A time, or before now.")] = None,
    as_json: Json = False,
) -> None:
    """Print who changed or read what, the newest last. Requires an admin."""
    filters = {"actor": actor, "action": action, "user_id": user, "since": since, "until": until}
    params = {name: value for name, value in filters.items() if value}
    with open_client(url) as client:
        items = get_json(client, "/ai/audit-log", limit=limit, **params)["items"][::-1]
    if as_json:
        print_json(items)
        return
    print_table(
        ("TIME", "ACTOR", "WITH", "ACTION", "USER", "TARGET", "DETAIL"),
        [_list_cells(item) for item in items],
        empty="no entries match",
    )


def _list_cells(item: dict[str, Any]) -> tuple[object, ...]:
    detail = " ".join(f"{name}={value}" for name, value in item["detail"].items())
    return (
        item["created_at"][:19],
        item["actor"],
        item["credential"],
        item["action"],
        item["user_id"] or "",
        item["target_id"] or "",
        detail,
    )
