"""The block structure of Markdown and plain text.

Blocks are those of CommonMark (https://spec.commonmark.org/0.31.2/) with the tables of GitHub and
front matter: headings, paragraphs, list items, tables, code. Differences, for plain text: a line
that begins with an ideographic space or a symbol such as ■ begins a paragraph; a line break in a
paragraph of short lines (an address) or between lines of the form `Name: value` (the header of an
e-mail) separates; indented prose is a paragraph, not code; a change of the quotation depth ends a
block. Not recognized: link definitions, raw HTML.

`markdown-it-py` needs three times as long, which would slow down chunking by a seventh, and has no
positions within lines.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple


class BlockKind(StrEnum):
    """What a block is."""

    HEADING = "heading"
    PARAGRAPH = "paragraph"
    ITEM = "item"  # a list item; `spans` are without its marker
    TABLE = "table"  # `spans`: the header with its delimiter row, then each row
    CODE = "code"
    METADATA = "metadata"  # front matter; `spans`: its lines


class Block(NamedTuple):
    """A block. `spans` are the parts of the text that no line break separates."""

    kind: BlockKind
    spans: list[tuple[int, int]]


FRONT_MATTER_CHARACTERS_MAX = 5_000
LABEL_CHARACTERS_MAX = 30  # of the name in `Name: value`
NARROW_COLUMNS = 40  # lines of a paragraph whose longest line is shorter are separate
WRAPPED_COLUMNS_MIN = 24  # of such a paragraph if its lines are wrapped, which are equally long
SETEXT_CHARACTERS_MAX = 100

LIST_MARKER = re.compile(
    r"[ \t\u3000]*+(?:[-*+•・◦▪–][ \t\u3000]++|[・•]|\(?\d{1,3}[.)][ \t\u3000]++"
    r"|(?:[0-9０-９]{1,3}．|[（(][0-9０-９]{1,2}[)）]|[①-⑳])[ \t\u3000]*+)?(?=\S)"
)
_NUMBER = re.compile(r"[(（]?([0-9０-９]{1,3})[.)．）]|([①-⑳])")
# The beginning of a line. Possessive quantifiers keep the time linear.
_START = re.compile(
    r"(?P<blank>[ \t\u3000\r\f\v]*+$)|[ \t]*+(?:"
    r"(?P<heading>#{1,6}(?=[ \t\r\n]|$))"
    r"|(?P<fence>`{3,}+(?=[^`\n]*$)|~{3,}+)"
    r"|(?P<rule>(?:-[ \t]*+){3,}+$|(?:\*[ \t]*+){3,}+$|(?:_[ \t]*+){3,}+$|=++[ \t]*+$)"
    r"|(?P<quote>>)"
    r"|(?P<bullet>[-*+•・◦▪–][ \t\u3000]++(?=\S)|[・•](?=\S))"
    r"|(?P<number>\(?\d{1,3}[.)][ \t\u3000]++(?=\S)|[0-9０-９]{1,3}．(?=\S)"
    r"|[（(][0-9０-９]{1,2}[)）](?=\S)|[①-⑳](?=\S))"
    r"|(?P<symbol>[\u3000■●◆▼○□▲★☆【])"
    r"|(?P<pipe>\|))",
    re.MULTILINE,
)
_INDENT = re.compile(r"[ \t]*+")
_QUOTE = re.compile(r"(?:[ ]{0,3}>[ ]?)*+")
_DELIMITER = re.compile(
    r"[ \t]*+\|?+[ \t]*+:?+-++:?+[ \t]*+(?:\|[ \t]*+:?+-++:?+[ \t]*+)*+\|?+[ \t]*+$", re.MULTILINE
)
_FRONT_MATTER = re.compile(r"---[ \t]*+\n(?=[\w-]{1,40}:)")
_FRONT_MATTER_END = re.compile(r"^(?:---|\.\.\.)[ \t]*+$", re.MULTILINE)
_LABEL = re.compile(
    rf"[^\s:：](?:[^:：\n]{{0,{LABEL_CHARACTERS_MAX - 1}}})(?::(?=[ \t])|：)(?=[ \t]*+\S)"
)
_LETTERS = re.compile(r"[^\W\d_]|\s")
_HARD_BREAK = re.compile(r"(?:  |\\)$")


def split_blocks(text: str) -> list[Block]:
    """Return the blocks of a text, in order, in linear time."""
    return _BlockParser(text).parse()


class _BlockParser:
    """Reads lines; `_lines` are those of the open block."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._blocks: list[Block] = []
        self._kind = BlockKind.PARAGRAPH
        self._lines: list[tuple[int, int]] = []
        self._fence = ""  # of the open code block; empty: indented code
        self._depth = 0  # of quotation
        self._list_indent = 0  # columns of the content of the open list item; 0: none
        self._after_blank = True

    def parse(self) -> list[Block]:
        position = self._read_front_matter()
        size = len(self._text)
        while position < size:
            end = self._text.find("\n", position)
            end = size if end < 0 else end
            self._read_line(position, end)
            position = end + 1
        self._close()
        return self._blocks

    def _read_front_matter(self) -> int:
        if not _FRONT_MATTER.match(self._text):
            return 0
        end = _FRONT_MATTER_END.search(self._text, 4, FRONT_MATTER_CHARACTERS_MAX)
        if end is None:
            return 0
        position = self._text.index("\n") + 1
        spans = []
        for line in self._text[position : end.start()].splitlines(keepends=True):
            if line.strip():
                spans.append((position, position + len(line.rstrip())))
            position += len(line)
        self._blocks.append(Block(BlockKind.METADATA, spans))
        return end.end()

    def _read_line(self, start: int, end: int) -> None:
        start = self._read_quotation(start, end)
        if self._lines and self._kind is BlockKind.CODE and self._fence:
            self._read_fenced_line(start, end)
            return
        match = _START.match(self._text, start, end)
        name = match.lastgroup if match else None
        indent = self._measure_indent(start, end)
        if name == "blank" or start >= end:
            self._read_blank(start, end)
            return
        if self._is_indented_code(name, indent):
            self._add(BlockKind.CODE, start, end, continues=self._kind is BlockKind.CODE)
        else:
            content = start + _width(_INDENT, self._text, start, end)
            self._read_content(name, content, end, indent)
        self._after_blank = False

    def _read_quotation(self, start: int, end: int) -> int:
        """Read the marks of a quotation. Code in a fence that is not quoted has none."""
        in_fence = bool(self._lines and self._kind is BlockKind.CODE and self._fence)
        if in_fence and not self._depth:
            return start
        content = start
        if ">" in self._text[start : min(start + 4, end)]:
            content += _width(_QUOTE, self._text, start, end)
        depth = self._text.count(">", start, content)
        if depth != self._depth and (depth or start < end):
            self._close()
            self._depth, self._list_indent, self._after_blank = depth, 0, True
        return content

    def _measure_indent(self, start: int, end: int) -> int:
        if self._text[start : start + 1] not in (" ", "\t"):
            return 0
        match = _INDENT.match(self._text, start, end)
        return len(match.group().expandtabs(4)) if match else 0

    def _read_fenced_line(self, start: int, end: int) -> None:
        line = self._text[start:end].strip()
        self._lines.append((start, end))
        if line.startswith(self._fence) and not line.strip(self._fence[0]):
            self._close()

    def _read_blank(self, start: int, end: int) -> None:
        if self._lines and self._kind is BlockKind.CODE:
            self._lines.append((start, end))
        else:
            self._close()
        self._after_blank = True

    def _is_indented_code(self, name: str | None, indent: int) -> bool:
        if self._kind is BlockKind.CODE and self._lines:
            return indent >= 4
        if self._lines or indent < 4 or indent < self._list_indent + 4:
            return False
        return self._after_blank and name not in ("bullet", "number", "quote", "fence", "symbol")

    def _read_content(self, name: str | None, start: int, end: int, indent: int) -> None:
        """Read a line that is neither blank nor code. `start`: after its indentation."""
        if self._lines and self._kind is BlockKind.CODE:
            self._leave_indented_code()
        read: Callable[[int, int, int], bool] | None = {
            "heading": self._read_heading,
            "fence": self._open_fence,
            "rule": self._read_rule,
            "bullet": self._open_item,
            "number": self._open_numbered_item,
            "symbol": self._open_paragraph,
        }.get(name or "")
        if read and read(start, end, indent):
            return
        if self._lines and self._kind is BlockKind.TABLE:
            if "|" in self._text[start:end]:
                self._lines.append((start, end))
                return
            self._close()
        if self._begins_table(name, start, end):
            self._close()
            self._add(BlockKind.TABLE, start, end)
        elif self._lines:
            self._lines.append((start, end))
        else:
            self._list_indent = self._list_indent if indent >= self._list_indent else 0
            kind = BlockKind.ITEM if self._list_indent else BlockKind.PARAGRAPH
            self._add(kind, start, end)

    def _leave_indented_code(self) -> None:
        """End indented code, or continue it as a paragraph whose first line is indented."""
        if len(self._lines) == 1 and not self._after_blank and self._is_prose(0.85):
            self._kind = BlockKind.PARAGRAPH
            self._lines = [_strip(self._text, *line) for line in self._lines]
        else:
            self._close()

    def _read_heading(self, start: int, end: int, _indent: int) -> bool:
        self._close()
        self._list_indent = 0
        self._blocks.append(Block(BlockKind.HEADING, [_strip(self._text, start, end)]))
        return True

    def _open_fence(self, start: int, end: int, _indent: int) -> bool:
        self._close()
        mark = self._text[start]
        length = len(self._text[start:end]) - len(self._text[start:end].lstrip(mark))
        self._fence = mark * length
        self._add(BlockKind.CODE, start, end)
        return True

    def _read_rule(self, start: int, end: int, _indent: int) -> bool:
        """Read a thematic break, or the underline of a heading."""
        if self._lines and self._kind is BlockKind.PARAGRAPH and self._is_setext(start, end):
            self._blocks.append(Block(BlockKind.HEADING, self._lines))
            self._lines = []
        else:
            self._close()
        self._list_indent = 0
        return True

    def _is_setext(self, start: int, end: int) -> bool:
        line = self._text[slice(*self._lines[0])]
        return (
            len(self._lines) == 1
            and len(line) <= SETEXT_CHARACTERS_MAX
            and not line.endswith(tuple(".。．,、;；:："))
            and set(self._text[start:end].rstrip()) in ({"="}, {"-"})
        )

    def _open_item(self, start: int, end: int, indent: int) -> bool:
        marker = LIST_MARKER.match(self._text, start, end)
        self._close()
        content = marker.end() if marker else start
        self._list_indent = indent + content - start
        self._add(BlockKind.ITEM, content, end)
        return True

    def _open_numbered_item(self, start: int, end: int, indent: int) -> bool:
        """Open an item, unless the number is part of a wrapped sentence."""
        number = _NUMBER.match(self._text, start, end)
        value = (
            unicodedata.numeric(number[2])
            if number and number[2]
            else int(number[1])
            if number
            else 0
        )
        wrapped = self._lines and self._kind is BlockKind.PARAGRAPH and value != 1
        return not wrapped and self._open_item(start, end, indent)

    def _open_paragraph(self, start: int, end: int, _indent: int) -> bool:
        if self._lines and self._kind is BlockKind.TABLE:
            return False
        self._close()
        self._add(BlockKind.PARAGRAPH, start, end)
        return True

    def _begins_table(self, name: str | None, start: int, end: int) -> bool:
        text = self._text
        if name == "pipe" and not self._lines:
            return True  # possibly without a header
        if "|" not in text[start:end]:
            return False
        following = end + 1 + _width(_QUOTE, text, end + 1, len(text))
        delimiter = _DELIMITER.match(text, following)
        return delimiter is not None and "|" in delimiter.group()

    def _add(self, kind: BlockKind, start: int, end: int, *, continues: bool = False) -> None:
        if not continues:
            self._kind = kind
        self._lines.append((start, end))

    def _close(self) -> None:
        """Complete the open block."""
        if self._lines:
            kind, lines = self._kind, self._lines
            self._lines, self._kind = [], BlockKind.PARAGRAPH
            if kind is BlockKind.CODE:
                self._close_code(lines)
            elif kind is BlockKind.TABLE:
                self._close_table(lines)
            elif spans := _join_lines(self._text, lines, kind):
                self._blocks.append(Block(kind, spans))
        self._fence = ""

    def _close_code(self, lines: list[tuple[int, int]]) -> None:
        while lines and not self._text[slice(*lines[-1])].strip():
            lines.pop()
        if not self._fence:
            self._lines = lines
            prose = self._is_prose(0.9)
            self._lines = []
            if prose:
                stripped = [_strip(self._text, *line) for line in lines]
                joined = _join_lines(self._text, stripped, BlockKind.PARAGRAPH)
                self._blocks.append(Block(BlockKind.PARAGRAPH, joined))
                return
        self._blocks.append(
            Block(BlockKind.CODE, [(lines[0][0], _strip(self._text, *lines[-1])[1])])
        )

    def _close_table(self, lines: list[tuple[int, int]]) -> None:
        spans = [_strip(self._text, *line) for line in lines]
        if len(spans) > 1 and _DELIMITER.match(self._text, *spans[1]):
            spans[:2] = [(spans[0][0], spans[1][1])]
        self._blocks.append(Block(BlockKind.TABLE, spans))

    def _is_prose(self, letters_min: float) -> bool:
        """Return whether the open lines are sentences: words, and an end mark or several lines."""
        text = self._text[self._lines[0][0] : self._lines[-1][1]].strip()
        complete = text.endswith(tuple(".。!?！？:：")) or letters_min < 0.9
        return complete and len(_LETTERS.findall(text)) >= letters_min * len(text) > 20


def _join_lines(text: str, lines: list[tuple[int, int]], kind: BlockKind) -> list[tuple[int, int]]:
    """Return the spans of the lines of a paragraph, with wrapped lines joined."""
    separate = kind is BlockKind.PARAGRAPH and len(lines) > 1 and _are_separate(text, lines)
    spans = [lines[0]]
    for previous, line in itertools.pairwise(lines):
        if (
            (separate and not text[line[0]].islower() and text[line[0]] != ":")
            or _HARD_BREAK.search(text, previous[1] - 2, previous[1])
            or (_LABEL.match(text, *previous) and _LABEL.match(text, *line))
        ):
            spans.append(line)
        else:
            spans[-1] = (spans[-1][0], line[1])
    return [span for span in (_strip(text, *span) for span in spans) if span[0] < span[1]]


def _are_separate(text: str, lines: list[tuple[int, int]]) -> bool:
    """Return whether the lines are short and of different lengths, as in an address or a poem."""
    if max(end - start for start, end in lines) >= NARROW_COLUMNS:
        return False
    widths = [
        sum(2 if character > "\u2e7f" else 1 for character in text[start:end])
        for start, end in lines
    ]
    if (widest := max(widths)) >= NARROW_COLUMNS:
        return False
    return len(lines) < 3 or widest < WRAPPED_COLUMNS_MIN or min(widths[:-1]) < widest - 6


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the span without white space at its ends."""
    while end > start and text[end - 1].isspace():
        end -= 1
    while start < end and text[start].isspace():
        start += 1
    return start, end


def _width(pattern: re.Pattern[str], text: str, start: int, end: int) -> int:
    match = pattern.match(text, start, end)
    return match.end() - start if match else 0
