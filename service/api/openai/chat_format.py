"""Chat completions and their chunks, from a `Stream`: the id, usage with cost, and annotations.

What the provider sent is passed on as it is; answers without it (refusals, and replays from the
log) are built from the outcome.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from service.api.openai.errors import build_error_event
from service.core.answering.answers import ChatTranscript, Stream, create_problem
from service.core.encoding import to_json
from service.core.grounding.citations import locate_citations
from service.core.pricing import format_usd
from service.core.records import Outcome, Status, UsageSource

BATCH_BYTES = 16_384  # a batch ends with the chunk that reaches this size
DONE = b"data: [DONE]\n\n"
_STOP = "stop"


class ChatFormat:
    """One chat completion. `get_documents_url`: returns the URL under which documents are."""

    def __init__(
        self, stream: Stream, get_documents_url: Callable[[], str], *, include_usage: bool
    ) -> None:
        self._stream, self._get_documents_url = stream, get_documents_url
        self._include_usage = include_usage

    def create_encoder(self) -> "ChatChunks":
        """Its chunks, for one reader."""
        return ChatChunks(
            self._stream,
            include_usage=self._include_usage,
            get_documents_url=self._get_documents_url,
        )

    def build_body(self) -> dict[str, Any]:
        """The body of an answer that has ended and is not streamed."""
        outcome = self._stream.outcome
        assert outcome is not None  # noqa: S101 - the caller has waited for it
        return build_completion(self._stream, outcome, self._get_documents_url)


class ChatChunks:
    """The events of a stream for one reader."""

    def __init__(
        self, stream: Stream, *, include_usage: bool, get_documents_url: Callable[[], str]
    ) -> None:
        self._stream = stream
        self._get_documents_url = get_documents_url
        self._begin = b'data: {"id":"%s",' % create_chat_id(stream).encode()
        self._end = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._include_usage = include_usage
        self._built: list[bytes] | None = None

    def encode_batch(self, position: int) -> tuple[bytes, int]:
        """Return the events after the chunk at a position (-1: all), and the new position."""
        transcript = self._stream.transcript
        if transcript is not None and transcript.chunks:  # the usual case
            chunks, finish = transcript.chunks, transcript.finish_position
        else:
            chunks = self._build_chunks()
            finish = len(chunks) - 1
        position, count, out = max(0, position), len(chunks), b""
        while position < count:
            chunk = chunks[position]
            if position == finish:
                chunk = self._annotate(chunk)
            out += self._begin + chunk[1:-1] + self._end
            position += 1
            if len(out) >= BATCH_BYTES:
                return out, position
        if self._stream.outcome is not None and position == count:
            out += self._encode_end(self._stream.outcome, finished=finish is not None)
            position += 1
        return out, position

    def _build_chunks(self) -> list[bytes]:
        """The chunks of an answer that has none of a provider; none before its end."""
        stream = self._stream
        if self._built is None and stream.outcome is not None:
            self._built = build_chunks(stream.outcome) if stream.error is None else []
        return self._built or []

    def _annotate(self, chunk: bytes) -> bytes:
        """Add the annotations to the delta that ends the text."""
        annotations = build_annotations(self._stream, self._get_documents_url)
        if not annotations:
            return chunk
        decoded = msgspec.json.decode(chunk)
        for choice in decoded["choices"]:
            if choice["index"] == 0:
                delta = choice["delta"]
                delta["annotations"] = [*(delta.get("annotations") or []), *annotations]
        return to_json(decoded)

    def _encode_end(self, outcome: Outcome, *, finished: bool) -> bytes:
        stream, transcript = self._stream, self._stream.transcript
        if stream.error is not None:
            problem = create_problem(stream.error, stream.intent.request_id)
            event = build_error_event(
                problem | {"answer_id": stream.intent.id, "usage": build_usage(stream, outcome)},
                stream.error,
            )
            return b"data: " + to_json(event) + b"\n\n"
        if finished and not self._include_usage:
            return DONE
        envelope = _create_envelope(outcome, transcript, "chat.completion.chunk")
        out = b""
        if not finished:  # stopped
            choice = {"index": 0, "delta": {}, "finish_reason": _STOP}
            out += self._begin + to_json(envelope | {"choices": [choice]})[1:-1] + self._end
        if self._include_usage:
            last = envelope | {"choices": [], "usage": build_usage(stream, outcome)}
            out += self._begin + to_json(last)[1:] + b"\n\n"
        return out + DONE


def create_chat_id(stream: Stream) -> str:
    """The id of a chat completion: that of the answer, in OpenAI's form."""
    return f"chatcmpl-{stream.intent.id}"


def build_completion(
    stream: Stream, outcome: Outcome, get_documents_url: Callable[[], str]
) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    transcript = stream.transcript
    if transcript is not None and transcript.completion is not None:
        body = {"id": create_chat_id(stream)} | transcript.completion
    else:
        body = {"id": create_chat_id(stream)} | _create_envelope(outcome, None, "chat.completion")
        body["choices"] = _list_choices(outcome)
    body["usage"] = build_usage(stream, outcome)
    if outcome.status is Status.NO_CONTEXT:
        body["kotae"] = {"status": outcome.status}
    annotations = build_annotations(stream, get_documents_url)
    choices = body["choices"]
    if annotations and isinstance(message := choices[0].get("message"), dict):
        current = message.get("annotations") or []
        message = message | {"annotations": [*current, *annotations]}
        body["choices"] = [choices[0] | {"message": message}, *choices[1:]]
    return body


def build_usage(stream: Stream, outcome: Outcome) -> dict[str, Any] | None:
    """The usage as the row has it, with the provider's details, `cost` in USD and `source`.

    None if it is unknown.
    """
    usage, transcript = outcome.usage, stream.transcript
    if usage is None:
        return None
    reported = None
    if transcript is not None and outcome.usage_source is UsageSource.PROVIDER:
        reported = transcript.usage
    details = reported or {
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
    return details | {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cost": None
        if outcome.cost_nano_usd is None
        else msgspec.Raw(format_usd(outcome.cost_nano_usd).encode()),
        "source": outcome.usage_source,
    }


def build_annotations(stream: Stream, get_documents_url: Callable[[], str]) -> list[dict[str, Any]]:
    """The citations in the text so far as `url_citation`s."""
    if not stream.context:
        return []
    documents_url = get_documents_url()
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "url": f"{documents_url}{citation.passage.document_id}",
                "title": citation.passage.title,
                "start_index": citation.start,
                "end_index": citation.end,
            },
        }
        for citation in locate_citations(stream.text, stream.context)
    ]


def _create_envelope(
    outcome: Outcome, transcript: ChatTranscript | None, kind: str
) -> dict[str, Any]:
    if transcript is not None:
        return transcript.envelope
    created = int(outcome.intent.created_at.timestamp())
    return {"object": kind, "created": created, "model": outcome.intent.model}


def _list_choices(outcome: Outcome) -> list[dict[str, Any]]:
    if outcome.choices:
        return outcome.choices
    message = {"role": "assistant", "content": outcome.response, "refusal": None}
    finish_reason = outcome.finish_reason or _STOP
    return [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}]


def build_chunks(outcome: Outcome) -> list[bytes]:
    """The chunks of an answer without those of a provider; the last one ends the first choice."""
    envelope = _create_envelope(outcome, None, "chat.completion.chunk")
    extra = {"kotae": {"status": outcome.status}} if outcome.status is Status.NO_CONTEXT else {}
    begin, end = [], []
    for choice in sorted(_list_choices(outcome), key=lambda choice: choice["index"] == 0):
        delta = _index_tool_calls(choice["message"])
        begin.append({**choice, "delta": delta, "finish_reason": None})
        end.append(
            {"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"]}
        )
    for item in begin:
        item.pop("message", None)
    return [to_json(envelope | {"choices": [choice]} | extra) for choice in (*begin, *end)]


def _index_tool_calls(message: dict[str, Any]) -> dict[str, Any]:
    """The message as a delta: its tool calls are numbered."""
    if not message.get("tool_calls"):
        return message
    calls = [{"index": n} | call for n, call in enumerate(message["tool_calls"])]
    return message | {"tool_calls": calls}
