"""Stream events and their encoding as server-sent events."""

from typing import Any

import msgspec

from service.core.encoding import to_json
from service.core.records import Intent, Outcome, Passage, create_answer_object


class Event(msgspec.Struct, frozen=True):
    """A named event of a stream."""

    seq: int
    name: str
    payload: bytes


def build_start_event(intent: Intent, context: list[Passage], *, degraded: bool = False) -> Event:
    """Build the first event: model, context, and the question as corrected, if it was.

    It is sent before the provider is called.

    `degraded`: the stream should be resumable, but the buffers are full.
    """
    start: dict[str, Any] = {
        "id": intent.id,
        "model": intent.model,
        "grounded": intent.grounded,
        "conversation_id": intent.conversation_id,
        "context": context,
    }
    if intent.searched_for:
        start["searched_for"] = intent.searched_for
    return Event(0, "start", to_json(start | {"resumable": False} if degraded else start))


def build_done_event(seq: int, outcome: Outcome) -> Event:
    """Build the last event of a complete answer."""
    return Event(seq, "done", to_json(create_answer_object(outcome, texts=False)))


def build_failure_event(seq: int, problem: dict[str, Any]) -> Event:
    """Build the last event of a failed answer. `EventSource` reserves the name "error"."""
    return Event(seq, "failure", to_json(problem))


def encode_event(answer_id: str, event: Event) -> bytes:
    """Encode a named event as bytes of an event stream, with the id `{answer}.{seq}`."""
    return b"event: %s\nid: %s.%d\ndata: %s\n\n" % (
        event.name.encode(),
        answer_id.encode(),
        event.seq,
        event.payload,
    )


def encode_delta(answer_id: str, seq: int, text: str) -> bytes:
    """Encode a part of the text that ends at character `seq`, as an unnamed event.

    A plain `onmessage` handler receives unnamed events.
    """
    return b'id: %s.%d\ndata: {"delta":%s}\n\n' % (answer_id.encode(), seq, to_json(text))


def parse_event_id(text: str) -> tuple[str, int] | None:
    """Parse an event id into (answer id, seq); None if the text is not an event id."""
    answer_id, _, seq = text.rpartition(".")
    return (
        (answer_id, int(seq))
        if len(answer_id) == 36 and seq.isascii() and seq.isdigit() and len(seq) < 10
        else None
    )
