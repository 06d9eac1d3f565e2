"""`kotae logs`: list or follow log rows."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import httpx2
import typer

from service.cli.client import Url, get_json, open_client, summarize
from service.cli.output import Json, print_json


def logs(
    url: Url = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new answers as they are recorded.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    user: Annotated[str | None, typer.Option(help="Only of this user.")] = None,
    status: Annotated[str | None, typer.Option(help="Only with this status.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    as_json: Json = False,
) -> None:
    """Print the latest answers of a running service."""
    filters = {"user_id": user, "status": status, "model": model}
    params = {name: value for name, value in filters.items() if value is not None}
    with open_client(url) as client:
        for items in _read_pages(client, params, limit, follow=follow):
            if as_json:
                print_json(items)
            else:
                for item in items:
                    print(_format_row(item))


def _read_pages(
    client: httpx2.Client, params: dict[str, str], limit: int, *, follow: bool
) -> Iterator[list[dict[str, Any]]]:
    """The latest rows, oldest first; with `follow`, new rows once per second without end."""
    items = get_json(client, "/ai/logs", limit=limit, **params)["items"][::-1]
    yield items
    last = ""
    while follow:
        last = items[-1]["id"] if items else last
        time.sleep(1)
        items = (
            get_json(client, "/ai/logs", after=last, limit=200, **params)["items"]
            if last
            else get_json(client, "/ai/logs", limit=limit, **params)["items"][::-1]
        )
        yield items


def _format_row(item: dict[str, Any]) -> str:
    prompt = " ".join((item["prompt"] or "").split())
    columns = (item["created_at"], item["user_id"], item["endpoint"], summarize(item), prompt[:60])
    damaged = f"damaged row {item['id']}" if "damaged" in item else None
    return "  ".join(column for column in (*columns, damaged) if column)
