"""The encoding of events: any text is one event with an equal payload."""

from hypothesis import given
from hypothesis import strategies as st

from service.core.answering.events import Event, encode_delta, encode_event, parse_event_id
from service.core.encoding import replace_surrogates
from tests.sse import Parser

ID = "01a2095b-6360-75d3-bf35-48878f818b4d"
ANY_TEXT = st.text(st.characters()) | st.sampled_from(
    ["\r\n\r\nevent: done\n\n", "\u2028\u2029\x85\0", "data: x\rid: y", "\ud83d", "🙂"]
)


@given(st.lists(ANY_TEXT, min_size=1, max_size=5), st.integers(1, 50))
def test_no_text_can_forge_an_event(texts: list[str], size: int) -> None:
    """Each text arrives as exactly one event with an equal payload, however the bytes are split."""
    texts = [replace_surrogates(text) for text in texts]
    data = b"".join(encode_delta(ID, seq, text) for seq, text in enumerate(texts))

    parser = Parser()
    received = [
        event for at in range(0, len(data), size) for event in parser.feed(data[at : at + size])
    ]

    assert [event.json for event in received] == [{"delta": text} for text in texts]
    assert [event.last_id for event in received] == [f"{ID}.{seq}" for seq in range(len(texts))]


def test_an_unnamed_event_has_no_event_line() -> None:
    """Plain `onmessage` receives deltas; named events need a listener."""
    assert encode_delta(ID, 1, "a") == f'id: {ID}.1\ndata: {{"delta":"a"}}\n\n'.encode()
    assert (
        encode_event(ID, Event(1, "done", b"{}"))
        == f"event: done\nid: {ID}.1\ndata: {{}}\n\n".encode()
    )


@given(st.integers(0, 10**9 - 1))
def test_event_ids_round_trip(seq: int) -> None:
    """Parsing reverses the encoding of `{answer}.{seq}`."""
    assert parse_event_id(f"{ID}.{seq}") == (ID, seq)


@given(st.text(max_size=60))
def test_other_texts_are_not_event_ids(text: str) -> None:
    """Any other text is not an event id, and raises nothing."""
    place = parse_event_id(text)

    assert place is None or len(place[0]) == 36
