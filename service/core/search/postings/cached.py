"""Posting lists with a cache, over what an `IndexReader` reads from the database.

A token of the index is a scope, a mark of the kind and a term. So the posting list of a term within
a scope is that of one token, and neither its content nor the time to read it depends on chunks
of other scopes.

Document frequencies (`FREQUENCIES_CACHED`, 360 bytes each) and posting lists (`POSTINGS_CACHED`, 8
bytes each) are cached for one version of a scope: a change does not affect the entries of other
scopes. Entries are evicted in insertion order. Beyond `SCOPES_CACHED` scopes, as for an admin of
many users, nothing is cached, since one search would evict the entries of all users; scopes are
then read `SCOPES_AT_ONCE` at a time, with pauses.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Protocol

import msgspec

from service.core.search.bm25 import (
    Ids,
    Numbers,
    Span,
    join_postings,
    select_best,
    select_heaviest,
)
from service.core.search.cache import BoundedCache
from service.core.search.pruning import WeightedPostings, select_heaviest_pruned
from service.core.search.ranking import StoredChunk, Term

FREQUENCIES_CACHED, POSTINGS_CACHED = 40_000, 1_000_000
ENTRY_POSTINGS = 60  # as much memory as an entry of the cache takes beside its postings
SCOPES_CACHED = SCOPES_AT_ONCE = 20
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
    """Reads the index as one transaction sees it. All methods block.

    `whole_max`: postings up to which reading lists as a whole takes no longer than intervals.
    """

    whole_max: int

    def read_scopes(self, user_id: str | None) -> list[IndexScope]:
        """Return the scopes that a user sees; None: all."""
        ...

    def read_frequencies(self, tokens: Sequence[str]) -> dict[str, int]:
        """Return the number of chunks that contain each token; those without may be missing."""
        ...

    def read_postings(self, tokens: Sequence[str]) -> list[Ids]:
        """Return the ids of the chunks that contain each token, in ascending order."""
        ...

    def read_within(self, tokens: Sequence[str], spans: Sequence[Span]) -> list[Ids]:
        """Like `read_postings`, within these disjoint, ascending intervals of ids."""
        ...

    def read_bounds(self, tokens: Sequence[str]) -> Span:
        """Return the first and the last chunk that contains one of these tokens."""
        ...

    def read_occurrences(self, tokens: Sequence[str]) -> list[Ids]:
        """Like `read_postings`, with an id for each occurrence."""
        ...

    def read_lengths(self, ids: Ids) -> Ids:
        """Return the number of terms of each of these chunks. `ids`: distinct, ascending."""
        ...

    def read_terms(self, ids: Sequence[int]) -> Sequence[tuple[int, str, str, str]]:
        """Return id, document, words and grams of chunks; terms are separated by spaces."""
        ...

    def read_stored(self, ids: Sequence[int]) -> dict[int, StoredChunk]:
        """Return chunks as they are stored, by id."""
        ...

    def contains_phrase(self, tokens: Sequence[str]) -> bool:
        """Return whether a chunk contains these tokens of words one after the other."""
        ...

    def list_chunks(self, scope: int) -> list[int]:
        """Return the ids of the chunks of a scope."""
        ...

    def read_texts(self, ids: list[int]) -> list[tuple[int, str, str, str]]:
        """Return the id, the title of the document, the text and the words of chunks."""
        ...

    def read_dates(self, documents: Sequence[str]) -> dict[str, str]:
        """Return the dates of those documents that have one, in ISO 8601, by id."""
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
    """The posting lists of some scopes, for one search. All methods block.

    `pause` is called after each `SCOPES_AT_ONCE` scopes. `whole_max`: postings of a query, beyond
    which the lists of the most frequent terms are read in part; by default that of the reader.
    """

    def __init__(
        self,
        reader: IndexReader,
        cache: PostingCache,
        scopes: Sequence[IndexScope],
        pause: Callable[[], None] = lambda: None,
        *,
        whole_max: int | None = None,
    ) -> None:
        self._reader, self._scopes, self._pause = reader, scopes, pause
        self._whole_max = reader.whole_max if whole_max is None else whole_max
        self._cache = cache if len(scopes) <= SCOPES_CACHED else None
        self._absent: set[Key] = set()  # tokens that no chunk contains

    def read_frequencies(self, terms: Sequence[Term]) -> dict[Term, int]:
        """Return the number of chunks that contain each of these words and grams."""
        sums = dict.fromkeys(terms, 0)
        for keys in self._build_keys(terms):
            frequencies = self._read_key_frequencies(keys)
            for key, term in keys.items():
                if frequency := frequencies[key]:
                    sums[term] += frequency
                else:
                    self._absent.add(key)
        return sums

    def read_weighted(self, weights: Mapping[Term, float]) -> tuple[Ids, Numbers]:
        """Return the postings of these terms, one term after the other, and the weight of each."""
        lists: list[tuple[Ids, float]] = []
        for keys in self._build_keys(weights):
            postings = self._read_key_postings(keys)
            lists += ((postings[key], weights[term]) for key, term in keys.items())
        return join_postings(lists)

    def select_heaviest(self, weights: Mapping[Term, float], limit: int | None) -> dict[int, float]:
        """Return the chunks with the largest sums of weights of their terms; see `bm25.py`.

        With a limit, long lists are read in part, without the cache.
        """
        if limit is None or self._cache is None:
            return select_heaviest(*self.read_weighted(weights), limit)
        keys = next(self._build_keys(weights), {})
        long = _select_long(self._read_key_frequencies(keys), self._whole_max)
        if not long:
            return select_heaviest(*self.read_weighted(weights), limit)
        whole = self._read_key_postings([key for key in keys if key not in long])
        terms = {term: WeightedPostings(weight) for term, weight in weights.items()}
        for key, ids in whole.items():
            terms[keys[key]].add(ids)
        for key, frequency in long.items():
            terms[keys[key]].add_long(key[1], frequency)
        return select_heaviest_pruned(list(terms.values()), self._reader, limit)

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
            postings = self._reader.read_occurrences([token for _, token in keys])
            weights = [idfs[word] for _, word in keys.values()]
            occurrences += zip(postings, weights, strict=True)
        mean = sum(scope.terms for scope in self._scopes) / max(chunks, 1)
        return select_best(occurrences, self._reader.read_lengths, mean, limit)

    def contains_phrase(self, words: Sequence[str]) -> bool:
        """Return whether a chunk contains these words one after the other."""
        return any(
            self._reader.contains_phrase([f"{scope.id}{MARKS['words']}{word}" for word in words])
            for scope in self._scopes
        )

    def _read_key_frequencies(self, keys: Iterable[Key]) -> dict[Key, int]:
        def read(missing: list[Key]) -> dict[Key, int]:
            frequencies = self._reader.read_frequencies([token for _, token in missing])
            return {key: frequencies.get(key[1], 0) for key in missing}

        cached = self._cache and self._cache.frequencies
        return cached.get_many(keys, read) if cached else read(list(keys))

    def _read_key_postings(self, keys: Iterable[Key]) -> dict[Key, Ids]:
        def read(missing: list[Key]) -> dict[Key, Ids]:
            postings = self._reader.read_postings([token for _, token in missing])
            return dict(zip(missing, postings, strict=True))

        cached = self._cache and self._cache.postings
        return cached.get_many(keys, read) if cached else read(list(keys))

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


def _select_long(frequencies: Mapping[Key, int], whole_max: int) -> dict[Key, int]:
    """Return the most frequent tokens, without which there are at most `whole_max` postings."""
    long: dict[Key, int] = {}
    postings = sum(frequencies.values())
    for key, frequency in sorted(frequencies.items(), key=itemgetter(1), reverse=True):
        if postings <= whole_max:
            break
        long[key] = frequency
        postings -= frequency
    return long
