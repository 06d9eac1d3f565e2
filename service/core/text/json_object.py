"""Decoding of JSON objects with a large text, in parts of about a millisecond each.

`json.loads` and msgspec decode a text of 10 MB in one call, which holds the interpreter lock and
blocks all streams. Parts end neither within an escape nor within a character.
"""

import json
import re
from collections.abc import Collection

from service.core.text.decoding import PART_SIZE

Scalar = str | int | float | bool | None

MEMBERS_MAX = 100  # including repeated names, of which the last value counts
_SPACE = rb"[ \t\r\n]{0,1000}"
_BEGIN = re.compile(_SPACE + rb"\{" + _SPACE)
_NAME = re.compile(rb'"(\w{1,64})"' + _SPACE + rb":" + _SPACE)
_SCALAR = re.compile(rb"true|false|null|-?\d{1,300}(?:\.\d{1,300})?(?:[eE][+-]?\d{1,3})?")
_NEXT = re.compile(_SPACE + rb"([,}])" + _SPACE)
_END = re.compile(rb"\Z")
_STRING_PART = re.compile(rb'[^"\\]*(?:\\(?:u[0-9a-fA-F]{4}|[^u])[^"\\]*)*', re.DOTALL)
_HIGH_SURROGATES, _LOW_SURROGATES = range(0xD800, 0xDC00), range(0xDC00, 0xE000)


def decode_members(raw: bytes, names: Collection[str]) -> dict[str, Scalar]:
    """Return the members of an object with strings, numbers, `true`, `false` and `null`.

    Raises `ValueError` with the reason, also for other names, arrays and objects.
    """
    members: dict[str, Scalar] = {}
    position = _match_token(_BEGIN, raw, 0, "an object").end()
    for _ in range(MEMBERS_MAX):
        match = _match_token(_NAME, raw, position, "the name of a field")
        name = match[1].decode()
        if name not in names:
            raise ValueError(f"unknown field `{name}`")
        members[name], position = _decode_value(raw, match.end(), name)
        match = _match_token(_NEXT, raw, position, "a comma or the end of the object")
        position = match.end()
        if match[1] == b"}":
            _match_token(_END, raw, position, "nothing more")
            return members
    raise ValueError(f"the object has more than {MEMBERS_MAX} fields")


def decode_string(raw: bytes, begin: int) -> tuple[str, int]:
    """Return the string that begins with the quote at `begin`, and its end. Raises `ValueError`."""
    parts: list[str] = []
    position = begin + 1
    while True:
        match = _STRING_PART.match(raw, position, position + PART_SIZE)
        end = match.end() if match else position
        complete = raw[end : end + 1] == b'"'
        if not complete:
            end = _find_character_start(raw, end)
            if end <= position:
                raise ValueError(f"expected the rest of a string at byte {position}")
        part = json.loads(b'"%b"' % raw[position:end])
        if parts and _is_split_pair(parts[-1], part):
            part = (parts[-1][-1] + part[0]).encode("utf-16", "surrogatepass").decode(
                "utf-16"
            ) + part[1:]
            parts[-1] = parts[-1][:-1]
        parts.append(part)
        if complete:
            return "".join(parts), end + 1
        position = end


def _match_token(
    pattern: re.Pattern[bytes], raw: bytes, position: int, expected: str
) -> re.Match[bytes]:
    match = pattern.match(raw, position)
    if not match:
        raise ValueError(f"expected {expected} at byte {position}")
    return match


def _decode_value(raw: bytes, position: int, name: str) -> tuple[Scalar, int]:
    if raw[position : position + 1] == b'"':
        return decode_string(raw, position)
    match = _SCALAR.match(raw, position)
    if not match:
        raise ValueError(f"field `{name}` must be a string, a number, true, false or null")
    value: Scalar = json.loads(match[0])
    return value, match.end()


def _find_character_start(raw: bytes, position: int) -> int:
    while position > 0 and raw[position : position + 1] and raw[position] & 0xC0 == 0x80:
        position -= 1
    return position


def _is_split_pair(before: str, after: str) -> bool:
    """Return whether an escaped surrogate pair is split between two parts."""
    return (
        bool(before and after)
        and ord(before[-1]) in _HIGH_SURROGATES
        and ord(after[0]) in _LOW_SURROGATES
    )
