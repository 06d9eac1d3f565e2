"""`kotae ask`: stream an answer to the terminal. `kotae stop`: stop one."""

from typing import Annotated, Any, cast

import typer

from service.cli.client import (
    Url,
    find_last_conversation,
    open_client,
    raise_for_problem,
    require_text,
    summarize,
)
from service.cli.output import Json, make_printable, print_json
from service.core.errors import KotaeError
from service.core.settings import EXTRACTIVE

NOT_VERIFIED = " (not verified: the passage does not contain the answer in these words)"


def ask(
    prompt: str,
    url: Url = None,
    free: Annotated[bool, typer.Option("--free", help="Answer without the documents.")] = False,
    model: Annotated[str | None, typer.Option(help="Model to use. Default: KOTAE_MODEL.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Use only documents with this tag; repeatable.")
    ] = None,
    follow_up: Annotated[
        bool, typer.Option("--continue", "-c", help="Continue the last conversation.")
    ] = False,
    conversation: Annotated[
        str | None, typer.Option(help="Id of the conversation to continue.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask a running service and stream the answer to the terminal."""
    body: dict[str, Any] = {"prompt": require_text(prompt), "grounded": not free}
    with open_client(url) as client:
        if follow_up and conversation is None:
            conversation = find_last_conversation(client)
        options = {"model": model, "tags": tag, "conversation_id": conversation}
        body |= {name: value for name, value in options.items() if value}
        if as_json:
            response = client.post("/ai/test", json=body)
            raise_for_problem(response)
            print_json([response.json()])
            return
        # The service limits the size of events.
        with client.sse("/ai/stream", method="POST", json=body, max_event_size=None) as source:
            raise_for_problem(source.response)
            for event in source:
                _print_event(event.event, cast("dict[str, Any]", event.json()))


def stop(
    answer_id: Annotated[str, typer.Argument(metavar="ID")], url: Url = None, as_json: Json = False
) -> None:
    """Stop a running answer. It is recorded with what it has used."""
    with open_client(url) as client:
        raise_for_problem(client.delete(f"/ai/answers/{answer_id}"))
    if as_json:
        print_json([{"id": answer_id, "stopped": True}])
    else:
        print(f"stopped: {answer_id}")


def _read_sentence(passage: dict[str, Any]) -> str:
    """The best sentence of a passage, on one line."""
    start, end = passage["sentence"]
    return make_printable(" ".join(passage["text"][start:end].split()))


def _name_passage(passage: dict[str, Any]) -> str:
    """The title of a passage, with its page."""
    page = f", p. {passage['page']}" if "page" in passage else ""
    return make_printable(f"{passage['title']}{page}")


def _print_event(name: str, data: dict[str, Any]) -> None:
    if name == "message":
        print(make_printable(data["delta"], keep="\n\t"), end="", flush=True)
    elif name == "start" and "searched_for" in data:
        print(f"searched for: {make_printable(data['searched_for'])}\n")
    elif name == "done":
        for source in data["sources"]:
            doubt = "" if source.get("supported", True) else NOT_VERIFIED
            print(f"\n[{source['n']}] {_name_passage(source)}{doubt}", end="")
        if data.get("nearest"):
            print("\n\nClosest passages, not an answer:", end="")
        for passage in data.get("nearest", []):
            print(f"\n- {_name_passage(passage)}: {_read_sentence(passage)}", end="")
        print(f"\n\n{summarize(data)}")
        if data["model"] == EXTRACTIVE:
            print("Quoting mode: connect a model (OPENAI_API_KEY or OPENAI_BASE_URL).")
    elif name == "failure":
        raise KotaeError(f"{data['title']}: {data['detail']} (request {data['request_id']})")
