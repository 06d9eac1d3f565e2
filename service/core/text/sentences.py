"""Splitting text into sentences."""

import re
from collections.abc import Iterator

_CLOSERS = "」』）)】〕》〉”’\"'］\\]*_"
LIST_MARKER = re.compile(
    r"[ \t\u3000]*(?:[-*+•・◦▪–][ \t\u3000]+|[・•]|\(?\d{1,3}[.)][ \t\u3000]+)?(?=\S)"
)
_BORDER = re.compile(
    r"[ \t\u3000]*(?:#{1,6}[ \t]|[-*+•・◦▪–][ \t]|[・•■●◆▼○]|\(?\d{1,3}[.)][ \t]"
    r"|\||>|```|[-=*_]{3,}[ \t]*$|[A-Z]\w{0,12}:[ \t])"
)
_LINE = re.compile(r"[^\n]+")
# Possible ends of sentences. Quotations are matched as a whole, so that a full stop inside them is
# skipped. The leading character class skips most of a text quickly.
_END = re.compile(
    rf"[「『（。！？｡．!?.](?:(?<=「)[^「」\n]{{0,80}}」|(?<=『)[^『』\n]{{0,80}}』|(?<=（)[^（）\n]{{0,80}}）"
    rf"|(?<=[。！？｡．!?.])[。！？｡．!?.]*[{_CLOSERS}]{{0,8}})"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|vs|No|Nos|Fig|Figs|Eq|Sec|Vol|pp?|approx|ca|cf|al|e\.g|i\.e"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)|\b[A-Z])$"
)
_JAPANESE = re.compile("[\u3005-\u30ff\u4e00-\u9fff\uff10-\uff9f「『（]")


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Return the spans of the sentences, in order, without list markers.

    Headings, list items and table rows are sentences.
    """
    spans: list[tuple[int, int]] = []
    for start, end in _iterate_blocks(text):
        spans += _split_block(text, start, end)
    return spans


def _iterate_blocks(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of nonempty lines, with wrapped lines joined."""
    start = None
    for line in _LINE.finditer(text):
        start = line.start() if start is None else start
        if not _is_wrapped(text, *line.span()):
            yield start, line.end()
            start = None


def _is_wrapped(text: str, start: int, end: int) -> bool:
    """Return whether a line is continued: long, unfinished, and the next one begins nothing new."""
    following = end + 1
    if not 25 <= end - start <= 200 or following >= len(text) or text[following] in "\n \t\u3000":
        return False
    line = text[start:end]
    wide = sum(1 for character in line if character > "\u2e7f")
    if (
        len(line) + wide < 50
        or line[-1] in "。！？｡!?.:：;；」）"
        or line.endswith("  ")
        or line.lstrip().startswith(("#", "|"))
    ):
        return False
    return not _BORDER.match(text, following, min(following + 40, len(text)))


def _split_block(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of the sentences of a block."""
    marker = LIST_MARKER.match(text, start, end)
    if marker is None:
        return
    start = marker.end()
    if text[start] != "#":
        for match in _END.finditer(text, start, end):
            if _ends_sentence(text, start, match.start(), match.end(), end):
                yield start, match.end()
                start = match.end()
                while start < end and text[start].isspace():
                    start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        yield start, end


def _ends_sentence(text: str, start: int, first: int, last: int, end: int) -> bool:
    """Return whether the match at `first:last` ends the sentence that began at `start`."""
    mark = text[first]
    after = text[last] if last < end else ""
    if mark in "「『（":
        return False
    if mark in "。！？｡":
        # 「はい。」と言った: the sentence continues after the quotation.
        return not (
            last - first > 1
            and text[last - 1] in "」』）"
            and after
            and after in "とっでのにをはが、"
        )
    if not after or after.isspace():
        return not after or _ends_before_space(text, start, first, last, end)
    if mark == "．":
        return not after.isdigit()
    return (
        mark in "!?"
        and first > start
        and bool(_JAPANESE.match(after) and _JAPANESE.match(text[first - 1]))
    )


def _ends_before_space(text: str, start: int, first: int, last: int, end: int) -> bool:
    """Return whether a mark before a space ends a sentence.

    It does not before a lower-case letter, nor after an abbreviation or an initial.
    """
    if text[last : min(last + 20, end)].lstrip()[:1].islower():
        return False
    return (
        text[first] != "."
        or last - first > 1
        or not _ABBREVIATION.search(text, max(start, first - 12), first)
    )
