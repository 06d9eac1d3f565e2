"""Composing a quotation: the sentence that answers, with what is needed to understand it.

A sentence is quoted with its neighbours of the same paragraph; a list item with its introduction
and the list, if that is short; a table row with its header; what introduces a list or code with it.
If the quotation begins with a pronoun, the heading or the title precedes it as the subject. The
citation follows the sentence that answers, and again the end.
"""

import re

import msgspec

from service.core.grounding.candidates import (
    PassageUnits,
    QuotableUnit,
    Term,
    clean_text,
    extract_terms,
    is_japanese,
)
from service.core.grounding.questions import Question
from service.core.records import Passage
from service.core.text.blocks import LIST_MARKER, BlockKind
from service.core.text.tokenizer import Tokenizer

QUOTE_CHARACTERS_MAX = 400
CODE_CHARACTERS_MAX = 600
CODE_DISTANCE_MAX = 2  # sentences between the best one and code that belongs to it
SUBJECT_CHARACTERS_MAX = 60
NEIGHBOUR_STEPS = (1, -1, 1, 1)  # the order in which neighbours are added
_PRONOUN = (
    r"(?:it(?! (?:is|was|appears|seems|can be)\b)|its|this|these|they|their|them|he|she|his|her"
    r"|that|those|such|here|the (?:latter|former))\b"
    r"|(?:これ|それ|この|その|ここ|そこ|同(?!様|時|じ)|当該|上記|前述|以上|彼|こう|そう|こちら)"
)
_ANAPHOR = re.compile(rf"{_PRONOUN}|(?:また|なお|さらに)、?", re.IGNORECASE)
# The beginning of a sentence that continues the one before.
_LINK = re.compile(
    rf"{_PRONOUN}|(?:but|however|so|otherwise|therefore|thus|then|also|and|in addition|instead"
    r"|if so|unless)\b|(?:ただし|しかし|そのため|したがって|また|なお|つまり|すなわち|例えば"
    r"|たとえば|それでも|一方|さもないと|よって|ところが|だが)",
    re.IGNORECASE,
)
_FILE_NAME = re.compile(r"\.\w{1,5}$|^[\w-]+\.[\w-]+$|_")
_SECTION_NUMBER = re.compile(r"^(?:\d{1,3}\.)*\d{0,3}\.?[ \u3000]+")
_WORD = re.compile(r"[^\W\d_]{2}")
_CELL = re.compile(r"(?<!\\)\|")
_INTRODUCES = re.compile(r"[:：]$|(?:以下|次)の|\b(?:following|below|as follows)\b")


def compose_quotation(
    best: QuotableUnit,
    source: PassageUnits,
    question: Question,
    tokenizer: Tokenizer,
    *,
    decisive: bool,
) -> str:
    """Return the quotation of a candidate, with citations.

    Of a `decisive` one, which covers the question and has what it asks for, neighbours are quoted
    only if a pronoun or connective links them.
    """
    mark = f"[{best.n}]"
    if best.unit.kind is BlockKind.TABLE:
        return f"{_format_row(best, source)} {mark}"
    if best.unit.kind is BlockKind.CODE:
        return _quote_code(best.index, best.unit.introduction, source, mark)
    if (listed := _quote_list(best, source, mark)) is not None:
        return listed
    code = _find_code(best, source, question)
    if code is not None:
        between = source.units[code].introduction
        prose = source.read_text(between) if between > best.index else ""
        quoted = _quote_code(code, best.index, source, mark)
        if prose and len(best.text) + len(prose) < QUOTE_CHARACTERS_MAX:
            gap = "" if is_japanese(best.text) else " "
            head, separator, block = quoted.partition("\n\n")
            quoted = f"{head}{gap}{prose}{separator}{block}"
        return quoted
    first, last = _find_neighbours(best, source, question, tokenizer, decisive=decisive)
    before = [source.read_text(index) for index in range(first, best.index)]
    after = [source.read_text(index) for index in range(best.index + 1, last + 1)]
    gap = "" if is_japanese(best.text) else " "
    quotation = _add_mark(gap.join([*before, best.text]), mark)
    subject = _find_answering_heading(best, source, question, tokenizer) or _find_subject(
        before[0] if before else best.text, best, source, tokenizer
    )
    if subject:
        quotation = f"{subject}{'：' if is_japanese(best.text) else ': '}{quotation}"
    return quotation + (gap + _add_mark(gap.join(after), mark) if after else "")


def format_date(passage: Passage, question: str) -> str:
    """Return the date of a passage in the language of the question, or an empty string."""
    if passage.date is msgspec.UNSET:
        return ""
    return f"（{passage.date} 現在）" if is_japanese(question) else f" (as of {passage.date})"


def _add_mark(text: str, mark: str) -> str:
    return f"{text}{'' if text[-1:] in '。！？' else ' '}{mark}"


def _find_neighbours(
    best: QuotableUnit,
    source: PassageUnits,
    question: Question,
    tokenizer: Tokenizer,
    *,
    decisive: bool,
) -> tuple[int, int]:
    """Return the first and last unit to quote: those after and before the best, if they fit.

    If the best has what is asked for, they must be linked to it, or share a word with it or with
    the question.
    """
    first = last = best.index
    answered = question.is_answered_by(best.text)
    context = best.own | extract_terms(question.text, tokenizer)
    size = len(best.text)
    closed: set[int] = set()
    for step in NEIGHBOUR_STEPS:
        index = (last if step > 0 else first) + step
        if step in closed or not _belong_together(best, index, source):
            continue
        closed.add(step)
        text = source.read_text(index)
        linked = _LINK.match(text if step > 0 else source.read_text(first))
        related = not answered or _share_words(text, context, tokenizer)
        if not linked and (decisive or not related):
            continue
        if _WORD.search(text) and size + len(text) < QUOTE_CHARACTERS_MAX:
            first, last = min(first, index), max(last, index)
            size += len(text) + 1
            closed.remove(step)
    return first, last


def _share_words(text: str, context: frozenset[Term], tokenizer: Tokenizer) -> bool:
    """Return whether a neighbour has a word of the best sentence or of the question."""
    return any(isinstance(term, str) for term in extract_terms(text, tokenizer) & context)


def _belong_together(best: QuotableUnit, index: int, source: PassageUnits) -> bool:
    """Return whether a unit continues the text of another: the same paragraph."""
    if not 0 <= index < len(source.units):
        return False
    unit = source.units[index]
    text = source.passage.text[unit.start : unit.end].rstrip()
    return (
        unit.kind is best.unit.kind
        and unit.block == best.unit.block
        and not text.endswith((":", "：", "?", "？"))
    )


def _format_row(best: QuotableUnit, source: PassageUnits) -> str:
    """Return a table row as `header: cell; …`, or its cells if there is no header."""
    row = _split_cells(source.passage.text[best.unit.start : best.unit.end])
    header: list[str] = []
    if best.unit.introduction >= 0:
        above = source.units[best.unit.introduction]
        if above.kind is BlockKind.TABLE:
            header = _split_cells(source.passage.text[above.start : above.end].partition("\n")[0])
    if len(header) != len(row):
        return "; ".join(cell for cell in row if cell)
    return "; ".join(
        f"{name}: {cell}" if name else cell for name, cell in zip(header, row, strict=True) if cell
    )


def _split_cells(row: str) -> list[str]:
    return [clean_text(cell.strip()) for cell in _CELL.split(row.strip().strip("|"))]


def _quote_code(index: int, introduction: int, source: PassageUnits, mark: str) -> str:
    """Return a code block in a fence, after the sentence that introduces it."""
    unit = source.units[index]
    code = source.passage.text[unit.start : unit.end]
    if not code.lstrip().startswith(("```", "~~~")):
        code = f"```\n{code}\n```"
    lines = code.strip().splitlines()
    closing = lines[0][:3]
    lines = lines[:-1] if len(lines) > 1 and lines[-1].strip() == closing else lines
    selected = [lines[0]]
    for line in lines[1:]:
        if sum(map(len, selected)) + len(line) > CODE_CHARACTERS_MAX:
            break
        selected.append(line)
    block = "\n".join([*selected, closing])
    before = f"{_add_mark(source.read_text(introduction), mark)}\n\n" if introduction >= 0 else ""
    return f"{before}{block}\n{mark}"


def _find_code(best: QuotableUnit, source: PassageUnits, question: Question) -> int | None:
    """Return the code block that a sentence introduces, or that shows how to do what it says.

    That is the next one, with at most `CODE_DISTANCE_MAX` sentences of the section between.
    """
    for index in range(best.index + 1, best.index + 2 + CODE_DISTANCE_MAX):
        if index >= len(source.units) or source.units[index].kind is BlockKind.HEADING:
            return None
        unit = source.units[index]
        if unit.kind is BlockKind.CODE:
            introduces = unit.introduction == best.index
            shows_how = question.asks_how and (introduces or not best.has_code)
            return index if shows_how or (introduces and _INTRODUCES.search(best.text)) else None
    return None


def _quote_list(best: QuotableUnit, source: PassageUnits, mark: str) -> str | None:
    """Return a list with its introduction, as far as it fits, or None if there is no list."""
    introduction = best.unit.introduction if best.unit.kind is BlockKind.ITEM else best.index
    items = [
        index
        for index, unit in enumerate(source.units)
        if unit.kind is BlockKind.ITEM and unit.introduction == introduction
    ]
    introduces = introduction >= 0 and _INTRODUCES.search(source.read_text(introduction))
    if not items or introduction < 0 or not (best.unit.kind is BlockKind.ITEM or introduces):
        return None
    if not introduces:
        return None
    size = len(source.read_text(introduction)) + len(best.text)
    selected = {best.index} & set(items)
    # From the best item outwards, or from the first one.
    center = best.index if selected else items[0]
    for index in sorted(items, key=lambda index: (abs(index - center), index)):
        if index in selected:
            continue
        size += len(source.read_text(index))
        if size > QUOTE_CHARACTERS_MAX:
            break
        selected.add(index)
    return _format_list(best, introduction, sorted(selected), source, mark)


def _format_list(
    best: QuotableUnit, introduction: int, selected: list[int], source: PassageUnits, mark: str
) -> str:
    """Return the introduction and items as lines, each sentence of an item after its marker."""
    text = source.read_text(introduction)
    lines = [_add_mark(text, mark) if best.index == introduction else text]
    block = -1
    for index in selected:
        unit = source.units[index]
        sentence = source.read_text(index)
        if index == best.index or (index == selected[-1]):
            sentence = _add_mark(sentence, mark)
        if unit.block == block:
            lines[-1] += ("" if is_japanese(sentence) else " ") + sentence
        else:
            lines.append(_read_marker(source, unit.start) + sentence)
        block = unit.block
    return "\n".join(lines)


def _read_marker(source: PassageUnits, start: int) -> str:
    """Return the list marker before a position, or `- `."""
    text = source.passage.text
    line = text.rfind("\n", 0, start) + 1
    marker = text[line:start].strip()
    return f"{marker} " if marker[:1].isdigit() and LIST_MARKER.match(marker + " x") else "- "


def _find_answering_heading(
    best: QuotableUnit, source: PassageUnits, question: Question, tokenizer: Tokenizer
) -> str:
    """Return the heading if it has what is asked for and a word of the question: a release date."""
    heading = clean_text(source.headings[best.index])
    if not question.is_answered_by(heading) or question.is_polar:
        return ""
    terms = extract_terms(heading, tokenizer) & extract_terms(question.text, tokenizer)
    is_new = any(isinstance(term, str) for term in terms - best.own)
    return heading if is_new and len(heading) <= SUBJECT_CHARACTERS_MAX else ""


def _find_subject(
    beginning: str, best: QuotableUnit, source: PassageUnits, tokenizer: Tokenizer
) -> str:
    """Return the heading or title that names the subject if a quotation begins with a pronoun."""
    if not _ANAPHOR.match(beginning):
        return ""
    for subject in (source.headings[best.index], source.passage.title):
        name = _SECTION_NUMBER.sub("", clean_text(subject))
        if name and len(name) <= SUBJECT_CHARACTERS_MAX and not _FILE_NAME.search(name):
            words = {term for term in extract_terms(name, tokenizer) if isinstance(term, str)}
            return "" if words and words <= best.own else name
    return ""
