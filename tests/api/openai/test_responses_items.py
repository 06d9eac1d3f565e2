"""Input items as messages, and as they are listed."""

from typing import Any

import pytest

from service.api.openai.responses_items import build_messages, list_items
from service.core.errors import InvalidRequest

CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}


def test_items_become_messages() -> None:
    """Messages, calls and their outputs keep their order; several calls are one message."""
    messages = build_messages(
        [
            {"role": "developer", "content": "Be brief."},
            {"type": "reasoning", "id": "r", "summary": []},
            {"role": "user", "content": [{"type": "input_text", "text": "Why?"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
            CALL,
            CALL | {"call_id": "c2"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {
                "type": "function_call_output",
                "call_id": "c2",
                "output": [{"type": "input_text", "text": "2"}],
            },
            CALL | {"call_id": "c3"},
        ]
    )
    function = {"name": "f", "arguments": "{}"}
    calls = [{"id": f"c{n}", "type": "function", "function": function} for n in (1, 2, 3)]

    assert messages == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Wait.", "tool_calls": calls[:2]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "2"}]},
        {"role": "assistant", "content": None, "tool_calls": calls[2:]},
    ]


def test_media_become_parts() -> None:
    """Images, files and audio are parts of the message."""
    parts: list[dict[str, Any]] = [
        {"type": "input_text", "text": "Look"},
        {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:…"},
        {"type": "input_audio", "input_audio": {"data": "…", "format": "wav"}},
    ]
    (message,) = build_messages([{"role": "user", "content": parts}])

    assert message["content"] == [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:…"}},
        {"type": "input_audio", "input_audio": {"data": "…", "format": "wav"}},
    ]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "tool", "content": ""}, "input[0].role"),
        ({"role": "user", "content": None}, "input[0].content"),
        ({"role": "user", "content": ["x"]}, "input[0].content[0].type"),
        ({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]},
         "input[0].content[0].type"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0].text"),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "input[0].arguments"),
        ({"type": "function_call_output", "output": ""}, "input[0].call_id"),
        ({"type": "mcp_call"}, "input[0].type"),
    ],
)  # fmt: skip
def test_other_items_are_rejected(item: dict[str, Any], param: str) -> None:
    """The error names the place."""
    with pytest.raises(InvalidRequest) as raised:
        build_messages([item])

    assert raised.value.extra == {"param": param}


def test_items_are_listed_with_ids() -> None:
    """A text is a message of the user; contents are parts; ids of the client stay."""
    given = [
        {"role": "assistant", "content": "Yes."},
        {"id": "mine", **CALL},
    ]
    answer, call = list_items("x", {"input": given})
    (message,) = list_items("x", {"input": "Why?"})

    assert answer["content"] == [{"type": "output_text", "text": "Yes.", "annotations": []}]
    assert (answer["id"], call) == ("in_x_0", {"id": "mine", **CALL})
    assert message["content"] == [{"type": "input_text", "text": "Why?"}]
