"""Composing a quotation: the sentence that answers, with what is needed to understand it.

A sentence is quoted with its neighbours of the same paragraph; a list item with its introduction
and the list, if that is short; a table row with its header; what introduces a list or code with it.
If the quotation begins with a pronoun, the heading or the title precedes it as the subject. The
citation follows the sentence that answers, and again the end.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from service.core.grounding.candidates import (
    END_MARK,
    PassageUnits,
    QuotableUnit,
    Term,
    clean_text,
    extract_terms,
    is_japanese,
)
from service.core.grounding.questions import Question
from service.core.grounding.shortening import shorten_sentence
from service.core.records import Passage
from service.core.text.blocks import LIST_MARKER, BlockKind
from service.core.text.tokenizer import Tokenizer

QUOTE_CHARACTERS_MAX = 400  # of an answer, without code
CODE_CHARACTERS_MAX = 600
CODE_DISTANCE_MAX = 2  # sentences between the best one and code that belongs to it
SUBJECT_CHARACTERS_MAX = 60
QUOTE_MARKS = 12  # the citations, and what joins quotations
LINE_MARKS = 4  # the marker and the end of a line
NEIGHBOUR_STEPS = (1, -1, 1)  # the order in which neighbours are added
LINKED_STEPS = (-1, 1, 1)  # the same if the best sentence continues the one before
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
_INTRODUCES = re.compile(r"[:：]$|(?:以下|次)[のはに]|\b(?:following|below|as follows)\b")


def compose_quotation(
    best: QuotableUnit,
    source: PassageUnits,
    question: Question,
    tokenizer: Tokenizer,
    *,
    closed_sides: Sequence[int] = (),
    characters_max: int = QUOTE_CHARACTERS_MAX,
) -> str:
    """Return the quotation of a candidate, with citations.

    Sentences on `closed_sides` (-1: before, 1: after) are quoted only if a pronoun or connective
    links them. It has at most `characters_max` characters, besides code: a longer sentence is
    shortened.
    """
    mark = f"[{best.n}]"
    space = prose_max = characters_max - 2 * (len(mark) + 1)

    def shorten(text: str, size: int = prose_max) -> str:
        return shorten_sentence(text, size, lambda part: _weigh_part(part, question, tokenizer))

    if best.unit.kind is BlockKind.TABLE:
        return f"{shorten(_format_row(best, source))} {mark}"
    if best.unit.kind is BlockKind.CODE:
        return _quote_code(best.index, best.unit.introduction, source, mark, shorten)
    if (listed := _quote_list(best, source, mark, space, shorten)) is not None:
        return listed
    code = _find_code(best, source, question)
    if code is not None:
        between = source.units[code].introduction
        prose = source.read_text(between) if between > best.index else ""
        quoted = _quote_code(code, best.index, source, mark, shorten)
        if prose and len(best.text) + len(prose) < space:
            gap = "" if is_japanese(best.text) else " "
            head, separator, block = quoted.partition("\n\n")
            quoted = f"{head}{gap}{prose}{separator}{block}"
        return quoted
    heading = _find_answering_heading(best, source, question, tokenizer)
    while True:
        first, last = _find_neighbours(
            best, source, question, tokenizer, characters_max=space, closed_sides=closed_sides
        )
        before = [source.read_text(index) for index in range(first, best.index)]
        after = [source.read_text(index) for index in range(best.index + 1, last + 1)]
        subject = heading or _find_subject(
            before[0] if before else best.text, best, source, tokenizer
        )
        quotation = _format_prose(before, best.text, after, subject, mark)
        if len(quotation) <= characters_max:
            return quotation
        if not before and not after:
            room = prose_max - len(subject) - 2 * bool(subject)
            return _format_prose([], shorten(best.text, room), [], subject, mark)
        space -= len(quotation) - characters_max  # the neighbours that fit without the subject


def _format_prose(before: list[str], text: str, after: list[str], subject: str, mark: str) -> str:
    """Return sentences with citations after the one that answers, and at the end."""
    gap = "" if is_japanese(text) else " "
    quotation = _add_mark(gap.join([*before, text]), mark)
    if subject:
        quotation = f"{subject}{'：' if is_japanese(text) else ': '}{quotation}"
    return quotation + (gap + _add_mark(gap.join(after), mark) if after else "")


def _weigh_part(part: str, question: Question, tokenizer: Tokenizer) -> float:
    """Return the number of words of the question in a part of a sentence, or what it asks for."""
    words = extract_terms(part, tokenizer) & extract_terms(question.text, tokenizer)
    return sum(isinstance(term, str) for term in words) + question.is_answered_by(part)


def allot_characters(sizes: Sequence[int]) -> list[int]:
    """Return how long the quotations with sentences of these sizes may be.

    Together they have `QUOTE_CHARACTERS_MAX`. Longer sentences get more, but none so much that a
    shorter one has less than an equal share or than it needs.
    """
    allotted = [0] * len(sizes)
    left = QUOTE_CHARACTERS_MAX
    by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
    for position, n in enumerate(by_size):
        share = left // (len(sizes) - position)
        needed = sizes[n] + QUOTE_MARKS
        allotted[n] = min(share, needed) if position < len(sizes) - 1 else share
        left -= allotted[n]
    return allotted


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
    characters_max: int,
    closed_sides: Sequence[int],
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
    for step in LINKED_STEPS if _LINK.match(best.text) else NEIGHBOUR_STEPS:
        index = (last if step > 0 else first) + step
        if step in closed or not _belong_together(best, index, source):
            continue
        closed.add(step)
        text = source.read_text(index)
        linked = _LINK.match(text if step > 0 else source.read_text(first))
        related = not answered or _share_words(text, context, tokenizer)
        if not linked and (step in closed_sides or not related):
            continue
        if _WORD.search(text) and size + len(text) < characters_max:
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
        and bool(END_MARK.search(text))
        and not _INTRODUCES.search(text)
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


def _quote_code(
    index: int, introduction: int, source: PassageUnits, mark: str, shorten: Callable[[str], str]
) -> str:
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
    prose = shorten(source.read_text(introduction)) if introduction >= 0 else ""
    before = f"{_add_mark(prose, mark)}\n\n" if prose else ""
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


def _quote_list(
    best: QuotableUnit,
    source: PassageUnits,
    mark: str,
    characters_max: int,
    shorten: Callable[[str, int], str],
) -> str | None:
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
    texts = {index: source.read_text(index) for index in (introduction, *items)}
    selected = {best.index} & set(items)
    for index in {introduction} | selected:
        texts[index] = shorten(texts[index], characters_max // (1 + len(selected)) - LINE_MARKS)
    size = sum(len(texts[index]) + LINE_MARKS for index in {introduction} | selected)
    # From the best item outwards, or from the first one.
    center = best.index if selected else items[0]
    for index in sorted(items, key=lambda index: (abs(index - center), index)):
        if index in selected:
            continue
        size += len(texts[index]) + LINE_MARKS
        if size > characters_max:
            break
        selected.add(index)
    return _format_list(best, introduction, sorted(selected), texts, source, mark)


def _format_list(
    best: QuotableUnit,
    introduction: int,
    selected: list[int],
    texts: Mapping[int, str],
    source: PassageUnits,
    mark: str,
) -> str:
    """Return the introduction and items as lines, each sentence of an item after its marker."""
    text = texts[introduction]
    lines = [_add_mark(text, mark) if best.index == introduction else text]
    block = -1
    for index in selected:
        unit = source.units[index]
        sentence = texts[index]
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
