"""Reading citations from an answer."""

import re
from collections.abc import Mapping, Sequence

import msgspec

from service.core.grounding.verification import ClaimVerifier
from service.core.records import Passage
from service.core.text.pages import find_page
from service.core.text.sentences import split_sentences
from service.core.text.tokenizer import fold_text

_CITATION = re.compile(
    r"[\[［【]\s{0,3}(\d{1,4}(?:\s{0,3}[,、，;；\-–~〜]\s{0,3}\d{1,4}){0,50})\s{0,3}[\]］】]"
)
CLAIM_CHARACTERS_MAX = 2_000
LOCATED_MAX = 1_000
VERIFIED_MAX = 200  # claims of an answer; further ones are not verified
_TABLE_HEADER = re.compile(r"\n[ \t]*\|?[ \t]*:?-[-:| \t]*$")  # its second line
_RANGE = re.compile(r"(\d+)\s*[\-–~〜]\s*(\d+)")


class Citations(msgspec.Struct, frozen=True):
    """The cited passages by number, and the number of valid, dropped and unsupported citations."""

    sources: list[Passage]
    real: int
    dropped: int
    unsupported: int


class _CitedClaim(msgspec.Struct):
    """A sentence and the numbers of the citations that follow it."""

    text: str
    numbers: list[int]


def read_citations(text: str, passages: Sequence[Passage], question: str) -> Citations:
    """Return the cited passages, each with the sentence that supports its first claim.

    A claim is the sentence before a citation, or what remains of it after another citation;
    adjacent citations have one claim. Citations of numbers that do not exist are dropped. A passage
    is not `supported` if the passages cited with a claim lack words of it (`verification.py`).
    """
    by_number = {passage.n: passage for passage in passages}
    claims, dropped = _read_claims(text, by_number)
    verifier = ClaimVerifier(question, passages)
    first: dict[int, str] = {}
    failed: list[int] = []
    for n, claim in enumerate(claims):
        for number in claim.numbers:
            first.setdefault(number, claim.text)
        verified = claim.numbers and n < VERIFIED_MAX
        if verified and not verifier.is_supported(claim.text, claim.numbers):
            failed += claim.numbers
    sources = [
        _cite_sentence(by_number[number], first[number], supported=number not in failed)
        for number in sorted(first)
    ]
    real = sum(len(claim.numbers) for claim in claims)
    return Citations(sources, real, dropped, len(failed))


def _read_claims(text: str, by_number: Mapping[int, Passage]) -> tuple[list[_CitedClaim], int]:
    """Return the claims with citations of these passages, and the number of other citations."""
    claims: list[_CitedClaim] = []
    dropped = begin = 0
    for match in _CITATION.finditer(text):
        claim, begin = _read_claim(text, begin, match.start()), match.end()
        numbers = _parse_numbers(match.group(1))
        real = sorted(numbers & by_number.keys())
        dropped += len(numbers) - len(real)
        if claim or not claims:
            claims.append(_CitedClaim(claim, real))
        else:
            claims[-1].numbers += real
    return claims, dropped


def _read_claim(text: str, begin: int, end: int) -> str:
    """Return the last sentence of a part of a text, or an empty string: `[1][2]` have one claim."""
    part = text[max(begin, end - CLAIM_CHARACTERS_MAX) : end]
    spans = split_sentences(part)
    return part[slice(*spans[-1])] if spans else ""


class LocatedCitation(msgspec.Struct, frozen=True):
    """A citation of a passage at a position in a text."""

    start: int
    end: int
    passage: Passage


def locate_citations(text: str, passages: Sequence[Passage]) -> list[LocatedCitation]:
    """Return the first `LOCATED_MAX` citations of these passages, in the order of the text."""
    by_number = {passage.n: passage for passage in passages}
    located: list[LocatedCitation] = []
    for match in _CITATION.finditer(text):
        located += [
            LocatedCitation(match.start(), match.end(), by_number[number])
            for number in sorted(_parse_numbers(match.group(1)))
            if number in by_number
        ]
        if len(located) >= LOCATED_MAX:
            return located[:LOCATED_MAX]
    return located


def _cite_sentence(passage: Passage, claim: str, *, supported: bool) -> Passage:
    """Return a passage with the sentence that best supports a claim, and the page of it."""
    if not supported:
        passage = msgspec.structs.replace(passage, supported=False)
    text, (before, _) = passage.text, passage.sentence or (0, 0)
    sentence = _find_supporting_sentence(claim, text)
    if passage.page is msgspec.UNSET:
        return msgspec.structs.replace(passage, sentence=sentence)
    page = find_page(text, sentence[0], of=before, page=passage.page)
    return msgspec.structs.replace(passage, sentence=sentence, page=page)


def _parse_numbers(citation: str) -> set[int]:
    numbers = {int(number) for number in re.findall(r"\d+", citation)}
    for low, high in _RANGE.findall(citation):
        numbers.update(range(int(low), min(int(high), int(low) + 100) + 1))
    return numbers


def _find_supporting_sentence(claim: str, text: str) -> tuple[int, int]:
    """Return the span of the sentence that shares the most trigrams with a claim.

    The header of a table is no sentence: a claim about a row has the words of both.
    """
    spans = split_sentences(text) or [(0, len(text))]
    if "|" in text and "--" in text:
        spans = [span for span in spans if not _TABLE_HEADER.search(text, *span)] or spans
    trigrams = _split_trigrams(claim)
    return max(spans, key=lambda span: len(trigrams & _split_trigrams(text[slice(*span)])))


def _split_trigrams(text: str) -> set[str]:
    folded = fold_text(text)
    return {folded[i : i + 3] for i in range(len(folded) - 2)}
