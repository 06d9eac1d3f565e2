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
from typing import Annotated

import msgspec

from service.core.encoding import replace_surrogates, sanitize_text
from service.core.errors import (
    ProviderBusy,
    ProviderError,
    ProviderInvalid,
    ProviderRefused,
    ProviderRejected,
    ProviderTimeout,
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


_completion_decoder = msgspec.json.Decoder(_Completion)
_usage_decoder = msgspec.json.Decoder(_WireUsage)


class StreamDecoder:
    """Incremental decoder of one stream.

    `done` is set at `[DONE]`, `error` at the first event that is invalid or reports a failure;
    earlier deltas remain valid. Everything after either is ignored.
    """

    def __init__(self) -> None:
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
            if delta.text:
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
                delta = _decode_delta(data)
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
        return Delta(
            sanitize_text(text.removesuffix(self._high_surrogate)),
            delta.finish_reason,
            delta.usage,
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


def decode_completion(data: bytes) -> Delta:
    """Decode a response that is not streamed. Raises `ProviderInvalid`, `ProviderError`."""
    delta = _decode_delta(data.removeprefix(BYTE_ORDER_MARK))
    return Delta(sanitize_text(delta.text), delta.finish_reason, delta.usage)


def _decode_delta(data: bytes) -> Delta:
    try:
        completion = _parse_completion(data)
    # Errors of msgspec, json and Unicode are ValueErrors; others are due to unexpected types.
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ProviderInvalid("the provider sent an invalid chat completion") from error
    if bytes(completion.error) != b"null":
        raise ProviderError("the provider reported an error in the middle of the answer")
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
        usage = _usage_decoder.decode(raw)
    except msgspec.MsgspecError:  # null or implausible numbers
        return None
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
    error_object = error_object if isinstance(error_object, dict) else {}
    if status in {429, 503}:
        return ProviderBusy(
            f"the provider answered {status}", retry_after_seconds=_parse_retry_after(retry_after)
        )
    if status in {408, 504}:
        return ProviderTimeout(f"the provider answered {status}")
    if status >= 500:
        return ProviderError(f"the provider answered {status}")
    if status in {401, 403} or (status == 404 and error_object.get("code") != "model_not_found"):
        # The message may contain parts of the key, so it is not passed on.
        return ProviderRefused(
            f"the provider answered {status}: check the key, the base URL and the model"
        )
    message = str(error_object.get("message") or "no reason given")[: 10 * MESSAGE_CHARACTERS_MAX]
    message = redact_secrets(message)[:MESSAGE_CHARACTERS_MAX]  # a cut secret is not recognized
    return ProviderRejected(f"the provider answered {status}: {message}")


def _parse_retry_after(value: str) -> int | None:
    return (
        min(int(value), 3600) if value.isascii() and value.isdigit() and len(value) < 10 else None
    )
