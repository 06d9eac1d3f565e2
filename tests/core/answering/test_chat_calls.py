"""Chat completion requests: context and limits."""

import json
from typing import Any

import msgspec
import pytest

from service.core.answering.chat_calls import cap_completion, ground_call
from service.core.ports import ChatCall, QuotaWindow
from service.core.pricing import Usage
from service.core.records import Message


def create_call(*messages: Any, question: int | None = 0, choices: int = 1) -> ChatCall:
    """A request with these messages."""
    return ChatCall(
        messages=[msgspec.Raw(json.dumps(message).encode()) for message in messages],
        fields={},
        stream_options={},
        question=question,
        choices=choices,
        texts=[Message("user", "x") for _ in messages],
        prompt_tokens_max=100,
    )


def create_window(unit: str, left: int) -> QuotaWindow:
    """A limit with this much left."""
    return QuotaWindow(name="n", of="user", unit=unit, limit=left + 30, used=10, held=20)


def price(usage: Usage) -> int:
    """Nano-dollars: 2 per prompt token, 10 per completion token."""
    return usage.prompt_tokens * 2 + usage.completion_tokens * 10


def cap(call: ChatCall, *windows: QuotaWindow, held: int = 0) -> int:
    """The limit of tokens, of at most 1,000."""
    return cap_completion(
        call, windows, price, tokens_max=1_000, held_tokens=held, held_nano_usd=held
    )


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([], 1_000),
        ([create_window("tokens", 5_000)], 1_000),
        ([create_window("tokens", 300)], 200),
        ([create_window("tokens", 300), create_window("tokens", 150)], 50),
        ([create_window("requests", 0)], 1_000),
        ([create_window("tokens", 20)], 1),
        ([create_window("nano-usd", 1_201)], 100),
    ],
)
def test_the_remaining_quota_is_the_limit(windows: list[QuotaWindow], expected: int) -> None:
    """The prompt comes first, the rest is for the completion; at least 1."""
    assert cap(create_call({}), *windows) == expected


def test_choices_share_the_remainder() -> None:
    """N choices have a limit each."""
    assert cap(create_call({}, choices=4), create_window("tokens", 300)) == 50


def test_what_the_request_holds_is_available_to_it() -> None:
    """The limit is computed again when the context is known."""
    assert cap(create_call({}), create_window("tokens", 0), held=300) == 200


def test_the_question_is_replaced_in_place() -> None:
    """Later messages stay behind it, and the rules come first."""
    tool = {"role": "tool", "content": "42", "tool_call_id": "c"}
    call = create_call({"role": "user", "content": "Why?", "name": "ann"}, tool)

    grounded = ground_call(call, "rules", "passages")

    assert [json.loads(bytes(message)) for message in grounded.messages] == [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "passages", "name": "ann"},
        tool,
    ]
    assert grounded.prompt_tokens_max > call.prompt_tokens_max + len("rulespassages")
    assert grounded.texts[1].content == "passages"


def test_other_parts_of_the_question_are_kept() -> None:
    """An image stays with the question."""
    image = {"type": "image_url", "image_url": {"url": "x"}}
    content = [{"type": "text", "text": "Why?"}, image]

    grounded = ground_call(create_call({"role": "user", "content": content}), "rules", "passages")

    assert json.loads(bytes(grounded.messages[1]))["content"] == [
        {"type": "text", "text": "passages"},
        image,
    ]
