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


def start_event(intent: Intent, context: list[Passage], *, degraded: bool = False) -> Event:
    """The first event: who answers, and from what. It leaves before the provider is called.

    `degraded`: a stream that should be resumable is not, for want of room.
    """
    start = {
        "id": intent.id,
        "model": intent.model,
        "grounded": intent.grounded,
        "context": context,
    }
    return Event(0, "start", to_json(start | {"resumable": False} if degraded else start))


def done_event(seq: int, outcome: Outcome) -> Event:
    """The last event of an answer that has an end."""
    return Event(seq, "done", to_json(create_answer_object(outcome, texts=False)))


def failure_event(seq: int, problem: dict[str, Any]) -> Event:
    """The last event of an answer that failed. Not "error": `EventSource` has an event of that name of its own."""
    return Event(seq, "failure", to_json(problem))


def encode_event(answer_id: str, event: Event) -> bytes:
    """A named event as bytes of an event stream, with its id `{answer}.{seq}`."""
    return b"event: %s\nid: %s.%d\ndata: %s\n\n" % (
        event.name.encode(),
        answer_id.encode(),
        event.seq,
        event.payload,
    )


def encode_delta(answer_id: str, seq: int, text: str) -> bytes:
    """A piece of the answer's text, up to the character `seq`: an unnamed event, which a plain `onmessage` receives."""
    return b'id: %s.%d\ndata: {"delta":%s}\n\n' % (answer_id.encode(), seq, to_json(text))


def parse_event_id(text: str) -> tuple[str, int] | None:
    """(answer id, seq) of an event id, or None if it is not one of ours."""
    answer_id, _, seq = text.rpartition(".")
    return (
        (answer_id, int(seq))
        if len(answer_id) == 36 and seq.isascii() and seq.isdigit() and len(seq) < 10
        else None
    )
