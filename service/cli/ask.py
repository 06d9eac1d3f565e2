"""`kotae ask`: stream an answer to the terminal."""

from typing import Annotated, Any, cast

import typer

from service.cli.client import (
    Url,
    find_last_conversation,
    open_client,
    raise_for_problem,
    summarize,
)
from service.core.errors import KotaeError
from service.core.settings import EXTRACTIVE


def ask(
    prompt: str,
    url: Url = None,
    free: Annotated[bool, typer.Option("--free", help="Answer without the documents.")] = False,
    model: Annotated[str | None, typer.Option(help="Model to use. Default: KOTAE_MODEL.")] = None,
    follow_up: Annotated[
        bool, typer.Option("--continue", "-c", help="Continue the last conversation.")
    ] = False,
    conversation: Annotated[
        str | None, typer.Option(help="Id of the conversation to continue.")
    ] = None,
) -> None:
    """Ask a running service and stream the answer to the terminal."""
    body: dict[str, Any] = {"prompt": prompt, "grounded": not free}
    with open_client(url) as client:
        if follow_up and conversation is None:
            conversation = find_last_conversation(client)
        options = {"model": model, "conversation_id": conversation}
        body |= {name: value for name, value in options.items() if value is not None}
        # The service limits the size of events.
        with client.sse("/ai/stream", method="POST", json=body, max_event_size=None) as source:
            raise_for_problem(source.response)
            for event in source:
                _print_event(event.event, cast("dict[str, Any]", event.json()))


def _read_sentence(passage: dict[str, Any]) -> str:
    """The best sentence of a passage, on one line."""
    start, end = passage["sentence"]
    return " ".join(passage["text"][start:end].split())


def _print_event(name: str, data: dict[str, Any]) -> None:
    if name == "message":
        print(data["delta"], end="", flush=True)
    elif name == "done":
        for source in data["sources"]:
            print(f"\n[{source['n']}] {source['title']}", end="")
        if data.get("nearest"):
            print("\n\nClosest passages, not an answer:", end="")
        for passage in data.get("nearest", []):
            print(f"\n- {passage['title']}: {_read_sentence(passage)}", end="")
        print(f"\n\n{summarize(data)}")
        if data["model"] == EXTRACTIVE:
            print("Quoting mode: connect a model (OPENAI_API_KEY or OPENAI_BASE_URL).")
    elif name == "failure":
        raise KotaeError(f"{data['title']}: {data['detail']} (request {data['request_id']})")
