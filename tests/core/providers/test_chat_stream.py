"""Decoding the responses of OpenAI-compatible providers."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.encoding import sanitize_text
from service.core.errors import ProviderError, ProviderInvalid
from service.core.ports import Delta
from service.core.pricing import Usage
from service.core.providers.chat_stream import (
    EVENT_BYTES_MAX,
    TEXTLESS_BYTES_MAX,
    StreamDecoder,
    decode_completion,
    split_read,
)


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

    assert "".join(delta.text for delta in deltas) == sanitize_text("".join(texts))
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

    assert "".join(delta.text for delta in deltas) == sanitize_text(before + character + after)
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


def test_nul_becomes_a_replacement_character() -> None:
    """NUL is replaced in streams and in whole responses, because PostgreSQL cannot store it."""
    deltas, _ = decode(sse(chunk("a\0b")), 1000)
    completion = {"choices": [{"message": {"content": "a\0b"}}]}

    assert deltas[0].text == "a\ufffdb"
    assert decode_completion(json.dumps(completion).encode()).text == "a\ufffdb"


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


@pytest.mark.parametrize(
    "data",
    [
        b"data: " + b"a" * EVENT_BYTES_MAX,
        b"data: aaaa\n" * (EVENT_BYTES_MAX // 10),
        b"data:\n" * (EVENT_BYTES_MAX // 5),
        b"data: aaaa\r" * (EVENT_BYTES_MAX // 10),
        b"data: aaaa\nid: 7\n: ping\n" * (EVENT_BYTES_MAX // 10),
        b"id: " + b"a" * EVENT_BYTES_MAX,
        b": " + b"a" * EVENT_BYTES_MAX,
    ],
    ids=["one line", "lines", "empty lines", "CR", "other fields", "id", "comment"],
)
@pytest.mark.parametrize("size", [1_000, 65_536, 2 * EVENT_BYTES_MAX])
def test_an_endless_event_is_invalid(data: bytes, size: int) -> None:
    """An event, or a line, of more bytes than the limit sets `error` and is not stored."""
    _, decoder = decode(data, size)

    assert isinstance(decoder.error, ProviderInvalid)
    assert decoder.buffered_bytes == 0


def test_a_line_in_single_bytes_is_decoded_in_linear_time() -> None:
    """A long line that arrives byte by byte is not copied at each byte."""
    started = time.perf_counter()
    decoder = StreamDecoder()
    for _ in range(500_000):
        decoder.feed(b"a")

    assert time.perf_counter() - started < 5  # 50 s if each byte copies the line


@pytest.mark.parametrize(
    "event",
    [
        b"data: {}\n\n",
        b": ping\n\n",
        b"\n",
        sse({"choices": []}),
        sse(chunk("")),
        sse(chunk(None, usage={"prompt_tokens": 1, "completion_tokens": 1})),
    ],
    ids=["empty", "comment", "line end", "no choices", "no text", "usage"],
)
def test_endless_events_without_text_are_invalid(event: bytes) -> None:
    """A stream that continues without text sets `error` at a limit in bytes."""
    decoder, part = StreamDecoder(), event * (65_536 // len(event))
    decoder.feed(sse(chunk("x")))
    for _ in range(TEXTLESS_BYTES_MAX // 65_536 + 2):
        decoder.feed(part)

    assert isinstance(decoder.error, ProviderInvalid)


@pytest.mark.slow
def test_text_resets_the_limit_of_bytes_without_text() -> None:
    """A long stream with text is valid, whatever the number of events without text."""
    decoder, part = StreamDecoder(), b": ping\n\n" * 8_000
    for _ in range(TEXTLESS_BYTES_MAX // len(part)):
        decoder.feed(part)
        decoder.feed(sse(chunk("x")))

    assert decoder.error is None


@given(st.binary(max_size=5_000), st.integers(1, 40))
def test_reads_are_split_without_loss(data: bytes, repeated: int) -> None:
    """The parts of a read are the read, and each has a bounded number of lines."""
    data = data * repeated + b"\n" * 50 * repeated

    parts = split_read(data, lines_max=16)

    assert b"".join(reversed(parts)) == data
    assert len(parts) <= 2 + data.count(b"\n") // 8


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 1000])
@pytest.mark.parametrize("before", [b"", b"\n", b": hello\n\n", b"\r\n"])
def test_a_byte_order_mark_is_skipped(size: int, before: bytes) -> None:
    """A stream may begin with a byte order mark, also split between reads."""
    deltas, decoder = decode(BOM + before + sse(chunk("a"), chunk("b")) + b"data: [DONE]\n\n", size)

    assert [delta.text for delta in deltas] == ["a", "b"]
    assert decoder.done


def test_a_byte_order_mark_within_a_text_is_kept() -> None:
    """Only the first character of a stream is a byte order mark."""
    deltas, _ = decode(BOM + sse(chunk("\ufeffa\ufeff")), 5)

    assert deltas[0].text == "\ufeffa\ufeff"


def test_a_completion_with_a_byte_order_mark_is_decoded() -> None:
    """A body may begin with a byte order mark."""
    assert decode_completion(BOM + json.dumps(chunk("x")).encode()).text == "x"


def choice(index: Any, content: str | None = None, **more: Any) -> dict[str, Any]:
    """A choice of a chunk."""
    return {"index": index, "delta": {"content": content}, "finish_reason": None} | more


@pytest.mark.parametrize("size", [3, 1000])
@pytest.mark.parametrize(
    "chunks",
    [
        [[choice(0, "a"), choice(1, "x")], [choice(1, "y"), choice(0, "b")]],
        [[choice(1, "x")], [choice(0, "a")], [choice(1, "y")], [choice(0, "b")]],
        [[choice(0, "a")], [choice(2, "x"), choice(1, "y")], [choice(0, "b")]],
        [[choice(None, "a")], [choice(1, "x")], [choice(None, "b")]],
        [[choice("0", "a")], [choice("1", "x")], [choice(0.0, "b")]],
    ],
    ids=["together", "interleaved", "three", "without index", "other types"],
)
def test_the_text_is_that_of_the_first_choice(
    chunks: list[list[dict[str, Any]]], size: int
) -> None:
    """Texts of further choices are not mixed into the answer."""
    deltas, _ = decode(sse(*({"choices": choices} for choices in chunks)), size)

    assert "".join(delta.text for delta in deltas) == "ab"


def test_the_finish_reason_is_that_of_the_first_choice() -> None:
    """Another choice that ends earlier, or otherwise, does not end the answer."""
    deltas, _ = decode(
        sse(
            {"choices": [choice(1, None, finish_reason="length")]},
            {"choices": [choice(1, "x"), choice(0, "a", finish_reason="stop")]},
        ),
        1000,
    )

    assert [delta.finish_reason for delta in deltas] == [None, "stop"]


def test_a_completion_has_the_text_of_the_first_choice() -> None:
    """Whatever the order of the choices."""
    choices = [
        {"index": n, "message": {"content": text}, "finish_reason": "stop"}
        for n, text in ((1, "x"), (0, "a"))
    ]

    assert decode_completion(json.dumps({"choices": choices}).encode()).text == "a"


def test_a_refusal_is_the_text_of_the_answer() -> None:
    """The model's refusal is sent in another field than its content."""
    refusals = [{"delta": {"content": None, "refusal": text}} for text in ("I can", "'t", None)]
    deltas, _ = decode(sse(*({"choices": [refusal]} for refusal in refusals)), 1000)
    message = {"content": None, "refusal": "I can't"}

    assert "".join(delta.text for delta in deltas) == "I can't"
    assert decode_completion(json.dumps({"choices": [{"message": message}]}).encode()).text == (
        "I can't"
    )


def test_a_refusal_with_lone_surrogates_is_decoded() -> None:
    """Surrogates in a refusal are treated like those in a content."""
    data = b"".join(
        b'data: {"choices": [{"delta": {"refusal": "%s"}}]}\n\n' % half
        for half in (b"a\\ud83d", b"\\ude42b")
    )
    deltas, _ = decode(data, 1000)

    assert "".join(delta.text for delta in deltas) == "a🙂b"


def test_content_parts_are_joined() -> None:
    """A content may be a list of parts, of which those with text count."""
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "a"}, {"text": "b"}]
    deltas, _ = decode(sse({"choices": [{"delta": {"content": parts}}]}), 1000)

    assert deltas[0].text == "ab"


def test_a_usage_of_zero_is_ignored() -> None:
    """No answer uses no tokens: servers that do not count send zeros."""
    zero = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

    assert decode_completion(json.dumps(chunk("x", usage=zero)).encode()).usage is None


def test_a_surrogate_at_the_end_is_flushed_with_the_finish_reason() -> None:
    """No text follows the finish reason, and the usage after it is the last report."""
    data = (
        b'data: {"choices": [{"delta": {"content": "a\\ud83d"}, "finish_reason": "stop"}]}\n\n'
        + sse({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
        + b"data: [DONE]\n\n"
    )
    deltas, _ = decode(data, 1000)

    assert [bool(delta.text) for delta in deltas] == [True, False]
