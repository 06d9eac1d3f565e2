"""Behaviour of a provider fake: a `Behaviour` and the body pieces that it produces. Pure; no await.

A *point* is a moment in an answer; faults name the point after which they occur: `"request"` (read,
nothing sent yet), `"headers"`, `0` (the chunk with the role), `k` (the k-th chunk of text),
`"finish"` (the chunk with the finish reason), `"usage"`. An answer that is not streamed has one
point in the middle of its body, used for every point after the headers.

Behaviours can be part of a prompt, for load tests with many calls at once: `[[cut-after=3 cut=rst]]
Why?`.
"""

import hashlib
import json
import re
from asyncio import Event
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

Point = int | Literal["request", "headers", "finish", "usage"]

CREATED = 1_700_000_000
REASONING_TOKENS = 2
BLOCK = b"a" * 65_536
HTML = b"<!doctype html><html><title>Welcome</title><p>The gateway is having a rest.</p></html>"
ERROR = {
    "message": "The server had an error while processing your request.",
    "type": "server_error",
    "param": None,
    "code": None,
}
_MARKER = re.compile(r"\[\[([a-z0-9_-]+=[^\[\]]*)\]\]")


@dataclass(frozen=True, eq=False, kw_only=True)
class Behaviour:
    """Behaviour of the fake for one call.

    The default is a correct answer in chunks, without delay.
    """

    # the text; default: words that are unique to the prompt, see `default_deltas`
    text: str | None = None  # split into words
    deltas: Sequence[str] | None = None  # sent unchanged
    chunks: int = 8  # number of deltas of the default text
    endless: bool = False  # repeats the deltas until the client disconnects
    # names and arguments of functions to call instead of a text
    tool_calls: Sequence[tuple[str, Mapping[str, Any]]] = ()

    # timing in seconds, and conditions
    headers_delay: float = 0
    first_delay: float = 0  # between headers and first chunk
    gap: float = 0  # between chunks
    hold: Event | None = None  # must be set before it continues …
    hold_after: Point = 0  # … after this point
    holds: Mapping[Point, Event] = field(default_factory=dict)  # for several points

    # usage; omitted unless the request asks for it, like OpenAI
    usage: Any = "given"  # None: omitted. A name of `usage_named`, or the value to send
    usage_place: Literal["own", "finish", "every"] = (
        "own"  # own: a chunk without choices. every: on all chunks, increasing
    )
    usage_times: int = 1
    usage_unasked: bool = False  # sent even if the request does not ask for it

    # errors instead of an answer
    status: int = 200
    body: bytes | None = (
        None  # replaces the answer; default for an error status: OpenAI's error object
    )
    content_type: str | None = None
    headers: Sequence[tuple[str, str]] = ()
    retry_after: float | str | None = None
    # Closes new connections unread and persistent ones after a request; not a call
    refuse: bool = False

    # end of the answer
    cut: Literal["fin", "rst"] = "fin"  # after a RST, the client may miss part of `Call.text`
    cut_after: Point | None = None
    cut_inside: bool = False  # cut in the middle of the next line, not between two events
    cut_at_byte: int | None = None  # byte of the body, before transfer framing
    hang_after: Point | None = None  # send nothing more and keep the connection open
    hang_comments: float | None = None  # interval of comments while hanging, in seconds
    finish_reason: str | None = (
        "stop"  # None: null. "absent": the stream ends without a finish chunk
    )
    finish_with_text: bool = False  # the finish reason is part of the last chunk of text
    done: bool = True  # send [DONE]
    keep_alive: bool = True

    # wrong or unusual content
    error_after: Point | None = None  # an error event, then a clean end
    error: Mapping[str, Any] = field(default_factory=lambda: ERROR)
    malformed_after: Point | None = None
    invalid_utf8_after: Point | None = None
    raw_after: Point | None = None
    raw: bytes = b""  # any bytes, sent at that point
    huge_line_after: Point = 0
    huge_line_bytes: int = 0
    role: Literal["empty", "null", "none"] = (
        "empty"  # the first chunk: content "", content null, or no such chunk
    )
    empty_choices: bool = False  # a first chunk with no choices, as Azure's prompt filter sends
    extra: bool = False  # unknown fields
    comments: bool = False  # a comment before every chunk
    newline: Literal["\n", "\r\n", "\r"] = "\n"
    gzip: bool = False  # compressed regardless of Accept-Encoding; a bomb with huge_line_bytes
    framing: Literal["chunked", "close"] = (
        "chunked"  # close: the body ends with the connection, so a FIN is ambiguous
    )
    chunks_per_write: int = 1  # 0: everything in one write
    bytes_per_write: int = 0  # 0: whole chunks. 1 splits every multi-byte character

    def build_deltas(self, prompt: str) -> list[str]:
        """Return the deltas of the answer to this prompt."""
        if self.deltas is not None or self.tool_calls:
            return list(self.deltas or ())
        return (
            default_deltas(prompt, self.chunks)
            if self.text is None
            else re.findall(r"\S+\s*|^\s+", self.text)
        )

    def usage_for(self, prompt: str, completion_tokens: int) -> Any:
        """Return the usage object that this behaviour sends."""
        return (
            build_usage(self.usage, prompt, completion_tokens)
            if isinstance(self.usage, str)
            else self.usage
        )


class Piece(NamedTuple):
    """A run of body bytes with its text and usage.

    `point` is reached when the piece has been sent.
    """

    data: bytes
    point: Point | None = None
    text: str = ""
    usage: Any = None


def default_deltas(prompt: str, chunks: int = 8) -> list[str]:
    """Yield the default text: deterministic, unique to the prompt, with 1- to 4-byte characters."""
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    words = ["Answer ", f"{digest} ", "こたえ ", "é🙂 "]
    return [words[n] if n < len(words) else f"{digest[:4]}-{n} " for n in range(chunks)]


def default_text(prompt: str, chunks: int = 8) -> str:
    """Return `default_deltas` joined."""
    return "".join(default_deltas(prompt, chunks))


def read_prompt(body: Any) -> str:
    """Return the last user message of a request, its text parts joined."""
    messages = body.get("messages") if isinstance(body, dict) else None
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return "".join(
                    str(part.get("text", "")) for part in content if isinstance(part, dict)
                )
            return str(content)
    return ""


def apply_markers(default: Behaviour, text: str) -> Behaviour:
    """Apply the markers in `text` to the default. Raises ValueError for an unknown field."""
    changes: dict[str, Any] = {}
    for marker in _MARKER.findall(text):
        changes |= parse_markers(marker)
    return replace(default, **changes) if changes else default


def parse_markers(marker: str) -> dict[str, Any]:
    """Parse `cut-after=3 cut=rst` as fields of a `Behaviour`.

    Values are numbers, true, false, none (None), or strings.
    """
    names = {setting.name for setting in fields(Behaviour)}
    values: dict[str, Any] = {}
    for pair in marker.split():
        name, _, value = pair.partition("=")
        name = name.replace("-", "_")
        if name not in names:
            raise ValueError(f"a behaviour has no field {name!r}")
        if value == "none":
            values[name] = None
        elif name in ("body", "raw"):
            values[name] = value.encode()
        else:
            values[name] = (
                json.loads(value)
                if re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?|true|false", value)
                else value
            )
    return values


def build_usage(name: str, prompt: str, completion_tokens: int) -> Any:
    """Return the usage object of a name. Raises KeyError for an unknown name."""
    prompt_tokens, completion_tokens = 8 + len(prompt) // 4, completion_tokens + REASONING_TOKENS
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": prompt_tokens // 4, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": REASONING_TOKENS, "audio_tokens": 0},
    }
    return {
        "given": usage,
        "plain": {
            key: usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")
        },
        "null": None,
        "empty": {},
        "nulls": dict.fromkeys(usage),
        "negative": {**usage, "completion_tokens": -completion_tokens},
        "float": {**usage, "completion_tokens": completion_tokens + 0.5},
        "string": {**usage, "completion_tokens": str(completion_tokens)},
        "huge": {**usage, "completion_tokens": 10**30},
        "zero": {**usage, "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        "wrong-total": {**usage, "total_tokens": 1},
        "cached-over": {**usage, "prompt_tokens_details": {"cached_tokens": prompt_tokens + 1}},
        "reasoning-over": {
            **usage,
            "completion_tokens_details": {"reasoning_tokens": completion_tokens + 1},
        },
    }[name]


def stream_pieces(behaviour: Behaviour, body: Mapping[str, Any], prompt: str) -> Iterator[Piece]:
    """Yield the body of a streamed answer with its faults; the sender applies `cut` and `hang`."""
    for piece in _answer(behaviour, body, prompt):
        faults = list(_faults(behaviour, piece.point)) if piece.point is not None else []
        huge = behaviour.huge_line_bytes if piece.point == behaviour.huge_line_after else 0
        if not faults and not huge:
            yield piece
            continue
        yield piece._replace(point=None)
        if huge:
            yield Piece(b'data: {"choices":[{"index":0,"delta":{"content":"')
            yield from (
                Piece(BLOCK[: min(len(BLOCK), huge - at)]) for at in range(0, huge, len(BLOCK))
            )
            yield Piece(b'"}}]}' + _lines(behaviour))
        yield from (Piece(data) for data in faults)
        yield Piece(b"", point=piece.point)
        if piece.point == behaviour.error_after:
            return


def whole_pieces(behaviour: Behaviour, body: Mapping[str, Any], prompt: str) -> list[Piece]:
    """Yield the body of an answer that is not streamed, in two halves."""
    deltas = behaviour.build_deltas(prompt)
    usage = None if behaviour.usage is None else behaviour.usage_for(prompt, len(deltas))
    finish_reason = None if behaviour.finish_reason == "absent" else behaviour.finish_reason
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(deltas) or None,
        "refusal": None,
    }
    if behaviour.tool_calls:
        message["tool_calls"] = _list_tool_calls(behaviour)
        finish_reason = "tool_calls"
    answer: dict[str, Any] = _envelope(behaviour, body, "chat.completion")
    answer["choices"] = [
        {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    ]
    if behaviour.usage is not None:
        answer["usage"] = usage
    if behaviour.huge_line_bytes:
        answer["padding"] = "a" * behaviour.huge_line_bytes
    data = _json(answer)
    if behaviour.malformed_after is not None:
        data = data[:-1] + b",}"
    if behaviour.invalid_utf8_after is not None:
        data = data[:-1] + b',"\xff\xfe":0}'
    half = len(data) // 2
    return [
        Piece(b"", point="headers"),
        Piece(data[:half], point=0),
        Piece(data[half:], point="usage", text="".join(deltas), usage=usage),
    ]


def error_body(behaviour: Behaviour) -> bytes:
    """Return the body of an error response."""
    return _json({"error": dict(behaviour.error)}) if behaviour.body is None else behaviour.body


def _answer(behaviour: Behaviour, body: Mapping[str, Any], prompt: str) -> Iterator[Piece]:
    """Yield the chunks of a streamed answer without faults."""
    voice = _ChunkBuilder(behaviour, body, prompt)
    deltas = behaviour.build_deltas(prompt)
    yield Piece(b"", "headers")
    if behaviour.empty_choices:
        yield voice.chunk(None)
    if behaviour.role == "none":
        yield Piece(b"", 0)
    else:
        yield voice.chunk(
            0,
            {
                "role": "assistant",
                "content": None if behaviour.role == "null" else "",
                "refusal": None,
            },
        )
    for delta in _split_tool_calls(behaviour):
        yield voice.chunk(None, {"tool_calls": [delta]})
    for n, text in enumerate(_forever(deltas) if behaviour.endless else deltas, 1):
        finish_reason = (
            behaviour.finish_reason if behaviour.finish_with_text and n == len(deltas) else None
        )
        yield voice.chunk(
            n,
            {"content": text},
            finish_reason,
            text=text,
            usage_of=n if behaviour.usage_place == "every" else None,
        )
    if behaviour.finish_with_text:
        yield Piece(b"", "finish")
    elif behaviour.finish_reason != "absent":
        yield voice.chunk(
            "finish",
            {},
            "tool_calls" if behaviour.tool_calls else behaviour.finish_reason,
            usage_of=len(deltas) if behaviour.usage_place != "own" else None,
        )
    if voice.tells_usage and behaviour.usage_place == "own":
        for n in range(behaviour.usage_times):
            yield voice.chunk(
                "usage" if n == behaviour.usage_times - 1 else None, usage_of=len(deltas)
            )
    if behaviour.done:
        yield Piece(b"data: [DONE]" + _lines(behaviour))


def _list_tool_calls(behaviour: Behaviour) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{n}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for n, (name, arguments) in enumerate(behaviour.tool_calls, 1)
    ]


def _split_tool_calls(behaviour: Behaviour) -> Iterator[dict[str, Any]]:
    """Yield the deltas of the calls: each begins with its id and name, its arguments in halves."""
    for index, call in enumerate(_list_tool_calls(behaviour)):
        function = call["function"]
        yield {"index": index} | call | {"function": function | {"arguments": ""}}
        half = len(function["arguments"]) // 2
        for piece in (function["arguments"][:half], function["arguments"][half:]):
            yield {"index": index, "function": {"arguments": piece}}


class _ChunkBuilder:
    """Makes the chunks of one answer."""

    def __init__(self, behaviour: Behaviour, body: Mapping[str, Any], prompt: str) -> None:
        self._behaviour, self._body, self._prompt = behaviour, body, prompt
        has_usage = behaviour.usage_unasked or bool(
            (body.get("stream_options") or {}).get("include_usage")
        )
        self.tells_usage = has_usage and behaviour.usage is not None

    def chunk(
        self,
        point: Point | None,
        delta: Mapping[str, Any] | None = None,
        finish_reason: str | None = None,
        *,
        text: str = "",
        usage_of: int | None = None,
    ) -> Piece:
        """Return one event; without a delta it has no choices.

        `usage_of`: number of completion tokens in its usage.
        """
        behaviour, extra = (
            self._behaviour,
            {"mystery": {"deep": [1, None]}} if self._behaviour.extra else {},
        )
        envelope = _envelope(behaviour, self._body, "chat.completion.chunk")
        choice = {
            "index": 0,
            "delta": {**(delta or {}), **extra},
            "logprobs": None,
            "finish_reason": finish_reason,
            **extra,
        }
        envelope["choices"] = [] if delta is None else [choice]
        usage = None
        if self.tells_usage:
            envelope["usage"] = usage = (
                None if usage_of is None else behaviour.usage_for(self._prompt, usage_of)
            )
        comment = b": keep-alive" + _lines(behaviour) if behaviour.comments else b""
        return Piece(comment + b"data: " + _json(envelope) + _lines(behaviour), point, text, usage)


def _faults(behaviour: Behaviour, point: Point | None) -> Iterator[bytes]:
    end = _lines(behaviour)
    if point == behaviour.malformed_after:
        yield b'data: {"choices":[{"index":0,"delta":{"content":"broken' + end
    if point == behaviour.invalid_utf8_after:
        yield (
            b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xfe\xe3\x81"},'
            b'"finish_reason":null}]}' + end
        )
    if point == behaviour.raw_after:
        yield behaviour.raw
    if point == behaviour.error_after:
        yield b"data: " + _json({"error": dict(behaviour.error)}) + end


def _forever(deltas: list[str]) -> Iterator[str]:
    while True:
        yield from deltas


def _envelope(behaviour: Behaviour, body: Mapping[str, Any], kind: str) -> dict[str, Any]:
    extra = (
        {"mystery": "?", "service_tier": "default", "obfuscation": "aB3"} if behaviour.extra else {}
    )
    return {
        "id": "chatcmpl-fake",
        "object": kind,
        "created": CREATED,
        "model": body.get("model"),
        **extra,
    }


def _lines(behaviour: Behaviour) -> bytes:
    return behaviour.newline.encode() * 2


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )
