"""Search: the chunks that a question would be answered from, and whether it can be answered from them at all.

    question → terms → counts → candidates (the index) → one re-ranker and the abstention (`ranking.py`)

*Counts*: how often each term occurs in the whole collection, kept until the collection changes.
*Candidates* come from FTS5: chunks that have any of the question's words, best first, then those that share its grams.
`bm25(…, w, w)` is BM25 with k1 = 1.2 / w, so weights of 2 give the k1 of 0.6 that suits short chunks. Of a large
collection only the rarest words are looked up, as many as occur in `POSTINGS_MAX` chunks together: what a search costs
does not grow with the collection, and the ranking sees every word again.
`_candidates` and `_counts` are all that knows FTS5; what they return is the same for any database.

A question is never read as a query language: it is reduced to terms, and each is quoted. How often a term occurs is
counted over all documents, also those that the caller may not see: scores may move by it, texts never show.

With embeddings the chunks nearest in meaning join the candidates, and their cosines the ranking; without an answer from
whoever embeds, or where a chunk has no vector yet, words alone decide.

All of it is one visit of a thread: it computes for a few milliseconds, and its statements are many and short. One search
computes at a time, and others wait: of several that compute side by side none is quicker, but the event loop, which runs every
stream, would have to wait for each of them whenever its turn comes (docs/decisions/0014).

Limits: `WORDS_MAX` and `GRAMS_MAX` distinct terms of a question, `CANDIDATES_MAX` chunks ranked, `LIMIT_MAX` returned.
"""

import json
from collections.abc import Iterable, Sequence

import anyio
import msgspec
import sqlalchemy as sa

from service.core.db import Database
from service.core.ports import Near, Nearness
from service.core.ranking import NOTHING, Candidate, Counts, Found, Query, Thresholds, parse, rank
from service.core.settings import Settings
from service.core.terms import tokenizer

QUERY_CHARACTERS_MAX = 20_000
CANDIDATES_MAX = 100
GRAM_CANDIDATES = 30
NEAR_CANDIDATES = 30
NEAR_LOOKED = (50, 500, 5_000)  # of the nearest texts, step by step: whose they are is found out by looking
POSTINGS_MAX, GRAM_POSTINGS_MAX = 2_000, 500
WORDS_LEAST = 3  # looked up even if they are not rare
COUNTS_KEPT = 100_000
SEARCHES_AT_ONCE = 1


class Retrieval:
    """Searches one database. Made once: it remembers how often terms occur."""

    def __init__(self, database: Database, settings: Settings, near: Near | None = None) -> None:
        self._database = database
        self._near = near
        self._tokenizer = tokenizer(settings.dictionary)
        self._thresholds = Thresholds(settings.relevance_share_min, settings.relevance_terms_min, settings.cosine_even)
        self._turn = anyio.CapacityLimiter(SEARCHES_AT_ONCE)
        self._counted: tuple[int, dict[tuple[str, str], int]] = (0, {})  # of this version of the index

    async def search(self, query: str, *, user_id: str | None, limit: int, within: Sequence[str] | None = None) -> Found:
        """The chunks that answer a question, of the documents that `user_id` may see: its own and shared ones; None sees all.

        `within`: of these documents alone. Any text is a question. Raises `DatabaseUnavailable` only.
        """
        query = query[:QUERY_CHARACTERS_MAX]
        nearness = await self._near.near(query) if self._near and query.strip() else None

        def look(connection: sa.Connection) -> Found:
            asked = parse(query, self._tokenizer)
            if not asked.words and not asked.grams:
                return NOTHING
            counts = self._counts(connection, asked)
            candidates = _candidates(connection, counts, _Seen(user_id, within), nearness)
            cosines = nearness.of(candidate.content_hash or "" for candidate in candidates) if nearness else None
            return rank(asked, candidates, counts, limit=limit, thresholds=self._thresholds, cosines=cosines)

        async with self._turn:
            return await self._database.look(look)

    def _counts(self, connection: sa.Connection, query: Query) -> Counts:
        version, total = connection.exec_driver_sql("SELECT version, chunks FROM index_state").one()
        kept, known = self._counted
        if kept != version or len(known) > COUNTS_KEPT:
            known = {}
            self._counted = version, known
        counts: dict[str, dict[str, int]] = {}
        for column, asked in (("words", query.words), ("grams", query.grams)):
            if missing := [term for term in asked if (column, term) not in known]:
                found: dict[str, int] = dict(connection.exec_driver_sql(_FREQUENCIES, (column, json.dumps(missing))).all())
                known.update({(column, term): found.get(term, 0) for term in missing})  # at once: other threads read it
            counts[column] = {term: known[column, term] for term in asked}
        return Counts(total, counts["words"], counts["grams"])


class _Seen(msgspec.Struct, frozen=True):
    """Whose documents, and which of them, may be found. None: every one."""

    user_id: str | None
    within: Sequence[str] | None

    @property
    def condition(self) -> str:
        """A clause for a query of `chunk_terms AS t`, with the values `user_id` and `within`."""
        clauses = [
            "AND (d.user_id = :user_id OR d.shared)" if self.user_id is not None else "",
            "AND c.document_id IN (SELECT value FROM json_each(:within))" if self.within is not None else "",
        ]
        return " ".join(clauses)

    @property
    def joins(self) -> str:
        """What the clause needs."""
        free = self.user_id is None and self.within is None
        return "" if free else "JOIN chunks AS c ON c.id = t.rowid JOIN documents AS d ON d.id = c.document_id"


_FREQUENCIES = "SELECT term, doc FROM chunk_vocabulary WHERE col = ? AND term IN (SELECT value FROM json_each(?))"
_MATCH = """
SELECT t.rowid FROM chunk_terms AS t {joins} WHERE t.chunk_terms MATCH :match {condition}
ORDER BY bm25(t.chunk_terms, 2.0, 2.0), t.rowid LIMIT :most
"""
_NEAREST = """
SELECT t.id, t.content_hash FROM chunks AS t {joins} WHERE t.content_hash IN (SELECT value FROM json_each(:hashes)) {condition}
"""
_CHUNKS = """
SELECT c.document_id, c.n, c.start, c."end", d.title, c.text, c.words, c.grams, c.content_hash
FROM chunks AS c JOIN documents AS d ON d.id = c.document_id WHERE c.id IN (SELECT value FROM json_each(?)) ORDER BY c.id
"""


def _candidates(connection: sa.Connection, counts: Counts, seen: _Seen, nearness: Nearness | None) -> list[Candidate]:
    ids: dict[int, None] = {}
    for column, least, postings_max, most in (
        ("words", WORDS_LEAST, POSTINGS_MAX, CANDIDATES_MAX),
        ("grams", 1, GRAM_POSTINGS_MAX, GRAM_CANDIDATES),
    ):
        if rare := _rarest(getattr(counts, column), least, postings_max):
            values = {"match": _expression(column, rare), "most": most, "user_id": seen.user_id, "within": json.dumps(seen.within)}
            statement = _MATCH.format(joins=seen.joins, condition=seen.condition)
            ids |= dict.fromkeys(connection.exec_driver_sql(statement, values).scalars())
    if nearness:
        ids |= dict.fromkeys(_nearest(connection, seen, nearness))
    return [Candidate(*row) for row in connection.exec_driver_sql(_CHUNKS, (json.dumps(list(ids)),))]


def _nearest(connection: sa.Connection, seen: _Seen, nearness: Nearness) -> list[int]:
    """The chunks nearest in meaning, of those that may be seen: of all texts first, and of more if those are somebody else's."""
    statement = _NEAREST.format(joins=seen.joins.replace("t.rowid", "t.id"), condition=seen.condition)
    ids: list[int] = []
    looked = 0
    for most in NEAR_LOOKED:
        some = nearness.nearest(most)[looked:]
        looked += len(some)
        values = {"hashes": json.dumps(some), "user_id": seen.user_id, "within": json.dumps(seen.within)}
        place = {content_hash: n for n, content_hash in enumerate(some)}
        rows = sorted(connection.exec_driver_sql(statement, values), key=lambda row: place[row[1]])
        ids += [row[0] for row in rows]
        if len(ids) >= NEAR_CANDIDATES or not some:
            break
    return ids[:NEAR_CANDIDATES]


def _rarest(counted: dict[str, int], least: int, postings_max: int) -> list[str]:
    """The rarest terms that occur at all: `least` of them, and more while together they occur `postings_max` times."""
    chosen: list[str] = []
    postings = 0
    for term, n in sorted(counted.items(), key=lambda item: item[1]):
        postings += n
        if n and (len(chosen) < least or postings <= postings_max):
            chosen.append(term)
    return chosen


def _expression(column: str, found: Iterable[str]) -> str:
    """An FTS5 expression in which nothing but the column is ours: terms are quoted strings."""
    quoted = (f'"{term}"' for term in found)
    return f"{column} : ({' OR '.join(quoted)})"
