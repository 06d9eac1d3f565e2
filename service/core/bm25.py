"""BM25 of many chunks at once, as arrays (Robertson and Zaragoza, 2009). Pure.

A chunk is known by a number for each of its words, phrases and grams, as often as they stand there: 32 bits made of Python's
own hashes, of this process alone. A term of a question shares its number with another in the candidates once in some 2,000
searches, and then a chunk has one term too many.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import compress

import msgspec
import numpy as np
from numpy.typing import NDArray

K1, B = 0.6, 0.75
LOW = 0xFFFF
CHUNKS_AT_ONCE = 12  # arrays so small that memory at hand serves them; for larger ones the kernel would be asked, at many times the cost
DENSE_MAX = 1_000_000  # numbers of chunks that are summed up by place, however few of them are there

# Odd numbers of 64 bits (Knuth's and others' multipliers): a word, a phrase and a gram of the same letters differ by them.
_WORD, _AFTER, _GRAM = (np.uint64(each) for each in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))

Numbers = NDArray[np.float64]
Ids = NDArray[np.int64]
Hashes = NDArray[np.uint64]


class Digest(msgspec.Struct, frozen=True):
    """What ranking reads of a chunk: the numbers of its words, phrases and grams; how many words and grams it has."""

    codes: NDArray[np.uint32]
    words: int
    grams: int
    content_hash: str | None = None


def digest(words: str, grams: str, content_hash: str | None = None) -> Digest:
    """Of a chunk as the index has it: its words and grams in order, separated by spaces."""
    in_order, of_grams = _hashes(words.split()), _hashes(grams.split())
    codes = _codes(in_order, in_order[:-1], in_order[1:], of_grams)
    return Digest(codes, len(in_order), len(of_grams), content_hash)


def idf(frequency: float, total: int) -> float:
    """What a term is worth that stands in so many of all chunks: never negative."""
    frequency = min(frequency, total)
    return math.log(1 + (total - frequency + 0.5) / (frequency + 0.5))


class Occurrences:
    """How often each term of a question stands in each of some chunks."""

    def __init__(self, words: Sequence[str], phrases: Sequence[tuple[str, str]], grams: Sequence[str], chunks: Sequence[Digest]) -> None:
        self._words, self._grams = words, grams
        self._phrases = slice(len(words), len(words) + len(phrases))
        self._kinds = np.repeat([0, 0, 1], [len(words), len(phrases), len(grams)])  # phrases are as many as words, but for one
        lengths = np.array([[one.words, one.grams] for one in chunks], dtype=float).reshape(-1, 2)
        self._lengths = lengths / np.maximum(lengths.mean(axis=0) if chunks else 1, 1e-9)
        asked = _codes(_hashes(words), _hashes([a for a, _ in phrases]), _hashes([b for _, b in phrases]), _hashes(grams))
        self._often = _counted(asked, [one.codes for one in chunks])

    def of_phrases(self) -> list[float]:
        """How often each phrase stands in all of them."""
        often: list[float] = self._often[:, self._phrases].sum(axis=0).tolist()
        return often

    def whole(self) -> list[bool]:
        """Whether all words stand in it, of each chunk."""
        whole: list[bool] = np.all(self._often[:, : len(self._words)] > 0, axis=1).tolist()
        return whole

    def standing(self, chunk: int) -> tuple[list[str], list[str]]:
        """The words, and the grams, that stand in this chunk."""
        words, _, grams = np.split(self._often[chunk] > 0, [self._phrases.start, self._phrases.stop])
        return list(compress(self._words, words.tolist())), list(compress(self._grams, grams.tolist()))

    def scores(self, worth: Sequence[float], b: float) -> list[float]:
        """The score of each chunk, where `worth` is the idf of each term times the weight of its kind."""
        norms = (K1 * (1 - b + b * self._lengths))[:, self._kinds]
        scores: list[float] = (self._often / (self._often + norms) @ (np.asarray(worth) * (K1 + 1))).tolist()
        return scores


def heaviest(postings: Iterable[tuple[Ids, float]], most: int | None) -> dict[int, float]:
    """The chunks in which terms stand that weigh most together, heaviest first and the older of equals, each with its weight."""
    found = [(ids, weight) for ids, weight in postings if len(ids)]
    if not found:
        return {}
    ids = np.concatenate([each for each, _ in found])
    weights = np.repeat([weight for _, weight in found], [len(each) for each, _ in found])
    first = ids.min()
    if ids.max() - first < DENSE_MAX:
        sums = np.bincount(ids - first, weights)
        chosen = np.flatnonzero(sums)
        sums, ids = sums[chosen], chosen + first
    else:
        ids, places = np.unique(ids, return_inverse=True)
        sums = np.bincount(places, weights)
    if most is not None and most < len(sums):
        chosen = np.flatnonzero(sums >= np.partition(sums, -most)[-most])
        sums, ids = sums[chosen], ids[chosen]
    order = np.argsort(-sums, kind="stable")[:most]
    return dict(zip(ids[order].tolist(), sums[order].tolist(), strict=True))


def numbers(found: str) -> Ids:
    """Of a JSON list of integers."""
    return np.array(msgspec.json.decode(found, type=list[int]), dtype=np.int64)


def _codes(words: Hashes, before: Hashes, after: Hashes, grams: Hashes) -> NDArray[np.uint32]:
    """A number for each word, for each phrase of a word before and one after, and for each gram."""
    made = np.concatenate([words * _WORD, before * _WORD + after * _AFTER, grams * _GRAM])
    return (made >> np.uint64(32)).astype(np.uint32)


def _hashes(terms: Sequence[str]) -> Hashes:
    return np.fromiter(map(hash, terms), np.int64, len(terms)).view(np.uint64)


def _counted(asked: NDArray[np.uint32], chunks: Sequence[NDArray[np.uint32]]) -> Numbers:
    """How often each of the numbers asked for stands in each chunk: a row a chunk, a column a number."""
    shape = len(chunks), len(asked)
    if not all(shape):
        return np.zeros(shape)
    likely = np.zeros(LOW + 1, dtype=bool)  # by half of the bits: nearly all that was not asked for is gone after one look
    likely[asked & LOW] = True
    some, rows = [], []
    for begin in range(0, len(chunks), CHUNKS_AT_ONCE):
        every = np.concatenate(chunks[begin : begin + CHUNKS_AT_ONCE])
        left = np.flatnonzero(likely.take(every & LOW))
        ends = np.cumsum([len(one) for one in chunks[begin : begin + CHUNKS_AT_ONCE]])
        some.append(every[left])
        rows.append(np.searchsorted(ends, left, side="right") + begin)
    left = np.concatenate(some)
    order = np.argsort(asked, kind="stable")
    columns = order[np.minimum(np.searchsorted(asked, left, sorter=order), len(asked) - 1)]
    same = asked[columns] == left
    places = np.concatenate(rows)[same] * len(asked) + columns[same]
    counted = np.bincount(places, minlength=len(chunks) * len(asked))
    return counted.reshape(shape).astype(float)
