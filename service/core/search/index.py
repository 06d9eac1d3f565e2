"""The search index: document frequencies, candidates, and the terms and texts of chunks.

*Candidates*: of the query's words, the rarest with `POSTINGS_MAX` postings in total, and likewise
of its grams; the chunks that contain most of them, by idf. So the cost of a search does not grow
with the collection; the ranking considers all terms again. Where this cannot distinguish the
chunks because too many contain the same few words, as with queries of one word, the best by BM25
over the whole collection are added.

*Scopes*: shared chunks are one scope, and those of each owner that are not shared another. A user
sees two of them. All numbers are computed from the scopes that the caller sees, so results and the
time they take do not depend on documents of others. An admin sees all scopes: such a search reads
each of them, which takes longer with many owners, and pauses in between. A restriction to some
documents (`within`) restricts the candidates, not the numbers.

Posting lists come from SQLite's FTS5 (`postings/fts5.py`) or from PostgreSQL
(`postings/postgres.py`), and are cached for one version of a scope (`postings/cached.py`).
The terms of chunks (`CODES_CACHED`, 4 bytes each) and their texts (`CHARACTERS_CACHED`, one or two
bytes each) are cached across versions, since chunks never change and ids are never reused. The
vectors of a scope are read as a whole (`VECTORS_MAX`, 1.5 KB each for 384 dimensions). Entries are
evicted in insertion order.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.ports import QueryVector
from service.core.search.bm25 import (
    ChunkTerms,
    TermCounts,
    compute_idf,
    count_terms,
    encode_chunks,
)
from service.core.search.cache import BoundedCache
from service.core.search.languages import read_language_means
from service.core.search.postings.cached import (
    SCOPES_CACHED,
    CachedPostings,
    IndexReader,
    IndexScope,
    PostingCache,
)
from service.core.search.postings.fts5 import Fts5Reader
from service.core.search.postings.postgres import PostgresReader
from service.core.search.ranking import GRAM_WEIGHT, CollectionStatistics, Query, StoredChunk, Term
from service.core.search.vector_matrix import ChunkSimilarities, VectorMatrix
from service.core.search.vocabulary import CHUNKS_MAX as VOCABULARY_CHUNKS_MAX
from service.core.search.vocabulary import Vocabulary
from service.core.text.languages import MARKED_LANGUAGES, mark_language

CANDIDATES_MAX = 70
TIED_SHARE = (
    0.5  # of the best weight: if the last candidate reaches it, the weights do not distinguish
)
NEAREST_MAX = 30
FOREIGN_NEAREST_MAX = 15  # in another language than the question, beside those
VECTORS_MAX = 200_000  # of the chunks that a caller sees; with more of them, words decide
VISIBLE_AT_ONCE = 300  # best chunks whose visibility is checked by one statement
POSTINGS_MAX, GRAM_POSTINGS_MAX, MATCHED_POSTINGS_MAX = 4_000, 1_000, 2_000
WORDS_MIN = 3  # looked up even if they are not rare
CODES_CACHED, CHARACTERS_CACHED = 8_000_000, 5_000_000
VOCABULARIES_CACHED = 8_000_000  # words of chunks, 4 bytes each


class Visibility(msgspec.Struct, frozen=True):
    """The owner and the ids of the documents that may be found. None: any."""

    user_id: str | None
    within: Sequence[str] | None


class CachedMatrix(msgspec.Struct, frozen=True):
    """The vectors of a scope. `key`: its versions, and the model and length of the vectors."""

    key: tuple[int, int, str, int]
    matrix: VectorMatrix


class CachedVocabulary(msgspec.Struct, frozen=True):
    """The vocabulary of a version of a scope."""

    version: int
    vocabulary: Vocabulary


class _ChunkCache:
    """Chunks of any version of the index, and the vectors and vocabularies of scopes."""

    def __init__(self) -> None:
        self.terms: BoundedCache[int, ChunkTerms] = BoundedCache(
            CODES_CACHED, lambda chunk: len(chunk.codes) + 80
        )
        self.stored: BoundedCache[int, StoredChunk] = BoundedCache(
            CHARACTERS_CACHED, lambda chunk: len(chunk.text) + 400
        )
        self.matrices: BoundedCache[int, CachedMatrix] = BoundedCache(
            VECTORS_MAX, lambda cached: len(cached.matrix) + 1
        )
        self.vocabularies: BoundedCache[int, CachedVocabulary] = BoundedCache(
            VOCABULARIES_CACHED, lambda cached: len(cached.vocabulary) + 1
        )


class SearchIndex:
    """The index of one database, with its caches."""

    def __init__(self) -> None:
        self._file: Any = None
        self._clear()

    def _clear(self) -> None:
        self._versions: dict[int, int] = {}  # by scope
        self._postings = PostingCache()
        self._chunks = _ChunkCache()

    def open_snapshot(
        self,
        connection: sa.Connection,
        visibility: Visibility,
        pause: Callable[[], None] = lambda: None,
    ) -> "Snapshot":
        """Return the visible index as the transaction of this connection sees it.

        `pause` is called between scopes if there are many of them.
        """
        reader: IndexReader = (
            PostgresReader(connection)
            if connection.dialect.name == "postgresql"
            else Fts5Reader(connection.connection.cursor())
        )
        scopes = reader.read_scopes(visibility.user_id)
        file = connection.info.get("file")
        if file != self._file or any(
            scope.version < self._versions.get(scope.id, 0) for scope in scopes
        ):  # replaced by a backup
            self._file = file
            self._clear()
        self._versions |= {scope.id: scope.version for scope in scopes}
        occupied = [scope for scope in scopes if scope.chunks]
        postings = CachedPostings(reader, self._postings, occupied, pause)
        return Snapshot(reader, visibility, occupied, postings, self._chunks)


class Snapshot:
    """One version of the index. All methods block."""

    def __init__(
        self,
        reader: IndexReader,
        visibility: Visibility,
        scopes: Sequence[IndexScope],
        postings: CachedPostings,
        cache: _ChunkCache,
    ) -> None:
        self._reader = reader
        self._postings, self._cache = postings, cache
        self._within, self._scopes = visibility.within, scopes

    def read_statistics(self, query: Query) -> CollectionStatistics:
        """Return the number of chunks, and the document frequencies of a query's terms."""
        frequencies = self._postings.read_frequencies(query.terms)
        return CollectionStatistics(
            sum(scope.chunks for scope in self._scopes),
            {word: frequencies["words", word] for word in query.words},
            {gram: frequencies["grams", gram] for gram in query.grams},
        )

    def select_candidates(self, statistics: CollectionStatistics) -> list[int]:
        """Return the ids of the visible chunks to rank."""
        words = _select_rarest(statistics.words, WORDS_MIN, POSTINGS_MAX)
        grams = _select_rarest(statistics.grams, 1, GRAM_POSTINGS_MAX)
        total = statistics.total
        weights = {("words", word): compute_idf(statistics.words[word], total) for word in words}
        weights |= {
            ("grams", gram): GRAM_WEIGHT * compute_idf(statistics.grams[gram], total)
            for gram in grams
        }
        limit = CANDIDATES_MAX + 1 if self._within is None else None
        sums = self._postings.select_heaviest(weights, limit)
        best = self._filter_visible(list(sums), CANDIDATES_MAX + 1)
        selected = best[:CANDIDATES_MAX]
        if words and len(best) > CANDIDATES_MAX and sums[best[-1]] >= TIED_SHARE * sums[best[0]]:
            words = _select_rarest(statistics.words, WORDS_MIN, MATCHED_POSTINGS_MAX)
            limit = CANDIDATES_MAX if self._within is None else None
            matches = self._filter_visible(
                self._postings.find_matches(
                    {word: statistics.words[word] for word in words}, limit
                ),
                CANDIDATES_MAX,
            )
            selected = list(dict.fromkeys([*matches, *selected]))
        return selected

    def compare_vectors(self, vector: QueryVector, text: str) -> ChunkSimilarities | None:
        """Compare the visible chunks that have a vector; None if there are none, or too many."""
        if sum(scope.chunks for scope in self._scopes) > VECTORS_MAX:
            return None
        matrices = [self._read_matrix(scope, vector) for scope in self._scopes]
        if not any(map(len, matrices)):
            return None
        return ChunkSimilarities(matrices, vector.vector, text)

    def select_nearest(self, similarities: ChunkSimilarities) -> list[int]:
        """Return the visible chunks nearest in meaning, of all and of those in other languages."""
        limit = NEAREST_MAX if self._within is None else None
        nearest = self._filter_visible(similarities.find_nearest(limit), NEAREST_MAX)
        limit = FOREIGN_NEAREST_MAX if self._within is None else None
        foreign = similarities.find_nearest(limit, foreign_only=True)
        return [*nearest, *self._filter_visible(foreign, FOREIGN_NEAREST_MAX)]

    def find_absent(self, terms: Sequence[Term]) -> set[Term]:
        """Return those of these terms that no visible chunk contains."""
        frequencies = self._postings.read_frequencies(terms)
        return {
            term
            for term in terms
            if not frequencies[term]
            or (self._within is not None and not self._filter_visible(self._list_chunks(term), 1))
        }

    def select_absent(self, terms: Sequence[Term]) -> set[Term]:
        """Return those of these terms that no chunk of the visible scopes contains."""
        frequencies = self._postings.read_frequencies(list(dict.fromkeys(terms)))
        return {term for term, frequency in frequencies.items() if not frequency}

    def count_languages(self) -> dict[str, int]:
        """Return the number of chunks by language, without English and Japanese."""
        frequencies = self._postings.read_frequencies(list(_LANGUAGE_TERMS))
        return {_LANGUAGE_TERMS[term]: count for term, count in frequencies.items() if count}

    def contains_phrase(self, words: Sequence[str]) -> bool:
        """Return whether a chunk of the visible scopes contains these words in this order."""
        return self._postings.contains_phrase(words)

    def read_vocabularies(self) -> list[Vocabulary]:
        """Return the vocabularies of the visible scopes; none if these are many or large."""
        chunks = sum(scope.chunks for scope in self._scopes)
        if chunks > VOCABULARY_CHUNKS_MAX or len(self._scopes) > SCOPES_CACHED:
            return []
        return [self._read_vocabulary(scope) for scope in self._scopes]

    def count_terms(self, query: Query, ids: Sequence[int]) -> TermCounts:
        """Count a query's terms in these chunks."""
        chunks = self._cache.terms.get_many(
            ids, lambda missing: encode_chunks(self._reader.read_terms(missing))
        )
        return count_terms(query.codes, chunks)

    def read_chunks(self, ids: Sequence[int]) -> dict[int, StoredChunk]:
        """Return these chunks as they are stored."""
        return self._cache.stored.get_many(ids, self._reader.read_stored)

    def read_dates(self, document_ids: Sequence[str]) -> dict[str, str]:
        """Return the dates of those documents that have one, in ISO 8601, by id."""
        return self._reader.read_dates(document_ids)

    def _read_matrix(self, scope: IndexScope, vector: QueryVector) -> VectorMatrix:
        """Return the vectors of a scope that are comparable with this one."""
        key = (scope.version, scope.vectors, vector.model, len(vector.vector))
        cached = self._cache.matrices.get(scope.id)
        if cached is not None and cached.key == key:
            return cached.matrix
        rows = self._reader.read_vectors(scope.id, vector.model, len(vector.vector))
        means = read_language_means(vector.model)
        matrix = VectorMatrix(rows, means, self._marked if means else None)
        self._cache.matrices.store({scope.id: CachedMatrix(key, matrix)})
        return matrix

    def _read_vocabulary(self, scope: IndexScope) -> Vocabulary:
        cached = self._cache.vocabularies.get(scope.id)
        if cached is not None and cached.version == scope.version:
            return cached.vocabulary
        vocabulary = cached.vocabulary if cached else Vocabulary()
        vocabulary.update(self._reader.list_chunks(scope.id), self._reader.read_texts)
        self._cache.vocabularies.store({scope.id: CachedVocabulary(scope.version, vocabulary)})
        return vocabulary

    @cached_property
    def _marked(self) -> dict[str, list[int]]:
        """The chunks of the visible scopes by language, without English and Japanese."""
        terms = {language: term for term, language in _LANGUAGE_TERMS.items()}
        return {language: self._list_chunks(terms[language]) for language in self.count_languages()}

    def _list_chunks(self, term: Term) -> list[int]:
        """Return the chunks of the visible scopes that contain a term."""
        ids: list[int] = self._postings.read_weighted({term: 1})[0].tolist()
        return ids

    def _filter_visible(self, ids: list[int], limit: int) -> list[int]:
        """Return the first of these chunks that are in the documents of the restriction."""
        if self._within is None:
            return ids[:limit]
        visible: list[int] = []
        for begin in range(0, len(ids), VISIBLE_AT_ONCE):
            batch = ids[begin : begin + VISIBLE_AT_ONCE]
            visible_ids = self._reader.select_within(batch, self._within)
            visible += [id_ for id_ in batch if id_ in visible_ids]
            if len(visible) >= limit:
                break
        return visible[:limit]


_LANGUAGE_TERMS: dict[Term, str] = {
    ("grams", mark_language(language)): language for language in MARKED_LANGUAGES
}


def _select_rarest(frequencies: dict[str, int], terms_min: int, postings_max: int) -> list[str]:
    """Return the rarest terms that occur: `terms_min`, then up to `postings_max` postings."""
    selected: list[str] = []
    postings = 0
    for term, frequency in sorted(frequencies.items(), key=itemgetter(1)):
        postings += frequency
        if frequency and (len(selected) < terms_min or postings <= postings_max):
            selected.append(term)
    return selected
