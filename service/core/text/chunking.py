"""Splitting text into chunks of whole sentences.

A change of the rules, also those of `blocks.py` and `sentences.py`, changes `RULES`, and documents
are re-indexed.
"""

import re
import unicodedata
from collections.abc import Iterator

import msgspec

from service.core.text.blocks import LIST_MARKER, BlockKind
from service.core.text.sentences import Unit, split_units

RULES = 2
TITLE_CHARACTERS_MAX = 300
INTRODUCTION_CHARACTERS_MAX = 300  # longer ones are not repeated
_FIRST_LINE = re.compile(r"\S.{0,999}")  # at most its first 1,000 characters
_FRONT_MATTER_TITLE = re.compile(r"---[ \t]*\n(?:[\w-]+:.{0,500}\n){0,50}?title:[ \t]*(\S.{0,999})")
_HEADING_MARKER = re.compile(r"#{1,6}(?=[ \t])")
_FENCE = re.compile(r"[ \t]*(?:`{3,}|~{3,})[^\n]{0,40}")


class Piece(msgspec.Struct, frozen=True):
    """A chunk. `start` and `end` are its position in the document.

    `text` is that part of the document. If it begins within a list, table or code block, the
    sentence, header or fence that introduces it precedes. `heading`: the last heading above, or
    an empty string if the chunk begins with a heading.
    """

    start: int
    end: int
    text: str
    heading: str


def split_chunks(text: str, target: int, overlap: int) -> list[Piece]:
    """Split a text into chunks of whole sentences, about `target` characters each.

    A chunk has at most twice the target and an introduction. It repeats up to `overlap` characters
    of the previous one, as whole sentences, but nothing across a heading. Only sentences and code
    blocks longer than twice the target are split.
    """
    whole = split_units(text)
    units, origins = _split_units(text, whole, target)
    pieces = []
    heading, first, searched = "", 0, 0
    while first < len(units):
        last = _fill_chunk(units, first, target)
        start, end = _find_line_start(text, units, first), units[last].end
        headings = [unit for unit in units[searched : first + 1] if _is_heading(unit)]
        heading = text[headings[-1].start : headings[-1].end] if headings else heading
        above = "" if _is_heading(units[first]) else heading
        introduction = _find_introduction(text, whole, units[first], origins[first])
        pieces.append(Piece(start, end, introduction + text[start:end], above))
        searched = first + 1
        first = _find_next_start(units, first, last, target, overlap)
    return pieces


def _is_heading(unit: Unit) -> bool:
    return unit.kind is BlockKind.HEADING


def _fill_chunk(units: list[Unit], first: int, target: int) -> int:
    """Return the last unit of the chunk that begins with `first`.

    A heading in the second half of a chunk begins the next one, so that it stays with its section.
    A heading at the end does, too, and the introduction of a list, a table or code.
    """
    last, body = first, not _is_heading(units[first])
    while last + 1 < len(units) and units[last + 1].end - units[first].start <= target:
        heading = _is_heading(units[last + 1])
        if heading and body and units[last].end - units[first].start >= target // 2:
            break
        last += 1
        body = body or not heading
    if last + 1 == len(units):
        return last
    while last > first and _introduces_next(units, last):
        last -= 1
    if not body or _introduces_next(units, last):
        # A heading or an introduction stays with what follows, even beyond the target.
        while (
            last + 1 < len(units)
            and units[last + 1].end - units[first].start <= 2 * target
            and (_introduces_next(units, last) or last == first)
        ):
            last += 1
    return last


def _introduces_next(units: list[Unit], n: int) -> bool:
    """Return whether a unit is a heading, or introduces the next one in another block."""
    unit, following = units[n], units[n + 1] if n + 1 < len(units) else None
    return _is_heading(unit) or (
        following is not None
        and unit.kind is BlockKind.PARAGRAPH
        and following.kind in (BlockKind.ITEM, BlockKind.CODE, BlockKind.TABLE)
    )


def _find_next_start(units: list[Unit], first: int, last: int, target: int, overlap: int) -> int:
    """Return the first unit of the next chunk, which overlaps the current one if allowed."""
    begin = last + 1
    if begin >= len(units) or _is_heading(units[begin]):
        return begin
    while (
        begin - 1 > first
        and units[last].end - units[begin - 1].start <= overlap
        and units[last + 1].end - units[begin - 1].start <= target
        and not _is_heading(units[begin - 1])
    ):
        begin -= 1
    return begin


def _find_introduction(text: str, whole: list[Unit], part: Unit, unit: Unit) -> str:
    """Return what a chunk repeats that begins with a part of a unit: its introduction, if any."""
    if unit.kind is BlockKind.CODE:
        fence = _FENCE.match(text, unit.start)
        return f"{fence.group()}\n" if fence and part.start > unit.start else ""
    above = whole[unit.introduction] if unit.introduction >= 0 else None
    if above is None or (unit.kind is BlockKind.TABLE and above.kind is not BlockKind.TABLE):
        return ""
    introduction = text[above.start : above.end]
    return f"{introduction}\n" if len(introduction) <= INTRODUCTION_CHARACTERS_MAX else ""


def derive_title(text: str) -> str:
    """Return the title of a text without one: that of its front matter, or its first line."""
    match = _FRONT_MATTER_TITLE.match(text)
    if match:
        return match[1].strip().strip("\"'").strip()[:TITLE_CHARACTERS_MAX] or "---"
    match = _FIRST_LINE.search(text)
    line = match[0].splitlines()[0].strip() if match else ""
    return (_HEADING_MARKER.sub("", line, count=1).strip() or line)[:TITLE_CHARACTERS_MAX]


def _find_line_start(text: str, units: list[Unit], index: int) -> int:
    """Return the start of a unit, including the list marker in front of it."""
    start = units[index].start
    floor = max(units[index - 1].end if index else 0, start - 16)
    line = text.rfind("\n", floor, start) + 1 or floor
    marker = LIST_MARKER.match(text, line, start + 1)
    begin = line if marker and marker.end() == start else start
    while begin < start and text[begin].isspace():
        begin += 1
    return begin


def _split_units(text: str, whole: list[Unit], target: int) -> tuple[list[Unit], list[Unit]]:
    """Return units, too long ones in parts of at most `target` characters, and their origins."""
    if all(unit.end - unit.start <= 2 * target for unit in whole):
        return whole, whole
    parts = [(part, unit) for unit in whole for part in _split_unit(text, unit, target)]
    return [part for part, _ in parts], [unit for _, unit in parts]


def _split_unit(text: str, unit: Unit, target: int) -> Iterator[Unit]:
    """Yield a unit or its parts.

    Parts of code end with a line; others after a comma or a space, where possible.
    """
    start, end = unit.start, unit.end
    if end - start > 2 * target:
        stops = ("\n",) if unit.kind is BlockKind.CODE else tuple("、，, \n")
        while end - start > target:
            cut = max(text.rfind(stop, start + target // 2, start + target) for stop in stops) + 1
            cut = cut or start + target
            while cut < end and cut < start + target + 16 and unicodedata.combining(text[cut]):
                cut += 1
            yield unit._replace(start=start, end=cut)
            start = cut
    if text[start:end].strip():
        yield unit._replace(start=start)
