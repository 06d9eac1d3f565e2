"""The index in SQLite, read from FTS5. Only this module and `fts5_merge.py` depend on FTS5.

The tokens of a scope are adjacent in the index. A query is never interpreted as a query language:
it is reduced to terms, each of which is quoted. Statements bypass SQLAlchemy, whose overhead
exceeds the time SQLite needs for them.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from service.core.search.bm25 import Ids, Span, build_ids, decode_ids, join_ids
from service.core.search.postings.cached import IndexScope
from service.core.search.ranking import StoredChunk


class Fts5Reader:
    """See `IndexReader`. `cursor`: of the driver, within a transaction."""

    whole_max = 200_000  # an interval takes as long as 500 postings

    def __init__(self, cursor: Any) -> None:
        self._execute = cursor.execute

    def read_scopes(self, user_id: str | None) -> list[IndexScope]:
        """See `IndexReader.read_scopes`."""
        rows = self._execute(_ALL_SCOPES) if user_id is None else self._execute(_SCOPES, (user_id,))
        return [IndexScope(*row) for row in rows]

    def read_frequencies(self, tokens: Sequence[str]) -> dict[str, int]:
        """See `IndexReader.read_frequencies`."""
        return dict(self._execute(_FREQUENCIES, (json.dumps(tokens),)).fetchall())

    def read_postings(self, tokens: Sequence[str]) -> list[Ids]:
        """See `IndexReader.read_postings`."""
        expressions = json.dumps([f'"{token}"' for token in tokens])
        return [decode_ids(ids) for _, ids in self._execute(_POSTINGS, (expressions,))]

    def read_within(self, tokens: Sequence[str], spans: Sequence[Span]) -> list[Ids]:
        """See `IndexReader.read_within`."""
        expressions = json.dumps([f'"{token}"' for token in tokens])
        rows = self._execute(_WITHIN_SPANS, (json.dumps(spans), expressions))
        lists: defaultdict[int, list[Ids]] = defaultdict(list)
        for n, ids in rows:
            lists[n].append(decode_ids(ids))
        return [join_ids(lists[n]) for n in range(len(tokens))]

    def read_bounds(self, tokens: Sequence[str]) -> Span:
        """See `IndexReader.read_bounds`."""
        expression = " OR ".join(f'"{token}"' for token in tokens)
        (span,) = self._execute(_BOUNDS, (expression, expression))
        first, last = span
        return first, last

    def read_occurrences(self, tokens: Sequence[str]) -> list[Ids]:
        """See `IndexReader.read_occurrences`."""
        return [decode_ids(ids) for _, ids in self._execute(_OCCURRENCES, (json.dumps(tokens),))]

    def read_lengths(self, ids: Ids) -> Ids:
        """See `IndexReader.read_lengths`."""
        rows = self._execute(_LENGTHS, (json.dumps(ids.tolist()),))
        return build_ids([_decode_varint(size) for (size,) in rows])

    def read_terms(self, ids: Sequence[int]) -> Sequence[tuple[int, str, str, str]]:
        """See `IndexReader.read_terms`."""
        rows: list[tuple[int, str, str, str]] = self._execute(_TERMS, (json.dumps(ids),)).fetchall()
        return rows

    def read_stored(self, ids: Sequence[int]) -> dict[int, StoredChunk]:
        """See `IndexReader.read_stored`."""
        return {id_: StoredChunk(*row) for id_, *row in self._execute(_STORED, (json.dumps(ids),))}

    def contains_phrase(self, tokens: Sequence[str]) -> bool:
        """See `IndexReader.contains_phrase`."""
        return self._execute(_PHRASE, (f'"{" ".join(tokens)}"',)).fetchone() is not None

    def list_chunks(self, scope: int) -> list[int]:
        """See `IndexReader.list_chunks`."""
        return [id_ for (id_,) in self._execute(_SCOPE_CHUNKS, (scope,)).fetchall()]

    def read_texts(self, ids: list[int]) -> list[tuple[int, str, str, str]]:
        """See `IndexReader.read_texts`."""
        rows: list[tuple[int, str, str, str]] = self._execute(_TEXTS, (json.dumps(ids),)).fetchall()
        return rows

    def read_dates(self, documents: Sequence[str]) -> dict[str, str]:
        """See `IndexReader.read_dates`."""
        return dict(self._execute(_DATES, (json.dumps(documents),)).fetchall())

    def read_vectors(self, scope: int, model: str, length: int) -> Sequence[tuple[int, bytes]]:
        """See `IndexReader.read_vectors`."""
        rows: list[tuple[int, bytes]] = self._execute(_VECTORS, (scope, model, length)).fetchall()
        return rows

    def select_within(self, ids: Sequence[int], documents: Sequence[str]) -> set[int]:
        """See `IndexReader.select_within`."""
        return {row[0] for row in self._execute(_WITHIN, (json.dumps(ids), json.dumps(documents)))}


_ALL_SCOPES = "SELECT id, version, chunks, terms, vectors FROM index_scopes"
_SCOPES = f"{_ALL_SCOPES} WHERE id = 0 OR user_id = ?"
_FREQUENCIES = (
    "SELECT term, doc FROM chunk_vocabulary WHERE term IN (SELECT value FROM json_each(?))"
)
_POSTINGS = """
SELECT key, (SELECT json_group_array(rowid) FROM chunk_terms WHERE chunk_terms MATCH value)
FROM json_each(?)
"""
_WITHIN_SPANS = """
SELECT tokens.key, (
    SELECT json_group_array(rowid) FROM chunk_terms
    WHERE chunk_terms MATCH tokens.value
        AND rowid BETWEEN spans.value ->> 0 AND spans.value ->> 1
)
FROM json_each(?) AS spans, json_each(?) AS tokens
"""
_BOUNDS = """
SELECT (SELECT rowid FROM chunk_terms WHERE chunk_terms MATCH ? ORDER BY rowid LIMIT 1),
    (SELECT rowid FROM chunk_terms WHERE chunk_terms MATCH ? ORDER BY rowid DESC LIMIT 1)
"""
_OCCURRENCES = """
SELECT key, (SELECT json_group_array(doc) FROM chunk_occurrences WHERE term = value)
FROM json_each(?)
"""
# FTS5 stores the number of terms of each row as a variable-length integer.
_LENGTHS = """
SELECT sz FROM chunk_terms_docsize WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id
"""
_TERMS = """
SELECT id, document_id, words, grams FROM chunks WHERE id IN (SELECT value FROM json_each(?))
"""
_STORED = """
SELECT c.id, c.document_id, c.n, c.start, c."end", d.title, c.text, c.page
FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
WHERE c.id IN (SELECT value FROM json_each(?))
"""
_PHRASE = "SELECT 1 FROM chunk_terms WHERE chunk_terms MATCH ? LIMIT 1"
_SCOPE_CHUNKS = "SELECT id FROM chunks WHERE scope = ?"
_TEXTS = """
SELECT c.id, d.title, c.text, c.words FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
WHERE c.id IN (SELECT value FROM json_each(?))
"""
_DATES = """
SELECT id, date FROM documents WHERE id IN (SELECT value FROM json_each(?)) AND date IS NOT NULL
"""
_VECTORS = """
SELECT chunks.id, vectors.vector FROM chunks JOIN vectors USING (scope, content_hash)
WHERE chunks.scope = ? AND vectors.model = ? AND length(vectors.vector) = ? ORDER BY chunks.id
"""
_WITHIN = """
SELECT id FROM chunks WHERE id IN (SELECT value FROM json_each(?))
AND document_id IN (SELECT value FROM json_each(?))
"""


def _decode_varint(data: bytes) -> int:
    """Decode groups of seven bits, the most significant one first."""
    value = 0
    for byte in data:
        value = value << 7 | byte & 127
    return value
