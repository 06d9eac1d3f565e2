"""`kotae logs`: list or follow log rows."""

import time
from typing import Annotated, Any

import typer

from service.cli.client import Url, get_json, open_client, summarize


def logs(
    url: Url = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new answers as they are recorded.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
) -> None:
    """Print the latest answers of a running service."""
    with open_client(url) as client:
        last, items = "", get_json(client, "/ai/logs", limit=limit)["items"][::-1]
        while True:
            for item in items:
                print(_format_row(item))
            last = items[-1]["id"] if items else last
            if not follow:
                return
            time.sleep(1)
            items = (
                get_json(client, "/ai/logs", after=last, limit=200)["items"]
                if last
                else get_json(client, "/ai/logs", limit=limit)["items"][::-1]
            )


def _format_row(item: dict[str, Any]) -> str:
    prompt = " ".join((item["prompt"] or "").split())
    columns = (item["created_at"], item["user_id"], item["endpoint"], summarize(item), prompt[:60])
    damaged = f"damaged row {item['id']}" if "damaged" in item else None
    return "  ".join(column for column in (*columns, damaged) if column)
