"""Splitting text into chunks of whole sentences."""

import re
import unicodedata
from collections.abc import Iterator

import msgspec

from service.core.text.sentences import LIST_MARKER, split_sentences

TITLE_CHARACTERS_MAX = 300
_FIRST_LINE = re.compile(r"\S.{0,999}")  # at most its first 1,000 characters


class Piece(msgspec.Struct, frozen=True):
    """A chunk. `start` and `end` are its position in the document."""

    start: int
    end: int
    text: str


def split_chunks(text: str, target: int, overlap: int) -> list[Piece]:
    """Split a text into chunks of whole sentences, about `target` characters each.

    A chunk has at most twice the target. It repeats up to `overlap` characters of the previous
    one, as whole sentences, but nothing across a heading. Only sentences longer than twice the
    target are split.
    """
    units = [unit for span in split_sentences(text) for unit in _split_unit(text, *span, target)]
    pieces = []
    first = 0
    while first < len(units):
        last = _fill_chunk(text, units, first, target)
        start, end = _find_line_start(text, units, first), units[last][1]
        pieces.append(Piece(start, end, text[start:end]))
        first = _find_next_start(text, units, first, last, target, overlap)
    return pieces


def _fill_chunk(text: str, units: list[tuple[int, int]], first: int, target: int) -> int:
    """Return the last unit of the chunk that begins with `first`.

    A heading in the second half of a chunk begins the next one, so that it stays with its section.
    """
    last, body = first, not is_heading(text, units[first][0])
    while last + 1 < len(units) and units[last + 1][1] - units[first][0] <= target:
        heading = is_heading(text, units[last + 1][0])
        if heading and body and units[last][1] - units[first][0] >= target // 2:
            break
        last += 1
        body = body or not heading
    if last + 1 < len(units) and is_heading(text, units[last][0]):
        if body:
            while is_heading(text, units[last][0]):
                last -= 1
        elif units[last + 1][1] - units[first][0] <= 2 * target:
            # A heading and its first sentence stay together, even beyond the target.
            last += 1
    return last


def _find_next_start(
    text: str, units: list[tuple[int, int]], first: int, last: int, target: int, overlap: int
) -> int:
    """Return the first unit of the next chunk, which overlaps the current one if allowed."""
    begin = last + 1
    if begin >= len(units) or is_heading(text, units[begin][0]):
        return begin
    while (
        begin - 1 > first
        and units[last][1] - units[begin - 1][0] <= overlap
        and units[last + 1][1] - units[begin - 1][0] <= target
        and not is_heading(text, units[begin - 1][0])
    ):
        begin -= 1
    return begin


def derive_title(text: str) -> str:
    """Return the title of a text without one: its first line that is not blank."""
    match = _FIRST_LINE.search(text)
    line = match[0].splitlines()[0].strip() if match else ""
    return (line.lstrip("#").strip() or line)[:TITLE_CHARACTERS_MAX]


def is_heading(text: str, start: int) -> bool:
    """Return whether a Markdown heading begins at this position."""
    return text.startswith("#", start)


def _find_line_start(text: str, units: list[tuple[int, int]], index: int) -> int:
    """Return the start of a unit, including the list marker in front of it."""
    start = units[index][0]
    floor = max(units[index - 1][1] if index else 0, start - 16)
    line = text.rfind("\n", floor, start) + 1 or floor
    marker = LIST_MARKER.match(text, line, start + 1)
    begin = line if marker and marker.end() == start else start
    while begin < start and text[begin].isspace():
        begin += 1
    return begin


def _split_unit(text: str, start: int, end: int, target: int) -> Iterator[tuple[int, int]]:
    """Yield a sentence, in parts of at most `target` characters if it is too long.

    Parts end after a comma or a space where possible.
    """
    if end - start > 2 * target:
        while end - start > target:
            cut = (
                max(text.rfind(stop, start + target // 2, start + target) for stop in "、，, \n")
                + 1
                or start + target
            )
            while cut < end and cut < start + target + 16 and unicodedata.combining(text[cut]):
                cut += 1
            yield start, cut
            start = cut
    if text[start:end].strip():
        yield start, end
