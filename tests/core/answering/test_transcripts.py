"""Transcripts of chat completions."""

import json
from typing import Any

import pytest

from service.core.answering.transcripts import ChatTranscript
from service.core.errors import ProviderInvalid
from service.core.ports import Delta


def create_transcript(*, stream: bool = True, answer_bytes_max: int = 1_000) -> ChatTranscript:
    """An empty transcript."""
    return ChatTranscript(stream=stream, model="m", created=5, answer_bytes_max=answer_bytes_max)


def choose(delta: Any, index: int | None = 0, finish_reason: str | None = None) -> dict[str, Any]:
    """A chunk with one choice."""
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


def add(transcript: ChatTranscript, chunk: dict[str, Any], *, is_text: bool) -> None:
    """Add a decoded chunk."""
    raw = json.dumps(chunk).encode()
    transcript.add_delta(Delta(raw=raw, chunk=chunk, is_text=is_text))


def test_missing_members_are_added() -> None:
    """Strict clients need object, created, model, index and delta."""
    transcript = create_transcript()
    add(transcript, {"id": "x"} | choose(None, index=None), is_text=True)

    (chunk,) = map(json.loads, transcript.chunks)
    assert chunk == {
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "m",
        "choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}],
    }


async def test_a_plain_text_has_no_choices() -> None:
    """The response of the row is everything."""
    transcript = create_transcript()
    add(transcript, choose({"content": "a"}), is_text=True)

    assert await transcript.read_choices() is None


@pytest.mark.parametrize("filler", [1, 2_000])
async def test_tool_calls_are_merged_by_index(filler: int) -> None:
    """Arguments of parallel calls are joined, also in a thread for long answers."""
    transcript = create_transcript(answer_bytes_max=100_000)
    for n in range(2):
        call = {"index": n, "id": f"c{n}", "type": "function", "function": {"name": "f"}}
        add(transcript, choose({"tool_calls": [call]}), is_text=False)
    for _ in range(filler):
        for n in (1, 0):
            call = {"index": n, "function": {"arguments": str(n)}}
            add(transcript, choose({"tool_calls": [call]}), is_text=False)
    add(transcript, choose({}, finish_reason="tool_calls"), is_text=True)

    choices = await transcript.read_choices()

    assert choices
    (choice,) = choices
    assert choice["finish_reason"] == "tool_calls"
    assert [call["function"] for call in choice["message"]["tool_calls"]] == [
        {"name": "f", "arguments": "0" * filler},
        {"name": "f", "arguments": "1" * filler},
    ]
    assert [call["id"] for call in choice["message"]["tool_calls"]] == ["c0", "c1"]


async def test_choices_are_in_order_and_can_be_stored() -> None:
    """Interleaved choices are separated; NUL and lone surrogates are replaced."""
    transcript = create_transcript()
    for index, text in ((1, "b\0"), (0, "a"), (1, "\ud800"), (0, "c")):
        add(transcript, choose({"content": text}, index), is_text=False)

    choices = await transcript.read_choices()

    assert choices
    assert [choice["message"]["content"] for choice in choices] == ["ac", "b\ufffd\ufffd"]


def test_chunks_without_choices_are_left_out() -> None:
    """Their usage is kept for the end."""
    transcript = create_transcript()
    add(transcript, {"choices": [], "usage": {"prompt_tokens": 1}}, is_text=True)

    assert (transcript.chunks, transcript.usage) == ([], {"prompt_tokens": 1})


def test_the_size_is_bounded() -> None:
    """A provider that never ends is an error."""
    transcript = create_transcript(answer_bytes_max=4)
    add(transcript, choose({"content": "x"}), is_text=True)
    with pytest.raises(ProviderInvalid):
        add(transcript, choose({"content": "x"}), is_text=True)


def test_the_end_of_the_first_choice_is_remembered() -> None:
    """Annotations are sent with it."""
    transcript = create_transcript()
    add(transcript, choose({}, 1, "stop"), is_text=False)
    add(transcript, choose({}, 0, "stop"), is_text=True)

    assert transcript.finish_position == 1


@pytest.mark.parametrize("usage", ["", ', "usage": null'])
@pytest.mark.parametrize("separator", [",", " , "])
def test_chunks_of_text_are_passed_on_without_id_and_usage(usage: str, separator: str) -> None:
    """They are not decoded again, and equal to those that are."""
    transcript = create_transcript()
    raws = [
        (
            f'{{"id":"x"{separator}"object":"chat.completion.chunk","created":1,"model":"m",'
            f'"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]{usage}}}'
        ).encode()
        for delta in ('{"role":"assistant","content":""}', '{"content":"a\\u00e9\\ud83d"}')
    ]
    transcript.add_delta(Delta(raw=raws[0], chunk=json.loads(raws[0])))
    transcript.add_delta(Delta(raw=raws[1]))

    assert b"\\u00e9\\ud83d" in transcript.chunks[1]
    expected = json.loads(raws[1])
    del expected["id"]
    expected.pop("usage", None)
    assert json.loads(transcript.chunks[1]) == expected
