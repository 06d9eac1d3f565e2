"""Search: the chunks that a question would be answered from, and whether it can be answered from them at all.

    question → terms → candidates (the index) → one re-ranker → abstention

*Candidates* come from FTS5: chunks with all words of the question, filled up with those that have any, and with those
that share grams. `bm25(…, w, w)` is BM25 with k1 = 1.2 / w, so weights of 2 give the k1 of 0.6 that suits short chunks.
*Ranking* is a pure function over the candidates' own terms: BM25 over words, phrases (adjacent words) and grams. Counts
come from the index; the number of chunks is taken as 1,000 at least, so that scores mean the same in a small collection.
*Abstention*: `share` is the best chunk's score as a share of the best possible for this question; `terms` is the same
score counted in matches of the rarest possible term. Both must reach their least; a question of one or two words is
answered if all its words stand in one chunk, or half of the best possible score is reached.

A question is never read as a query language: it is reduced to terms, and each is quoted. How often a term occurs is
counted over all documents, also those that the caller may not see: scores may move by it, texts never show.

Limits: `WORDS_MAX` and `GRAMS_MAX` distinct terms of a question, `CANDIDATES_MAX` chunks ranked, `LIMIT_MAX` returned.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import anyio.to_thread
import msgspec
import sqlalchemy as sa

from service.core.db import ReadSession
from service.core.tables import chunks, documents
from service.core.terms import Terms, terms

WORDS_MAX = 200
GRAMS_MAX = 400
QUERY_CHARACTERS_MAX = 20_000
CANDIDATES_MAX = 100
GRAM_CANDIDATES = 30
LIMIT_MAX = 100

K1, B = 0.6, 0.75
PHRASE_WEIGHT, GRAM_WEIGHT = 0.35, 0.30
CHUNKS_FLOOR = 1000
TOP = 3  # the hits that abstention looks at
SHORT_WORDS, SHORT_SHARE_MIN = 2, 0.5


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk found. `coverage` is the share of the question's weight in words that it has, `matched` those words."""

    document_id: str
    chunk_id: str
    title: str
    text: str
    score: float
    coverage: float
    matched: list[str]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The hits, best first; and whether they can answer, with the two numbers that decided it."""

    items: list[Hit]
    answerable: bool
    share: float
    terms: float


class Query(msgspec.Struct, frozen=True):
    """The distinct terms of a question, in order."""

    words: list[str]
    phrases: list[tuple[str, str]]
    grams: list[str]


class Candidate(msgspec.Struct, frozen=True):
    """A chunk that may be an answer, as the database has it: `words` and `grams` are terms separated by spaces."""

    document_id: str
    n: int
    title: str
    text: str
    words: str
    grams: str


class Counts(msgspec.Struct, frozen=True):
    """Of the whole collection: how many chunks there are, and how many have each term of the question."""

    chunks: int
    words: dict[str, int]
    grams: dict[str, int]


async def search(session: ReadSession, query: str, *, user_id: str | None, limit: int, share_min: float, terms_min: float) -> Found:
    """The chunks that answer a question, of the documents that `user_id` may see: its own and shared ones; None sees all.

    Any text is a question. Raises `DatabaseUnavailable` only.
    """
    asked = parse(query[:QUERY_CHARACTERS_MAX])
    if not asked.words and not asked.grams:
        return Found(items=[], answerable=False, share=0, terms=0)
    candidates = await _candidates(session, asked, user_id)
    counts = await _counts(session, asked)
    return await anyio.to_thread.run_sync(lambda: rank(asked, candidates, counts, limit=limit, share_min=share_min, terms_min=terms_min))


def parse(text: str) -> Query:
    """A question's terms, the first `WORDS_MAX` words and `GRAMS_MAX` grams of them."""
    found: Terms = terms(text)
    words = found.words
    phrases = dict.fromkeys((a, b) for a, b in pairwise(words) if a != b)
    return Query(list(dict.fromkeys(words))[:WORDS_MAX], list(phrases)[:WORDS_MAX], list(dict.fromkeys(found.grams))[:GRAMS_MAX])


# --- the index

_MATCH = """
SELECT t.rowid FROM chunk_terms AS t {joins}
WHERE t.chunk_terms MATCH :match {visible}
ORDER BY bm25(t.chunk_terms, 2.0, 2.0), t.rowid LIMIT :most
"""
_JOINS = "JOIN chunks AS c ON c.id = t.rowid JOIN documents AS d ON d.id = c.document_id"
_VISIBLE = "AND (d.user_id = :user_id OR d.shared)"


async def _candidates(session: ReadSession, query: Query, user_id: str | None) -> list[Candidate]:
    ids: dict[int, None] = {}
    if len(query.words) > 1:
        ids |= await _matching(session, _expression("words", query.words, "AND"), user_id, CANDIDATES_MAX)
    if query.words and len(ids) < CANDIDATES_MAX:
        ids |= await _matching(session, _expression("words", query.words, "OR"), user_id, CANDIDATES_MAX)
    if query.grams:
        ids |= await _matching(session, _expression("grams", query.grams, "OR"), user_id, GRAM_CANDIDATES)
    rows = await session.execute(
        sa.select(chunks.c.document_id, chunks.c.n, documents.c.title, chunks.c.text, chunks.c.words, chunks.c.grams)
        .join(documents, documents.c.id == chunks.c.document_id)
        .where(chunks.c.id.in_(list(ids)))
        .order_by(chunks.c.id)
    )
    return [Candidate(*row) for row in rows]


async def _matching(session: ReadSession, expression: str, user_id: str | None, most: int) -> dict[int, None]:
    seen = {"joins": "", "visible": ""} if user_id is None else {"joins": _JOINS, "visible": _VISIBLE}
    values: dict[str, Any] = {"match": expression, "most": most} | ({} if user_id is None else {"user_id": user_id})
    return dict.fromkeys((await session.execute(sa.text(_MATCH.format(**seen)), values)).scalars())


def _expression(column: str, found: Iterable[str], operator: str) -> str:
    """An FTS5 expression in which nothing but the column and the operator is ours: terms are quoted strings."""
    quoted = (f'"{term}"' for term in found)
    return f"{column} : ({f' {operator} '.join(quoted)})"


async def _counts(session: ReadSession, query: Query) -> Counts:
    total = (await session.execute(sa.select(sa.func.count()).select_from(chunks))).scalar_one()
    return Counts(total, await _frequencies(session, "words", query.words), await _frequencies(session, "grams", query.grams))


async def _frequencies(session: ReadSession, column: str, found: list[str]) -> dict[str, int]:
    statement = sa.text("SELECT term, doc FROM chunk_vocabulary WHERE col = :col AND term IN :terms").bindparams(
        sa.bindparam("terms", expanding=True)
    )
    if not found:
        return {}
    return {row.term: row.doc for row in await session.execute(statement, {"col": column, "terms": found})}


# --- ranking: pure


class _Scored(msgspec.Struct, frozen=True):
    candidate: Candidate
    score: float
    matched: list[str]


def rank(query: Query, candidates: Sequence[Candidate], counts: Counts, *, limit: int, share_min: float, terms_min: float) -> Found:
    """The candidates by score, chunks with all words of the question first; and whether they can answer it."""
    fields = [
        _Field([candidate.words.split(" ") for candidate in candidates], query.words, counts.words, counts.chunks),
        _Field([_pairs(candidate.words.split(" ")) for candidate in candidates], query.phrases, None, counts.chunks),
        _Field([candidate.grams.split(" ") for candidate in candidates], query.grams, counts.grams, counts.chunks),
    ]
    weights = (1.0, PHRASE_WEIGHT, GRAM_WEIGHT)
    scored = [
        _Scored(
            candidate,
            sum(weight * field.score(i) for weight, field in zip(weights, fields, strict=True)),
            [word for word in query.words if word in fields[0].found[i]],
        )
        for i, candidate in enumerate(candidates)
    ]
    everything = len(query.words)
    scored.sort(key=lambda one: (len(one.matched) == everything, one.score), reverse=True)
    best = sum(weight * field.best for weight, field in zip(weights, fields, strict=True)) * (K1 + 1)
    top = max((one.score for one in scored[:TOP]), default=0.0)
    share = top / best if best else 0.0
    rare = top / ((K1 + 1) * math.log(1 + max(counts.chunks, CHUNKS_FLOOR)))
    whole = any(len(one.matched) == everything for one in scored[:TOP])
    hits = [_hit(one, query.words, fields[0]) for one in scored[: max(1, min(limit, LIMIT_MAX))] if one.score > 0]
    return Found(
        items=hits,
        answerable=bool(hits) and _answerable(everything, whole=whole, share=share, rare=rare, share_min=share_min, terms_min=terms_min),
        share=round(share, 4),
        terms=round(rare, 4),
    )


def _answerable(words: int, *, whole: bool, share: float, rare: float, share_min: float, terms_min: float) -> bool:
    if share >= share_min and rare >= terms_min:
        return True
    return 0 < words <= SHORT_WORDS and (whole or share >= SHORT_SHARE_MIN)


class _Field:
    """One kind of term in the candidates: BM25 (Robertson and Zaragoza, 2009) with the idf that is never negative."""

    def __init__(self, texts: list[Any], asked: list[Any], frequency: dict[str, int] | None, total: int) -> None:
        self.found = [_count(text, set(asked)) for text in texts]
        self._lengths = [len(text) for text in texts]
        self._mean = sum(self._lengths) / len(texts) if texts else 1.0
        if frequency is None:  # phrases are not in the index: those among the candidates are nearly all there are
            frequency = Counter(term for found in self.found for term in found)
        total = max(total, CHUNKS_FLOOR)
        self.idf = {term: _idf(frequency.get(term, 0), total) for term in asked}
        self.best = sum(self.idf.values())

    def score(self, i: int) -> float:
        norm = K1 * (1 - B + B * self._lengths[i] / (self._mean or 1))
        return sum(self.idf[term] * n * (K1 + 1) / (n + norm) for term, n in self.found[i].items())


def _count(text: Iterable[Any], asked: set[Any]) -> Counter[Any]:
    return Counter([term for term in text if term in asked])


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(pairwise(words))


def _idf(frequency: int, total: int) -> float:
    frequency = min(frequency, total)
    return math.log(1 + (total - frequency + 0.5) / (frequency + 0.5))


def _hit(one: _Scored, words: list[str], field: _Field) -> Hit:
    candidate = one.candidate
    mass = sum(field.idf[word] for word in words)
    return Hit(
        document_id=candidate.document_id,
        chunk_id=f"{candidate.document_id}.{candidate.n}",
        title=candidate.title,
        text=candidate.text,
        score=round(one.score, 4),
        coverage=round(sum(field.idf[word] for word in one.matched) / mass, 4) if mass else 0.0,
        matched=one.matched,
    )
