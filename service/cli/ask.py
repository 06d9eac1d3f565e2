"""`kotae ask`: stream an answer to the terminal."""

import json
from typing import Annotated, Any

import typer

from service.cli.client import Url, open_client, raise_for_problem, summarize
from service.core.errors import KotaeError


def ask(
    prompt: str,
    url: Url = None,
    free: Annotated[bool, typer.Option("--free", help="Ask without the documents.")] = False,
    model: Annotated[str | None, typer.Option(help="Instead of the default model.")] = None,
) -> None:
    """Ask a running service and stream the answer to the terminal."""
    body = {"prompt": prompt, "grounded": not free} | ({"model": model} if model else {})
    with open_client(url) as client, client.stream("POST", "/ai/stream", json=body) as response:
        raise_for_problem(response)
        name = ""
        for line in response.iter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                _show_event(name, json.loads(value))
                name = ""


def _show_event(name: str, data: dict[str, Any]) -> None:
    if name == "":
        print(data["delta"], end="", flush=True)
    elif name == "done":
        for source in data["sources"]:
            print(f"\n[{source['n']}] {source['title']}", end="")
        print(f"\n\n{summarize(data)}")
    elif name == "failure":
        raise KotaeError(f"{data['title']}: {data['detail']} (request {data['request_id']})")
