"""The results of a search, as they are encoded in responses."""

import re
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate

import msgspec

from service.core.text.sentences import split_sentences
from service.core.text.tokenizer import fold_text

_ENDING = re.compile("(?<=[^\u3041-\u309f])[\u3041-\u309f]+$")  # hiragana after another script
SENTENCES_CACHE_CHUNKS = 3000  # about 4 KB each


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk that matches a query. `start` and `end` are its position in its document.

    `coverage`: score as a share of the best possible one. `matched`: words of the query in the
    chunk. `sentence`: position in `text` of the sentence that matches best. `newer`: the document
    that contains a newer version of the chunk, `date`: of its own version (`versions.py`).
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
    cosine: float | msgspec.UnsetType = msgspec.UNSET  # similarity, where the chunk has a vector
    newer: str | msgspec.UnsetType = msgspec.UNSET
    date: str | msgspec.UnsetType = msgspec.UNSET
    page: int | msgspec.UnsetType = msgspec.UNSET  # of the sentence, in a document with pages


class SearchResults(msgspec.Struct, frozen=True, kw_only=True):
    """Hits, best first, and whether they can answer the query.

    `share` and `terms` are the numbers that abstention compares with its thresholds, `cosine` the
    similarity, if it took part. `searched_for`: the query with corrected words, if any was.
    """

    items: list[Hit]
    answerable: bool
    share: float
    terms: float
    cosine: float | msgspec.UnsetType = msgspec.UNSET
    searched_for: str | msgspec.UnsetType = msgspec.UNSET


def find_best_sentence(text: str, weights: dict[str, float]) -> tuple[int, int]:
    """Return the position of the sentence whose terms have the largest sum of weights.

    Of equal sentences it is the first. Terms are searched as substrings, Japanese ones without
    their inflected ending, so that 鳴る matches 鳴ったら.
    """
    spans, folded, ends = split_folded_sentences(text)
    if len(spans) == 1:
        return spans[0]
    sums = [0.0] * len(spans)
    for term, weight in weights.items():
        stem = term if term.isascii() else _ENDING.sub("", term)
        at = folded.find(stem)
        while at >= 0:
            n = bisect_right(ends, at)
            sums[n] += weight
            at = folded.find(stem, ends[n])
    return spans[sums.index(max(sums))]


@lru_cache(maxsize=SENTENCES_CACHE_CHUNKS)
def split_folded_sentences(text: str) -> tuple[list[tuple[int, int]], str, list[int]]:
    """Return the spans of sentences, their folded text (one per line), and the line ends."""
    spans = split_sentences(text) or [(0, len(text))]
    folded = [fold_text(text[start:end]) + "\n" for start, end in spans]
    return spans, "".join(folded), list(accumulate(map(len, folded)))
