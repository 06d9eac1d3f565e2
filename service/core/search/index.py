"""The search index: document frequencies, candidates, and the terms and texts of chunks.

*Candidates*: of the query's words, the rarest with `POSTINGS_MAX` postings in total, and likewise
of its grams; the chunks that contain most of them, by idf. So the cost of a search does not grow
with the collection; the ranking considers all terms again. Where this cannot distinguish the
chunks because too many contain the same few words, as with queries of one word, the best by BM25
over the whole collection are added.

Posting lists come from FTS5 (`postings/fts5.py`), which caches them for one version of the index.
The terms of chunks (`CODES_CACHED`, 4 bytes each) and their texts (`CHARACTERS_CACHED`, one or two
bytes each) are cached across versions, since chunks never change and ids are never reused. Entries
are evicted in insertion order.

Document frequencies count all documents, including those that the caller may not see.
"""

import json
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.ports import Similarities
from service.core.search.bm25 import (
    ChunkTerms,
    TermCounts,
    compute_idf,
    encode_chunks,
    select_heaviest,
)
from service.core.search.cache import BoundedCache
from service.core.search.postings.fts5 import Fts5Postings, IndexVersion
from service.core.search.ranking import GRAM_WEIGHT, CollectionStatistics, Query, StoredChunk

CANDIDATES_MAX = 70
TIED_SHARE = (
    0.5  # of the best weight: if the last candidate reaches it, the weights do not distinguish
)
NEAREST_MAX = 30
NEAREST_LIMITS = (50, 500, 5_000)  # nearest texts looked up, step by step, until enough are visible
VISIBLE_AT_ONCE = 300  # best chunks whose visibility is checked by one statement
POSTINGS_MAX, GRAM_POSTINGS_MAX, MATCHED_POSTINGS_MAX = 4_000, 1_000, 2_000
WORDS_MIN = 3  # looked up even if they are not rare
CODES_CACHED, CHARACTERS_CACHED = 8_000_000, 5_000_000


class Visibility(msgspec.Struct, frozen=True):
    """The owner and the ids of the documents that may be found. None: any."""

    user_id: str | None
    within: Sequence[str] | None

    @property
    def is_unrestricted(self) -> bool:
        """Whether all documents are visible."""
        return self.user_id is None and self.within is None

    @property
    def condition(self) -> str:
        """A condition for queries of `chunks AS c` and `documents AS d`, with `parameters`."""
        clauses = [
            "AND (d.user_id = :user_id OR d.shared)" if self.user_id is not None else "",
            "AND c.document_id IN (SELECT value FROM json_each(:within))"
            if self.within is not None
            else "",
        ]
        return " ".join(clauses)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the condition."""
        return {"user_id": self.user_id, "within": json.dumps(self.within)}


class _ChunkCache:
    """Chunks of any version of the index."""

    def __init__(self) -> None:
        self.terms: BoundedCache[int, ChunkTerms] = BoundedCache(
            CODES_CACHED, lambda chunk: len(chunk.codes) + 80
        )
        self.stored: BoundedCache[int, StoredChunk] = BoundedCache(
            CHARACTERS_CACHED, lambda chunk: len(chunk.text) + 400
        )


class SearchIndex:
    """The index of one database, with its caches."""

    def __init__(self) -> None:
        self._file: Any = None
        self._clear()

    def _clear(self) -> None:
        self._version = IndexVersion(0)
        self._chunks = _ChunkCache()

    def open_snapshot(self, connection: sa.Connection, query: Query) -> "Snapshot":
        """Return the index for a query as the transaction of this connection sees it."""
        # Statements bypass SQLAlchemy, whose overhead exceeds the time SQLite needs for them.
        cursor = connection.connection.cursor()
        number, chunks = cursor.execute(_STATE).fetchone()
        file = connection.info.get("file")
        if file != self._file or number < self._version.number:  # replaced by a backup
            self._file = file
            self._clear()
        if number != self._version.number:
            self._version = IndexVersion(number)
        return Snapshot(
            cursor, query, Fts5Postings(cursor.execute, self._version, query), self._chunks, chunks
        )


class Snapshot:
    """One version of the index, for one query. All methods block."""

    def __init__(
        self, cursor: Any, query: Query, postings: Fts5Postings, cache: _ChunkCache, chunks: int
    ) -> None:
        self._execute = cursor.execute
        self._query, self._postings, self._cache, self._chunks = query, postings, cache, chunks

    def read_statistics(self) -> CollectionStatistics:
        """Return the number of chunks, and the document frequencies of the query's terms."""
        frequencies, query = self._postings.read_frequencies(), self._query
        return CollectionStatistics(
            self._chunks,
            {word: frequencies["words", word] for word in query.words},
            {gram: frequencies["grams", gram] for gram in query.grams},
        )

    def select_candidates(
        self, statistics: CollectionStatistics, visibility: Visibility
    ) -> list[int]:
        """Return the ids of the visible chunks to rank."""
        words = _select_rarest(statistics.words, WORDS_MIN, POSTINGS_MAX)
        grams = _select_rarest(statistics.grams, 1, GRAM_POSTINGS_MAX)
        total = statistics.total
        weights = {("words", word): compute_idf(statistics.words[word], total) for word in words}
        weights |= {
            ("grams", gram): GRAM_WEIGHT * compute_idf(statistics.grams[gram], total)
            for gram in grams
        }
        limit = CANDIDATES_MAX + 1 if visibility.is_unrestricted else None
        sums = select_heaviest(*self._postings.read_weighted(weights), limit)
        best = self._filter_visible(list(sums), visibility, CANDIDATES_MAX + 1)
        selected = best[:CANDIDATES_MAX]
        if words and len(best) > CANDIDATES_MAX and sums[best[-1]] >= TIED_SHARE * sums[best[0]]:
            words = _select_rarest(statistics.words, WORDS_MIN, MATCHED_POSTINGS_MAX)
            limit = CANDIDATES_MAX if visibility.is_unrestricted else None
            matches = self._filter_visible(
                self._postings.find_matches(words, limit), visibility, CANDIDATES_MAX
            )
            selected = list(dict.fromkeys([*matches, *selected]))
        return selected

    def select_nearest(self, similarities: Similarities, visibility: Visibility) -> list[int]:
        """Return the visible chunks nearest in meaning, reading further if others' are nearer."""
        ids: list[int] = []
        offset = 0
        for limit in NEAREST_LIMITS:
            hashes = similarities.find_nearest(limit)[offset:]
            offset += len(hashes)
            ranks = {content_hash: n for n, content_hash in enumerate(hashes)}
            rows = self._execute(
                _NEAREST.format(condition=visibility.condition),
                visibility.parameters | {"hashes": json.dumps(hashes)},
            )
            ids += [row[0] for row in sorted(rows, key=lambda row: ranks[row[1]])]
            if len(ids) >= NEAREST_MAX or not hashes:
                break
        return ids[:NEAREST_MAX]

    def count_terms(self, ids: Sequence[int]) -> TermCounts:
        """Count the query's terms in these chunks."""
        return self._postings.count_terms(
            self._cache.terms.get_many(ids, partial(_read_terms, self._execute))
        )

    def read_chunks(self, ids: Sequence[int]) -> dict[int, StoredChunk]:
        """Return these chunks as they are stored."""
        return self._cache.stored.get_many(ids, partial(_read_stored, self._execute))

    def _filter_visible(self, ids: list[int], visibility: Visibility, limit: int) -> list[int]:
        """Return the first of these chunks that are visible."""
        if visibility.is_unrestricted:
            return ids[:limit]
        visible: list[int] = []
        for begin in range(0, len(ids), VISIBLE_AT_ONCE):
            batch = ids[begin : begin + VISIBLE_AT_ONCE]
            parameters = visibility.parameters | {"ids": json.dumps(batch)}
            rows = self._execute(_VISIBLE.format(condition=visibility.condition), parameters)
            visible_ids = {row[0] for row in rows}
            visible += [id_ for id_ in batch if id_ in visible_ids]
            if len(visible) >= limit:
                break
        return visible[:limit]


_STATE = "SELECT version, chunks FROM index_state"
_VISIBLE = """
SELECT c.id FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
WHERE c.id IN (SELECT value FROM json_each(:ids)) {condition}
"""
_NEAREST = """
SELECT c.id, c.content_hash FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
WHERE c.content_hash IN (SELECT value FROM json_each(:hashes)) {condition}
"""
_TERMS = """
SELECT id, words, grams, content_hash FROM chunks WHERE id IN (SELECT value FROM json_each(?))
"""
_STORED = """
SELECT c.id, c.document_id, c.n, c.start, c."end", d.title, c.text, c.page
FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
WHERE c.id IN (SELECT value FROM json_each(?))
"""


def _read_terms(execute: Any, ids: Sequence[int]) -> dict[int, ChunkTerms]:
    return encode_chunks(execute(_TERMS, (json.dumps(ids),)).fetchall())


def _read_stored(execute: Any, ids: Sequence[int]) -> dict[int, StoredChunk]:
    return {id_: StoredChunk(*row) for id_, *row in execute(_STORED, (json.dumps(ids),))}


def _select_rarest(frequencies: dict[str, int], terms_min: int, postings_max: int) -> list[str]:
    """Return the rarest terms that occur: `terms_min`, then up to `postings_max` postings."""
    selected: list[str] = []
    postings = 0
    for term, frequency in sorted(frequencies.items(), key=itemgetter(1)):
        postings += frequency
        if frequency and (len(selected) < terms_min or postings <= postings_max):
            selected.append(term)
    return selected
