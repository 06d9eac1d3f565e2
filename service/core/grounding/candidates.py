"""The sentences of a context that can be quoted, with their terms and surroundings."""

import re
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from service.core.records import Passage
from service.core.text.blocks import BlockKind
from service.core.text.sentences import Unit, split_units
from service.core.text.tokenizer import Tokenizer, detect_language

SENTENCES_READ_MAX = 2_000  # of the context; further sentences are ignored
CAPTION_CHARACTERS_MAX = 200
# Things that are recognized by their form, and their names.
_PATTERN_NAMES = (
    (re.compile(r"\S@\S+\.\S"), "e-mail email address メールアドレス 連絡先"),
    (re.compile(r"\d{2,5}-\d{2,4}-?\d{3,4}"), "phone telephone number 電話番号 連絡先"),
    (re.compile(r"https?://"), "URL web site address link サイト"),
)
_QUESTION = re.compile(
    r"[?？][」』”\")）*_]*$|(?:です|ます|でしょう|ません|ました)か。?$|^(?:Q|質問|Question)\s?[:.：．、]\s?"
)
_LABEL = re.compile(r"^(?:[QA]|質問|回答|答え?|Question|Answer)\s?[:.：．、]\s?")
_CITATION = re.compile(r"\s?[\[［【]\s*\d[\d\s,、–-]{0,20}[\]］】]")
_LINK = re.compile(r"!?\[([^\[\]\n]{0,300})\]\((?:[^()\s]|\([^()\s]*\)){0,500}\)")
_STRONG = re.compile(r"(?<![\w`])__(?=\S)([^_\n]*\s[^_\n]*)__")
_EMPHASIS = re.compile(r"\*\*|`|(?<![\w*])\*(?=\S)|(?<=\S)\*(?![\w*])")
_BREAK = re.compile(r"[ \t\u3000]*\\?\n(?:[ \t\u3000]|>[ ]?)*")
_WIDE = re.compile("[\u3000-\u30ff\u4e00-\u9fff\uff01-\uff9f]")
_COMMAND = re.compile(r"`[^`\n]*[^`\s] [^`\n]+`")
END_MARK = re.compile(r"[.。．!！?？:：…)）」』\"”*_`]$")
_CELLS = re.compile(r"[^|\s][^|]*\|\s*[^|\s]")
_BOLD = re.compile(r"\*\*[^*]+\*\*:?$|__[^_]+__$")

Term = str | tuple[str, str]  # a word; a phrase; ("", gram)


_NO_TERMS: frozenset[Term] = frozenset()


class QuotableUnit(msgspec.Struct, frozen=True):
    """A unit that can be quoted. `index`: its number among the units of its passage.

    `around`: the texts beside it in its paragraph. `place`: its number below its heading, from 0,
    or -1 if its passage has no heading above it. `has_code`: it contains a command in backticks.
    Terms: its own, those of the heading, title or question above it, of the unit before
    it in its section, and of what introduces it.
    """

    n: int
    index: int
    text: str
    unit: Unit
    around: str
    place: int
    complete: bool
    has_code: bool
    own: frozenset[Term]
    above: frozenset[Term]
    before: frozenset[Term]


class PassageUnits(msgspec.Struct, frozen=True):
    """A passage with its units. `headings`: that above each unit, or an empty string."""

    passage: Passage
    units: list[Unit]
    headings: list[str]
    candidates: list[QuotableUnit]

    def read_text(self, index: int) -> str:
        """Return a unit on one line, without markup."""
        unit = self.units[index]
        return clean_text(self.passage.text[unit.start : unit.end])


def read_passages(passages: Sequence[Passage], tokenizer: Tokenizer) -> list[PassageUnits]:
    """Return passages with their distinct candidates."""
    texts: set[str] = set()
    return [_read_passage(passage, tokenizer, texts) for passage in passages]


def _read_passage(passage: Passage, tokenizer: Tokenizer, texts_read: set[str]) -> PassageUnits:
    """Read a passage. Headings, questions and captions are context of what follows them."""
    units = split_units(passage.text)[: max(0, SENTENCES_READ_MAX - len(texts_read))]
    raw = [passage.text[unit.start : unit.end] for unit in units]
    texts = [clean_text(part) for part in raw]
    terms = [_extract_own_terms(*part, tokenizer) for part in zip(raw, texts, strict=True)]
    captions = _find_captions(passage.text, units)
    title = extract_terms(passage.title, tokenizer)
    above, before, heading, place = title, _NO_TERMS, "", -1
    candidates: list[QuotableUnit] = []
    headings: list[str] = []
    for index, (unit, text, own) in enumerate(zip(units, texts, terms, strict=True)):
        is_heading = unit.kind is BlockKind.HEADING
        heading = text.lstrip("# ") if is_heading else heading
        headings.append(heading)
        if is_heading or unit.block in captions or _QUESTION.search(text):
            above, before, place = title | own, _NO_TERMS, 0
            continue
        if own and text and text not in texts_read and not _is_table_header(raw[index], unit):
            texts_read.add(text)
            introduced = terms[unit.introduction] if unit.introduction >= 0 else _NO_TERMS
            beside = [
                other
                for other in (index - 1, index + 1)
                if 0 <= other < len(units) and units[other].block == unit.block
            ]
            candidates.append(
                QuotableUnit(
                    n=passage.n,
                    index=index,
                    text=text,
                    unit=unit,
                    complete=_is_complete(text, index, units),
                    has_code=bool(_COMMAND.search(raw[index])),
                    around="\n".join(texts[other] for other in beside),
                    place=place,
                    own=own,
                    above=above | introduced,
                    before=before,
                )
            )
        before = own
        place += place >= 0
    return PassageUnits(passage, units, headings, candidates)


def _extract_own_terms(raw: str, text: str, tokenizer: Tokenizer) -> frozenset[Term]:
    """Return the terms of a unit, and of the names of what it contains."""
    names = [names for form, names in _PATTERN_NAMES if form.search(text)]
    return extract_terms(raw, tokenizer).union(*(extract_terms(name, tokenizer) for name in names))


def _is_table_header(raw: str, unit: Unit) -> bool:
    return unit.kind is BlockKind.TABLE and "\n" in raw


def _is_complete(text: str, index: int, units: list[Unit]) -> bool:
    """Return whether a unit can be quoted alone, or with what it introduces."""
    unit, following = units[index], units[index + 1] if index + 1 < len(units) else None
    if text.endswith((":", "：")):
        return following is not None and following.introduction == index
    if unit.kind is BlockKind.TABLE:
        return text.strip("| ").count("|") > 0 and _CELLS.search(text) is not None
    is_prose = unit.kind is BlockKind.PARAGRAPH or (
        unit.kind is BlockKind.ITEM and unit.introduction < 0  # of a table of contents
    )
    return not is_prose or bool(END_MARK.search(text))


def _find_captions(text: str, units: list[Unit]) -> set[int]:
    """Return the numbers of the short paragraphs that are bold as a whole."""
    spans: dict[int, tuple[int, int]] = {}
    for unit in units:
        if unit.kind in (BlockKind.PARAGRAPH, BlockKind.ITEM):
            spans[unit.block] = (spans.get(unit.block, (unit.start, 0))[0], unit.end)
    return {
        block
        for block, (start, end) in spans.items()
        if end - start <= CAPTION_CHARACTERS_MAX and _BOLD.match(text[start:end])
    }


def extract_terms(text: str, tokenizer: Tokenizer) -> frozenset[Term]:
    """Return words as strings, phrases as pairs, and grams as pairs with an empty string."""
    terms = tokenizer.extract_terms(text)
    phrases = pairwise(terms.words)
    return frozenset[Term]([*terms.words, *phrases, *(("", gram) for gram in terms.grams)])


def clean_text(text: str) -> str:
    """Return a sentence on one line, without emphasis, links, labels and citations."""
    text = _STRONG.sub(r"\1", _LINK.sub(r"\1", _LABEL.sub("", text)))
    text = _CITATION.sub("", _EMPHASIS.sub("", text))
    if "\n" in text:
        text = _BREAK.sub(_join_lines, text.strip())
    return text.strip().strip("|").strip()


def _join_lines(match: re.Match[str]) -> str:
    """Return what joins two lines: nothing between Japanese characters, otherwise a space."""
    text = match.string
    before = text[match.start() - 1] if match.start() else ""
    after = text[match.end()] if match.end() < len(text) else ""
    return "" if _WIDE.match(before) and _WIDE.match(after) else " "


def is_japanese(text: str) -> bool:
    """Return whether a text is Japanese, for spaces between sentences."""
    return detect_language(text) == "ja"
