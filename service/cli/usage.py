"""`kotae usage`: sums over the log of a running service, by group and time."""

from typing import Annotated, Any

import typer

from service.cli.client import Url, get_json, open_client
from service.cli.output import Json, print_json, print_table

_NUMBERS = ("ANSWERS", "ERRORS", "TOKENS", "COST (USD)", "OF UNKNOWN COST", "P50 MS", "P95 MS")


def usage(
    url: Url = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="user_id, key_id, model, provider, endpoint, status or usage_source; repeatable."
        ),
    ] = None,
    bucket: Annotated[str | None, typer.Option(help="hour, day or month.")] = None,
    since: Annotated[str | None, typer.Option(help="A time, or before now: -24h.")] = None,
    until: Annotated[str | None, typer.Option(help="A time, or before now.")] = None,
    timezone: Annotated[str | None, typer.Option(help="As Asia/Tokyo; default: UTC.")] = None,
    user: Annotated[list[str] | None, typer.Option(help="Only of these users.")] = None,
    as_json: Json = False,
) -> None:
    """Print answers, tokens, cost and latency of the last 30 days, the most expensive first."""
    options = {
        "group_by": by,
        "bucket": bucket,
        "since": since,
        "until": until,
        "timezone": timezone,
        "user_id": user,
    }
    params: dict[str, Any] = {name: value for name, value in options.items() if value}
    with open_client(url) as client:
        page = get_json(client, "/ai/analytics", limit=1000, **params)
    results = [
        {"start_time": item["start_time"]} | result
        for item in page["items"]
        for result in item["results"]
    ]
    if as_json:
        print_json(results)
        return
    dimensions = by or []
    print_table(
        (*(["FROM"] if bucket else []), *(name.upper() for name in dimensions), *_NUMBERS),
        (_list_cells(result, dimensions, with_start=bucket is not None) for result in results),
        right=_NUMBERS,
        empty="no answers in this interval",
    )


def _list_cells(result: dict[str, Any], dimensions: list[str], *, with_start: bool) -> list[object]:
    missing = result["unpriced_answers"] + result["unknown_answers"]
    return [
        *([result["start_time"][:16]] if with_start else []),
        *(result[name] for name in dimensions),
        f"{result['answers']:,}",
        f"{result['errors']:,}" if result["errors"] else "",
        f"{result['total_tokens']:,}",
        result["cost"],
        f"{missing:,}" if missing else "",
        *(f"{result['response_time_ms'][name]:.0f}" for name in ("p50", "p95")),
    ]
