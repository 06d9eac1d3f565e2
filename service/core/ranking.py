"""Which of some chunks answer a question, and whether they can answer it at all. Pure.

*Ranking*: BM25 over words, phrases (words side by side) and grams of the chunks' own terms, added up. How often a term
occurs comes from the index; the number of chunks is taken as 1,000 at least, so that scores mean the same in a small
collection. Where the numbers come from: `docs/retrieval.md`.
*Abstention*: `share` is the score of the best chunk as a share of the best possible for this question; `terms` is the
same score counted in matches of the rarest possible term. Both must reach their least. One or two words alone, as one
types into a search box, are enough if all of them stand in one chunk, or the share is reached. A sentence that has no more
words than that ("And buildings?") needs all of them or half of the best possible score, and a part of the least in terms.

*Fusion*: with cosines (`KOTAE_EMBEDDINGS`) the order is that of score / best score + 0.25 · z(cosine), z over the candidates
that have a vector; one that has none yet has a z of 0, the mean. The two numbers above stay those of the words; the cosine of
the nearest of the best says how much of them is enough: less where the meaning is near, more where it is far. Words alone
are never asked for more: they have hardly any meaning to be near to.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from service.core.terms import Tokenizer, fold, language
from service.core.texts import sentences

WORDS_MAX = 200
GRAMS_MAX = 400
LIMIT_MAX = 100

K1, B = 0.6, 0.75
JUDGED_B = 0.4  # the length of a chunk says less about whether it answers than about which of two does
PHRASE_WEIGHT, GRAM_WEIGHT = 0.35, 0.30
CHUNKS_FLOOR = 1000
COSINE_WEIGHT = 0.25
COSINE_SLOPE = 8  # of the logarithm of the least share and terms
COMPARED = 10  # the best by words: all of them need a cosine for any to count
TOP = 3  # the hits that abstention looks at
LATIN_SHARE, LATIN_TERMS = 1.045, 1.7  # English says the same with fewer rare words: by these the numbers compare with Japanese
SHORT_WORDS, SHORT_SHARE_MIN, SHORT_TERMS = 2, 0.5, 0.64
BARE_CHARACTERS_MAX = 80
_SENTENCE = re.compile(r"[?？。！]|[はがをかにのでもへ]\s*$|\w+\W+\w+\W+\w")


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk found: `start` and `end` are where it stands in its document.

    `coverage` is the share of the best possible score that it has, `matched` the question's words in it, `sentence` where
    in `text` the sentence stands that matches best.
    """

    document_id: str
    chunk_id: str
    start: int
    end: int
    title: str
    text: str
    score: float
    coverage: float
    matched: list[str]
    sentence: tuple[int, int]
    cosine: float | msgspec.UnsetType = msgspec.UNSET  # nearness in meaning, where there is a vector


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The hits, best first; and whether they can answer, with the two numbers that decided it, and the cosine if it took part."""

    items: list[Hit]
    answerable: bool
    share: float
    terms: float
    cosine: float | msgspec.UnsetType = msgspec.UNSET


class Thresholds(msgspec.Struct, frozen=True):
    """What the two numbers must reach where the cosine is `cosine_even`; 0: whatever it is."""

    share_min: float
    terms_min: float
    cosine_even: float = 0

    def at(self, cosine: float | None) -> "Thresholds":
        """What they must reach where the nearest of the best has this cosine."""
        if not self.cosine_even or cosine is None:
            return self
        ease = math.exp(COSINE_SLOPE * (self.cosine_even - cosine))
        return Thresholds(self.share_min * ease, self.terms_min * ease)


class Query(msgspec.Struct, frozen=True):
    """The distinct terms of a question, in order."""

    words: list[str]
    phrases: list[tuple[str, str]]
    grams: list[str]
    asked: frozenset[str]
    asked_phrases: frozenset[Any]
    asked_grams: frozenset[str]
    bare: bool  # words alone, not a sentence
    latin: bool


class Candidate(msgspec.Struct, frozen=True):
    """A chunk that may be an answer, as the database has it: `words` and `grams` are terms separated by spaces."""

    document_id: str
    n: int
    start: int
    end: int
    title: str
    text: str
    words: str
    grams: str
    content_hash: str | None = None


class Counts(msgspec.Struct, frozen=True):
    """Of the whole collection: how many chunks there are, and how many have each term of the question."""

    chunks: int
    words: dict[str, int]
    grams: dict[str, int]


NOTHING = Found(items=[], answerable=False, share=0, terms=0)


def parse(text: str, tokenizer: Tokenizer) -> Query:
    """A question's terms, the first `WORDS_MAX` words and `GRAMS_MAX` grams of them."""
    found = tokenizer.terms(text)
    words = list(dict.fromkeys(found.words))[:WORDS_MAX]
    phrases = list(dict.fromkeys((a, b) for a, b in pairwise(found.words) if a != b))[:WORDS_MAX]
    grams = list(dict.fromkeys(found.grams))[:GRAMS_MAX]
    asked = (frozenset(words), frozenset(phrases), frozenset(grams))
    return Query(
        words, phrases, grams, *asked, bare=len(text) <= BARE_CHARACTERS_MAX and not _SENTENCE.search(text), latin=language(text) == "en"
    )


def rank(
    query: Query,
    candidates: Sequence[Candidate],
    counts: Counts,
    *,
    limit: int,
    thresholds: Thresholds,
    cosines: Mapping[str, float] | None = None,
) -> Found:
    """The candidates by score; whether they can answer it. Of equals the one with all words of the question comes first.

    `cosines`: by content hash, how near chunks are in meaning; None ranks by words alone.
    """
    total = max(counts.chunks, CHUNKS_FLOOR)
    seen = [_observed(query, candidate) for candidate in candidates]
    # Phrases are not in the index: those among the candidates are nearly all there are.
    phrases = Counter(phrase for one in seen for phrase in one.phrases)
    words = _Field({word: _idf(counts.words.get(word, 0), total) for word in query.words}, [one.length for one in seen])
    pairs = _Field({phrase: _idf(phrases[phrase], total) for phrase in query.phrases}, [one.length for one in seen])
    grams = _Field({gram: _idf(counts.grams.get(gram, 0), total) for gram in query.grams}, [one.gram_length for one in seen])

    def score(i: int, b: float = B) -> float:
        one = seen[i]
        return words.score(i, one.words, b) + PHRASE_WEIGHT * pairs.score(i, one.phrases, b) + GRAM_WEIGHT * grams.score(i, one.grams, b)

    scores = [score(i) for i in range(len(seen))]
    whole = [len(set(one.words)) == len(query.words) for one in seen]
    near = [(cosines or {}).get(candidate.content_hash or "") for candidate in candidates]
    placed = fuse(scores, near) if cosines else scores
    order = sorted(range(len(candidates)), key=lambda i: (placed[i], whole[i]), reverse=True)
    best = words.best + PHRASE_WEIGHT * pairs.best + GRAM_WEIGHT * grams.best
    top = max((score(i, JUDGED_B) for i in order[:TOP]), default=0.0)
    share = top / best * (LATIN_SHARE if query.latin else 1) if best else 0.0
    rare = top / ((K1 + 1) * math.log(1 + total)) * (LATIN_TERMS if query.latin else 1)
    weights = grams.idf | words.idf
    hits = [
        _hit(candidates[i], scores[i], best, [word for word in query.words if word in seen[i].words], weights, near[i])
        for i in order[: max(1, min(limit, LIMIT_MAX))]
        if scores[i] > 0 or near[i] is not None
    ]
    nearest = [cosine for i in order[:TOP] if (cosine := near[i]) is not None] if thresholds.cosine_even else []
    cosine = max(nearest) if nearest and len(nearest) == len(order[:TOP]) else None  # while one waits, words alone decide
    least = thresholds.at(cosine)
    enough = share >= least.share_min and rare >= least.terms_min
    if not enough and 0 < len(query.words) <= SHORT_WORDS:
        fits = share >= (thresholds.share_min if query.bare else SHORT_SHARE_MIN) or any(whole[i] for i in order[:TOP])
        enough = fits and (query.bare or rare >= SHORT_TERMS * least.terms_min)
    return Found(
        items=hits,
        answerable=bool(hits) and enough,
        share=round(share, 4),
        terms=round(rare, 4),
        cosine=msgspec.UNSET if cosine is None else round(cosine, 4),
    )


def fuse(scores: Sequence[float], cosines: Sequence[float | None]) -> list[float]:
    """A convex sum: score / best score + `COSINE_WEIGHT` · z(cosine). A candidate without a cosine has the mean one.

    If one of the `COMPARED` best by score has none, words alone decide: else what has a vector already would pass what waits
    for its own.
    """
    if any(cosines[i] is None for i in sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:COMPARED]):
        cosines = [None] * len(scores)
    top = max(scores, default=0) or 1.0
    known = [cosine for cosine in cosines if cosine is not None]
    mean = math.fsum(known) / len(known) if known else 0.0
    deviation = math.sqrt(math.fsum((cosine - mean) ** 2 for cosine in known) / len(known)) if known else 0.0
    if deviation < 1e-9:
        return [score / top for score in scores]
    return [
        score / top + (0 if cosine is None else COSINE_WEIGHT * (cosine - mean) / deviation)
        for score, cosine in zip(scores, cosines, strict=True)
    ]


class _Observed(msgspec.Struct, frozen=True):
    """The terms of the question that stand in a chunk, as often as they do; and how many terms it has."""

    words: list[str]
    phrases: list[tuple[str, str]]
    grams: list[str]
    length: int
    gram_length: int


def _observed(query: Query, candidate: Candidate) -> _Observed:
    words, grams = candidate.words.split(" "), candidate.grams.split(" ")
    asked = query.asked
    known = [word if word in asked else None for word in words]
    return _Observed(
        [word for word in known if word],
        [(a, b) for a, b in pairwise(known) if a and b and (a, b) in query.asked_phrases],
        [gram for gram in grams if gram in query.asked_grams],
        len(words),
        len(grams),
    )


class _Field:
    """One kind of term in the candidates: BM25 (Robertson and Zaragoza, 2009) with the idf that is never negative."""

    def __init__(self, idf: dict[Any, float], lengths: list[int]) -> None:
        self.idf = idf
        self.best = sum(idf.values()) * (K1 + 1)
        mean = sum(lengths) / len(lengths) if lengths else 1
        self._lengths = [length / (mean or 1) for length in lengths]

    def score(self, i: int, found: list[Any], b: float = B) -> float:
        """The score of candidate `i`, in which these terms stand."""
        norm = K1 * (1 - b + b * self._lengths[i])
        return sum(self.idf[term] * (n := found.count(term)) * (K1 + 1) / (n + norm) for term in set(found))


def _idf(frequency: int, total: int) -> float:
    frequency = min(frequency, total)
    return math.log(1 + (total - frequency + 0.5) / (frequency + 0.5))


def _hit(candidate: Candidate, score: float, best: float, matched: list[str], weights: dict[str, float], cosine: float | None) -> Hit:
    return Hit(
        document_id=candidate.document_id,
        chunk_id=f"{candidate.document_id}.{candidate.n}",
        start=candidate.start,
        end=candidate.end,
        title=candidate.title,
        text=candidate.text,
        score=round(score, 4),
        coverage=round(score / best, 4) if best else 0.0,
        matched=matched,
        sentence=best_sentence(candidate.text, weights),
        cosine=msgspec.UNSET if cosine is None else round(cosine, 4),
    )


def best_sentence(text: str, weights: dict[str, float]) -> tuple[int, int]:
    """Where the sentence stands in which most of these terms, by weight, occur as letters; the first of equals."""
    spans = sentences(text) or [(0, len(text))]
    if len(spans) == 1:
        return spans[0]
    plain = [fold(text[start:end]) for start, end in spans]
    worth = [sum(weight for term, weight in weights.items() if term in letters) for letters in plain]
    return spans[worth.index(max(worth))]
