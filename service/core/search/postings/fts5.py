"""Posting lists, read from FTS5. Only this module and `fts5_merge.py` depend on FTS5.

Document frequencies (`FREQUENCIES_CACHED`, about 10 MB) and posting lists (`POSTINGS_CACHED`, 8
bytes each) are cached for one version of the index. Entries are evicted in insertion order.

A query is never interpreted as a query language: it is reduced to terms, each of which is quoted.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.core.search.bm25 import (
    ChunkTerms,
    Ids,
    Numbers,
    TermCounts,
    count_terms,
    decode_ids,
    join_postings,
)
from service.core.search.cache import BoundedCache
from service.core.search.ranking import Query, Term

FREQUENCIES_CACHED, POSTINGS_CACHED = 100_000, 1_000_000


class IndexVersion:
    """The caches of one version of the index."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.frequencies: BoundedCache[Term, int] = BoundedCache(FREQUENCIES_CACHED, lambda _: 1)
        self.postings: BoundedCache[Term, Ids] = BoundedCache(
            POSTINGS_CACHED, lambda ids: len(ids) + 20
        )


class Fts5Postings:
    """The posting lists of the terms of one query. All methods block."""

    def __init__(self, execute: Any, version: IndexVersion, query: Query) -> None:
        self._execute, self._version, self._query = execute, version, query

    def read_frequencies(self) -> dict[Term, int]:
        """Return the number of chunks that contain each word and gram of the query."""

        def read(missing: list[Term]) -> dict[Term, int]:
            terms = json.dumps([term for _, term in missing])
            frequencies = {
                (column, term): n for column, term, n in self._execute(_FREQUENCIES, (terms,))
            }
            return {term: frequencies.get(term, 0) for term in missing}

        return self._version.frequencies.get_many(self._query.terms, read)

    def read_weighted(self, weights: Mapping[Term, float]) -> tuple[Ids, Numbers]:
        """Return the postings of these terms, one term after the other, and the weight of each."""

        def read(missing: list[Term]) -> dict[Term, Ids]:
            expressions = json.dumps([_match_any(column, [term]) for column, term in missing])
            rows = self._execute(_POSTINGS, (expressions,))
            return {missing[n]: decode_ids(ids) for n, ids in rows}

        postings = self._version.postings.get_many(weights, read)
        return join_postings((postings[term], weight) for term, weight in weights.items())

    def find_matches(self, words: Sequence[str], limit: int | None) -> list[int]:
        """Return the best chunks by BM25 that contain any of these words.

        FTS5's `bm25(…, w, w)` is BM25 with k1 = 1.2 / w: weights of 2 give the k1 of the ranking,
        0.6.
        """
        rows = self._execute(
            _MATCH, {"match": _match_any("words", words), "limit": -1 if limit is None else limit}
        )
        return [row[0] for row in rows]

    def count_terms(self, chunks: Mapping[int, ChunkTerms]) -> TermCounts:
        """Count the terms of the query in each of these chunks."""
        return count_terms(self._query.codes, chunks)


def find_absent(
    execute: Any, terms: Sequence[Term], condition: str, parameters: Mapping[str, Any]
) -> set[Term]:
    """Return the terms that occur in no chunk which meets the condition. Blocking.

    `condition`: of `chunks AS c` and `documents AS d`, with its parameters.
    """
    expressions = json.dumps([_match_any(column, [term]) for column, term in terms])
    rows = execute(_ABSENT.format(condition=condition), {**parameters, "terms": expressions})
    return {terms[n] for (n,) in rows}


_FREQUENCIES = (
    "SELECT col, term, doc FROM chunk_vocabulary WHERE term IN (SELECT value FROM json_each(?))"
)
_POSTINGS = """
SELECT key, (SELECT json_group_array(rowid) FROM chunk_terms WHERE chunk_terms MATCH value)
FROM json_each(?)
"""
_ABSENT = """
SELECT key FROM json_each(:terms) AS searched WHERE NOT EXISTS (
    SELECT 1 FROM chunk_terms AS t
    CROSS JOIN chunks AS c ON c.id = t.rowid JOIN documents AS d ON d.id = c.document_id
    WHERE chunk_terms MATCH searched.value {condition}
)
"""
_MATCH = """
SELECT rowid FROM chunk_terms WHERE chunk_terms MATCH :match
ORDER BY bm25(chunk_terms, 2.0, 2.0), rowid LIMIT :limit
"""


def _match_any(column: str, terms: Iterable[str]) -> str:
    """Return an FTS5 expression that matches any of these terms, which are quoted."""
    quoted = (f'"{term}"' for term in terms)
    return f"{column} : ({' OR '.join(quoted)})"
