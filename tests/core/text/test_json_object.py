"""JSON objects with a large text, against the standard library."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.text.decoding import PART_SIZE
from service.core.text.json_object import MEMBERS_MAX, decode_members, decode_string

NAMES = ("text", "title", "shared")
SCALARS = (
    st.none()
    | st.booleans()
    | st.text()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
)


@given(
    st.dictionaries(st.sampled_from(NAMES), SCALARS, min_size=1),
    st.booleans(),
    st.sampled_from([None, 1, "\t"]),
)
def test_objects_are_decoded(
    members: dict[str, object], ascii_only: bool, indent: int | str | None
) -> None:
    """An object of scalars is what json.loads makes of it, however it was written."""
    raw = json.dumps(members, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace")

    assert decode_members(raw, NAMES) == json.loads(raw)


UNITS = ["a", "\n", '"', "\\", "é", "あ", "😀", "\\u", "\x00"]


@given(
    st.lists(st.sampled_from(UNITS), max_size=20),
    st.sampled_from(UNITS),
    st.integers(-14, 14),
    st.booleans(),
)
def test_strings_are_cut_between_characters(
    tail: list[str], unit: str, offset: int, ascii_only: bool
) -> None:
    """A text of several parts is whole, whatever is where a part ends."""
    written = len(json.dumps(unit, ensure_ascii=ascii_only).encode()) - 2
    text = "x" * (PART_SIZE % written + offset + 14) + unit * (PART_SIZE // written) + "".join(tail)
    raw = json.dumps(text, ensure_ascii=ascii_only).encode()

    assert decode_string(raw, 0) == (text, len(raw))


def test_a_lone_surrogate_is_kept() -> None:
    """A lone surrogate is decoded as json.loads does it; storing it replaces it."""
    raw = b'"' + b"a" * (PART_SIZE - 3) + b"\\ud83d" + b'b\\ude00"'

    assert decode_string(raw, 0)[0] == json.loads(raw)


def test_the_last_value_of_a_name_counts() -> None:
    """A repeated name is no error, as in json.loads."""
    assert decode_members(b'{"text":"a","text":"b"}', NAMES) == {"text": "b"}


INVALID = {
    "empty": b"",
    "no object": b'["text"]',
    "unknown": b'{"text":"a","other":1}',
    "array": b'{"text":["a"]}',
    "object": b'{"text":{}}',
    "no quote": b'{"text":"a',
    "no end": b'{"text":"a"',
    "no value": b'{"text":}',
    "no colon": b'{"text" "a"}',
    "comma at the end": b'{"text":"a",}',
    "more": b'{"text":"a"} {}',
    "bad escape": rb'{"text":"\x"}',
    "short escape": rb'{"text":"\u12"}',
    "control character": b'{"text":"a\nb"}',
    "not UTF-8": b'{"text":"\xff"}',
    "continuation bytes": b'{"text":"' + b"\x80" * (PART_SIZE + 10) + b'"}',
    "NaN": b'{"text":NaN}',
    "long number": b'{"text":' + b"1" * 5000 + b"}",
    "many members": b"{" + b'"text":"a",' * MEMBERS_MAX + b'"text":"a"}',
    "much white space": b'{"text":' + b" " * 5000 + b'"a"}',
}


@pytest.mark.parametrize("raw", INVALID.values(), ids=INVALID.keys())
def test_anything_else_is_an_error(raw: bytes) -> None:
    """What is not an object of known scalars raises ValueError."""
    with pytest.raises(ValueError, match=r".+"):
        decode_members(raw, NAMES)
