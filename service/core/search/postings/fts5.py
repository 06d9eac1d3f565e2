"""Posting lists, read from FTS5. Only this module and `fts5_merge.py` depend on FTS5.

A token of the index is a scope, a mark of the kind and a term. So the posting list of a term within
a scope is that of one token, and neither its content nor the time to read it depends on chunks
of other scopes. The tokens of a scope are adjacent in the index.

Document frequencies (`FREQUENCIES_CACHED`, 360 bytes each) and posting lists (`POSTINGS_CACHED`, 8
bytes each) are cached for one version of a scope: a change does not affect the entries of other
scopes. Entries are evicted in insertion order. Beyond `SCOPES_CACHED` scopes, as for an admin of
many users, nothing is cached, since one search would evict the entries of all users; scopes are
then read `SCOPES_AT_ONCE` at a time, with pauses.

A query is never interpreted as a query language: it is reduced to terms, each of which is quoted.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from service.core.search.bm25 import (
    Ids,
    Numbers,
    decode_ids,
    join_postings,
    select_best,
)
from service.core.search.cache import BoundedCache
from service.core.search.ranking import Term

FREQUENCIES_CACHED, POSTINGS_CACHED = 40_000, 1_000_000
ENTRY_POSTINGS = 60  # as much memory as an entry of the cache takes beside its postings
SCOPES_CACHED = SCOPES_AT_ONCE = 20
IDF_MIN = 1e-6
# The marks of migration 0019: private-use characters, which no term contains.
MARKS = {"words": "\ue000", "grams": "\ue001"}


class IndexScope(msgspec.Struct, frozen=True):
    """Chunks with the same visibility. `terms`: number of their words and grams, repeated ones too.

    A row of `index_scopes`; its fields have the order of `index._SCOPES`. `vectors`: the version of
    their vectors.
    """

    id: int
    version: int
    chunks: int
    terms: int
    vectors: int = 0


Key = tuple[int, str]  # of the caches: version of the scope, and token


class PostingCache:
    """Frequencies and posting lists by version and token, of all scopes."""

    def __init__(self) -> None:
        self.frequencies: BoundedCache[Key, int] = BoundedCache(FREQUENCIES_CACHED, lambda _: 1)
        self.postings: BoundedCache[Key, Ids] = BoundedCache(
            POSTINGS_CACHED, lambda ids: len(ids) + ENTRY_POSTINGS
        )


class Fts5Postings:
    """The posting lists of some scopes, for one search. All methods block.

    `pause` is called after each `SCOPES_AT_ONCE` scopes.
    """

    def __init__(
        self,
        execute: Any,
        cache: PostingCache,
        scopes: Sequence[IndexScope],
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._execute, self._scopes, self._pause = execute, scopes, pause
        self._cache = cache if len(scopes) <= SCOPES_CACHED else None
        self._absent: set[Key] = set()  # tokens that no chunk contains

    def read_frequencies(self, terms: Sequence[Term]) -> dict[Term, int]:
        """Return the number of chunks that contain each of these words and grams."""

        def read(missing: list[Key]) -> dict[Key, int]:
            tokens = json.dumps([token for _, token in missing])
            frequencies = dict(self._execute(_FREQUENCIES, (tokens,)).fetchall())
            return {key: frequencies.get(key[1], 0) for key in missing}

        cached = self._cache and self._cache.frequencies
        sums = dict.fromkeys(terms, 0)
        for keys in self._build_keys(terms):
            frequencies = cached.get_many(keys, read) if cached else read(list(keys))
            for key, term in keys.items():
                if frequency := frequencies[key]:
                    sums[term] += frequency
                else:
                    self._absent.add(key)
        return sums

    def read_weighted(self, weights: Mapping[Term, float]) -> tuple[Ids, Numbers]:
        """Return the postings of these terms, one term after the other, and the weight of each."""

        def read(missing: list[Key]) -> dict[Key, Ids]:
            expressions = json.dumps([f'"{token}"' for _, token in missing])
            rows = self._execute(_POSTINGS, (expressions,))
            return {missing[n]: decode_ids(ids) for n, ids in rows}

        cached = self._cache and self._cache.postings
        lists: list[tuple[Ids, float]] = []
        for keys in self._build_keys(weights):
            postings = cached.get_many(keys, read) if cached else read(list(keys))
            lists += ((postings[key], weights[term]) for key, term in keys.items())
        return join_postings(lists)

    def find_matches(self, words: Mapping[str, int], limit: int | None) -> list[int]:
        """Return the best chunks by BM25 that contain any of these words.

        `words`: their document frequencies. As in FTS5's `bm25`, the length of a chunk is that of
        its words and grams, and idf has no lower bound but 0 (`IDF_MIN`).
        """
        chunks = sum(scope.chunks for scope in self._scopes)
        idfs = {
            word: max(IDF_MIN, math.log((chunks - n + 0.5) / (n + 0.5)))
            for word, n in words.items()
        }
        occurrences: list[tuple[Ids, float]] = []
        for keys in self._build_keys([("words", word) for word in words]):
            rows = self._execute(_OCCURRENCES, (json.dumps([token for _, token in keys]),))
            weights = [idfs[word] for _, word in keys.values()]
            occurrences += ((decode_ids(ids), weights[n]) for n, ids in rows)
        mean = sum(scope.terms for scope in self._scopes) / max(chunks, 1)
        return select_best(occurrences, self._read_lengths, mean, limit)

    def contains_phrase(self, words: Sequence[str]) -> bool:
        """Return whether a chunk contains these words one after the other."""
        return any(
            self._execute(_PHRASE, (f'"{tokens}"',)).fetchone()
            for scope in self._scopes
            for tokens in [" ".join(f"{scope.id}{MARKS['words']}{word}" for word in words)]
        )

    def _build_keys(self, terms: Iterable[Term]) -> Iterator[dict[Key, Term]]:
        """Yield the keys of terms in some scopes at a time, one term after the other.

        Tokens that are known to be absent are omitted.
        """
        terms = list(terms)
        for begin in range(0, len(self._scopes), SCOPES_AT_ONCE):
            if begin:
                self._pause()
            scopes = self._scopes[begin : begin + SCOPES_AT_ONCE]
            yield {
                key: (kind, term)
                for kind, term in terms
                for scope in scopes
                if (key := (scope.version, f"{scope.id}{MARKS[kind]}{term}")) not in self._absent
            }

    def _read_lengths(self, ids: list[int]) -> list[int]:
        """Return the number of terms of each of these chunks. `ids`: distinct, ascending."""
        return [_decode_varint(size) for (size,) in self._execute(_LENGTHS, (json.dumps(ids),))]


_FREQUENCIES = (
    "SELECT term, doc FROM chunk_vocabulary WHERE term IN (SELECT value FROM json_each(?))"
)
_POSTINGS = """
SELECT key, (SELECT json_group_array(rowid) FROM chunk_terms WHERE chunk_terms MATCH value)
FROM json_each(?)
"""
_PHRASE = "SELECT 1 FROM chunk_terms WHERE chunk_terms MATCH ? LIMIT 1"
_OCCURRENCES = """
SELECT key, (SELECT json_group_array(doc) FROM chunk_occurrences WHERE term = value)
FROM json_each(?)
"""
# FTS5 stores the number of terms of each row as a variable-length integer.
_LENGTHS = """
SELECT sz FROM chunk_terms_docsize WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id
"""


def _decode_varint(data: bytes) -> int:
    """Decode groups of seven bits, the most significant one first."""
    value = 0
    for byte in data:
        value = value << 7 | byte & 127
    return value
