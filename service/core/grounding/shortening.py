"""Shortening a sentence that is longer than a quotation may be.

The part is kept that has most of what is asked for. It begins and ends between clauses, and an
ellipsis stands for what is left out.
"""

import re
from collections.abc import Callable

ELLIPSIS = "…"
_CLAUSE = re.compile(r"(?<=[,;:、，；：—])\s*|\s+(?=[(（—–])|(?<=[)）])(?=[\u3041-\u9fff])")
CLAUSE_CHARACTERS_MIN = 12  # shorter ones belong to the next


def shorten_sentence(text: str, characters_max: int, weigh: Callable[[str], float]) -> str:
    """Return a sentence, or of a longer one the clauses with the largest sum of weights that fit.

    Of equal ones the longest, then the first.
    """
    if len(text) <= characters_max:
        return text
    size_max = max(1, characters_max - 2 * (len(ELLIPSIS) + 1))
    clauses = _split_clauses(text, size_max)
    weights = [weigh(text[start:end]) for start, end in clauses]
    best, first, last = (-1.0, 0), 0, 0
    for begin, (start, _) in enumerate(clauses):
        weight = 0.0
        for end in range(begin, len(clauses)):
            size = clauses[end][1] - start
            if size > size_max:
                break
            weight += weights[end]
            rank = (round(weight, 6), size)
            if rank > best:
                best, first, last = rank, begin, end
    start, end = clauses[first][0], clauses[last][1]
    gap = "" if text[start] >= "\u3041" else " "
    before = f"{ELLIPSIS}{gap}" if start else ""
    after = f"{gap}{ELLIPSIS}" if end < len(text.rstrip()) else ""
    return f"{before}{text[start:end].strip().rstrip(',;、，；' if after else '')}{after}"


def _split_clauses(text: str, size_max: int) -> list[tuple[int, int]]:
    """Return the spans of the clauses, each divided between words if it is too long."""
    spans: list[tuple[int, int]] = []
    start = 0
    for end in [match.start() for match in _CLAUSE.finditer(text)] + [len(text)]:
        while end - start > size_max:
            space = text.rfind(" ", start + 1, start + size_max)
            middle = space if space > start else start + size_max
            spans.append((start, middle))
            start = middle
        if end - start >= CLAUSE_CHARACTERS_MIN or (end == len(text) > start):
            spans.append((start, end))
            start = end
    return spans
