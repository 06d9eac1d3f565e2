"""An inverted index in memory: for each term the chunks in which it stands, and how often (Zobel and Moffat, 2006). Pure.

A term is its number (`bm25.py`), and takes twelve bytes and four more for each chunk in which it stands: some 2 KB a chunk of the
default length.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.search.bm25 import B, Codes, Digest, Ids, Numbers, Observed, heaviest
from service.core.search.ranking import Query, Term

CHUNKS_MAX = 1 << 16  # the row of a chunk is a number of 16 bits
CHUNKS_AT_ONCE = 500  # numpy keeps the interpreter's lock for what it does to them
FTS5_K1, FTS5_WEIGHT, FTS5_IDF_MIN = 1.2, 2.0, 1e-6
ROW = np.uint64(32)  # bits for the row of a chunk, below those for the number of a term


class Inverted:
    """Of some chunks, `CHUNKS_MAX` at most. It never changes."""

    def __init__(self, chunks: Mapping[int, Digest]) -> None:
        self.ids: Ids = np.array(sorted(chunks), dtype=np.int64)
        found = [chunks[id_] for id_ in self.ids.tolist()]
        self.lengths = np.array([[one.words for one in found], [one.grams for one in found]], dtype=float).T
        self.content_hashes = np.array([one.content_hash for one in found], dtype=object)
        parts = [_standing(begin, found[begin : begin + CHUNKS_AT_ONCE]) for begin in range(0, len(found), CHUNKS_AT_ONCE)]
        standing = np.concatenate(parts or [np.zeros(0, dtype=np.uint64)])
        standing.sort()
        pairs = _firsts(standing)  # a term may stand in a chunk several times
        self.often = np.diff(pairs, append=len(standing)).astype(np.uint16)
        standing = standing[pairs]
        self.rows = standing.astype(np.uint16)
        codes = (standing >> ROW).astype(np.uint32)
        terms = _firsts(codes)
        self._codes = np.append(codes[terms], np.uint32(0))  # so that there is one after the last
        self._begins = np.append(terms, [len(codes)] * 2)

    def where(self, asked: Codes) -> tuple[Ids, Ids]:
        """Where in `rows` and `often` each of these terms begins, and in how many chunks it stands."""
        at = np.searchsorted(self._codes[:-1], asked)
        begins = self._begins[at]
        return begins, np.where(self._codes[at] == asked, self._begins[at + 1] - begins, 0)


class InMemory:
    """See `Postings`."""

    def __init__(self, index: Inverted, query: Query) -> None:
        self._index, self._columns = index, query.columns
        self._begins, self._chunks = index.where(query.codes)

    def frequencies(self) -> dict[Term, int]:
        """See `Postings.frequencies`."""
        found = self._chunks.tolist()
        return {term: found[column] for term, column in self._columns.items()}

    def weighed(self, weights: Mapping[Term, float]) -> tuple[Ids, Numbers]:
        """See `Postings.weighed`."""
        columns = [self._columns[term] for term in weights]
        return self._index.ids[self._index.rows[self._places(columns)]], np.repeat(list(weights.values()), self._chunks[columns])

    def matched(self, words: Sequence[str], most: int | None) -> list[int]:
        """See `Postings.matched`; by the formula of https://sqlite.org/fts5.html."""
        columns = [self._columns["words", word] for word in words]
        index, chunks, standing = self._index, self._chunks[columns], self._places(columns)
        rarities = np.maximum(np.log((len(index.ids) - chunks + 0.5) / (chunks + 0.5)), FTS5_IDF_MIN)
        rows, often, lengths = index.rows[standing], FTS5_WEIGHT * index.often[standing], index.lengths.sum(axis=1)
        share = often * (FTS5_K1 + 1) / (often + FTS5_K1 * (1 - B + B * lengths[rows] / max(lengths.mean(), 1e-9)))
        return list(heaviest(index.ids[rows], np.repeat(rarities, chunks) * share, most))

    def observed(self, chunks: Mapping[int, Digest]) -> Observed:
        """See `Postings.observed`."""
        index, asked, ids = self._index, len(self._chunks), list(chunks)
        rows = np.searchsorted(index.ids, ids)
        chunk_of = np.full(len(index.ids), -1)
        chunk_of[rows] = np.arange(len(ids))
        standing = self._places(slice(None))
        of = chunk_of[index.rows[standing]]
        cells = of * asked + np.repeat(np.arange(asked), self._chunks)
        wanted = of >= 0
        often = np.bincount(cells[wanted], index.often[standing][wanted], len(ids) * asked).reshape(len(ids), asked)
        words = [one.codes[: one.words] for one in chunks.values()]
        return Observed(ids, often.astype(float), index.lengths[rows], words, index.content_hashes[rows].tolist())

    def _places(self, columns: Sequence[int] | slice) -> Ids:
        """Where in `rows` and `often` these columns stand, one after the other."""
        begins, lengths = self._begins[columns], self._chunks[columns]
        ends = np.cumsum(lengths)
        standing: Ids = np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - (ends - lengths), lengths)
        return standing


def _standing(first: int, chunks: Sequence[Digest]) -> NDArray[np.uint64]:
    """The numbers of the terms of some chunks, each with the row of its chunk; the first of these has this row."""
    rows = np.repeat(np.arange(first, first + len(chunks), dtype=np.uint64), [len(one.codes) for one in chunks])
    return (np.concatenate([one.codes for one in chunks]).astype(np.uint64) << ROW) | rows


def _firsts(ordered: NDArray[Any]) -> Ids:
    """Where in an ordered array each value stands first."""
    differs = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=differs[1:])
    return np.flatnonzero(differs)
