"""Bodies of chat completion requests."""

import json
from typing import Any

import pytest

from service.api.openai.chat_body import MEDIA_TOKENS_MAX, parse_chat_body
from service.core.errors import InvalidRequest
from service.core.settings import Settings

SETTINGS = Settings()
USER = {"role": "user", "content": "Why?"}
BODY: dict[str, Any] = {"model": "m", "messages": [USER]}


def parse(**members: Any) -> Any:
    """Parse a minimal body with these members."""
    return parse_chat_body(json.dumps(BODY | members).encode(), SETTINGS)


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": "a\0"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Why?"}, "messages"),
        ({"messages": [USER, {"content": "x"}]}, "messages[1].role"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"max_completion_tokens": SETTINGS.max_tokens_max + 1}, "max_completion_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"tools": "hammer"}, "tools"),
        ({"grounded": "yes"}, "grounded"),
        ({"model": "kotae/m", "grounded": False}, "grounded"),
        ({"grounded": True, "n": 2}, "n"),
        ({"grounded": True, "messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"grounded": True, "messages": [{"role": "user", "content": "x" * 20_001}]}, "messages"),
        ({"documents": ["d1"]}, "documents"),
        ({"grounded": True, "documents": []}, "documents"),
        ({"model": "kotae/"}, "model"),
    ],
)
def test_invalid_members_are_named(members: dict[str, Any], param: str) -> None:
    """`param` is the path of the member."""
    with pytest.raises(InvalidRequest) as caught:
        parse(**members)

    assert caught.value.extra["param"] == param


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_missing_members_are_named(missing: str) -> None:
    """Both members are required."""
    body = {name: value for name, value in BODY.items() if name != missing}
    with pytest.raises(InvalidRequest) as caught:
        parse_chat_body(json.dumps(body).encode(), SETTINGS)

    assert caught.value.extra["param"] == missing


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{", b"null", b'{"model": "\xff"}', b"[" * 100_000, b'{"a": NaN}']
)
def test_other_bodies_are_rejected(raw: bytes) -> None:
    """What is not a JSON object in UTF-8 is rejected."""
    with pytest.raises(InvalidRequest):
        parse_chat_body(raw, SETTINGS)


def test_numbers_are_passed_on_as_they_were_sent() -> None:
    """Members are not decoded: 1.50 stays 1.50, and large integers keep all digits."""
    raw = b'{"model":"m","messages":[{"role":"user","content":"x"}],"top_p":0.50,"seed":%d}'
    call = parse_chat_body(raw % 10**30, SETTINGS).call

    assert bytes(call.fields["top_p"]) == b"0.50"
    assert bytes(call.fields["seed"]) == b"%d" % 10**30


def test_lone_surrogates_are_replaced() -> None:
    """They cannot be encoded in UTF-8."""
    raw = b'{"model":"m","messages":[{"role":"user","content":"a\\ud800b"}]}'

    assert parse_chat_body(raw, SETTINGS).prompt == "a\ufffdb"


def test_the_last_user_message_is_the_prompt() -> None:
    """Its text parts are joined."""
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": "b"},
    ]
    body = parse(
        messages=[USER, {"role": "user", "content": parts}, {"role": "assistant", "content": "c"}]
    )

    assert (body.prompt, body.call.question) == ("a\nb", 1)
    assert body.call.prompt_tokens_max > MEDIA_TOKENS_MAX


def test_null_is_like_absent() -> None:
    """Clients send null for options that are not set."""
    body = parse(stream=None, max_tokens=None, n=None, grounded=None, temperature=None)

    assert (body.stream, body.max_tokens, body.call.choices) == (False, None, 1)
    assert "max_tokens" not in body.call.fields
    assert bytes(body.call.fields["temperature"]) == b"null"


def test_the_bound_covers_everything_that_is_sent() -> None:
    """A token has at least one byte: the bound is at least the size of messages and tools."""
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 1_000}}]
    plain, with_tools = parse().call, parse(tools=tools).call

    assert with_tools.prompt_tokens_max - plain.prompt_tokens_max >= len(json.dumps(tools))
    assert plain.prompt_tokens_max >= len(json.dumps([USER]))
