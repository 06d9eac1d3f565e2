"""JSON objects that hold a large text: decoded in parts, each of which holds the interpreter's lock for about a millisecond.

`json.loads` and msgspec decode a text of 10 MB in one call, for which every stream of the service would wait. A part ends
neither within an escape nor within a character.
"""

import json
import re
from collections.abc import Collection

from service.core.text.decoding import PART

Scalar = str | int | float | bool | None

MEMBERS_MAX = 100  # repetitions included: of a name that occurs twice the last value counts
_SPACE = rb"[ \t\r\n]{0,1000}"
_BEGIN = re.compile(_SPACE + rb"\{" + _SPACE)
_NAME = re.compile(rb'"(\w{1,64})"' + _SPACE + rb":" + _SPACE)
_SCALAR = re.compile(rb"true|false|null|-?\d{1,300}(?:\.\d{1,300})?(?:[eE][+-]?\d{1,3})?")
_NEXT = re.compile(_SPACE + rb"([,}])" + _SPACE)
_END = re.compile(rb"\Z")
_STRING_PART = re.compile(rb'[^"\\]*(?:\\(?:u[0-9a-fA-F]{4}|[^u])[^"\\]*)*', re.DOTALL)
_HIGH_SURROGATES, _LOW_SURROGATES = range(0xD800, 0xDC00), range(0xDC00, 0xE000)


def decode_members(raw: bytes, names: Collection[str]) -> dict[str, Scalar]:
    """The members, one at least, of an object that has strings, numbers, `true`, `false` and `null` under these names.

    Raises `ValueError` with the reason, at the first other name and at the first array or object.
    """
    members: dict[str, Scalar] = {}
    position = _expect(_BEGIN, raw, 0, "an object").end()
    for _ in range(MEMBERS_MAX):
        match = _expect(_NAME, raw, position, "the name of a field")
        name = match[1].decode()
        if name not in names:
            raise ValueError(f"unknown field `{name}`")
        members[name], position = _decode_value(raw, match.end(), name)
        match = _expect(_NEXT, raw, position, "a comma or the end of the object")
        position = match.end()
        if match[1] == b"}":
            _expect(_END, raw, position, "nothing more")
            return members
    raise ValueError(f"the object has more than {MEMBERS_MAX} fields")


def decode_string(raw: bytes, begin: int) -> tuple[str, int]:
    """(the string whose quote is at `begin`, the position behind it). Raises `ValueError`."""
    parts: list[str] = []
    position = begin + 1
    while True:
        match = _STRING_PART.match(raw, position, position + PART)
        end = match.end() if match else position
        complete = raw[end : end + 1] == b'"'
        if not complete:
            end = _begin_of_character(raw, end)
            if end <= position:
                raise ValueError(f"expected the rest of a string at byte {position}")
        part = json.loads(b'"%b"' % raw[position:end])
        if parts and _is_pair(parts[-1], part):
            part = (parts[-1][-1] + part[0]).encode("utf-16", "surrogatepass").decode("utf-16") + part[1:]
            parts[-1] = parts[-1][:-1]
        parts.append(part)
        if complete:
            return "".join(parts), end + 1
        position = end


def _expect(pattern: re.Pattern[bytes], raw: bytes, position: int, what: str) -> re.Match[bytes]:
    match = pattern.match(raw, position)
    if not match:
        raise ValueError(f"expected {what} at byte {position}")
    return match


def _decode_value(raw: bytes, position: int, name: str) -> tuple[Scalar, int]:
    if raw[position : position + 1] == b'"':
        return decode_string(raw, position)
    match = _SCALAR.match(raw, position)
    if not match:
        raise ValueError(f"field `{name}` must be a string, a number, true, false or null")
    value: Scalar = json.loads(match[0])
    return value, match.end()


def _begin_of_character(raw: bytes, position: int) -> int:
    while position > 0 and raw[position : position + 1] and raw[position] & 0xC0 == 0x80:
        position -= 1
    return position


def _is_pair(before: str, after: str) -> bool:
    """Whether an escaped surrogate pair was split between two parts."""
    return bool(before and after) and ord(before[-1]) in _HIGH_SURROGATES and ord(after[0]) in _LOW_SURROGATES
