"""Cases of the Open Responses specification. Its types validate each response and event."""

import json
import os
from typing import Any, get_args

import httpx
import openresponses_types as types
from pydantic import BaseModel
from serving import serve

client = httpx.Client(
    base_url=os.environ["OPENAI_BASE_URL"],
    headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
    trust_env=False,
)
QUESTION = "What is the zebra code?"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": True}
FORMAT = {"type": "json_schema", "name": "weather", "schema": PARAMETERS, "strict": True}


def read_type(model: type[BaseModel]) -> Any:
    """The value of `type` of an event; types are literals or enumerations with one value."""
    annotation = model.model_fields["type"].annotation
    (value,) = get_args(annotation) or list(annotation)
    return getattr(value, "value", value)


EVENTS = {
    read_type(model): model
    for name, model in vars(types).items()
    if name.endswith("StreamingEvent")
}


def validate(response: dict[str, Any]) -> None:
    """Validate a response.

    The types allow no schema in the format that is echoed, unlike OpenAI and its clients.
    """
    text = response["text"]
    if "schema" in text["format"]:
        text = text | {"format": text["format"] | {"schema": None}}
    types.ResponseResource.model_validate(response | {"text": text})


def describe(response: dict[str, Any], request_id: str) -> dict[str, Any]:
    """The result of a response, validated."""
    validate(response)
    parts = [
        part for item in response["output"] if item["type"] == "message" for part in item["content"]
    ]
    text = "".join(part["text"] for part in parts)
    usage = response["usage"]
    return {
        "id": response["id"],
        "request_id": request_id,
        "text": text or None,
        "parsed": json.loads(text) if text.startswith("{") else None,
        "tools": [
            [item["name"], json.loads(item["arguments"])]
            for item in response["output"]
            if item["type"] == "function_call"
        ],
        "sources": [[note["title"], note["url"]] for part in parts for note in part["annotations"]],
        "tokens": [usage["input_tokens"], usage["output_tokens"]],
    }


def create(**members: Any) -> dict[str, Any]:
    """Create a response."""
    body = {"model": "fake-model", "input": QUESTION} | members
    types.CreateResponseBody.model_validate(body)
    response = client.post("/responses", json=body)
    response.raise_for_status()
    return describe(response.json(), response.headers["x-request-id"])


def stream(path: str = "/responses", **members: Any) -> dict[str, Any]:
    """Read the events of a response, which are numbered and begin with two of its states."""
    body = {"model": "fake-model", "input": QUESTION, "stream": True} | members
    with client.stream("POST", path, json=body) as response:
        response.raise_for_status()
        lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    for event in events:
        EVENTS[event["type"]].model_validate(event)
    assert [e["type"] for e in events[:2]] == ["response.created", "response.in_progress"]
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    return describe(events[-1]["response"], response.headers["x-request-id"])


def run_in_background() -> dict[str, Any]:
    """Start a response, and read its events from the second one until the end."""
    response = client.post(
        "/responses", json={"model": "fake-model", "input": QUESTION, "background": True}
    )
    response.raise_for_status()
    types.ResponseResource.model_validate(response.json())
    path = f"/responses/{response.json()['id']}"
    query = {"stream": "true", "starting_after": "0"}
    for line in client.get(path, params=query).text.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            EVENTS[event["type"]].model_validate(event)
    return describe(client.get(path).json(), response.headers["x-request-id"])


MESSAGES = [
    {"type": "message", "role": "user", "content": "Hello"},
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello!", "annotations": []}],
    },
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
]
serve(
    {
        "plain": create,
        "stream": stream,
        "messages": lambda: create(input=MESSAGES),
        "instructions": lambda: create(instructions="Be brief.", metadata={"a": "b"}),
        "tools": lambda: create(tools=[TOOL]),
        "tool_stream": lambda: stream(tools=[TOOL]),
        "parse": lambda: create(text={"format": FORMAT}),
        "grounded": lambda: create(model="kotae/fake-model"),
        "stream_grounded": lambda: stream(model="kotae/fake-model"),
        "background": run_in_background,
        "error": create,
    }
)
