"""BM25 of many chunks at once, as arrays (Robertson and Zaragoza, 2009). Pure.

A chunk is known by a number for each of its words, phrases and grams, as often as they stand there: 32 bits of a polynomial in
its bytes, modulo 2^64 (Karp and Rabin, 1987). A term of a question shares its number with another in the candidates once in some
2,000 searches, and then a chunk has one term too many.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import compress

import msgspec
import numpy as np
from numpy.typing import NDArray

K1, B = 0.6, 0.75
HALF = 1 << 16
CHUNKS_AT_ONCE = 12  # arrays so small that memory at hand serves them; for larger ones the kernel would be asked, at many times the cost
DENSE_MAX = (
    1_000_000  # numbers of chunks that are summed up by place, however few of them are there
)

SPACE = ord(" ")
BASE = 0xD6E8FEB86659FD93  # of the polynomial: any odd number of 64 bits has an inverse

# Odd numbers of 64 bits (Knuth's and others' multipliers): a word, a phrase and a gram of the same letters differ by them.
_WORD, _AFTER, _GRAM = (
    np.uint64(each) for each in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
)

Numbers = NDArray[np.float64]
Ids = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Codes = NDArray[np.uint32]


class Digest(msgspec.Struct, frozen=True):
    """A chunk: the numbers of its words, phrases and grams, as often as they stand there; how many words and grams it has."""

    codes: Codes
    words: int
    grams: int
    content_hash: str | None = None


def digests(stored: Sequence[tuple[int, str, str, str | None]]) -> dict[int, Digest]:
    """Of chunks as the index has them, by id: (id, words and grams in order, each separated by spaces, content hash)."""
    made = {}
    for begin in range(0, len(stored), CHUNKS_AT_ONCE):
        some = stored[begin : begin + CHUNKS_AT_ONCE]
        hashes = _hashes(
            " ".join(text for _, words, grams, _ in some for text in (words, grams) if text)
        )
        as_word, as_gram, as_phrase = (
            _codes(hashes * _WORD),
            _codes(hashes * _GRAM),
            _codes(hashes[:-1] * _WORD + hashes[1:] * _AFTER),
        )
        first = 0
        for id_, words, grams, content_hash in some:
            middle = first + _count(words)
            last = middle + _count(grams)
            codes = np.concatenate(
                [
                    as_word[first:middle],
                    as_phrase[first : max(first, middle - 1)],
                    as_gram[middle:last],
                ]
            )
            made[id_] = Digest(codes, middle - first, last - middle, content_hash)
            first = last
    return made


class Observed(msgspec.Struct, frozen=True):
    """What ranking reads of some chunks: how often each term of a question stands in each."""

    ids: list[int]
    often: Numbers  # a row a chunk; a column a word, phrase or gram, in this order
    lengths: Numbers  # a row a chunk: how many words and grams it has
    words: list[Codes]  # of each chunk, in order
    content_hashes: list[str | None]


def numbered(
    words: Sequence[str], phrases: Sequence[tuple[str, str]], grams: Sequence[str]
) -> Codes:
    """The numbers of a question's terms, in this order."""
    hashes = _hashes(" ".join([*words, *(a for a, _ in phrases), *(b for _, b in phrases), *grams]))
    before, after, last = len(words), len(words) + len(phrases), len(words) + 2 * len(phrases)
    as_phrase = hashes[before:after] * _WORD + hashes[after:last] * _AFTER
    return _codes(np.concatenate([hashes[:before] * _WORD, as_phrase, hashes[last:] * _GRAM]))


def observed(asked: Codes, chunks: Mapping[int, Digest]) -> Observed:
    """Some chunks, by their digests."""
    found = chunks.values()
    return Observed(
        list(chunks),
        _counted(asked, [one.codes for one in found]),
        np.array([(one.words, one.grams) for one in found], dtype=float).reshape(-1, 2),
        [one.codes[: one.words] for one in found],
        [one.content_hash for one in found],
    )


def idf(frequency: float, total: int) -> float:
    """What a term is worth that stands in so many of all chunks: never negative."""
    frequency = min(frequency, total)
    return math.log(1 + (total - frequency + 0.5) / (frequency + 0.5))


class Occurrences:
    """The terms of a question in some chunks, and what they are worth there."""

    def __init__(
        self,
        words: Sequence[str],
        phrases: Sequence[tuple[str, str]],
        grams: Sequence[str],
        chunks: Observed,
    ) -> None:
        self._words, self._grams, self._often = words, grams, chunks.often
        self._phrases = slice(len(words), len(words) + len(phrases))
        self._kinds = np.repeat(
            [0, 0, 1], [len(words), len(phrases), len(grams)]
        )  # phrases are as many as words, but for one
        self._lengths = chunks.lengths / np.maximum(
            chunks.lengths.mean(axis=0) if chunks.ids else 1, 1e-9
        )

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
        there = (self._often[chunk] > 0).tolist()
        return list(compress(self._words, there)), list(
            compress(self._grams, there[self._phrases.stop :])
        )

    def scores(self, worth: Sequence[float], b: float) -> list[float]:
        """The score of each chunk, where `worth` is the idf of each term times the weight of its kind."""
        norms = (K1 * (1 - b + b * self._lengths))[:, self._kinds]
        scores: list[float] = (
            self._often / (self._often + norms) @ (np.asarray(worth) * (K1 + 1))
        ).tolist()
        return scores


def heaviest(ids: Ids, weights: Numbers, most: int | None) -> dict[int, float]:
    """The chunks whose weights are most together, heaviest first and the older of equals, each with its weight."""
    if not len(ids):
        return {}
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


def located(asked: Codes, chunks: Sequence[Codes]) -> tuple[Ids, Ids, Ids]:
    """Where the numbers asked for stand in these chunks, one chunk after the other; in which chunk that is, and which number."""
    if not len(asked) or not len(chunks):
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing
    likely = np.zeros(
        HALF, dtype=bool
    )  # by half of the bits: nearly all that was not asked for is gone after one look
    likely[_half(asked)] = True
    some, at, before = [], [], 0
    for begin in range(0, len(chunks), CHUNKS_AT_ONCE):
        every = np.concatenate(chunks[begin : begin + CHUNKS_AT_ONCE])
        found = likely.take(_half(every)).nonzero()[0]
        some.append(every[found])
        at.append(found + before)
        before += len(every)
    left = np.concatenate(some)
    order = np.argsort(asked, kind="stable")
    columns = order[np.minimum(np.searchsorted(asked, left, sorter=order), len(asked) - 1)]
    same = asked[columns] == left
    places = np.concatenate(at)[same]
    return (
        places,
        np.searchsorted(np.cumsum([len(one) for one in chunks]), places, side="right"),
        columns[same],
    )


def weighed(postings: Iterable[tuple[Ids, float]]) -> tuple[Ids, Numbers]:
    """The ids of all of these, one after the other, and the weight of each."""
    found = list(postings)
    ids = np.concatenate([ids for ids, _ in found] or [np.zeros(0, dtype=np.int64)])
    return ids, np.repeat([weight for _, weight in found], [len(ids) for ids, _ in found])


def numbers(found: str) -> Ids:
    """Of a JSON list of integers."""
    return np.array(msgspec.json.decode(found, type=list[int]), dtype=np.int64)


def _codes(made: Hashes) -> Codes:
    """The upper half of the bits, which all of the lower ones have gone into."""
    return (made >> np.uint64(32)).astype(np.uint32)


def _count(terms: str) -> int:
    return terms.count(" ") + 1 if terms else 0


def _hashes(terms: str) -> Hashes:
    """Of each of these, separated by single spaces: the sum of its bytes b_i times BASE^i, from sums over all that is before it."""
    text = np.frombuffer(terms.encode(), dtype=np.uint8)
    if not len(text):
        return np.zeros(0, dtype=np.uint64)
    powers, inverses = _powers(1 << len(text).bit_length())
    sums = np.zeros(len(text) + 1, dtype=np.uint64)
    np.multiply(text, powers[: len(text)], out=sums[1:])
    np.add.accumulate(sums, out=sums)
    spaces = (text == SPACE).nonzero()[0]
    around = np.empty(len(spaces) + 2, dtype=np.int64)
    around[0], around[1:-1], around[-1] = -1, spaces, len(text)
    starts, ends = around[:-1] + 1, around[1:]
    made: Hashes = (sums[ends] - sums[starts]) * inverses[starts]
    return made


@lru_cache(maxsize=32)
def _powers(most: int) -> tuple[Hashes, Hashes]:
    """BASE^i and BASE^-i modulo 2^64, for each i below `most`."""
    up, down = (np.full(most, each, dtype=np.uint64) for each in (BASE, pow(BASE, -1, 2**64)))
    up[0] = down[0] = 1
    return np.cumprod(up), np.cumprod(down)


def _half(codes: Codes) -> NDArray[np.uint16]:
    """One half of the bits of each, without a copy."""
    return codes.view(np.uint16)[::2]


def _counted(asked: Codes, chunks: Sequence[Codes]) -> Numbers:
    """How often each of the numbers asked for stands in each chunk: a row a chunk, a column a number."""
    _, rows, columns = located(asked, chunks)
    counted = np.bincount(rows * len(asked) + columns, minlength=len(chunks) * len(asked))
    return counted.reshape(len(chunks), len(asked)).astype(float)
