"""Posting lists, read from FTS5. Only this module and `fts5_merge.py` know FTS5: another database needs its own of both.

Document frequencies (`COUNTS_KEPT`, some 10 MB) and posting lists (`POSTINGS_KEPT` of 8 bytes) are cached for one version of the
index. Entries are evicted in insertion order.

A question is never read as a query language: it is reduced to terms, and each is quoted.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.core.search.bm25 import Digest, Ids, Numbers, Observed, numbers, observed, weighed
from service.core.search.cache import BoundedCache
from service.core.search.ranking import Query, Term

COUNTS_KEPT, POSTINGS_KEPT = 100_000, 1_000_000


class IndexVersion:
    """What is known of one version of the index."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.counts: BoundedCache[Term, int] = BoundedCache(COUNTS_KEPT, lambda _: 1)
        self.postings: BoundedCache[Term, Ids] = BoundedCache(
            POSTINGS_KEPT, lambda ids: len(ids) + 20
        )


class Fts5Postings:
    """The posting lists of the terms of one question. All of it blocks."""

    def __init__(self, execute: Any, version: IndexVersion, query: Query) -> None:
        self._execute, self._version, self._query = execute, version, query

    def frequencies(self) -> dict[Term, int]:
        """In how many chunks each word and gram of the question occurs."""

        def read(missing: list[Term]) -> dict[Term, int]:
            asked = (json.dumps([term for _, term in missing]),)
            found = {(column, term): n for column, term, n in self._execute(_FREQUENCIES, asked)}
            return {term: found.get(term, 0) for term in missing}

        return self._version.counts.get_many(self._query.columns, read)

    def weighed(self, weights: Mapping[Term, float]) -> tuple[Ids, Numbers]:
        """The chunks in which these terms occur, one term after the other, and the weight of each."""

        def read(missing: list[Term]) -> dict[Term, Ids]:
            asked = json.dumps([_expression(column, [term]) for column, term in missing])
            found = self._execute(_POSTINGS, (asked,))
            return {missing[n]: numbers(ids) for n, ids in found}

        found = self._version.postings.get_many(weights, read)
        return weighed((found[term], weight) for term, weight in weights.items())

    def matched(self, words: Sequence[str], most: int | None) -> list[int]:
        """The chunks in which any of these words occurs, `most` of them, best first.

        By FTS5's `bm25(…, w, w)`, which is BM25 with k1 = 1.2 / w: weights of 2 give the k1 of 0.6 of the ranking.
        """
        found = self._execute(
            _MATCH, {"match": _expression("words", words), "most": -1 if most is None else most}
        )
        return [row[0] for row in found]

    def observed(self, chunks: Mapping[int, Digest]) -> Observed:
        """How often each term occurs in each of these chunks."""
        return observed(self._query.codes, chunks)


_FREQUENCIES = (
    "SELECT col, term, doc FROM chunk_vocabulary WHERE term IN (SELECT value FROM json_each(?))"
)
_POSTINGS = "SELECT key, (SELECT json_group_array(rowid) FROM chunk_terms WHERE chunk_terms MATCH value) FROM json_each(?)"
_MATCH = """
SELECT rowid FROM chunk_terms WHERE chunk_terms MATCH :match
ORDER BY bm25(chunk_terms, 2.0, 2.0), rowid LIMIT :most
"""


def _expression(column: str, found: Iterable[str]) -> str:
    """An FTS5 expression in which nothing but the column is ours: terms are quoted strings."""
    quoted = (f'"{term}"' for term in found)
    return f"{column} : ({' OR '.join(quoted)})"
