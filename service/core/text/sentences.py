"""Splitting text into sentences.

Sentences end at an end mark, unless it belongs to an abbreviation, a number or a quotation within
the sentence, and at the ends of blocks (`blocks.py`). Headings, table rows and code blocks are
units of their own.
"""

import re
from typing import NamedTuple

from service.core.text.blocks import Block, BlockKind, split_blocks

QUOTATION_CHARACTERS_MAX = 200  # the end marks inside a longer one count
_CLOSERS = "」』）)】〕》〉”’\"'»›］\\]*_"
# Possible ends of sentences. Quotations are matched as a whole, so that a full stop inside them is
# skipped. The leading character class skips most of a text quickly.
_END = re.compile(
    rf"[「『（。！？｡．!?.…؟۔।॥](?:(?<=「)[^「」]{{0,{QUOTATION_CHARACTERS_MAX}}}」"
    rf"|(?<=『)[^『』]{{0,{QUOTATION_CHARACTERS_MAX}}}』"
    rf"|(?<=（)[^（）]{{0,{QUOTATION_CHARACTERS_MAX}}}）"
    rf"|(?<=[。！？｡．!?.…؟۔।॥])[。！？｡．!?.…]*(?:[ \u00a0\u202f]?[»›])?[{_CLOSERS}]{{0,8}})"
)
# What precedes a full stop that does not end a sentence, besides single letters (J. Doe, z. B.).
_ABBREVIATIONS = frozenset(
    """Mr Mrs Ms Mx Dr Prof St Mt Ft Gen Lt Sgt Capt Rev Hon vs approx ca cf al viz resp e.g i.e
    Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec
    bzw evtl ggf inkl exkl vgl sog geb gest Mio Mrd Str Hr Fr Mme Mlle MM Sr Sra Srta Dra Ud Uds
    aprox sig dott bijv""".split()  # noqa: SIM905 - readable as text
)
# The same before a number.
_NUMBERED = frozenset(
    """No Nos no nos Nr nr Fig Figs fig Eq Sec Ch ch chap Vol vol p pp Ver ver Abs Abb Tab Art art
    Bd Kap Tel tel Max max Min min núm pág págs pag blz ext""".split()  # noqa: SIM905
)
_ORDINAL = re.compile(r"\d{1,2}$")
_MONTH = re.compile(
    r"\s(?:Januar|Jänner|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember"
    r"|Jahrhundert|Auflage|Kapitel|Klasse|Platz|Tag|Stock)"
)
_GAP = re.compile(r"\s*+(?:(?<=\n)>[> ]*+)?")
_JAPANESE = re.compile("[\u3005-\u30ff\u4e00-\u9fff\uff10-\uff9f「『（]")


class Unit(NamedTuple):
    """A sentence, a heading, a table row or a code block.

    `block`: number of its block. `introduction`: number of the unit that introduces it: the header
    of a table, the sentence before a list or code; -1: none.
    """

    start: int
    end: int
    kind: BlockKind
    block: int
    introduction: int


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Return the spans of the units, in order, without list markers."""
    return [(unit.start, unit.end) for unit in split_units(text)]


def split_units(text: str) -> list[Unit]:
    """Return the units of a text, in order."""
    units: list[Unit] = []
    introduction = -1
    for n, block in enumerate(split_blocks(text)):
        kind = block.kind
        if kind is BlockKind.PARAGRAPH:
            _add_sentences(units, text, block, n, -1)
            introduction = len(units) - 1
        elif kind is BlockKind.ITEM:
            _add_sentences(units, text, block, n, introduction)
        elif kind is BlockKind.TABLE:
            header = len(units) if _has_header(text, block) else introduction
            units.append(Unit(*block.spans[0], kind, n, introduction))
            units += [Unit(start, end, kind, n, header) for start, end in block.spans[1:]]
            introduction = -1
        else:
            above = introduction if kind is BlockKind.CODE else -1
            units += [Unit(start, end, kind, n, above) for start, end in block.spans]
            introduction = -1
    return units


def _has_header(text: str, block: Block) -> bool:
    return "\n" in text[slice(*block.spans[0])]


def _add_sentences(units: list[Unit], text: str, block: Block, n: int, introduction: int) -> None:
    """Add the sentences of a paragraph or item, whose spans may contain wrapped lines."""
    kind = block.kind
    for start, end in block.spans:
        for match in _END.finditer(text, start, end):
            first, last = match.span()
            if _ends_sentence(text, start, first, last, end):
                units.append(Unit(start, last, kind, n, introduction))
                start = _skip_gap(text, last, end)  # noqa: PLW2901 - of the next sentence
        if start < end:
            units.append(Unit(start, end, kind, n, introduction))


def _skip_gap(text: str, position: int, end: int) -> int:
    """Return the position after white space, and after the marks of a quoted line."""
    match = _GAP.match(text, position, end)
    return match.end() if match else position


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
            and after in "とっでのにをはがもへやかなだ、。"
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

    It does not before a lower-case letter or a closing mark, nor after an abbreviation or initial.
    """
    following = text[last : min(last + 20, end)].lstrip()[:1]
    if following.islower() or following in "»›":
        return False
    if text[first] != "." or last - first > 1:
        return True
    word = _read_last_word(text, max(start, first - 12), first)
    if word in _ABBREVIATIONS or (following.isdigit() and word in _NUMBERED):
        return False
    if word.isdigit():
        return not (_ORDINAL.match(word) and _MONTH.match(text, last, end))
    return not (len(word) == 1 and word.isalpha()) and not (
        word[-1:].isupper() and not word[-2:-1].isalnum()
    )


def _read_last_word(text: str, start: int, end: int) -> str:
    """Return what follows the last white space, without opening brackets and quotation marks."""
    words = text[start:end].split()
    return words[-1].lstrip("(（[\"'“„«*_") if words else ""
