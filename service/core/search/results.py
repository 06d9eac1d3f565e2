"""What a search finds, as it is shown. Pure."""

import re
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate

import msgspec

from service.core.text.sentences import split_sentences
from service.core.text.tokenizer import fold_text

_ENDING = re.compile("(?<=[^\u3041-\u309f])[\u3041-\u309f]+$")  # hiragana behind other letters
SENTENCES_KEPT = 3000  # chunks whose sentences are remembered, some 4 KB each


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk found: `start` and `end` are where it stands in its document.

    `coverage` is the share of the best possible score that it has, `matched` the question's words in it, `sentence` where
    in `text` the sentence stands that matches best.
    """

    document_id: str
    chunk_id: str
    start: int
    end: int
    title: str
    text: str
    score: float
    coverage: float
    matched: list[str]
    sentence: tuple[int, int]
    cosine: float | msgspec.UnsetType = (
        msgspec.UNSET
    )  # nearness in meaning, where there is a vector


class SearchResults(msgspec.Struct, frozen=True, kw_only=True):
    """The hits, best first; and whether they can answer, with the two numbers that decided it, and the cosine if it took part."""

    items: list[Hit]
    answerable: bool
    share: float
    terms: float
    cosine: float | msgspec.UnsetType = msgspec.UNSET


NOTHING = SearchResults(items=[], answerable=False, share=0, terms=0)


def find_best_sentence(text: str, weights: dict[str, float]) -> tuple[int, int]:
    """Where the sentence stands in which most of these terms, by weight, occur as letters; the first of equals.

    Of an inflected Japanese word what stays the same is looked for: 鳴る also stands in 鳴ったら.
    """
    spans, plain, ends = split_plain_sentences(text)
    if len(spans) == 1:
        return spans[0]
    worth = [0.0] * len(spans)
    for term, weight in weights.items():
        stem = term if term.isascii() else _ENDING.sub("", term)
        at = plain.find(stem)
        while at >= 0:
            n = bisect_right(ends, at)
            worth[n] += weight
            at = plain.find(stem, ends[n])
    return spans[worth.index(max(worth))]


@lru_cache(maxsize=SENTENCES_KEPT)
def split_plain_sentences(text: str) -> tuple[list[tuple[int, int]], str, list[int]]:
    """The sentences; how they read when made plain, each a line; and where those lines end."""
    spans = split_sentences(text) or [(0, len(text))]
    plain = [fold_text(text[start:end]) + "\n" for start, end in spans]
    return spans, "".join(plain), list(accumulate(map(len, plain)))
