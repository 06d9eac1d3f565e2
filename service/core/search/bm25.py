"""BM25 of many chunks at once, with arrays (Robertson and Zaragoza, 2009).

A chunk is represented by one code for each occurrence of a word, phrase or gram: the upper 32 bits
of a polynomial hash of its bytes modulo 2^64 (Karp and Rabin, 1987). About once in 2,000 searches
a term of the query has the code of another term of a candidate, which then counts as an
occurrence.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import compress

import msgspec
import numpy as np
from numpy.typing import NDArray

K1, B = 0.6, 0.75
HALF = 1 << 16
CHUNKS_AT_ONCE = 12  # arrays of this size are reused by the allocator; larger ones cost page faults
DENSE_MAX = 20  # range of ids per posting up to which weights are summed in an array by id

# In PostgreSQL's format of arrays with one dimension, a size precedes each item.
ARRAY_HEAD_BYTES = 20
ARRAY_ITEM = np.dtype([("size", ">i4"), ("id", ">i8")])

SPACE = ord(" ")
BASE = 0xD6E8FEB86659FD93  # of the polynomial; any odd number has an inverse modulo 2^64

# Odd 64-bit multipliers, so that a word, a phrase and a gram of the same letters get different
# codes.
_WORD_FACTOR, _NEXT_WORD_FACTOR, _GRAM_FACTOR = (
    np.uint64(factor) for factor in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
)

Numbers = NDArray[np.float64]
Ids = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Codes = NDArray[np.uint32]
Span = tuple[int, int]  # an interval of ids: the first and the last one


class ChunkTerms(msgspec.Struct, frozen=True):
    """The terms of a chunk: the codes of its words, then of its phrases and grams."""

    document: str
    codes: Codes
    word_count: int
    gram_count: int


def encode_chunks(rows: Sequence[tuple[int, str, str, str]]) -> dict[int, ChunkTerms]:
    """Encode chunks, by id.

    A row is (id, document, words in order, grams); terms are separated by spaces.
    """
    chunks = {}
    for begin in range(0, len(rows), CHUNKS_AT_ONCE):
        batch = rows[begin : begin + CHUNKS_AT_ONCE]
        hashes = _hash_terms(
            " ".join(text for _, _, words, grams in batch for text in (words, grams) if text)
        )
        word_codes = _truncate_hashes(hashes * _WORD_FACTOR)
        gram_codes = _truncate_hashes(hashes * _GRAM_FACTOR)
        phrase_codes = _truncate_hashes(hashes[:-1] * _WORD_FACTOR + hashes[1:] * _NEXT_WORD_FACTOR)
        first = 0
        for id_, document, words, grams in batch:
            middle = first + _count_terms(words)
            last = middle + _count_terms(grams)
            codes = np.concatenate(
                [
                    word_codes[first:middle],
                    phrase_codes[first : max(first, middle - 1)],
                    gram_codes[middle:last],
                ]
            )
            chunks[id_] = ChunkTerms(document, codes, middle - first, last - middle)
            first = last
    return chunks


class TermCounts(msgspec.Struct, frozen=True):
    """How often each term of a query occurs in each of some chunks."""

    ids: list[int]
    documents: list[str]
    counts: Numbers  # one row per chunk; one column per word, phrase and gram, in this order
    lengths: Numbers  # one row per chunk: number of words, number of grams
    word_codes: list[Codes]  # of each chunk, in order


def encode_query(
    words: Sequence[str], phrases: Sequence[tuple[str, str]], grams: Sequence[str]
) -> Codes:
    """Return the codes of a query's words, phrases and grams, in this order."""
    hashes = _hash_terms(
        " ".join([*words, *(a for a, _ in phrases), *(b for _, b in phrases), *grams])
    )
    before, after, last = len(words), len(words) + len(phrases), len(words) + 2 * len(phrases)
    phrase_hashes = hashes[before:after] * _WORD_FACTOR + hashes[after:last] * _NEXT_WORD_FACTOR
    return _truncate_hashes(
        np.concatenate(
            [hashes[:before] * _WORD_FACTOR, phrase_hashes, hashes[last:] * _GRAM_FACTOR]
        )
    )


def count_terms(query_codes: Codes, chunks: Mapping[int, ChunkTerms]) -> TermCounts:
    """Count the terms of a query in chunks."""
    terms = chunks.values()
    return TermCounts(
        list(chunks),
        [chunk.document for chunk in terms],
        _count_codes(query_codes, [chunk.codes for chunk in terms]),
        np.array([(chunk.word_count, chunk.gram_count) for chunk in terms], dtype=float).reshape(
            -1, 2
        ),
        [chunk.codes[: chunk.word_count] for chunk in terms],
    )


def compute_idf(frequency: float, total: int) -> float:
    """Return the inverse document frequency of a term that occurs in `frequency` of `total` chunks.

    It is never negative.
    """
    frequency = min(frequency, total)
    return math.log(1 + (total - frequency + 0.5) / (frequency + 0.5))


class Bm25Scorer:
    """Scores chunks for the terms of a query."""

    def __init__(
        self,
        words: Sequence[str],
        phrases: Sequence[tuple[str, str]],
        grams: Sequence[str],
        chunks: TermCounts,
    ) -> None:
        self._words, self._grams, self._counts = words, grams, chunks.counts
        self._phrases = slice(len(words), len(words) + len(phrases))
        # A chunk has one phrase fewer than words, so that both have the same relative length.
        self._length_columns = np.repeat([0, 0, 1], [len(words), len(phrases), len(grams)])
        self._lengths = chunks.lengths / np.maximum(
            chunks.lengths.mean(axis=0) if chunks.ids else 1, 1e-9
        )

    def count_phrases(self) -> list[float]:
        """Return how often each phrase occurs in all chunks together."""
        counts: list[float] = self._counts[:, self._phrases].sum(axis=0).tolist()
        return counts

    def have_all_words(self) -> list[bool]:
        """Return for each chunk whether it contains all words."""
        complete: list[bool] = np.all(self._counts[:, : len(self._words)] > 0, axis=1).tolist()
        return complete

    def list_matches(self, chunk: int) -> tuple[list[str], list[str]]:
        """Return the words and the grams that occur in this chunk."""
        occurs = (self._counts[chunk] > 0).tolist()
        return list(compress(self._words, occurs)), list(
            compress(self._grams, occurs[self._phrases.stop :])
        )

    def compute_scores(self, weights: Sequence[float], b: float) -> list[float]:
        """Return the score of each chunk. `weights`: of each term, its idf times its kind's."""
        saturated = saturate_counts(self._counts, self._lengths[:, self._length_columns], b)
        scores: list[float] = (saturated @ (np.asarray(weights) * (K1 + 1))).tolist()
        return scores


def saturate_counts(counts: Numbers, lengths: Numbers, b: float) -> Numbers:
    """Return f / (f + k1 · (1 - b + b · l)) for term counts f and relative lengths l of chunks."""
    return counts / (counts + K1 * (1 - b + b * lengths))


def select_heaviest(ids: Ids, weights: Numbers, limit: int | None) -> dict[int, float]:
    """Return the chunks with the largest sums of weights, in descending order, then by id."""
    if not len(ids):
        return {}
    first = ids.min()
    if ids.max() - first < DENSE_MAX * len(ids):
        sums = np.bincount(ids - first, weights)
        selected = np.flatnonzero(sums)
        sums, ids = sums[selected], selected + first
    else:
        ids, positions = np.unique(ids, return_inverse=True)
        sums = np.bincount(positions, weights)
    if limit is not None and limit < len(sums):
        selected = np.flatnonzero(sums >= np.partition(sums, -limit)[-limit])
        sums, ids = sums[selected], ids[selected]
    order = np.argsort(-sums, kind="stable")[:limit]
    return dict(zip(ids[order].tolist(), sums[order].tolist(), strict=True))


def select_best(
    occurrences: Iterable[tuple[Ids, float]],
    read_lengths: Callable[[Ids], Ids],
    length_mean: float,
    limit: int | None,
) -> list[int]:
    """Return the best chunks by BM25, in descending order.

    `occurrences`: for each term the chunk of each occurrence, and its idf. `read_lengths` returns
    the lengths of chunks, given as distinct ids in ascending order.
    """
    counted = [
        (*np.unique(chunks, return_counts=True), idf) for chunks, idf in occurrences if len(chunks)
    ]
    if not counted:
        return []
    ids, weights = join_postings((chunks, idf) for chunks, _, idf in counted)
    counts = np.concatenate([counts for _, counts, _ in counted]).astype(float)
    distinct, positions = np.unique(ids, return_inverse=True)
    lengths = read_lengths(distinct)[positions] / length_mean
    return list(select_heaviest(ids, weights * saturate_counts(counts, lengths, B), limit))


def locate_codes(query_codes: Codes, chunks: Sequence[Codes]) -> tuple[Ids, Ids, Ids]:
    """Find the codes of a query in chunks, as if these were one sequence.

    Returns parallel arrays: position in the sequence, number of the chunk, number of the code.
    """
    if not len(query_codes) or not len(chunks):
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty
    # A table of the lower halves of the codes rejects nearly everything else with one lookup.
    likely = np.zeros(HALF, dtype=bool)
    likely[_take_halves(query_codes)] = True
    candidates, positions, offset = [], [], 0
    for begin in range(0, len(chunks), CHUNKS_AT_ONCE):
        codes = np.concatenate(chunks[begin : begin + CHUNKS_AT_ONCE])
        matches = likely.take(_take_halves(codes)).nonzero()[0]
        candidates.append(codes[matches])
        positions.append(matches + offset)
        offset += len(codes)
    remaining = np.concatenate(candidates)
    order = np.argsort(query_codes, kind="stable")
    columns = order[
        np.minimum(np.searchsorted(query_codes, remaining, sorter=order), len(query_codes) - 1)
    ]
    equal = query_codes[columns] == remaining
    places = np.concatenate(positions)[equal]
    ends = np.cumsum([len(codes) for codes in chunks])
    return places, np.searchsorted(ends, places, side="right"), columns[equal]


def join_postings(postings: Iterable[tuple[Ids, float]]) -> tuple[Ids, Numbers]:
    """Concatenate posting lists, and repeat the weight of its term for each id."""
    lists = list(postings)
    ids = np.concatenate([ids for ids, _ in lists] or [np.zeros(0, dtype=np.int64)])
    return ids, np.repeat([weight for _, weight in lists], [len(ids) for ids, _ in lists])


def decode_ids(text: str) -> Ids:
    """Decode a JSON list of integers."""
    return build_ids(msgspec.json.decode(text, type=list[int]))


def build_ids(ids: list[int]) -> Ids:
    """Return these ids as an array."""
    return np.array(ids, dtype=np.int64)


def join_ids(lists: Sequence[Ids]) -> Ids:
    """Concatenate lists of ids."""
    return np.concatenate(lists or [build_ids([])])


def decode_arrays(arrays: Iterable[bytes]) -> Ids:
    """Decode arrays of `bigint` without nulls, as PostgreSQL sends them, and concatenate them."""
    parts = [np.frombuffer(array, ARRAY_ITEM, offset=ARRAY_HEAD_BYTES) for array in arrays]
    return join_ids([part["id"] for part in parts]).astype(np.int64)


def sort_ids(ids: Ids) -> Ids:
    """Return these ids in ascending order, in which they usually are."""
    return np.sort(ids) if (ids[1:] < ids[:-1]).any() else ids


def find_distinct(ids: Ids) -> Ids:
    """Return each of these ids once. `ids`: ascending, so no hash table is needed."""
    first = np.ones(len(ids), dtype=bool)
    np.not_equal(ids[1:], ids[:-1], out=first[1:])
    return ids[first]


def are_within(ids: Ids, spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Return for each id whether it is in one of these disjoint, ascending intervals."""
    if not spans:
        return np.zeros(len(ids), dtype=bool)
    firsts, lasts = np.array(spans, dtype=np.int64).T
    numbers = np.searchsorted(firsts, ids, side="right") - 1
    within: NDArray[np.bool_] = (numbers >= 0) & (ids <= lasts[numbers])
    return within


def _truncate_hashes(hashes: Hashes) -> Codes:
    """Return the upper halves, which depend on all lower bits."""
    return (hashes >> np.uint64(32)).astype(np.uint32)


def _count_terms(terms: str) -> int:
    return terms.count(" ") + 1 if terms else 0


def _hash_terms(terms: str) -> Hashes:
    """Hash terms separated by single spaces: Σ b_i · BASE^i over the bytes, by prefix sums."""
    text = np.frombuffer(terms.encode(), dtype=np.uint8)
    if not len(text):
        return np.zeros(0, dtype=np.uint64)
    powers, inverses = _compute_powers(1 << len(text).bit_length())
    sums = np.zeros(len(text) + 1, dtype=np.uint64)
    np.multiply(text, powers[: len(text)], out=sums[1:])
    np.add.accumulate(sums, out=sums)
    spaces = (text == SPACE).nonzero()[0]
    borders = np.empty(len(spaces) + 2, dtype=np.int64)
    borders[0], borders[1:-1], borders[-1] = -1, spaces, len(text)
    starts, ends = borders[:-1] + 1, borders[1:]
    hashes: Hashes = (sums[ends] - sums[starts]) * inverses[starts]
    return hashes


@lru_cache(maxsize=32)
def _compute_powers(size: int) -> tuple[Hashes, Hashes]:
    """Return BASE^i and BASE^-i modulo 2^64 for each i below `size`."""
    powers, inverses = (
        np.full(size, factor, dtype=np.uint64) for factor in (BASE, pow(BASE, -1, 2**64))
    )
    powers[0] = inverses[0] = 1
    return np.cumprod(powers), np.cumprod(inverses)


def _take_halves(codes: Codes) -> NDArray[np.uint16]:
    """Return 16 of the bits of each code, without a copy."""
    return codes.view(np.uint16)[::2]


def _count_codes(query_codes: Codes, chunks: Sequence[Codes]) -> Numbers:
    """Count each code of a query in each chunk: one row per chunk, one column per code."""
    _, rows, columns = locate_codes(query_codes, chunks)
    width = len(query_codes)
    counts = np.bincount(rows * width + columns, minlength=len(chunks) * width)
    return counts.reshape(len(chunks), width).astype(float)
