"""Decoding the responses of OpenAI-compatible providers."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import ProviderError, ProviderInvalid
from service.core.ports import Delta
from service.core.pricing import Usage
from service.core.providers.chat_stream import LINE_BYTES_MAX, StreamDecoder, decode_completion


def chunk(content: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk object."""
    return {
        "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}],
        "usage": None,
    } | fields


def sse(*objects: Any, newline: bytes = b"\n") -> bytes:
    """Objects as an event stream."""
    return b"".join(
        b"data: " + json.dumps(item, ensure_ascii=False).encode() + newline * 2 for item in objects
    )


def decode(data: bytes, size: int) -> tuple[list[Delta], StreamDecoder]:
    """Decode data in parts of `size` bytes."""
    decoder = StreamDecoder()
    deltas = [
        delta for at in range(0, len(data), size) for delta in decoder.feed(data[at : at + size])
    ]
    return deltas + decoder.end(), decoder


@given(
    st.lists(st.text(), min_size=1), st.integers(1, 64), st.sampled_from([b"\n", b"\r\n", b"\r"])
)
def test_any_split_of_the_bytes_gives_the_same_text(
    texts: list[str], size: int, newline: bytes
) -> None:
    """The text does not depend on how the stream is split into reads or on its line ends."""
    data = (
        b": hello"
        + newline
        + sse(*(chunk(text) for text in texts), newline=newline)
        + b"data: [DONE]"
        + newline * 2
    )

    deltas, decoder = decode(data, size)

    assert "".join(delta.text for delta in deltas) == "".join(texts)
    assert decoder.done


@given(st.binary(max_size=400), st.integers(1, 50))
def test_the_decoder_never_raises(data: bytes, size: int) -> None:
    """Invalid bytes set `error` to a provider error."""
    _, decoder = decode(data, size)

    assert decoder.error is None or isinstance(decoder.error, ProviderError)


def test_null_content_role_only_and_empty_choices_have_no_text() -> None:
    """Chunks without content yield empty deltas."""
    deltas, _ = decode(
        sse(
            chunk(None),
            {"choices": [{"delta": {"role": "assistant"}}]},
            {"choices": []},
            {"choices": None},
            chunk("x"),
        ),
        1000,
    )

    assert [delta.text for delta in deltas] == ["", "", "", "", "x"]


@given(st.text(), st.sampled_from("🙂𠮷"), st.text(), st.integers(1, 64), st.booleans())
def test_surrogates_in_two_chunks_are_joined(
    before: str, character: str, after: str, size: int, empty_between: bool
) -> None:
    """An emoji whose escaped surrogates are in two chunks is decoded as one character."""
    first, second = json.dumps(character)[1:-1][:6], json.dumps(character)[1:-1][6:]
    parts = [
        json.dumps(before)[:-1] + first + '"',
        *(['""'] if empty_between else []),
        '"' + second + json.dumps(after)[1:],
    ]
    data = b"".join(
        b'data: {"choices": [{"delta": {"content": %s}}]}\n\n' % part.encode() for part in parts
    )

    deltas, decoder = decode(data + b"data: [DONE]\n\n", size)

    assert "".join(delta.text for delta in deltas) == before + character + after
    assert decoder.done


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b""])
def test_a_high_surrogate_without_a_low_one_is_replaced(end: bytes) -> None:
    """A high surrogate at the end or before other text becomes one replacement character."""
    halves = b"".join(
        b'data: {"choices": [{"delta": {"content": %s}}]}\n\n' % part
        for part in (b'"a\\ud83d"', b'"b\\ude42\\ud83d"')
    )

    deltas, _ = decode(halves + end, 1000)

    assert "".join(delta.text for delta in deltas) == "a\ufffdb\ufffd\ufffd"


def test_a_lone_surrogate_becomes_a_replacement_character() -> None:
    """A lone surrogate, which JSON allows, is replaced because it cannot be encoded."""
    deltas, _ = decode(b'data: {"choices": [{"delta": {"content": "a\\ud83db"}}]}\n\n', 1000)

    assert deltas[0].text == "a\ufffdb"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": -1, "completion_tokens": 2},
        {"prompt_tokens": 1.5, "completion_tokens": 2},
        {"prompt_tokens": "1", "completion_tokens": 2},
        {"prompt_tokens": 10**12, "completion_tokens": 2},
        {"prompt_tokens": 1, "completion_tokens": None},
        "none",
        [],
    ],
)
def test_an_implausible_usage_is_ignored(usage: Any) -> None:
    """Missing, negative, fractional, textual and excessive counts are ignored."""
    deltas, _ = decode(sse(chunk("x", usage=usage)), 1000)

    assert deltas[0].usage is None


def test_token_details_are_limited_by_their_total() -> None:
    """Cached and reasoning tokens do not exceed the prompt and completion tokens."""
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 99},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }

    assert decode_completion(json.dumps(chunk("x", usage=usage)).encode()).usage == Usage(
        prompt_tokens=10, completion_tokens=4, cached_tokens=10, reasoning_tokens=3
    )


def test_an_error_object_in_the_stream_is_a_provider_error() -> None:
    """An error object in a stream sets `error`; earlier deltas remain valid."""
    deltas, decoder = decode(sse(chunk("x"), {"error": {"message": "no"}}, chunk("y")), 1000)

    assert [delta.text for delta in deltas] == ["x"]
    assert isinstance(decoder.error, ProviderError)


def test_an_endless_line_is_invalid() -> None:
    """A line longer than the limit sets `error`."""
    _, decoder = decode(b"data: " + b"a" * LINE_BYTES_MAX, 65_536)

    assert isinstance(decoder.error, ProviderInvalid)
