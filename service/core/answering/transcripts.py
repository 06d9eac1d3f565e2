"""Transcripts: what a provider sent for one chat completion, as it is passed on to the client.

Chunks are passed on as they are, except for what clients depend on and some providers get wrong:
the role is in the first delta of each choice and in no other, and a chunk has `object`, `created`,
`model`, an index and a delta. The id is that of the answer, and usage is sent once, at the end;
chunks without choices have only usage and are left out.

`read_choices` merges the chunks into the choices that a log row has if they are more than a text.
"""

import json
import re
from typing import Any, cast

import anyio.to_thread
import msgspec

from service.core.encoding import sanitize_text, to_json
from service.core.errors import ProviderInvalid
from service.core.ports import Delta

CHUNK_BYTES_MAX = 250  # of a chunk, on average, per 4 bytes of text
INLINE_BYTES = 65_536  # of chunks that are merged without a thread
_DEFAULTS = ("object", "created", "model")
# The members that are not passed on, where they are first and last.
_BEGIN = re.compile(rb'\{\s*"id"\s*:\s*"[^"\\]*"\s*,')
_END = re.compile(rb'(?:,\s*"usage"\s*:\s*null\s*)?\}\s*\Z')
_REPLACED = ("index", "type", "role", "id")


class ChatTranscript:
    """The chunks of one answer as JSON, or its completion, both without `id` and `usage`.

    `finish_position`: the position of the chunk that ends the first choice. `usage`: the last
    usage object, as the provider sent it. `envelope`: the members of a chunk except its choices.
    """

    def __init__(self, *, stream: bool, model: str, created: int, answer_bytes_max: int) -> None:
        self.chunks: list[bytes] = []
        self.completion: dict[str, Any] | None = None
        self.finish_position: int | None = None
        self.usage: dict[str, Any] | None = None
        kind = "chat.completion.chunk" if stream else "chat.completion"
        self.envelope: dict[str, Any] = {"object": kind, "created": created, "model": model}
        self._stream = stream
        self._roles: set[Any] = set()  # choices whose role was sent
        self._is_text = True
        self._begin = self._end = b""  # of a chunk, around what is passed on
        self._begin_size = self._end_size = 0
        self._bytes_max = answer_bytes_max * CHUNK_BYTES_MAX // 4
        self.size = 0

    def add_delta(self, delta: Delta) -> int:
        """Add a chunk or the completion; returns its size in bytes. Raises `ProviderInvalid`."""
        raw = delta.raw or b""
        if delta.chunk is not None:
            data = self._translate(delta.chunk, raw)
            self._is_text = self._is_text and delta.is_text
        elif (
            b'"role"' not in raw
            and self._begin
            and raw.startswith(self._begin)
            and raw.endswith(self._end)
        ):
            data = b"{" + raw[self._begin_size : -self._end_size] + b"}"
            if delta.finish_reason and self.finish_position is None:
                self.finish_position = len(self.chunks)
        else:
            data = self._translate(msgspec.json.decode(raw), raw)
        if not data:
            return 0
        self.chunks.append(data)
        size = len(data)
        self.size += size
        if self.size > self._bytes_max:
            raise ProviderInvalid(f"the chunks are longer than {self._bytes_max} bytes")
        return size

    def _translate(self, chunk: dict[str, Any], raw: bytes) -> bytes:
        """Encode a chunk without id and usage, repaired; empty if it has no choices."""
        usage = chunk.pop("usage", None)
        if isinstance(usage, dict):
            self.usage = usage
        chunk.pop("id", None)
        for name in _DEFAULTS:
            if name not in chunk or chunk[name] is None:
                chunk[name] = self.envelope[name]
        choices = chunk.get("choices")
        if not choices or not self.chunks:  # chunks that are built here are like the others
            self.envelope |= {name: value for name, value in chunk.items() if name != "choices"}
        if not choices:
            return b""
        if not self._stream:
            self.completion = chunk
            _repair_messages(choices)
            return b""
        self._repair_deltas(choices)
        if not self._begin:
            self._learn_format(raw)
        return _encode(chunk)

    def _learn_format(self, raw: bytes) -> None:
        """Remember how a chunk with a role begins and ends: chunks of text do the same.

        They can then be passed on without encoding them again.
        """
        begin, end = _BEGIN.match(raw), _END.search(raw)
        if begin and end and self._roles == {0}:
            self._begin, self._end = begin[0], end[0]
            self._begin_size, self._end_size = len(begin[0]), len(end[0])

    def _repair_deltas(self, choices: list[dict[str, Any]]) -> None:
        for choice in choices:
            index = choice.get("index")
            if index is None:
                index = choice["index"] = 0
            delta = choice.get("delta")
            if delta is None:
                delta = choice["delta"] = {}
            if index not in self._roles:
                self._roles.add(index)
                if not delta.get("role"):
                    choice["delta"] = {**delta, "role": "assistant"}
            elif "role" in delta:
                del delta["role"]
            if self.finish_position is None and choice.get("finish_reason") and index == 0:
                self.finish_position = len(self.chunks)

    async def read_choices(self) -> list[dict[str, Any]] | None:
        """Return the choices, merged and in order; None if there is only a text."""
        if self._is_text:
            return None
        if self.size <= INLINE_BYTES:
            return self._build_choices()
        return await anyio.to_thread.run_sync(self._build_choices)

    def _build_choices(self) -> list[dict[str, Any]]:
        if self.completion is not None:
            return cast("list[dict[str, Any]]", _sanitize(self.completion["choices"]))
        merged: dict[Any, dict[str, Any]] = {}
        for data in self.chunks:
            for choice in json.loads(data)["choices"]:
                parts = merged.setdefault(choice["index"], {})
                choice["message"] = choice.pop("delta")
                _merge(parts, choice)
        choices = [_join(merged[index]) for index in sorted(merged, key=str)]
        return cast("list[dict[str, Any]]", _sanitize(choices))


def _repair_messages(choices: list[dict[str, Any]]) -> None:
    for index, choice in enumerate(choices):
        if "index" not in choice or choice["index"] is None:
            choice["index"] = index
        message = choice.get("message")
        if message and ("role" not in message or not message["role"]):
            message["role"] = "assistant"


class _Pieces(list[str]):
    """The pieces of a string."""


def _merge(parts: dict[str, Any], delta: dict[str, Any]) -> None:
    """Merge an increment: strings and lists grow, list items with an `index` are merged."""
    for name, value in delta.items():
        current = parts.get(name)
        if value is None:
            parts.setdefault(name, None)
        elif isinstance(value, str) and name not in _REPLACED and name != "finish_reason":
            if current is None:
                parts[name] = _Pieces([value])
            elif isinstance(current, _Pieces):
                current.append(value)
        elif isinstance(value, dict):
            if not isinstance(current, dict):
                current = parts[name] = {}
            _merge(current, value)
        elif isinstance(value, list):
            if not isinstance(current, list):
                current = parts[name] = []
            _merge_items(current, value)
        else:
            parts[name] = value


def _merge_items(items: list[Any], increment: list[Any]) -> None:
    for item in increment:
        index = item.get("index") if isinstance(item, dict) else None
        if not isinstance(index, int):
            items.append(item)
            continue
        current = next((other for other in items if other.get("index") == index), None)
        if current is None:
            current = {}
            items.append(current)
        _merge(current, item)


def _join(value: Any) -> Any:
    if isinstance(value, _Pieces):
        return "".join(value)
    if isinstance(value, dict):
        return {name: _join(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_join(item) for item in value]
    return value


def _sanitize(value: Any) -> Any:
    """Replace what a database cannot store in all strings."""
    if isinstance(value, str):
        return sanitize_text(value)
    if isinstance(value, dict):
        return {name: _sanitize(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_sanitize(item) for item in value]
    return value


def _encode(chunk: dict[str, Any]) -> bytes:
    try:
        return to_json(chunk)
    except (UnicodeEncodeError, msgspec.MsgspecError):  # lone surrogates stay escaped
        return json.dumps(chunk, separators=(",", ":")).encode()
