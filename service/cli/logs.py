"""`kotae logs`: list, follow and show log rows."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import httpx2
import typer

from service.cli.client import Url, get_json, open_client
from service.cli.output import Json, make_printable, print_json, print_table

logs = typer.Typer(help="The log of a running service.")
PROMPT_CHARACTERS = 60
_HEADERS = ("ID", "TIME", "USER", "ENDPOINT", "MODEL", "STATUS", "TOKENS", "COST", "MS", "PROMPT")
_NUMBERS = ("TOKENS", "COST", "MS")
_Values = list[str] | None


@logs.callback(invoke_without_command=True)
def list_rows(
    context: typer.Context,
    url: Url = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new answers as they are recorded.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    user: Annotated[_Values, typer.Option(help="Only of these users.")] = None,
    status: Annotated[
        _Values, typer.Option(help="Only with these statuses; `error` is every failure.")
    ] = None,
    model: Annotated[_Values, typer.Option(help="Only of these models.")] = None,
    endpoint: Annotated[_Values, typer.Option(help="Only of these endpoints.")] = None,
    since: Annotated[str | None, typer.Option(help="A time, or before now: -24h.")] = None,
    until: Annotated[str | None, typer.Option(help="A time, or before now.")] = None,
    words: Annotated[
        str | None, typer.Option("--query", "-q", help="Words in the prompt or the response.")
    ] = None,
    min_ms: Annotated[
        int | None, typer.Option(help="Only with at least this response time.")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            help="Instead of the newest the largest: response_time_ms, estimated_cost or"
            " total_tokens. Requires --since."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the latest answers, the newest last."""
    if context.invoked_subcommand is not None:
        return
    filters = {
        "user_id": user,
        "status": status,
        "model": model,
        "endpoint": endpoint,
        "since": since,
        "until": until,
        "q": words,
        "min_response_time_ms": min_ms,
        "order": None if order is None else f"-{order.lstrip('-')}",
    }
    params = {name: value for name, value in filters.items() if value}
    with open_client(url) as client:
        items = get_json(client, "/ai/logs", limit=limit, **params)["items"][::-1]
        if as_json:
            print_json(items)
        else:
            rows = [_list_cells(item) for item in items]
            print_table(_HEADERS, rows, right=_NUMBERS, empty="no answers match")
        for item in _follow_rows(client, params, items, limit) if follow else ():
            if as_json:
                print_json([item])
            else:
                print("  ".join(make_printable(str(cell)) for cell in _list_cells(item)))


@logs.command("show")
def show_row(
    answer_id: Annotated[str, typer.Argument(metavar="ID")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print everything that is recorded of an answer."""
    with open_client(url) as client:
        row = get_json(client, f"/ai/logs/{answer_id}")
    if as_json:
        print_json([row])
        return
    for name, value in row.items():
        if name == "sources":
            for source in value or ():
                print(f"source [{source['n']}]: {make_printable(source['title'])}")
        elif name not in {"prompt", "response"} and value is not None:
            print(f"{name}: {make_printable(str(value))}")
    for name in ("prompt", "response"):
        print(f"\n{name}:\n{make_printable(row[name] or '', keep=chr(10))}")


def _follow_rows(
    client: httpx2.Client, params: dict[str, Any], items: list[dict[str, Any]], limit: int
) -> Iterator[dict[str, Any]]:
    """Yield new rows, looking for them once per second, without end."""
    last = ""
    while True:
        last = items[-1]["id"] if items else last
        time.sleep(1)
        items = (
            get_json(client, "/ai/logs", after=last, limit=200, **params)["items"]
            if last
            else get_json(client, "/ai/logs", limit=limit, **params)["items"][::-1]
        )
        yield from items


def _list_cells(item: dict[str, Any]) -> tuple[object, ...]:
    prompt = " ".join((item["prompt"] or "").split())[:PROMPT_CHARACTERS]
    return (
        item["id"],
        (item["created_at"] or "")[:19],
        item["user_id"],
        item["endpoint"],
        item["model"],
        item["status"],
        "?" if item["total_tokens"] is None else item["total_tokens"],
        "?" if item["estimated_cost"] is None else item["estimated_cost"],
        item["response_time_ms"],
        f"{prompt}  damaged row {item['id']}" if "damaged" in item else prompt,
    )
