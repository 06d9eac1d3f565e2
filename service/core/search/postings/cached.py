"""Posting lists with a cache, over what an `IndexReader` reads from the database.

A token of the index is a scope, a mark of the kind and a term. So the posting list of a term within
a scope is that of one token, and neither its content nor the time to read it depends on chunks
of other scopes.

Document frequencies (`FREQUENCIES_CACHED`, 360 bytes each) and posting lists (`POSTINGS_CACHED`, 8
bytes each) are cached for one version of a scope: a change does not affect the entries of other
scopes. Entries are evicted in insertion order.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from service.core.search.bm25 import Ids, Numbers, join_postings, select_best
from service.core.search.cache import BoundedCache
from service.core.search.ranking import StoredChunk, Term

FREQUENCIES_CACHED, POSTINGS_CACHED = 40_000, 1_000_000
ENTRY_POSTINGS = 60  # as much memory as an entry of the cache takes beside its postings
IDF_MIN = 1e-6
# The marks of migration 0019: private-use characters, which no term contains.
MARKS = {"words": "\ue000", "grams": "\ue001"}


class IndexScope(msgspec.Struct, frozen=True):
    """Chunks with the same visibility. `terms`: number of their words and grams, repeated ones too.

    A row of `index_scopes`; `vectors`: the version of their vectors.
    """

    id: int
    version: int
    chunks: int
    terms: int
    vectors: int = 0


class IndexReader(Protocol):
    """Reads the index as one transaction sees it. All methods block."""

    def read_scopes(self, user_id: str | None) -> list[IndexScope]:
        """Return the scopes that a user sees; None: all."""
        ...

    def read_frequencies(self, tokens: Sequence[str]) -> dict[str, int]:
        """Return the number of chunks that contain each token; those without may be missing."""
        ...

    def read_postings(self, tokens: Sequence[str]) -> list[Ids]:
        """Return the ids of the chunks that contain each token, in ascending order."""
        ...

    def read_occurrences(self, tokens: Sequence[str]) -> list[Ids]:
        """Like `read_postings`, with an id for each occurrence."""
        ...

    def read_lengths(self, ids: Sequence[int]) -> list[int]:
        """Return the number of terms of each of these chunks. `ids`: distinct, ascending."""
        ...

    def read_terms(self, ids: Sequence[int]) -> Sequence[tuple[int, str, str]]:
        """Return the id, the words and the grams of chunks, each separated by spaces."""
        ...

    def read_stored(self, ids: Sequence[int]) -> dict[int, StoredChunk]:
        """Return chunks as they are stored, by id."""
        ...

    def read_vectors(self, scope: int, model: str, length: int) -> Sequence[tuple[int, bytes]]:
        """Return the chunks of a scope with their vectors of this length, in bytes, by id."""
        ...

    def select_within(self, ids: Sequence[int], documents: Sequence[str]) -> set[int]:
        """Return those of these chunks that are in one of these documents."""
        ...


Key = tuple[int, str]  # of the caches: version of the scope, and token


class PostingCache:
    """Frequencies and posting lists by version and token, of all scopes."""

    def __init__(self) -> None:
        self.frequencies: BoundedCache[Key, int] = BoundedCache(FREQUENCIES_CACHED, lambda _: 1)
        self.postings: BoundedCache[Key, Ids] = BoundedCache(
            POSTINGS_CACHED, lambda ids: len(ids) + ENTRY_POSTINGS
        )


class CachedPostings:
    """The posting lists of some scopes. All methods block."""

    def __init__(
        self, reader: IndexReader, cache: PostingCache, scopes: Sequence[IndexScope]
    ) -> None:
        self._reader, self._cache, self._scopes = reader, cache, scopes

    def read_frequencies(self, terms: Sequence[Term]) -> dict[Term, int]:
        """Return the number of chunks that contain each of these words and grams."""

        def read(missing: list[Key]) -> dict[Key, int]:
            frequencies = self._reader.read_frequencies([token for _, token in missing])
            return {key: frequencies.get(key[1], 0) for key in missing}

        keys = self._build_keys(terms)
        frequencies = self._cache.frequencies.get_many(keys, read)
        sums = dict.fromkeys(terms, 0)
        for key, term in keys.items():
            sums[term] += frequencies[key]
        return sums

    def read_weighted(self, weights: Mapping[Term, float]) -> tuple[Ids, Numbers]:
        """Return the postings of these terms, one term after the other, and the weight of each."""

        def read(missing: list[Key]) -> dict[Key, Ids]:
            postings = self._reader.read_postings([token for _, token in missing])
            return dict(zip(missing, postings, strict=True))

        keys = self._build_keys(weights)
        postings = self._cache.postings.get_many(keys, read)
        return join_postings((postings[key], weights[term]) for key, term in keys.items())

    def find_matches(self, words: Mapping[str, int], limit: int | None) -> list[int]:
        """Return the best chunks by BM25 that contain any of these words.

        `words`: their document frequencies. As in FTS5's `bm25`, the length of a chunk is that of
        its words and grams, and idf has no lower bound but 0 (`IDF_MIN`).
        """
        keys = self._build_keys(("words", word) for word in words)
        chunks = sum(scope.chunks for scope in self._scopes)
        idfs = [
            max(IDF_MIN, math.log((chunks - n + 0.5) / (n + 0.5)))
            for n in (words[word] for _, word in keys.values())
        ]
        postings = self._reader.read_occurrences([token for _, token in keys])
        occurrences = list(zip(postings, idfs, strict=True))
        mean = sum(scope.terms for scope in self._scopes) / max(chunks, 1)
        return select_best(occurrences, self._reader.read_lengths, mean, limit)

    def _build_keys(self, terms: Iterable[Term]) -> dict[Key, Term]:
        """Return the key of each term in each scope, one term after the other."""
        return {
            (scope.version, f"{scope.id}{MARKS[kind]}{term}"): (kind, term)
            for kind, term in terms
            for scope in self._scopes
        }
