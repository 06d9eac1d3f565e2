"""Which of some chunks answer a question, and whether they can answer it at all. Pure.

*Ranking*: BM25 over words, phrases (words side by side) and grams of the chunks' own terms, added up (`bm25.py`); and for the best of
them, how many of the question's words stand near each other (`proximity.py`). How often a term occurs comes from the index; the number
of chunks is taken as 1,000 at least, so that scores mean the same in a small collection. Where the numbers come from:
`docs/explanation/retrieval.md`.
*Abstention*: `share` is the BM25 of the best chunk as a share of the best possible for this question; `terms` is the
same BM25 counted in matches of the rarest possible term. Both must reach their least, and together more: a question that
barely reaches one of them needs the more of the other. One or two words alone, as one
types into a search box, are enough if all of them stand in one chunk, or 0.6 of the least share is reached. A sentence
that has no more words than that ("And buildings?") needs all of them or half of the best possible score, and a part of the
least in terms.

*Fusion*: with cosines (`KOTAE_EMBEDDINGS`) the order is that of coverage + 0.075 · z(cosine), z, 2.5 at most, over the candidates that
have a vector; one that has none yet has a z of 0, the mean. The two numbers above stay those of the words; the cosine of
the nearest of the best says how much of them is enough: less where the meaning is near, more where it is far. Words alone
are never asked for more: they have hardly any meaning to be near to.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import msgspec

from service.core.search.bm25 import K1, B, Codes, Observed, Occurrences, idf, numbered
from service.core.search.proximity import gathered
from service.core.search.results import Hit, find_best_sentence
from service.core.text.tokenizer import Tokenizer, detect_language

WORDS_MAX = 200
GRAMS_MAX = 400
LIMIT_MAX = 100

JUDGED_B = (
    0.4  # the length of a chunk says less about whether it answers than about which of two does
)
PHRASE_WEIGHT, GRAM_WEIGHT = 0.35, 0.30
LATIN_GRAM_WEIGHT = 0.2  # a Latin word has many grams, which say much the same
PROXIMITY_WEIGHT = 0.2  # of the best possible score of the terms
GATHERED = 10  # so many of the best: in no other does it matter how near the words stand
CHUNKS_FLOOR = 1000
COSINE_WEIGHT = 0.075
COSINE_MOST = 2.5  # standard deviations: one chunk that is far nearer than all others is not worth as much more
COSINE_SLOPE = 6  # of the logarithm of the least share and terms
COMPARED = 10  # the best by words: all of them need a cosine for any to count
TOP = 3  # the hits that abstention looks at
TOGETHER = 1.5  # the least of share · √terms, as a multiple of that of both at their least
LATIN_SHARE, LATIN_TERMS = (
    1.2,
    1.45,
)  # English says the same with fewer rare words: by these the numbers compare with Japanese
SHORT_WORDS, SHORT_SHARE_MIN, SHORT_TERMS = 2, 0.5, 0.93
BARE_CHARACTERS_MAX = 80
BARE_SHARE = 0.6  # of the least share, for words alone: a typing error still finds what is written much like it
_SENTENCE = re.compile(r"[?？。！]|[はがをかにのでもへ]\s*$|\w+\W+\w+\W+\w")

Term = tuple[str, str]  # "words" or "grams", and itself


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
    codes: Codes  # their numbers, in this order
    bare: bool  # words alone, not a sentence
    latin: bool

    @property
    def columns(self) -> dict[Term, int]:
        """Of each word and gram: which of the numbers is its."""
        words = {("words", word): n for n, word in enumerate(self.words)}
        return words | {
            ("grams", gram): n
            for n, gram in enumerate(self.grams, len(self.codes) - len(self.grams))
        }


class Row(msgspec.Struct, frozen=True):
    """A chunk as it is shown."""

    document_id: str
    n: int
    start: int
    end: int
    title: str
    text: str


class Counts(msgspec.Struct, frozen=True):
    """Of the whole collection: how many chunks there are, and how many have each term of the question."""

    chunks: int
    words: dict[str, int]
    grams: dict[str, int]

    @property
    def total(self) -> int:
        """The number of chunks that scores are made with: in a small collection they mean the same as in a large one."""
        return max(self.chunks, CHUNKS_FLOOR)


class Placed(msgspec.Struct, frozen=True):
    """A candidate that was found: which, and with what."""

    id: int
    score: float
    coverage: float
    matched: list[str]
    cosine: float | None
    weights: dict[str, float]  # what each term of the question is worth that stands in it


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """See `Found`."""

    places: list[Placed]
    answerable: bool
    share: float
    terms: float
    cosine: float | msgspec.UnsetType


def parse(text: str, tokenizer: Tokenizer) -> Query:
    """A question's terms, the first `WORDS_MAX` words and `GRAMS_MAX` grams of them."""
    found = tokenizer.extract_terms(text)
    words = list(dict.fromkeys(found.words))[:WORDS_MAX]
    phrases = list(dict.fromkeys((a, b) for a, b in pairwise(found.words) if a != b))[:WORDS_MAX]
    grams = list(dict.fromkeys(found.grams))[:GRAMS_MAX]
    bare = len(text) <= BARE_CHARACTERS_MAX and not _SENTENCE.search(text)
    return Query(
        words,
        phrases,
        grams,
        numbered(words, phrases, grams),
        bare=bare,
        latin=detect_language(text) == "en",
    )


def rank(
    query: Query,
    candidates: Observed,
    counts: Counts,
    *,
    limit: int,
    thresholds: Thresholds,
    cosines: Mapping[str, float] | None = None,
) -> Ranked:
    """The candidates by score; whether they can answer it. Of equals the one with all words of the question comes first.

    `cosines`: by content hash, how near chunks are in meaning; None ranks by words alone.
    """
    found = Occurrences(query.words, query.phrases, query.grams, candidates)
    words, grams = (
        _rarities(query.words, counts.words, counts.total),
        _rarities(query.grams, counts.grams, counts.total),
    )
    phrases = [
        idf(often, counts.total) for often in found.of_phrases()
    ]  # of the candidates: that is nearly all there are
    gram_weight = LATIN_GRAM_WEIGHT if query.latin else GRAM_WEIGHT
    worth = [
        *words.values(),
        *(PHRASE_WEIGHT * each for each in phrases),
        *(gram_weight * each for each in grams.values()),
    ]
    best = (K1 + 1) * math.fsum(worth)
    most = best * (1 + PROXIMITY_WEIGHT)
    scores = found.scores(worth, B)
    whole = found.whole()
    near = (
        [cosines.get(name or "") for name in candidates.content_hashes]
        if cosines
        else [None] * len(scores)
    )
    placed = [one / (most or 1) for one in scores]
    placed = fuse(placed, near) if cosines else placed
    for i, together in _together(query, words, candidates, placed).items():
        more = PROXIMITY_WEIGHT * best * together
        scores[i] += more
        placed[i] += more / (most or 1)
    order = sorted(range(len(scores)), key=lambda i: (placed[i], whole[i]), reverse=True)
    best_placed = order[:TOP]
    judged = found.scores(worth, JUDGED_B)
    top = max((judged[i] for i in best_placed), default=0.0)
    share = top / best * (LATIN_SHARE if query.latin else 1) if best else 0.0
    rare = top / ((K1 + 1) * math.log(1 + counts.total)) * (LATIN_TERMS if query.latin else 1)
    nearest = (
        [cosine for i in best_placed if (cosine := near[i]) is not None]
        if thresholds.cosine_even
        else []
    )
    cosine = (
        max(nearest) if nearest and len(nearest) == len(best_placed) else None
    )  # while one waits, words alone decide
    enough = _enough(
        query, share, rare, thresholds, cosine, whole=any(whole[i] for i in best_placed)
    )

    def place(i: int) -> Placed:
        matched, close = found.standing(i)
        weights = {gram: grams[gram] for gram in close} | {word: words[word] for word in matched}
        return Placed(
            candidates.ids[i],
            round(scores[i], 4),
            round(scores[i] / most, 4) if most else 0.0,
            matched,
            near[i],
            weights,
        )

    places = [
        place(i)
        for i in order[: max(1, min(limit, LIMIT_MAX))]
        if scores[i] > 0 or near[i] is not None
    ]
    return Ranked(
        places=places,
        answerable=bool(places) and enough,
        share=round(share, 4),
        terms=round(rare, 4),
        cosine=msgspec.UNSET if cosine is None else round(cosine, 4),
    )


def _together(
    query: Query, words: Mapping[str, float], candidates: Observed, placed: Sequence[float]
) -> dict[int, float]:
    """Of the best so far: the share of the question's words, by what they are worth, that stand near each other."""
    best = sorted(range(len(placed)), key=placed.__getitem__, reverse=True)[:GATHERED]
    found = gathered(
        query.codes[: len(words)], list(words.values()), [candidates.words[i] for i in best]
    )
    return dict(zip(best, (found / (math.fsum(words.values()) or 1)).tolist(), strict=True))


def _enough(
    query: Query,
    share: float,
    terms: float,
    thresholds: Thresholds,
    cosine: float | None,
    *,
    whole: bool,
) -> bool:
    """The abstention; see the module. `whole`: all words of the question stand in one of the best chunks."""
    least = thresholds.at(cosine)
    both = share >= least.share_min and terms >= least.terms_min
    if both and share * math.sqrt(terms) >= TOGETHER * least.share_min * math.sqrt(least.terms_min):
        return True
    if not 0 < len(query.words) <= SHORT_WORDS:
        return False
    if query.bare:
        return whole or share >= BARE_SHARE * thresholds.share_min
    return (whole or share >= SHORT_SHARE_MIN) and terms >= SHORT_TERMS * least.terms_min


def fuse(coverages: Sequence[float], cosines: Sequence[float | None]) -> list[float]:
    """A sum: coverage + `COSINE_WEIGHT` · z(cosine), z being `COSINE_MOST` at most. A candidate without a cosine has the mean one.

    If one of the `COMPARED` best by words has none, words alone decide: else what has a vector already would pass what waits
    for its own.
    """
    best = sorted(range(len(coverages)), key=coverages.__getitem__, reverse=True)[:COMPARED]
    known = (
        []
        if any(cosines[i] is None for i in best)
        else [cosine for cosine in cosines if cosine is not None]
    )
    mean = math.fsum(known) / len(known) if known else 0.0
    deviation = (
        math.sqrt(math.fsum((cosine - mean) ** 2 for cosine in known) / len(known))
        if known
        else 0.0
    )
    if deviation < 1e-9:
        return list(coverages)
    return [
        coverage
        + (0 if cosine is None else COSINE_WEIGHT * min(COSINE_MOST, (cosine - mean) / deviation))
        for coverage, cosine in zip(coverages, cosines, strict=True)
    ]


def _rarities(asked: Iterable[str], counted: Mapping[str, int], total: int) -> dict[str, float]:
    return {term: idf(counted.get(term, 0), total) for term in asked}


def hit(place: Placed, row: Row) -> Hit:
    """A chunk that was found, as it is shown."""
    return Hit(
        document_id=row.document_id,
        chunk_id=f"{row.document_id}.{row.n}",
        start=row.start,
        end=row.end,
        title=row.title,
        text=row.text,
        score=place.score,
        coverage=place.coverage,
        matched=place.matched,
        sentence=find_best_sentence(row.text, place.weights),
        cosine=msgspec.UNSET if place.cosine is None else round(place.cosine, 4),
    )
