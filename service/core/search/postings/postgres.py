"""The index in PostgreSQL: rows of token and ids of chunks, an id for each occurrence.

Triggers write them (`alembic/postgresql`), as they do for FTS5: a row for each term of a document.
`postings_merge.py` joins rows. The posting list of a token is that of its rows together.
The lengths of chunks are in `chunk_lengths`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from service.core.search.bm25 import (
    Ids,
    Span,
    are_within,
    decode_arrays,
    find_distinct,
    sort_ids,
)
from service.core.search.postings.cached import MARKS, IndexScope
from service.core.search.ranking import StoredChunk


class PostgresReader:
    """See `IndexReader`."""

    whole_max = 50_000

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def read_scopes(self, user_id: str | None) -> list[IndexScope]:
        """See `IndexReader.read_scopes`."""
        rows = (
            self._execute(_ALL_SCOPES)
            if user_id is None
            else self._execute(_SCOPES, user_id=user_id)
        )
        return [IndexScope(*row) for row in rows]

    def read_frequencies(self, tokens: Sequence[str]) -> dict[str, int]:
        """See `IndexReader.read_frequencies`."""
        return {row[0]: row[1] for row in self._execute(_FREQUENCIES, tokens=list(tokens))}

    def read_postings(self, tokens: Sequence[str]) -> list[Ids]:
        """See `IndexReader.read_postings`."""
        return [find_distinct(ids) for ids in self.read_occurrences(tokens)]

    def read_occurrences(self, tokens: Sequence[str]) -> list[Ids]:
        """See `IndexReader.read_occurrences`."""
        return _decode_postings(self._execute(_OCCURRENCES, tokens=list(tokens)), tokens)

    def read_within(self, tokens: Sequence[str], spans: Sequence[Span]) -> list[Ids]:
        """See `IndexReader.read_within`."""
        rows = self._execute(
            _WITHIN_SPANS,
            tokens=list(tokens),
            last=spans[-1][1],
            spans=f"{{{','.join(f'[{first},{last}]' for first, last in spans)}}}",
        )
        lists = _decode_postings(rows, tokens)
        return [find_distinct(ids[are_within(ids, spans)]) for ids in lists]

    def read_bounds(self, tokens: Sequence[str]) -> Span:
        """See `IndexReader.read_bounds`."""
        ((first, last),) = self._execute(_BOUNDS, tokens=list(tokens))
        return first, last

    def read_lengths(self, ids: Ids) -> Ids:
        """See `IndexReader.read_lengths`."""
        ((array,),) = self._execute(_LENGTHS, ids=ids.tolist())
        return decode_arrays([array])

    def read_terms(self, ids: Sequence[int]) -> Sequence[tuple[int, str, str, str]]:
        """See `IndexReader.read_terms`."""
        return [(row[0], row[1], row[2], row[3]) for row in self._execute(_TERMS, ids=list(ids))]

    def read_stored(self, ids: Sequence[int]) -> dict[int, StoredChunk]:
        """See `IndexReader.read_stored`."""
        rows = self._execute(_STORED, ids=list(ids))
        return {id_: StoredChunk(*row) for id_, *row in rows}

    def contains_phrase(self, tokens: Sequence[str]) -> bool:
        """See `IndexReader.contains_phrase`. The chunks with the rarest word are read."""
        rarest = min(self.read_postings(tokens), key=len)
        words = " ".join(token.partition(MARKS["words"])[2] for token in tokens)
        return bool(self._execute(_PHRASE, ids=rarest.tolist(), phrase=f" {words} "))

    def list_chunks(self, scope: int) -> list[int]:
        """See `IndexReader.list_chunks`."""
        return [id_ for (id_,) in self._execute(_SCOPE_CHUNKS, scope=scope)]

    def read_texts(self, ids: list[int]) -> list[tuple[int, str, str, str]]:
        """See `IndexReader.read_texts`."""
        return [(row[0], row[1], row[2], row[3]) for row in self._execute(_TEXTS, ids=ids)]

    def read_dates(self, documents: Sequence[str]) -> dict[str, str]:
        """See `IndexReader.read_dates`."""
        rows = self._execute(_DATES, documents=list(documents))
        return {id_: str(date) for id_, date in rows}

    def read_vectors(self, scope: int, model: str, length: int) -> Sequence[tuple[int, bytes]]:
        """See `IndexReader.read_vectors`."""
        rows = self._execute(_VECTORS, scope=scope, model=model, length=length)
        return [(row[0], row[1]) for row in rows]

    def select_within(self, ids: Sequence[int], documents: Sequence[str]) -> set[int]:
        """See `IndexReader.select_within`."""
        rows = self._execute(_WITHIN, ids=list(ids), documents=list(documents))
        return {row[0] for row in rows}

    def _execute(self, statement: sa.TextClause, **values: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._connection.execute(statement, values)]


def _decode_postings(rows: Iterable[tuple[Any, ...]], tokens: Sequence[str]) -> list[Ids]:
    """Return the ids of each token, in ascending order, from rows of token and ids."""
    arrays: defaultdict[str, list[bytes]] = defaultdict(list)
    for token, array in rows:
        arrays[token].append(array)
    # Rows of a document that has moved to this scope may overlap with others.
    return [sort_ids(decode_arrays(arrays[token])) for token in tokens]


def _prepare(text: str) -> sa.TextClause:
    """A statement with the types of its parameters."""
    types: dict[str, Any] = {
        "tokens": sa.ARRAY(sa.Text),
        "documents": sa.ARRAY(sa.Text),
        "ids": sa.ARRAY(sa.BigInteger),
    }
    bound = [sa.bindparam(name, type_=kind) for name, kind in types.items() if f":{name}" in text]
    return sa.text(text).bindparams(*bound)


_ALL_SCOPES = _prepare("SELECT id, version, chunks, terms, vectors FROM index_scopes")
_SCOPES = _prepare(
    """
    SELECT id, version, chunks, terms, vectors FROM index_scopes
    WHERE id = 0 OR user_id = :user_id
    """
)
_FREQUENCIES = _prepare(
    "SELECT token, sum(chunks) FROM postings WHERE token = ANY(:tokens) GROUP BY token"
)
# The driver would build a list of Python's integers from an array.
_OCCURRENCES = _prepare(
    """
    SELECT token, array_send(ids) FROM postings WHERE token = ANY(:tokens) ORDER BY token, first
    """
)
_WITHIN_SPANS = _prepare(
    """
    SELECT token, array_send(ids) FROM postings
    WHERE token = ANY(:tokens) AND first <= :last
        AND int8range(first, last, '[]') && CAST(CAST(:spans AS TEXT) AS int8multirange)
    ORDER BY token, first
    """
)
_BOUNDS = _prepare("SELECT min(first), max(last) FROM postings WHERE token = ANY(:tokens)")
_LENGTHS = _prepare(
    "SELECT array_send(array_agg(terms ORDER BY id)) FROM chunk_lengths WHERE id = ANY(:ids)"
)
_TERMS = _prepare("SELECT id, document_id, words, grams FROM chunks WHERE id = ANY(:ids)")
_STORED = _prepare(
    """
    SELECT c.id, c.document_id, c.n, c.start, c."end", d.title, c.text, c.page
    FROM chunks AS c JOIN documents AS d ON d.id = c.document_id WHERE c.id = ANY(:ids)
    """
)
_PHRASE = _prepare(
    """
    SELECT 1 FROM chunks WHERE id = ANY(:ids)
    AND strpos(' ' || words || ' ', CAST(:phrase AS TEXT)) > 0 LIMIT 1
    """
)
_SCOPE_CHUNKS = _prepare("SELECT id FROM chunks WHERE scope = :scope")
_TEXTS = _prepare(
    """
    SELECT c.id, d.title, c.text, c.words
    FROM chunks AS c JOIN documents AS d ON d.id = c.document_id WHERE c.id = ANY(:ids)
    """
)
_DATES = _prepare("SELECT id, date FROM documents WHERE id = ANY(:documents) AND date IS NOT NULL")
_VECTORS = _prepare(
    """
    SELECT chunks.id, vectors.vector FROM chunks JOIN vectors USING (scope, content_hash)
    WHERE scope = :scope AND vectors.model = :model AND octet_length(vectors.vector) = :length
    ORDER BY chunks.id
    """
)
_WITHIN = _prepare("SELECT id FROM chunks WHERE id = ANY(:ids) AND document_id = ANY(:documents)")
