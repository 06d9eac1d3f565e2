"""Decodes OpenAI-compatible chat completions from bytes to `Delta`s, without I/O.

A stream consists of server-sent events whose data are `chat.completion.chunk` objects, followed by
`[DONE]` (https://platform.openai.com/docs/api-reference/chat-streaming). Common deviations of real
servers are accepted: a byte order mark, CRLF line ends, comments, a null `content`, a `content` in
parts, role-only and empty-choices chunks, usage on every chunk, unknown fields, an error object
within a stream, and an emoji whose escaped surrogates are in two chunks. Anything else raises
`ProviderInvalid`. The text is that of the choice with index 0; a refusal is text. An implausible
usage (zero, negative, fractional, null, above `TOKENS_MAX`) is treated as missing.

An event is limited to `EVENT_BYTES_MAX`, and a run of events without text to `TEXTLESS_BYTES_MAX`,
so a stream that never ends costs bounded memory and time.
"""

import json
from contextlib import suppress
from typing import Annotated, Any, Literal

import msgspec

from service.core.encoding import replace_surrogates, sanitize_text
from service.core.errors import (
    ProviderBusy,
    ProviderError,
    ProviderInvalid,
    ProviderRefused,
    ProviderRejected,
    ProviderTimeout,
    ReportedError,
)
from service.core.ports import Delta
from service.core.pricing import Usage
from service.core.redaction import redact_secrets

TOKENS_MAX = 100_000_000
ERROR_BYTES_MAX = 65_536  # maximum to read of the body of an error response
MESSAGE_CHARACTERS_MAX = 500  # of the provider's reason for a rejection
FINISH_REASON_CHARACTERS_MAX = 50
EVENT_BYTES_MAX = 1_048_576  # a chunk of one token has about 250 bytes
# Reasoning can take many chunks before the first text: 200,000 of 300 bytes.
TEXTLESS_BYTES_MAX = 67_108_864
LINE_COST_BYTES = 64  # added per line, because short lines take more time per byte
LINES_MAX = 1_024  # decoded without a break, about 2 ms
WHOLE_READ_BYTES_MAX = 16_384  # of a read that is not split
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_FIRST_INDEXES = (None, 0, "0", "")
_TEXT_MEMBERS = ("role", "content")
_NOT_GENERATED = ("id", "index", "role", "type")
_FINISH_REASONS = frozenset({"stop", "length", "content_filter", "tool_calls"})
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: _Tokens | None = None


class _WireUsage(msgspec.Struct):
    prompt_tokens: _Tokens
    completion_tokens: _Tokens
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _ChoiceText(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    index: int | float | str | None = None
    delta: _ChoiceText | None = None
    message: _ChoiceText | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


class _TextDelta(msgspec.Struct, forbid_unknown_fields=True):
    content: str | None = None
    role: Literal["assistant"] | None = None
    refusal: None = None


class _TextChoice(msgspec.Struct, forbid_unknown_fields=True):
    index: Literal[0]
    delta: _TextDelta
    finish_reason: Literal["stop", "length", "content_filter"] | None = None
    logprobs: None = None


class _TextChunk(msgspec.Struct):
    """A part of the first choice's text: most chunks are nothing else."""

    id: str

    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: tuple[_TextChoice]
    usage: None = None
    error: None = None


_text_chunk_decoder = msgspec.json.Decoder(_TextChunk)
_completion_decoder = msgspec.json.Decoder(_Completion)
_usage_decoder = msgspec.json.Decoder(_WireUsage)


class StreamDecoder:
    """Incremental decoder of one stream.

    `done` is set at `[DONE]`, `error` at the first event that is invalid or reports a failure;
    earlier deltas remain valid. Everything after either is ignored. `keep_chunks`: the deltas have
    the chunks.
    """

    def __init__(self, *, keep_chunks: bool = False) -> None:
        self._decode = _decode_chunk if keep_chunks else _decode_delta
        self._start: bytes | None = b""  # as long as it may be part of a byte order mark
        self._incomplete_line = bytearray()
        self._after_cr = False
        self._data_lines: list[bytes] = []
        self._data_bytes = 0
        self._textless_bytes = 0
        self._high_surrogate = ""  # the low one may be in the next chunk
        self.done = False
        self.error: ProviderError | None = None

    @property
    def buffered_bytes(self) -> int:
        """The size of the incomplete event."""
        return self._data_bytes + len(self._incomplete_line)

    def feed(self, data: bytes) -> list[Delta]:
        """Decode bytes and return the deltas that they complete."""
        deltas: list[Delta] = []
        if self._start is not None:
            data = self._skip_byte_order_mark(data)
        if not self._feed_whole_events(data, deltas):
            self._feed_lines(data, deltas)
        for delta in deltas:
            if delta.text or delta.other_text:
                self._textless_bytes = 0
                break
        else:
            self._textless_bytes += len(data) + LINE_COST_BYTES * data.count(b"\n")
            if self._textless_bytes > TEXTLESS_BYTES_MAX:
                self._reject("the provider sent events without text and without an end")
        return deltas

    def _skip_byte_order_mark(self, data: bytes) -> bytes:
        """Return the data without a byte order mark, which may be split between reads."""
        start = (self._start or b"") + data
        if len(start) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(start):
            self._start = start
            return b""
        self._start = None
        return start.removeprefix(BYTE_ORDER_MARK)

    def _feed_lines(self, data: bytes, deltas: list[Delta]) -> None:
        if b"\r" in data or self._after_cr:
            data = self._normalize_newlines(data)
        first, *lines = data.split(b"\n")
        self._incomplete_line += first
        if lines:
            lines.insert(0, bytes(self._incomplete_line))
            self._incomplete_line = bytearray(lines.pop())
        for line in lines:
            if self.done or self.error:
                break
            if line.startswith(b"data:"):
                self._data_lines.append(line[6:] if line[5:6] == b" " else line[5:])
                self._data_bytes += len(line)
            elif not line and self._data_lines:
                self._decode_pending_event(deltas)
            if self._data_bytes > EVENT_BYTES_MAX:
                break
        if self.done or self.error:
            self._discard_event()
        elif self.buffered_bytes > EVENT_BYTES_MAX:
            self._reject("the provider sent an event of more than a megabyte")

    def _reject(self, detail: str) -> None:
        self.error = self.error or ProviderInvalid(detail)
        self._discard_event()

    def _discard_event(self) -> None:
        self._data_lines, self._data_bytes, self._incomplete_line = [], 0, bytearray()

    def _feed_whole_events(self, data: bytes, deltas: list[Delta]) -> bool:
        """Fast path for the usual case: complete events of one line each. False for other bytes."""
        if (
            self._incomplete_line
            or self._data_lines
            or self._after_cr
            or self.done
            or self.error
            or not data.endswith(b"\n\n")
            or b"\r" in data
        ):
            return False
        events = data[:-2].split(b"\n\n")
        if data.count(b"\n") != 2 * len(events):
            return False
        for event in events:
            if not event.startswith(b"data: "):
                return False
        for event in events:
            self._decode_event(event[6:], deltas)
            if self.done or self.error:
                break
        return True

    def end(self) -> list[Delta]:
        """Decode the last event, which may lack its blank line, and return the deltas."""
        deltas: list[Delta] = []
        if not self.done and not self.error:
            self.feed(b"\n")
            if self._data_lines:
                self._decode_pending_event(deltas)
        self._flush_surrogate(deltas)
        return deltas

    def _normalize_newlines(self, data: bytes) -> bytes:
        """Replace CRLF and CR with LF, also where a CRLF is split between two reads."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _decode_pending_event(self, deltas: list[Delta]) -> None:
        data = self._data_lines[0] if len(self._data_lines) == 1 else b"\n".join(self._data_lines)
        self._data_lines.clear()
        self._data_bytes = 0
        self._decode_event(data, deltas)

    def _decode_event(self, data: bytes, deltas: list[Delta]) -> None:
        if data[:1] != b"{" and data.strip() == b"[DONE]":
            self._flush_surrogate(deltas)
            self.done = True
        elif data:
            try:
                delta = self._decode(data)
            except ProviderError as error:
                self.error = error
            else:
                text = delta.text
                whole = text.isascii() and "\0" not in text and not self._high_surrogate
                deltas.append(delta if whole else self._join_surrogates(delta))

    def _join_surrogates(self, delta: Delta) -> Delta:
        """Prepend the pending high surrogate, hold back a new one, replace others and NUL."""
        text = self._high_surrogate + delta.text
        incomplete = "\ud800" <= text[-1:] <= "\udbff" and not delta.finish_reason
        self._high_surrogate = text[-1:] if incomplete else ""
        return msgspec.structs.replace(
            delta, text=sanitize_text(text.removesuffix(self._high_surrogate))
        )

    def _flush_surrogate(self, deltas: list[Delta]) -> None:
        if self._high_surrogate:
            deltas.append(Delta(sanitize_text(self._high_surrogate)))
            self._high_surrogate = ""


def split_read(data: bytes, lines_max: int = LINES_MAX) -> list[bytes]:
    """Split a large read into parts with about `lines_max` lines each, the first one last."""
    lines = data.count(b"\n")
    if lines <= lines_max:
        return [data]
    size = max(1, len(data) * lines_max // lines)
    return [data[start : start + size] for start in range(0, len(data), size)][::-1]


def decode_completion(data: bytes, keep_chunk: bool = False) -> Delta:
    """Decode a response that is not streamed. Raises `ProviderInvalid`, `ProviderError`.

    `keep_chunk`: the delta has the completion.
    """
    delta = (_decode_unusual_chunk if keep_chunk else _decode_delta)(
        data.removeprefix(BYTE_ORDER_MARK)
    )
    return msgspec.structs.replace(delta, text=sanitize_text(delta.text))


def _decode_delta(data: bytes) -> Delta:
    try:
        completion = _parse_completion(data)
    # Errors of msgspec, json and Unicode are ValueErrors; others are due to unexpected types.
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ProviderInvalid("the provider sent an invalid chat completion") from error
    if bytes(completion.error) != b"null":
        raise _build_stream_error(None)
    text, finish_reason = "", None
    if completion.choices:
        choice = completion.choices[0]
        if choice.index:
            choice = _find_first_choice(completion.choices)
        message = choice.delta or choice.message
        if message:
            text = message.content or ""
            if message.refusal:
                text += message.refusal
        finish_reason = choice.finish_reason and _clean_finish_reason(choice.finish_reason)
    usage = None if bytes(completion.usage) == b"null" else _parse_usage(completion.usage)
    return Delta(text, finish_reason, usage)


def _decode_chunk(data: bytes) -> Delta:
    """Decode a chunk that is passed on to a client."""
    try:
        chunk = _text_chunk_decoder.decode(data)
    except (ValueError, RecursionError):  # anything but a text
        return _decode_unusual_chunk(data)
    choice = chunk.choices[0]
    return Delta(choice.delta.content or "", choice.finish_reason, raw=data)


def _decode_unusual_chunk(data: bytes) -> Delta:
    """Decode any chunk, or a completion, that is passed on to a client."""
    try:
        chunk = _load_object(data)
        if chunk.get("error") is not None:
            raise _build_stream_error(chunk["error"])
        return msgspec.structs.replace(_read_chunk(chunk), raw=data)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ProviderInvalid("the provider sent an invalid chat completion") from error


def _load_object(data: bytes) -> dict[str, Any]:
    try:
        chunk: Any = msgspec.json.decode(data)
    except msgspec.DecodeError:  # lone surrogates
        chunk = json.loads(data)
    if not isinstance(chunk, dict):
        raise TypeError("not an object")
    return chunk


def _read_chunk(chunk: dict[str, Any]) -> Delta:
    other_texts: list[str] = []
    text, finish_reason, is_text = "", None, True
    for choice in chunk.get("choices") or ():
        message = choice.get("delta") or choice.get("message") or {}
        if choice.get("index") not in _FIRST_INDEXES:
            is_text = False
            _collect_texts(message, other_texts)
            continue
        if (content := message.get("content")) is not None:
            text += content if isinstance(content, str) else _join_parts(content)
        if choice.get("finish_reason"):
            finish_reason = _clean_finish_reason(choice["finish_reason"])
        if choice.get("logprobs") is not None:
            is_text = False
        for name, value in message.items():
            if name in _TEXT_MEMBERS or value is None:
                continue
            is_text = False
            if name == "refusal":
                text += value
            else:
                _collect_texts(value, other_texts)
    usage = None
    if chunk.get("usage") is not None:
        with suppress(msgspec.ValidationError):
            usage = _convert_usage(msgspec.convert(chunk["usage"], _WireUsage))
    return Delta(text, finish_reason, usage, "".join(other_texts), is_text=is_text, chunk=chunk)


def _join_parts(content: list[Any]) -> str:
    return "".join(part.get("text") or "" for part in content)


def _collect_texts(value: Any, texts: list[str]) -> None:
    """Collect the generated strings of a part of a message."""
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, list):
        for item in value:
            _collect_texts(item, texts)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in _NOT_GENERATED:
                _collect_texts(item, texts)


def _find_first_choice(choices: list[_Choice]) -> _Choice:
    """Return the choice with index 0, or an empty one: further choices were not requested."""
    return next((choice for choice in choices if choice.index in _FIRST_INDEXES), _Choice())


def _parse_completion(data: bytes) -> _Completion:
    try:
        return _completion_decoder.decode(data)
    # Content in parts, and lone surrogates, which JSON allows and models send.
    except msgspec.DecodeError:
        return _parse_unusual_completion(data)


def _parse_unusual_completion(data: bytes) -> _Completion:
    """Decode with the standard library, join the parts of contents, and keep lone surrogates."""
    decoded = json.loads(data)
    choices = decoded.get("choices") or []
    raw_messages = [choice.get(name) for choice in choices for name in ("delta", "message")]
    for raw in raw_messages:
        if raw and isinstance(raw.get("content"), list):
            raw["content"] = "".join(part.get("text") or "" for part in raw["content"])
    completion = _completion_decoder.decode(
        replace_surrogates(json.dumps(decoded, ensure_ascii=False))
    )
    messages = [
        message for choice in completion.choices or [] for message in (choice.delta, choice.message)
    ]
    for message, raw in zip(messages, raw_messages, strict=True):
        if message:
            message.content, message.refusal = raw.get("content"), raw.get("refusal")
    return completion


def _parse_usage(raw: msgspec.Raw) -> Usage | None:
    try:
        return _convert_usage(_usage_decoder.decode(raw))
    except msgspec.MsgspecError:  # null or implausible numbers
        return None


def _convert_usage(usage: _WireUsage) -> Usage | None:
    if not usage.prompt_tokens and not usage.completion_tokens:
        return None
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    reasoning = (
        usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else 0
    )
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=min(cached or 0, usage.prompt_tokens),
        reasoning_tokens=min(reasoning or 0, usage.completion_tokens),
    )


def _clean_finish_reason(finish_reason: str) -> str:
    """Bound and redact a finish reason, which is stored and sent to callers."""
    if finish_reason in _FINISH_REASONS:
        return finish_reason
    return redact_secrets(sanitize_text(finish_reason))[:FINISH_REASON_CHARACTERS_MAX]


def error_from_refusal(status: int, retry_after: str, error_object: object) -> ProviderError:
    """The exception for an error status. `error_object`: that of the body, or None."""
    reported = _read_reported_error(status, error_object)
    what = f"the provider answered {status}"
    if status in {429, 503}:
        error: ProviderError = ProviderBusy(
            what, retry_after_seconds=_parse_retry_after(retry_after)
        )
    elif status in {408, 504}:
        error = ProviderTimeout(what)
    elif status >= 500:
        error = ProviderError(what)
    elif (
        status < 400  # redirects, which are not followed
        or status in {401, 403}
        or (status == 404 and reported.code != "model_not_found")
    ):
        # The message may contain parts of the key, so it is not passed on.
        return ProviderRefused(f"{what}: check the key, the base URL and the model")
    else:
        error = ProviderRejected(f"{what}: {reported.message or 'no reason given'}")
    error.reported = reported
    return error


def _build_stream_error(error_object: object) -> ProviderError:
    error = ProviderError("the provider reported an error in the middle of the answer")
    error.reported = _read_reported_error(None, error_object)
    return error


def _read_reported_error(status: int | None, error_object: object) -> ReportedError:
    """Bound and redact the members of a provider's error."""
    members = error_object if isinstance(error_object, dict) else {}

    def clean(name: str, characters_max: int) -> str | None:
        value = members.get(name)
        if value is None or isinstance(value, dict | list):
            return None
        # A cut secret is not recognized.
        text = redact_secrets(sanitize_text(str(value)[: 10 * characters_max]))
        return text[:characters_max]

    return ReportedError(
        status=status,
        message=clean("message", MESSAGE_CHARACTERS_MAX) or None,
        type=clean("type", FINISH_REASON_CHARACTERS_MAX),
        param=clean("param", 10 * FINISH_REASON_CHARACTERS_MAX),
        code=clean("code", FINISH_REASON_CHARACTERS_MAX),
    )


def _parse_retry_after(value: str) -> int | None:
    return (
        min(int(value), 3600) if value.isascii() and value.isdigit() and len(value) < 10 else None
    )
