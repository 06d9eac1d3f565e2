"""`kotae logs`: list or follow log rows."""

import time
from typing import Annotated, Any

import typer

from service.cli.client import Url, get_json, open_client, summarize


def logs(
    url: Url = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, and show each answer as it is recorded.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
) -> None:
    """Show the last answers of a running service."""
    with open_client(url) as client:
        last, items = "", get_json(client, "/ai/logs", limit=limit)["items"][::-1]
        while True:
            for item in items:
                print(_log_line(item))
            last = items[-1]["id"] if items else last
            if not follow:
                return
            time.sleep(1)
            items = (
                get_json(client, "/ai/logs", after=last, limit=200)["items"]
                if last
                else get_json(client, "/ai/logs", limit=limit)["items"][::-1]
            )


def _log_line(item: dict[str, Any]) -> str:
    prompt = " ".join(item["prompt"].split())
    return f"{item['created_at']}  {item['user_id']}  {item['endpoint']}  {summarize(item)}  {prompt[:60]}"
