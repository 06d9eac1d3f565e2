"""Reading citations from an answer."""

import re
from collections.abc import Sequence

import msgspec

from service.core.records import Passage
from service.core.text.sentences import split_sentences
from service.core.text.tokenizer import fold_text

_CITATION = re.compile(
    r"[\[［【]\s{0,3}(\d{1,4}(?:\s{0,3}[,、，;；\-–~〜]\s{0,3}\d{1,4}){0,50})\s{0,3}[\]］】]"
)
CLAIM_CHARACTERS_MAX = 2_000
_RANGE = re.compile(r"(\d+)\s*[\-–~〜]\s*(\d+)")


class Citations(msgspec.Struct, frozen=True):
    """What an answer cites: its sources, in the order of their numbers, and how many citations were of them or of nothing."""

    sources: list[Passage]
    real: int
    dropped: int


def read_citations(text: str, passages: Sequence[Passage]) -> Citations:
    """The passages that a text cites, each with the sentence that fits best what cites it. A number never given is dropped."""
    given = {passage.n: passage for passage in passages}
    claims: dict[int, list[str]] = {}
    real = dropped = begin = 0
    for match in _CITATION.finditer(text):
        claim, begin = text[begin : match.start()].strip(), match.end()
        for number in _numbers(match.group(1)):
            if number in given:
                real += 1
                claims.setdefault(number, []).append(claim)
            else:
                dropped += 1
    sources = [
        msgspec.structs.replace(given[n], sentence=_supporting("".join(claims[n]), given[n].text))
        for n in sorted(claims)
    ]
    return Citations(sources, real, dropped)


def _numbers(inside: str) -> set[int]:
    numbers = {int(number) for number in re.findall(r"\d+", inside)}
    for low, high in _RANGE.findall(inside):
        numbers.update(range(int(low), min(int(high), int(low) + 100) + 1))
    return numbers


def _supporting(claim: str, text: str) -> tuple[int, int]:
    """Where the sentence stands that shares the most with a claim, by runs of three characters."""
    spans = split_sentences(text) or [(0, len(text))]
    asked = _threes(claim[-CLAIM_CHARACTERS_MAX:])
    return max(spans, key=lambda span: len(asked & _threes(text[slice(*span)])))


def _threes(text: str) -> set[str]:
    plain = fold_text(text)
    return {plain[i : i + 3] for i in range(len(plain) - 2)}
