"""The index: how often terms occur, which chunks have them, and what stands in those.

*Counts*: how many chunks have each term of a question.
*Candidates*: of the question's words the rarest, as many as occur in `POSTINGS_MAX` chunks together, and likewise of its
grams; the chunks in which most of them stand, by weight. So what a search costs does not grow with the collection, and the
ranking sees every term again. Where too many chunks have the same few words for that to tell them apart, such as all those
of a question of one word, the best of them are looked for by BM25 over the whole collection.

Posting lists come from FTS5 (`postings/fts5.py`), which caches what it read of one version of the index. The terms of a chunk
(`CODES_KEPT` of 4 bytes) and its text (`CHARACTERS_KEPT`, of one or two bytes each) are cached across versions, since a chunk
never changes and its id is never given again. Entries are evicted in insertion order.

How often a term occurs is counted over all documents, also those that the caller may not see: scores may move by it, texts never
show.
"""

import json
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.ports import Similarities
from service.core.search.bm25 import Digest, Observed, digests, heaviest, idf
from service.core.search.cache import BoundedCache
from service.core.search.postings.fts5 import Fts5Postings, IndexVersion
from service.core.search.ranking import GRAM_WEIGHT, Counts, Query, Row

CANDIDATES_MAX = 70
TIED_SHARE = 0.5  # of the best: chunks that many others equal are worth telling apart
NEAR_CANDIDATES = 30
NEAR_LOOKED = (
    50,
    500,
    5_000,
)  # of the nearest texts, step by step: whose they are is found out by looking
SEEN_LOOKED = 300  # of the best chunks, at a time, likewise
POSTINGS_MAX, GRAM_POSTINGS_MAX, MATCHED_POSTINGS_MAX = 4_000, 1_000, 2_000
WORDS_LEAST = 3  # looked up even if they are not rare
CODES_KEPT, CHARACTERS_KEPT = 8_000_000, 5_000_000


class Visibility(msgspec.Struct, frozen=True):
    """Whose documents, and which of them, may be found. None: every one."""

    user_id: str | None
    within: Sequence[str] | None

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self.user_id is None and self.within is None

    @property
    def condition(self) -> str:
        """A clause for a query of `chunks AS c` and `documents AS d`, with `values`."""
        clauses = [
            "AND (d.user_id = :user_id OR d.shared)" if self.user_id is not None else "",
            "AND c.document_id IN (SELECT value FROM json_each(:within))"
            if self.within is not None
            else "",
        ]
        return " ".join(clauses)

    @property
    def values(self) -> dict[str, Any]:
        """What the clause names."""
        return {"user_id": self.user_id, "within": json.dumps(self.within)}


class _Chunks:
    """What is known of chunks, in whatever version of the index they are."""

    def __init__(self) -> None:
        self.digests: BoundedCache[int, Digest] = BoundedCache(
            CODES_KEPT, lambda one: len(one.codes) + 80
        )
        self.rows: BoundedCache[int, Row] = BoundedCache(
            CHARACTERS_KEPT, lambda row: len(row.text) + 400
        )


class Index:
    """The index of one database, with its caches."""

    def __init__(self) -> None:
        self._file: Any = None
        self._forget()

    def _forget(self) -> None:
        self._version = IndexVersion(0)
        self._known = _Chunks()

    def at(self, connection: sa.Connection, query: Query) -> "Snapshot":
        """The index as this connection's transaction sees it, for a question."""
        # The driver's: SQLAlchemy's part of a search's many small statements would take longer than SQLite's.
        cursor = connection.connection.cursor()
        number, chunks = cursor.execute(_STATE).fetchone()
        file = connection.info.get("file")
        if file != self._file or number < self._version.number:  # a backup has taken its place
            self._file = file
            self._forget()
        if number != self._version.number:
            self._version = IndexVersion(number)
        return Snapshot(
            cursor, query, Fts5Postings(cursor.execute, self._version, query), self._known, chunks
        )


class Snapshot:
    """One version of the index, for one question. All of it blocks."""

    def __init__(
        self, cursor: Any, query: Query, postings: Fts5Postings, known: _Chunks, chunks: int
    ) -> None:
        self._execute = cursor.execute
        self._query, self._postings, self._known, self._chunks = query, postings, known, chunks

    def counts(self) -> Counts:
        """How many chunks there are, and have each term of the question."""
        found, query = self._postings.frequencies(), self._query
        return Counts(
            self._chunks,
            {word: found["words", word] for word in query.words},
            {gram: found["grams", gram] for gram in query.grams},
        )

    def candidates(self, counts: Counts, seen: Visibility) -> list[int]:
        """The ids of the chunks that may answer, of those that may be seen."""
        words = _rarest(counts.words, WORDS_LEAST, POSTINGS_MAX)
        grams = _rarest(counts.grams, 1, GRAM_POSTINGS_MAX)
        rarities = {("words", term): idf(counts.words[term], counts.total) for term in words}
        rarities |= {
            ("grams", term): GRAM_WEIGHT * idf(counts.grams[term], counts.total) for term in grams
        }
        worth = heaviest(
            *self._postings.weighed(rarities), CANDIDATES_MAX + 1 if seen.everything else None
        )
        best = self._visible(list(worth), seen, CANDIDATES_MAX + 1)
        chosen = best[:CANDIDATES_MAX]
        if words and len(best) > CANDIDATES_MAX and worth[best[-1]] >= TIED_SHARE * worth[best[0]]:
            words = _rarest(counts.words, WORDS_LEAST, MATCHED_POSTINGS_MAX)
            matched = self._postings.matched(words, CANDIDATES_MAX if seen.everything else None)
            chosen = list(dict.fromkeys([*self._visible(matched, seen, CANDIDATES_MAX), *chosen]))
        return chosen

    def nearest(self, nearness: Similarities, seen: Visibility) -> list[int]:
        """The chunks nearest in meaning, of those that may be seen: of all texts first, and of more if those are somebody else's."""
        ids: list[int] = []
        looked = 0
        for most in NEAR_LOOKED:
            some = nearness.find_nearest(most)[looked:]
            looked += len(some)
            place = {content_hash: n for n, content_hash in enumerate(some)}
            found = self._execute(
                _NEAREST.format(condition=seen.condition),
                seen.values | {"hashes": json.dumps(some)},
            )
            ids += [row[0] for row in sorted(found, key=lambda row: place[row[1]])]
            if len(ids) >= NEAR_CANDIDATES or not some:
                break
        return ids[:NEAR_CANDIDATES]

    def observed(self, ids: Sequence[int]) -> Observed:
        """The question's terms in these chunks."""
        return self._postings.observed(
            self._known.digests.get_many(ids, partial(_digests, self._execute))
        )

    def rows(self, ids: Sequence[int]) -> dict[int, Row]:
        """The chunks themselves."""
        return self._known.rows.get_many(ids, partial(_rows, self._execute))

    def _visible(self, ids: list[int], seen: Visibility, most: int) -> list[int]:
        """The first of these that may be seen."""
        if seen.everything:
            return ids[:most]
        visible: list[int] = []
        for begin in range(0, len(ids), SEEN_LOOKED):
            some = ids[begin : begin + SEEN_LOOKED]
            values = seen.values | {"ids": json.dumps(some)}
            found = {
                row[0] for row in self._execute(_VISIBLE.format(condition=seen.condition), values)
            }
            visible += [id_ for id_ in some if id_ in found]
            if len(visible) >= most:
                break
        return visible[:most]


_STATE = "SELECT version, chunks FROM index_state"
_VISIBLE = """
SELECT c.id FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
WHERE c.id IN (SELECT value FROM json_each(:ids)) {condition}
"""
_NEAREST = """
SELECT c.id, c.content_hash FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
WHERE c.content_hash IN (SELECT value FROM json_each(:hashes)) {condition}
"""
_TERMS = (
    "SELECT id, words, grams, content_hash FROM chunks WHERE id IN (SELECT value FROM json_each(?))"
)
_ROWS = """
SELECT c.id, c.document_id, c.n, c.start, c."end", d.title, c.text
FROM chunks AS c JOIN documents AS d ON d.id = c.document_id WHERE c.id IN (SELECT value FROM json_each(?))
"""


def _digests(execute: Any, ids: Sequence[int]) -> dict[int, Digest]:
    return digests(execute(_TERMS, (json.dumps(ids),)).fetchall())


def _rows(execute: Any, ids: Sequence[int]) -> dict[int, Row]:
    return {id_: Row(*row) for id_, *row in execute(_ROWS, (json.dumps(ids),))}


def _rarest(counted: dict[str, int], least: int, postings_max: int) -> list[str]:
    """The rarest terms that occur at all: `least` of them, and more while together they occur `postings_max` times."""
    chosen: list[str] = []
    postings = 0
    for term, n in sorted(counted.items(), key=itemgetter(1)):
        postings += n
        if n and (len(chosen) < least or postings <= postings_max):
            chosen.append(term)
    return chosen
