"""The translation of responses requests to chat completion requests."""

import json
from typing import Any

import msgspec
import pytest

from service.api.openai.responses_body import find_previous_id, parse_responses_body
from service.core.errors import InvalidRequest
from service.core.settings import Settings

BODY: dict[str, Any] = {"model": "m", "input": "Why?"}
FUNCTION = {"type": "function", "name": "f"}


def translate(**members: Any) -> dict[str, Any]:
    """The messages and the other members that reach the provider."""
    call = parse_responses_body(json.dumps(BODY | members).encode(), Settings()).chat.call
    fields = msgspec.json.decode(msgspec.json.encode(call.fields))
    return {"messages": msgspec.json.decode(msgspec.json.encode(call.messages)), **fields}


def test_options_are_translated() -> None:
    """Each option has the name and the form of chat completions; unknown ones stay."""
    schema = {"name": "s", "schema": {"type": "object"}, "strict": True}
    translated = translate(
        instructions="Be brief.",
        max_output_tokens=77,
        temperature=0.5,
        top_p=0.9,
        parallel_tool_calls=False,
        reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "low", "format": {"type": "json_schema", **schema}},
        tools=[{"type": "function", "name": "f", "description": "d", "strict": True}],
        tool_choice={"type": "function", "name": "f"},
        top_logprobs=2,
        user="u1",
        service_tier="flex",
        prompt_cache_key="p1",
        safety_identifier="s1",
        metadata={"a": "b"},
        background=True,
        truncation="auto",
        max_tool_calls=3,
        unknown_of_2027={"deep": [1.5, None]},
    )

    assert translated == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Why?"},
        ],
        "max_completion_tokens": 77,
        "temperature": 0.5,
        "top_p": 0.9,
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "verbosity": "low",
        "response_format": {"type": "json_schema", "json_schema": schema},
        "tools": [
            {"type": "function", "function": {"name": "f", "description": "d", "strict": True}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "logprobs": True,
        "top_logprobs": 2,
        "user": "u1",
        "service_tier": "flex",
        "prompt_cache_key": "p1",
        "safety_identifier": "s1",
        "unknown_of_2027": {"deep": [1.5, None]},
    }


def test_a_choice_among_allowed_tools_is_translated() -> None:
    """The tools that may be called are nested as in chat completions."""
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
    translated = translate(tools=[{"type": "function", "name": "f"}], tool_choice=choice)

    assert translated["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "auto",
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
    }


@pytest.mark.parametrize(
    ("stores", "documents"), [(["kotae"], None), (["d1", "d2"], ["d1", "d2"]), ([], None)]
)
def test_vector_stores_are_documents(stores: list[str], documents: list[str] | None) -> None:
    """The tool `file_search` grounds the answer in all documents, or in those that it names."""
    tool = {"type": "file_search", "vector_store_ids": stores}
    body = parse_responses_body(json.dumps(BODY | {"tools": [tool]}).encode(), Settings())

    assert (body.chat.grounded, body.chat.documents) == (True, documents)
    assert "tools" not in body.chat.call.fields


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"context_management": [{}]}, "context_management"),
        ({"include": ["reasoning.encrypted_content", "x"]}, "include[1]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "file_search", "filters": {}}]}, "tools[0].filters"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"background": True, "store": False}, "store"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**9}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"truncation": "some"}, "truncation"),
        ({"model": None}, "model"),
        ({"documents": ["d"]}, "documents"),
    ],
)  # fmt: skip
def test_what_cannot_be_translated_is_rejected(members: dict[str, Any], param: str) -> None:
    """The error names the member as the client has sent it."""
    with pytest.raises(InvalidRequest) as raised:
        translate(**members)

    assert raised.value.extra["param"].startswith(param)


@pytest.mark.parametrize(
    ("raw", "previous_id"),
    [(b'{"previous_response_id":"r"}', "r"), (b"{}", None), (b"no JSON", None), (b"\xff", None)],
)
def test_the_previous_response_is_found_without_validation(
    raw: bytes, previous_id: str | None
) -> None:
    """A body that is not valid continues no response; its error is raised later."""
    assert find_previous_id(raw) == previous_id
