"""The wire of OpenAI-compatible chat completions: bytes → `Delta`s, each byte looked at once. Pure.

The stream is server-sent events whose data are `chat.completion.chunk` objects, the last one `[DONE]`
(https://platform.openai.com/docs/api-reference/chat-streaming). What real servers do beside the letter is taken as it
is meant: CRLF line ends, comments, a null `content`, role-only and empty-choices chunks, usage on every chunk (the last
one counts), unknown fields, an error object in the middle of a stream, an emoji whose escaped halves come in two chunks.
What is not the protocol raises
`ProviderInvalid`. A usage that cannot be true (negative, fractional, null, beyond `TOKENS_MAX`) counts as not told.
"""

import json
from typing import Annotated

import msgspec

from service.core.encoding import replace_surrogates
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

TOKENS_MAX = 100_000_000
ERROR_BYTES_MAX = 65_536  # most that is read of the body of an error status
LINE_BYTES_MAX = 1_048_576  # longest line of a stream; a chunk of one token is about 250 bytes

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: _Tokens | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Tokens
    completion_tokens: _Tokens
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Text | None = None
    message: _Text | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


_completion = msgspec.json.Decoder(_Completion)
_usage = msgspec.json.Decoder(_Usage)


class StreamDecoder:
    """Takes the bytes of one stream as they come.

    `done` turns true at `[DONE]`. `error` is set by the first event that is wrong or says that the answer failed; what
    came before it is still good. After either, everything else is ignored.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._after_cr = False
        self._data: list[bytes] = []
        self._half = (
            ""  # the first half of a character whose second one may come with the next chunk
        )
        self.done = False
        self.error: ProviderError | None = None

    def feed(self, data: bytes) -> list[Delta]:
        """The deltas that these bytes complete."""
        deltas: list[Delta] = []
        if self._plain(data, deltas):
            return deltas
        if b"\r" in data or self._after_cr:
            data = self._with_newlines(data)
        lines = (self._rest + data).split(b"\n") if self._rest else data.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if self.done or self.error:
                break
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and self._data:
                self._event(deltas)
        if len(self._rest) > LINE_BYTES_MAX and not self.done:
            self.error = self.error or ProviderInvalid(
                "the provider sent a line of more than a megabyte"
            )
        return deltas

    def _plain(self, data: bytes, deltas: list[Delta]) -> bool:
        """Take bytes that are whole events of one line each, as they nearly always come; False for any others."""
        if (
            self._rest
            or self._data
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
            self._take(event[6:], deltas)
            if self.done or self.error:
                break
        return True

    def end(self) -> list[Delta]:
        """The stream has ended: the delta of a last event that lacks its closing blank line, if it is whole."""
        deltas: list[Delta] = []
        if not self.done and not self.error:
            self.feed(b"\n")
            if self._data:
                self._event(deltas)
        self._give_up_half(deltas)
        return deltas

    def _with_newlines(self, data: bytes) -> bytes:
        """CRLF and CR as LF, also where a CRLF is split between two reads."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _event(self, deltas: list[Delta]) -> None:
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data.clear()
        self._take(data, deltas)

    def _take(self, data: bytes, deltas: list[Delta]) -> None:
        if data[:1] != b"{" and data.strip() == b"[DONE]":
            self._give_up_half(deltas)
            self.done = True
        elif data:
            try:
                delta = _delta(data)
            except ProviderError as error:
                self.error = error
            else:
                whole = delta.text.isascii() and not self._half
                deltas.append(delta if whole else self._joined(delta))

    def _joined(self, delta: Delta) -> Delta:
        """The delta behind the half that is held back, without one at its own end; other halves become U+FFFD."""
        text = self._half + delta.text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return Delta(
            replace_surrogates(text.removesuffix(self._half)), delta.finish_reason, delta.usage
        )

    def _give_up_half(self, deltas: list[Delta]) -> None:
        if self._half:
            deltas.append(Delta(replace_surrogates(self._half)))
            self._half = ""


def decode_completion(data: bytes) -> Delta:
    """The whole of a non-streamed answer. Raises `ProviderInvalid`, or `ProviderError` for an error object."""
    delta = _delta(data)
    return Delta(replace_surrogates(delta.text), delta.finish_reason, delta.usage)


def _delta(data: bytes) -> Delta:
    try:
        completion = _parsed(data)
    except (
        ValueError,
        RecursionError,
    ) as error:  # of which msgspec's, json's and Unicode's errors are
        raise ProviderInvalid(
            "the provider sent something that is not a chat completion"
        ) from error
    if bytes(completion.error) != b"null":
        raise ProviderError("the provider reported an error in the middle of the answer")
    text, finish_reason = "", None
    if completion.choices:
        choice = completion.choices[0]
        said = choice.delta or choice.message
        text = (said.content or "") if said else ""
        finish_reason = choice.finish_reason
    usage = None if bytes(completion.usage) == b"null" else _told_usage(completion.usage)
    return Delta(text, finish_reason, usage)


def _parsed(data: bytes) -> _Completion:
    try:
        return _completion.decode(data)
    except msgspec.ValidationError:
        raise
    except (
        msgspec.DecodeError
    ):  # msgspec refuses lone surrogates, which JSON allows and models do send
        given = json.loads(data)
        completion = _completion.decode(replace_surrogates(json.dumps(given, ensure_ascii=False)))
        for choice, raw in zip(completion.choices or [], given["choices"] or [], strict=True):
            for said, name in ((choice.delta, "delta"), (choice.message, "message")):
                if said:
                    said.content = raw[name].get("content")
        return completion


def _told_usage(raw: msgspec.Raw) -> Usage | None:
    try:
        told = _usage.decode(raw)
    except msgspec.MsgspecError:  # null, or numbers that cannot be true
        return None
    cached = told.prompt_tokens_details.cached_tokens if told.prompt_tokens_details else 0
    reasoning = (
        told.completion_tokens_details.reasoning_tokens if told.completion_tokens_details else 0
    )
    return Usage(
        prompt_tokens=told.prompt_tokens,
        completion_tokens=told.completion_tokens,
        cached_tokens=min(cached or 0, told.prompt_tokens),
        reasoning_tokens=min(reasoning or 0, told.completion_tokens),
    )


def error_from_refusal(status: int, retry_after: str, said: object) -> ProviderError:
    """The error of a status. `said`: the error object of the body, if it has one."""
    said = said if isinstance(said, dict) else {}
    if status in {429, 503}:
        return ProviderBusy(
            f"the provider answered {status}", retry_after_seconds=_retry_after(retry_after)
        )
    if status in {408, 504}:
        return ProviderTimeout(f"the provider answered {status}")
    if status >= 500:
        return ProviderError(f"the provider answered {status}")
    if status in {401, 403} or (status == 404 and said.get("code") != "model_not_found"):
        # Its words may repeat parts of the key; they are not passed on.
        return ProviderRefused(
            f"the provider answered {status}: check the key, the base URL and the model"
        )
    return ProviderRejected(
        f"the provider answered {status}: {str(said.get('message') or 'no reason given')[:500]}"
    )


def _retry_after(value: str) -> int | None:
    return (
        min(int(value), 3600) if value.isascii() and value.isdigit() and len(value) < 10 else None
    )
