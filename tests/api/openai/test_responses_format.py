"""Response objects: what the protocol requires, with the SDK's own types."""

from typing import Any

import pytest
from openai.types.responses import Response

from service.api.openai.responses_format import ResponseEvents, ResponseFormat
from service.core.answering.answers import Stream
from service.core.answering.streams import replay_stream
from service.core.records import Status
from tests.records import build_outcome

REQUIRED = {
    "id", "object", "created_at", "completed_at", "status", "incomplete_details", "model",
    "previous_response_id", "instructions", "output", "error", "tools", "tool_choice",
    "truncation", "parallel_tool_calls", "text", "top_p", "presence_penalty", "frequency_penalty",
    "top_logprobs", "temperature", "reasoning", "usage", "max_output_tokens", "max_tool_calls",
    "store", "background", "service_tier", "metadata", "safety_identifier", "prompt_cache_key",
}  # fmt: skip


def create_stream(**changes: Any) -> Stream:
    """The stream of an ended answer."""
    return replay_stream(build_outcome(**changes))


def test_a_response_has_all_required_members() -> None:
    """With defaults for options that the request does not have, valid for the SDK."""
    response = ResponseFormat(create_stream(), str, {"model": "m", "input": "Why?"})
    built = response.build_body()
    nullable = {"incomplete_details", "previous_response_id", "instructions", "error"}
    nullable |= {"max_output_tokens", "max_tool_calls", "safety_identifier", "prompt_cache_key"}

    assert built.keys() >= REQUIRED
    assert {name for name in REQUIRED if built[name] is None} == nullable
    assert Response.model_validate(built, strict=False).output_text == "Because."


def test_a_text_format_has_all_required_members() -> None:
    """A schema has a description and `strict`, as the protocol requires."""
    text_format = {"type": "json_schema", "name": "f", "schema": {"type": "object"}}
    members = {"text": {"format": text_format}}

    built = ResponseFormat(create_stream(), str, members).build_body()

    assert built["text"]["format"] == {"description": None, "strict": False} | text_format


def test_options_are_those_of_the_request() -> None:
    """Functions have all members that the protocol requires."""
    members: dict[str, Any] = {
        "tools": [{"type": "function", "name": "f"}],
        "tool_choice": "required",
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "low"},
        "metadata": {"a": "b"},
        "previous_response_id": "resp_1",
    }
    built = ResponseFormat(create_stream(), str, members).build_body()

    tool = {"type": "function", "name": "f"}
    assert built["tools"] == [tool | {"description": None, "parameters": None, "strict": None}]
    assert built["text"] == {"verbosity": "low", "format": {"type": "text"}}
    assert built["reasoning"] == {"effort": "low", "summary": None}
    assert (built["tool_choice"], built["metadata"]) == ("required", {"a": "b"})
    assert built["previous_response_id"] == "resp_1"


@pytest.mark.parametrize(
    ("status", "finish_reason", "expected"),
    [
        (Status.COMPLETED, "stop", "completed"),
        (Status.COMPLETED, "tool_calls", "completed"),
        (Status.COMPLETED, "length", "incomplete"),
        (Status.NO_CONTEXT, None, "completed"),
        (Status.STOPPED, None, "cancelled"),
        (Status.CLIENT_GONE, None, "cancelled"),
        (Status.PROVIDER_ERROR, None, "failed"),
        (Status.TIMEOUT, None, "failed"),
        (Status.INTERRUPTED, None, "failed"),
    ],
)
def test_each_status_has_one_of_the_protocol(
    status: Status, finish_reason: str | None, expected: str
) -> None:
    """The last event of a stream agrees; a cancelled one ends as incomplete."""
    stream = create_stream(status=status, finish_reason=finish_reason)
    response = ResponseFormat(stream, str, {})
    built = response.build_body()
    encoded, _ = ResponseEvents(response).encode_batch(-1)
    last = "incomplete" if expected == "cancelled" else expected

    assert built["status"] == expected
    assert (built["error"] is not None) == (expected == "failed")
    assert f"event: response.{last}\n" in encoded.decode()
    assert encoded.endswith(b"data: [DONE]\n\n")
