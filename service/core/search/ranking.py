"""Ranking of candidates, and the decision whether they can answer the query (abstention).

*Ranking*: the sum of BM25 over words, phrases (adjacent words) and grams of the chunks (`bm25.py`)
and, for the best of them, the proximity of the query's words (`proximity.py`). Candidates are
ordered by that and by the other candidates of their document: a page with several passages about
the subject answers more often than one that mentions it. Document
frequencies come from the index. The number of chunks counts as at least 1,000, so that scores are
comparable between small and large collections. The sources of the constants are in
`docs/explanation/retrieval.md`.

*Abstention*: `share` is the BM25 of the best chunk as a share of the best possible one for the
query; `terms` is the same BM25 in multiples of a match of the rarest possible term. Both must
reach a threshold, and their combination a higher one: a query that barely reaches one of them
needs more of the other. One or two bare words, as in a search box, suffice if all of them occur in
one chunk or `share` reaches 0.6 of its threshold. A sentence with no more words than that ("And
buildings?") requires all of them, or half of the best possible score, and most of the `terms`
threshold.

*Fusion*: with cosines (`KOTAE_EMBEDDINGS`), candidates are ordered by coverage + 0.075 ·
z(cosine), where z, at most 2.5, is computed over the candidates that have a vector; one without a
vector gets 0, the mean. `share` and `terms` remain those of the words. The largest cosine of the
best chunks scales both thresholds: down if the meaning is near and a visible chunk has each word of
the query, up if it is far. Bare words are exempt from stricter thresholds: their embeddings carry
little meaning. A chunk in another language than the query shares few words with it: its coverage
counts as `FOREIGN_COVERAGE` at least, and if words do not suffice, chunks with a cosine of
`FOREIGN_COSINE_MIN` answer and come first.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise

import msgspec

from service.core.search.bm25 import (
    K1,
    B,
    Bm25Scorer,
    Codes,
    TermCounts,
    compute_idf,
    encode_query,
)
from service.core.search.frames import asks_definition, remove_frame
from service.core.search.proximity import score_windows
from service.core.search.results import Hit, find_best_sentence
from service.core.text.pages import find_page
from service.core.text.tokenizer import TermExtractor, detect_language, has_hangul

WORDS_MAX = 200
GRAMS_MAX = 400
LIMIT_MAX = 100

# Whether a chunk answers depends less on its length than which of two answers better.
ABSTENTION_B = 0.4
PHRASE_WEIGHT, GRAM_WEIGHT = 0.35, 0.30
LATIN_GRAM_WEIGHT = 0.2  # a Latin word has many grams, which are largely redundant
PROXIMITY_WEIGHT = 0.2  # of the best possible score of the terms
PROXIMITY_CHUNKS = 10  # the best chunks, for which proximity is computed
SUPPORT_WEIGHT = 0.2  # of the next best candidate of the same document; half for each further one
SUPPORT_CHUNKS = 3
CHUNKS_FLOOR = 1000
COSINE_WEIGHT = 0.075
COSINE_DEVIATIONS_MAX = 2.5  # limits the influence of one chunk that is far nearer than all others
COSINE_SLOPE = 8  # change of the logarithm of the thresholds per unit of cosine
# Of a chunk in another language than the query: the cosine that suffices without common words, and
# the least coverage, about that of unrelated chunks in the query's language.
FOREIGN_COSINE_MIN, LATIN_FOREIGN_COSINE_MIN = 0.855, 0.865
FOREIGN_COVERAGE = 0.15
COMPARED_CHUNKS = 10  # the best by words: cosines count only if all of these have one
TOP = 3  # the hits that abstention considers
COMBINED_MIN = 1.5  # minimum of share · √terms, as a multiple of its value at both thresholds
# English expresses the same with fewer rare words: these factors make its numbers comparable.
LATIN_SHARE, LATIN_TERMS = 1.2, 1.45
LATIN_COMBINED_MIN = 1.55  # instead, for a question without Japanese characters
SHORT_WORDS, SHORT_SHARE_MIN, SHORT_TERMS = 2, 0.5, 0.93
BARE_CHARACTERS_MAX = 80
BARE_SHARE = 0.6  # of the share threshold, for bare words: tolerates a typing error
_SENTENCE = re.compile(r"[?？。！]|[はがをかにのでもへ]\s*$|\w+\W+\w+\W+\w")

CORRECTED_WEIGHT = 0.7  # of a match of a corrected word

Term = tuple[str, str]  # kind ("words" or "grams") and term


class Thresholds(msgspec.Struct, frozen=True):
    """The abstention thresholds at a cosine of `cosine_even`; 0 disables their adjustment."""

    share_min: float
    terms_min: float
    cosine_even: float = 0

    def adjust(self, cosine: float | None) -> "Thresholds":
        """Return the thresholds where the nearest of the best chunks has this cosine."""
        if not self.cosine_even or cosine is None:
            return self
        factor = math.exp(COSINE_SLOPE * (self.cosine_even - cosine))
        return Thresholds(self.share_min * factor, self.terms_min * factor)


class Query(msgspec.Struct, frozen=True):
    """The distinct terms of a query, in order."""

    words: list[str]
    phrases: list[tuple[str, str]]
    grams: list[str]
    codes: Codes  # of words, phrases and grams, in this order
    bare: bool  # words only, not a sentence
    defines: bool  # it asks what something is
    latin: bool
    corrected: frozenset[str] = frozenset()  # words that the text has in another spelling

    @property
    def terms(self) -> list[Term]:
        """All words and grams."""
        return [
            *(("words", word) for word in self.words),
            *(("grams", gram) for gram in self.grams),
        ]


class StoredChunk(msgspec.Struct, frozen=True):
    """A chunk as it is stored, with the title of its document, and the page where it begins."""

    document_id: str
    n: int
    start: int
    end: int
    title: str
    text: str
    page: int | None


class CollectionStatistics(msgspec.Struct, frozen=True):
    """The number of chunks, and the document frequency of each word and gram of a query."""

    chunks: int
    words: dict[str, int]
    grams: dict[str, int]

    @property
    def total(self) -> int:
        """The number of chunks that scores are computed with."""
        return max(self.chunks, CHUNKS_FLOOR)


class RankedChunk(msgspec.Struct, frozen=True):
    """A candidate with its score."""

    id: int
    value: float  # by which candidates are ordered
    score: float
    coverage: float
    matched: list[str]
    cosine: float | None
    weights: dict[str, float]  # idf of the query's terms that occur in it


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """The best candidates and the abstention. See `SearchResults`."""

    chunks: list[RankedChunk]
    answerable: bool
    share: float
    terms: float
    cosine: float | msgspec.UnsetType
    searched_for: str | msgspec.UnsetType = msgspec.UNSET


NO_RANKING = Ranking(chunks=[], answerable=False, share=0, terms=0, cosine=msgspec.UNSET)


def parse_query(text: str, tokenizer: TermExtractor, corrected: Iterable[str] = ()) -> Query:
    """Return the terms of a query, at most `WORDS_MAX` words and `GRAMS_MAX` grams.

    `corrected`: the words of the text that are corrections.
    """
    terms = tokenizer.extract_terms(remove_frame(text))
    if not terms.words and not terms.grams:
        terms = tokenizer.extract_terms(text)
    words = list(dict.fromkeys(terms.words))[:WORDS_MAX]
    phrases = list(dict.fromkeys((a, b) for a, b in pairwise(terms.words) if a != b))[:WORDS_MAX]
    grams = list(dict.fromkeys(terms.grams))[:GRAMS_MAX]
    bare = len(text) <= BARE_CHARACTERS_MAX and not _SENTENCE.search(text)
    return Query(
        words,
        phrases,
        grams,
        encode_query(words, phrases, grams),
        bare=bare,
        defines=len(text) <= BARE_CHARACTERS_MAX and asks_definition(text),
        latin=detect_language(text) == "en" and not has_hangul(text),
        corrected=frozenset(
            term for word in corrected for term in tokenizer.extract_terms(word).words
        ),
    )


def rank_chunks(
    query: Query,
    candidates: TermCounts,
    statistics: CollectionStatistics,
    *,
    limit: int,
    thresholds: Thresholds,
    cosines: Mapping[int, float] | None = None,
    foreign: AbstractSet[int] = frozenset(),
) -> Ranking:
    """Rank candidates and decide whether they can answer the query.

    Of equal candidates those that contain all words of the query come first. `cosines`: similarity
    by chunk; None ranks by words. `foreign`: the chunks in another language than the query.
    """
    return _Ranker(query, candidates, statistics, cosines, foreign).rank(limit, thresholds)


def merge_rankings(whole: Ranking, questions: Sequence[Ranking], limit: int) -> Ranking:
    """Combine the ranking of a prompt with those of the questions within it.

    Chunks are ordered by their values for the prompt plus the mean of those for the questions, each
    as a share of the best in its ranking. The prompt is answerable if it or a question is. Numbers
    and matches are those of the question that is the most relevant one, or of the prompt for chunks
    that this ranking does not contain.
    """
    sums: dict[int, float] = {}
    for ranking, weight in (
        (whole, 1),
        *((question, 1 / len(questions)) for question in questions),
    ):
        best = max((chunk.value for chunk in ranking.chunks), default=0.0)
        for chunk in ranking.chunks:
            share = chunk.value / best if best > 0 else 0
            sums[chunk.id] = sums.get(chunk.id, 0) + weight * share
    judged = max(
        (*questions, whole),
        key=lambda ranking: (ranking.answerable, ranking.share * math.sqrt(ranking.terms)),
    )
    chunks: dict[int, RankedChunk] = {}
    for ranking in (judged, whole, *questions):
        chunks = {chunk.id: chunk for chunk in ranking.chunks} | chunks
    order = sorted(sums, key=lambda id_: (-sums[id_], id_))[: max(1, min(limit, LIMIT_MAX))]
    return msgspec.structs.replace(judged, chunks=[chunks[id_] for id_ in order])


class _Ranker:
    """The ranking of one query: scores, order, abstention."""

    def __init__(
        self,
        query: Query,
        candidates: TermCounts,
        statistics: CollectionStatistics,
        cosines: Mapping[int, float] | None,
        foreign: AbstractSet[int],
    ) -> None:
        self._query, self._candidates, self._total = query, candidates, statistics.total
        self._scorer = Bm25Scorer(query.words, query.phrases, query.grams, candidates)
        self._words = _compute_idfs(query.words, statistics.words, self._total)
        self._grams = _compute_idfs(query.grams, statistics.grams, self._total)
        self._weights = self._weigh_terms()
        self._has_absent = not all(statistics.words.get(word) for word in query.words)
        self._term_score_max = (K1 + 1) * math.fsum(self._weights)
        self._reduce_corrected()
        self._score_max = self._term_score_max * (1 + PROXIMITY_WEIGHT)
        self._complete = self._scorer.have_all_words()
        self._cosines: list[float | None] = (
            [cosines.get(id_) for id_ in candidates.ids]
            if cosines
            else [None] * len(candidates.ids)
        )
        self._foreign = [id_ in foreign for id_ in candidates.ids]
        self._scores, self._values = self._score_chunks(fused=bool(cosines))

    def rank(self, limit: int, thresholds: Thresholds) -> Ranking:
        """Order the candidates, and apply the thresholds to the best of them."""
        order = sorted(
            range(len(self._scores)),
            key=lambda i: (self._values[i], self._complete[i]),
            reverse=True,
        )
        best = order[:TOP]
        share, terms = self._measure_relevance(best)
        cosine = self._find_nearest_cosine(best) if thresholds.cosine_even else None
        complete = any(self._complete[i] for i in best)
        even = thresholds.cosine_even
        judged = min(cosine, even) if cosine is not None and self._has_absent else cosine
        answerable = _is_answerable(
            self._query, share, terms, thresholds, judged, complete=complete
        )
        if not answerable and cosine is not None and (near := self._select_near_foreign(order)):
            answerable, order = True, list(dict.fromkeys([*near, *order]))
            cosine = self._find_nearest_cosine(near)
        chunks = [
            self._describe_chunk(i)
            for i in order[: max(1, min(limit, LIMIT_MAX))]
            if self._scores[i] > 0 or self._cosines[i] is not None
        ]
        return Ranking(
            chunks=chunks,
            answerable=bool(chunks) and answerable,
            share=round(share, 4),
            terms=round(terms, 4),
            cosine=msgspec.UNSET if cosine is None else round(cosine, 4),
        )

    def _weigh_terms(self) -> list[float]:
        """Return the weights of words, phrases and grams: idf times the weight of the kind.

        The frequency of a phrase is that among the candidates, which contain nearly all
        occurrences.
        """
        phrases = [compute_idf(count, self._total) for count in self._scorer.count_phrases()]
        gram_weight = LATIN_GRAM_WEIGHT if self._query.latin else GRAM_WEIGHT
        return [
            *self._words.values(),
            *(PHRASE_WEIGHT * idf for idf in phrases),
            *(gram_weight * idf for idf in self._grams.values()),
        ]

    def _reduce_corrected(self) -> None:
        """Reduce the weights of corrected words, but not the best possible score."""
        for n, word in enumerate(self._words):
            if word in self._query.corrected:
                self._weights[n] *= CORRECTED_WEIGHT

    def _score_chunks(self, *, fused: bool) -> tuple[list[float], list[float]]:
        """Return the scores of the candidates, and the values by which they are ordered."""
        scores = self._scorer.compute_scores(self._weights, B)
        values = [score / (self._score_max or 1) for score in scores]
        values = fuse_scores(values, self._cosines, self._foreign) if fused else values
        best = sorted(range(len(values)), key=values.__getitem__, reverse=True)[:PROXIMITY_CHUNKS]
        for i, proximity in zip(best, self._measure_proximity(best), strict=True):
            increase = PROXIMITY_WEIGHT * self._term_score_max * proximity
            scores[i] += increase
            values[i] += increase / (self._score_max or 1)
        return scores, add_support(values, self._candidates.documents)

    def _measure_proximity(self, chunks: Sequence[int]) -> list[float]:
        """Return for each of these chunks the share of the query's words, by idf, in one window."""
        idfs = list(self._words.values())
        sums = score_windows(
            self._query.codes[: len(idfs)], idfs, [self._candidates.word_codes[i] for i in chunks]
        )
        proximities: list[float] = (sums / (math.fsum(idfs) or 1)).tolist()
        return proximities

    def _measure_relevance(self, best: Sequence[int]) -> tuple[float, float]:
        """Return `share` and `terms` of the best candidates."""
        scores = self._scorer.compute_scores(self._weights, ABSTENTION_B)
        top, score_max = max((scores[i] for i in best), default=0.0), self._term_score_max
        share = top / score_max * (LATIN_SHARE if self._query.latin else 1) if score_max else 0.0
        rarest = (K1 + 1) * math.log(1 + self._total)
        return share, top / rarest * (LATIN_TERMS if self._query.latin else 1)

    def _find_nearest_cosine(self, best: Sequence[int]) -> float | None:
        """Return the largest cosine of the best candidates; None if one has no vector yet."""
        cosines = [cosine for i in best if (cosine := self._cosines[i]) is not None]
        return max(cosines) if cosines and len(cosines) == len(best) else None

    def _select_near_foreign(self, order: Sequence[int]) -> list[int]:
        """Return the candidates that answer in another language than that of the query."""
        least = LATIN_FOREIGN_COSINE_MIN if self._query.latin else FOREIGN_COSINE_MIN
        return [i for i in order if self._foreign[i] and (self._cosines[i] or 0) >= least]

    def _describe_chunk(self, i: int) -> RankedChunk:
        words, grams = self._scorer.list_matches(i)
        weights = {gram: self._grams[gram] for gram in grams}
        weights |= {word: self._words[word] for word in words}
        return RankedChunk(
            self._candidates.ids[i],
            self._values[i],
            round(self._scores[i], 4),
            round(self._scores[i] / self._score_max, 4) if self._score_max else 0.0,
            words,
            self._cosines[i],
            weights,
        )


def _is_answerable(
    query: Query,
    share: float,
    terms: float,
    thresholds: Thresholds,
    cosine: float | None,
    *,
    complete: bool,
) -> bool:
    """Decide the abstention; see the module. `complete`: one of the best chunks has all words."""
    adjusted = thresholds.adjust(cosine)
    both = share >= adjusted.share_min and terms >= adjusted.terms_min
    factor = LATIN_COMBINED_MIN if query.latin else COMBINED_MIN
    combined_min = factor * adjusted.share_min * math.sqrt(adjusted.terms_min)
    if both and share * math.sqrt(terms) >= combined_min:
        return True
    if not 0 < len(query.words) <= SHORT_WORDS:
        return False
    if query.bare:
        return complete or share >= BARE_SHARE * thresholds.share_min
    if query.defines and complete:
        return True
    return (complete or share >= SHORT_SHARE_MIN) and terms >= SHORT_TERMS * adjusted.terms_min


def fuse_scores(
    coverages: Sequence[float], cosines: Sequence[float | None], foreign: Sequence[bool]
) -> list[float]:
    """Return coverage + `COSINE_WEIGHT` · z(cosine) for each candidate.

    z is 0 without a cosine. If one of the `COMPARED_CHUNKS` best by words has no cosine, the
    coverages are returned: otherwise chunks with a vector would pass those that wait for theirs.
    `foreign`: the chunks in another language than the query, with `FOREIGN_COVERAGE` at least.
    """
    best = sorted(range(len(coverages)), key=coverages.__getitem__, reverse=True)[:COMPARED_CHUNKS]
    present = (
        []
        if any(cosines[i] is None for i in best)
        else [cosine for cosine in cosines if cosine is not None]
    )
    mean = math.fsum(present) / len(present) if present else 0.0
    deviation = (
        math.sqrt(math.fsum((cosine - mean) ** 2 for cosine in present) / len(present))
        if present
        else 0.0
    )
    if deviation < 1e-9:
        return list(coverages)

    def fuse_score(coverage: float, cosine: float | None, is_foreign: bool) -> float:
        if cosine is None:
            return coverage
        least = FOREIGN_COVERAGE if is_foreign else 0
        z = min(COSINE_DEVIATIONS_MAX, (cosine - mean) / deviation)
        return max(coverage, least) + COSINE_WEIGHT * z

    return list(map(fuse_score, coverages, cosines, foreign))


def add_support(values: Sequence[float], documents: Sequence[str]) -> list[float]:
    """Return the values of candidates, increased by those of the same document.

    That is `SUPPORT_WEIGHT` of the best other one, and half as much of each further one, at most
    `SUPPORT_CHUNKS` in all.
    """
    by_document: dict[str, list[float]] = {}
    for value, document in sorted(zip(values, documents, strict=True), reverse=True):
        by_document.setdefault(document, []).append(value)

    def sum_support(value: float, document: str) -> float:
        others = by_document[document][: SUPPORT_CHUNKS + 1]
        others.remove(value if value in others else others[-1])
        return math.fsum(other / 2**n for n, other in enumerate(others))

    return [
        value + SUPPORT_WEIGHT * sum_support(value, document)
        for value, document in zip(values, documents, strict=True)
    ]


def _compute_idfs(
    terms: Iterable[str], frequencies: Mapping[str, int], total: int
) -> dict[str, float]:
    return {term: compute_idf(frequencies.get(term, 0), total) for term in terms}


def build_hit(ranked: RankedChunk, chunk: StoredChunk) -> Hit:
    """Combine a ranked chunk with its stored text."""
    sentence = find_best_sentence(chunk.text, ranked.weights)
    introduction = len(chunk.text) - (chunk.end - chunk.start)  # see `chunking.Piece`
    return Hit(
        document_id=chunk.document_id,
        chunk_id=f"{chunk.document_id}.{chunk.n}",
        start=chunk.start,
        end=chunk.end,
        title=chunk.title,
        text=chunk.text,
        score=ranked.score,
        coverage=ranked.coverage,
        matched=ranked.matched,
        sentence=sentence,
        cosine=msgspec.UNSET if ranked.cosine is None else round(ranked.cosine, 4),
        page=msgspec.UNSET
        if chunk.page is None
        else find_page(chunk.text, sentence[0], of=introduction, page=chunk.page),
    )
