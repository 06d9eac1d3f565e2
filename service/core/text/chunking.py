"""Splitting text into chunks of whole sentences."""

import re
import unicodedata
from collections.abc import Iterator

import msgspec

from service.core.text.sentences import LIST_MARKER, split_sentences

TITLE_CHARACTERS_MAX = 300
_FIRST_LINE = re.compile(r"\S.{0,999}")  # its beginning


class Piece(msgspec.Struct, frozen=True):
    """A chunk: `text` is `whole[start:end]`."""

    start: int
    end: int
    text: str


def split_chunks(text: str, aim: int, overlap: int) -> list[Piece]:
    """Chunks of whole sentences, about `aim` characters each and at most twice as long.

    A chunk repeats up to `overlap` characters of whole sentences of the one before, but nothing across a heading. Only
    a sentence longer than `2 * aim` is cut.
    """
    units = [unit for span in split_sentences(text) for unit in _cut(text, *span, aim)]
    pieces = []
    first = 0
    while first < len(units):
        last = _fill(text, units, first, aim)
        start, end = _line_start(text, units, first), units[last][1]
        pieces.append(Piece(start, end, text[start:end]))
        first = _next(text, units, first, last, aim, overlap)
    return pieces


def _fill(text: str, units: list[tuple[int, int]], first: int, aim: int) -> int:
    """The last unit of the chunk that begins with `first`. A section that begins late ends it: its heading goes with it."""
    last, body = first, not is_heading(text, units[first][0])
    while last + 1 < len(units) and units[last + 1][1] - units[first][0] <= aim:
        heading = is_heading(text, units[last + 1][0])
        if heading and body and units[last][1] - units[first][0] >= aim // 2:
            break
        last += 1
        body = body or not heading
    if last + 1 < len(units) and is_heading(text, units[last][0]):
        if body:
            while is_heading(text, units[last][0]):
                last -= 1
        elif units[last + 1][1] - units[first][0] <= 2 * aim:
            last += (
                1  # a heading and its first sentence belong together, even a little over the aim
            )
    return last


def _next(
    text: str, units: list[tuple[int, int]], first: int, last: int, aim: int, overlap: int
) -> int:
    """The first unit of the next chunk: back as far as the overlap allows, and never without something new."""
    begin = last + 1
    if begin >= len(units) or is_heading(text, units[begin][0]):
        return begin
    while (
        begin - 1 > first
        and units[last][1] - units[begin - 1][0] <= overlap
        and units[last + 1][1] - units[begin - 1][0] <= aim
        and not is_heading(text, units[begin - 1][0])
    ):
        begin -= 1
    return begin


def derive_title(text: str) -> str:
    """What a text is called that was given no title: its first line that says something."""
    match = _FIRST_LINE.search(text)
    first = match[0].splitlines()[0].strip() if match else ""
    return (first.lstrip("#").strip() or first)[:TITLE_CHARACTERS_MAX]


def is_heading(text: str, start: int) -> bool:
    """Whether a Markdown heading begins here."""
    return text.startswith("#", start)


def _line_start(text: str, units: list[tuple[int, int]], index: int) -> int:
    """Where a unit's line begins, list marker included, if nothing but the marker stands before it."""
    start = units[index][0]
    floor = max(units[index - 1][1] if index else 0, start - 16)
    line = text.rfind("\n", floor, start) + 1 or floor
    marker = LIST_MARKER.match(text, line, start + 1)
    begin = line if marker and marker.end() == start else start
    while begin < start and text[begin].isspace():
        begin += 1
    return begin


def _cut(text: str, start: int, end: int, aim: int) -> Iterator[tuple[int, int]]:
    """A sentence as it is, or in parts of at most `aim` characters, cut after a comma or a space where there is one."""
    if end - start > 2 * aim:
        while end - start > aim:
            cut = (
                max(text.rfind(stop, start + aim // 2, start + aim) for stop in "、，, \n") + 1
                or start + aim
            )
            while cut < end and cut < start + aim + 16 and unicodedata.combining(text[cut]):
                cut += 1
            yield start, cut
            start = cut
    if text[start:end].strip():
        yield start, end
