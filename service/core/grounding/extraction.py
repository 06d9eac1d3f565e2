"""Sentence selection for the extractive model.

A sentence is scored by the terms it shares with the question, weighted by their rarity within the
context. Terms of the heading, title or question above it count in part, so that "within 30 days"
under "Refunds" can answer. Sentences that contain the kind of thing the question asks for (when,
how many, why, …) score higher. The answer is the best sentence with its surroundings
(`quotation.py`). Only a question with several parts is answered from several places, each of which
must cover what the others do not.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from service.core.grounding.answer_types import REASON
from service.core.grounding.candidates import (
    PassageUnits,
    QuotableUnit,
    Term,
    extract_terms,
    is_japanese,
    read_passages,
)
from service.core.grounding.definitions import defines_term, is_expanded
from service.core.grounding.prompt import refusal_text
from service.core.grounding.questions import Question, read_question
from service.core.grounding.quotation import (
    allot_characters,
    compose_quotation,
    format_date,
)
from service.core.records import Passage
from service.core.text.blocks import BlockKind
from service.core.text.question_parts import split_parts
from service.core.text.tokenizer import Tokenizer, detect_language, get_tokenizer

SENTENCES_MAX = 3  # of an answer, each with its surroundings
COVERED_MIN = 0.12  # of the question's weight; with less the model refuses
DECISIVE_MIN = 0.75  # of the weight of the question's words
GAIN_MIN = 0.2  # of the weight that the context covers, which a further sentence must add
FURTHER_MIN = 0.5  # of the best score
ABOVE_WEIGHT = 0.55  # of a term that occurs only in the heading above
BEFORE_WEIGHT = 0.6  # of a term that occurs only in the previous sentence
BEFORE_REASON_WEIGHT = 0.8  # the same for a sentence that gives a reason for the previous one
PHRASE_WEIGHT = 0.35
# A Latin word has many grams, which together weigh as much as half a word.
GRAM_WEIGHT, LATIN_GRAM_WEIGHT = 0.3, 0.08
TYPE_WEIGHT = 0.35  # of a sentence with all the types of things that are asked for
AROUND_WEIGHT = 0.5  # of a type that occurs only in the sentences beside it
EXPANSION_WEIGHT = 3.0  # of a sentence that expands the abbreviation
DEFINITION_WEIGHT = 0.6  # of a sentence whose subject is what the question asks to define
LEAD_WEIGHT = 0.3  # of the first sentence of a section about it
TITLED_WEIGHT = 0.7  # of the first two if the heading is nothing else
CODE_WEIGHT = 0.25  # of code, or a sentence that introduces it, if the question asks how to
INCOMPLETE_WEIGHT = 0.75  # of a line without an end mark
NAMELESS_WEIGHT = 0.4  # of a sentence without a name that a Japanese question has
CODE_ALONE_WEIGHT = 0.6  # of code, if the question does not ask how to
LENGTH_CHARACTERS = 1500  # a sentence of this length scores half
SHORT_CHARACTERS = 60  # shorter ones are not better
LATER_WEIGHT = 0.25  # decrease of the score per rank of the passage
CONTEXT_WEIGHT = 0.3  # of a term of a long prompt that is not in its questions
FRAME_WEIGHT = 0.3  # of words that belong to the form of a question
_FRAME_WORDS = frozenset(
    [
        *("long", "take", "mean", "happen", "often", "kind", "call", "tell", "want", "use", "go"),
        *("differ", "stand", "way", "need", "make", "mani", "much"),
        *("使う", "使い方", "方法", "教", "知", "方", "場合", "使", "違い", "理由", "略", "場所"),
    ]
)

FREE = {
    "ja": "これは内蔵の抽出モデルで、預かった文書の文を引用することしかできません。"
    "文書をもとに答えるには、grounded を true にしてお尋ねください。",
    "en": "This is the embedded extractive model: it can only quote the documents it was given. "
    "Ask with grounded set to true to get an answer from them.",
}


def quote_answer(prompt: str, passages: Sequence[Passage], dictionary: str = "auto") -> str:
    """Return sentences of the passages that answer a question, with citations, or the refusal."""
    tokenizer = get_tokenizer(dictionary)
    question = read_question(prompt)
    sources = read_passages(passages, tokenizer)
    selected: list[_Selected] = []
    for part in split_parts(question.text) or [question.text]:
        part_question = question if part == question.text else read_question(part)
        selected += _select_sentences(part_question, sources, tokenizer)
    quotations: list[str] = []
    allotted = allot_characters([len(choice.best.text) for choice in selected])
    for n, choice in enumerate(selected):
        if any(choice.best.text in quotation for quotation in quotations):
            continue  # as a neighbour of another
        source = next(source for source in sources if source.passage.n == choice.best.n)
        closed_sides = (-1, 1) if len(selected) > 1 else choice.closed_sides
        quotation = compose_quotation(
            choice.best,
            source,
            choice.question,
            tokenizer,
            closed_sides=closed_sides,
            characters_max=allotted[n],
        )
        quotations.append(quotation + format_date(source.passage, prompt))
    return _join_quotations(quotations) if quotations else refusal_text(prompt)


class _Selected(msgspec.Struct, frozen=True):
    """A sentence that answers a question. See `_Selection.find_closed_sides`."""

    question: Question
    best: QuotableUnit
    closed_sides: tuple[int, ...]


def _select_sentences(
    question: Question, sources: list[PassageUnits], tokenizer: Tokenizer
) -> list[_Selected]:
    """Return the sentences that answer a question, all in one language: its own, if possible.

    The other language is used if its own has no answer, or one without a word of the subject.
    """
    query = extract_terms(question.text, tokenizer)
    context = extract_terms(question.context, tokenizer) - query
    candidates = [candidate for source in sources for candidate in source.candidates]
    language = detect_language(question.text)
    parts: tuple[list[QuotableUnit], list[QuotableUnit]] = ([], [])
    for candidate in candidates:
        parts[detect_language(candidate.text) != language].append(candidate)
    chosen: list[_Selected] = []
    for part in parts:
        selection = _Selection(question, query, context, part, sources, tokenizer)
        selected = selection.select()
        is_about_subject = bool(selected) and selection.is_about_subject(selected[0])
        if selected and (is_about_subject or not chosen):
            chosen = [
                _Selected(question, best, selection.find_closed_sides(best)) for best in selected
            ]
        if is_about_subject:
            break
    return chosen


def _join_quotations(quotations: list[str]) -> str:
    text = ""
    for quotation in quotations:
        blocks = "\n" in quotation or "\n" in text
        gap = "\n\n" if blocks else "" if is_japanese(quotation) else " "
        text += (gap if text else "") + quotation
    return text


class _Selection:
    """Scores candidates for a question and selects the fewest that answer it."""

    def __init__(
        self,
        question: Question,
        query: frozenset[Term],
        context: frozenset[Term],
        candidates: list[QuotableUnit],
        sources: list[PassageUnits],
        tokenizer: Tokenizer,
    ) -> None:
        self._question, self._query, self._candidates = question, query, candidates
        self._tokenizer = tokenizer
        self._subject = {
            term for term in query if isinstance(term, str) and term not in _FRAME_WORDS
        }
        self._names = (
            {term for term in self._subject if term.isascii() and not term.isdigit()}
            if detect_language(question.text) == "ja"
            else set[Term]()
        )
        self._all = query | context
        weights = _weigh_terms(self._all, candidates)
        self._weights = {
            term: weight * (1 if term in query else CONTEXT_WEIGHT)
            for term, weight in weights.items()
        }
        self._titles = (
            {
                candidate: set(tokenizer.extract_terms(source.headings[candidate.index]).words)
                for source in sources
                for candidate in source.candidates
                if candidate.place in (0, 1)
            }
            if question.defines
            else {}
        )
        self._code = {
            (source.passage.n, unit.introduction)
            for source in sources
            for unit in source.units
            if unit.kind is BlockKind.CODE
        }

    def select(self) -> list[QuotableUnit]:
        """Return the best sentence and, for a question with several parts, further ones."""
        if not self._query or not self._candidates:
            return []
        best = max(self._candidates, key=self._score)
        if self._cover(best) < COVERED_MIN * self._sum_weights(self._list_asked()) or not (
            self._query & best.own or self._query & best.above or self._expands(best)
        ):
            return []
        selected = [best]
        covered = best.own | best.above
        while self._question.asks_several and len(selected) < SENTENCES_MAX:
            further = self._find_further(best, covered)
            if further is None:
                break
            selected.append(further)
            covered |= further.own
        return selected

    def _expands(self, candidate: QuotableUnit) -> bool:
        """Return whether a sentence has the words of an abbreviation that is asked for."""
        return any(is_expanded(acronym, candidate.text) for acronym in self._question.acronyms)

    def _list_asked(self) -> frozenset[Term]:
        """Return the terms of the question without those of the words of its form."""
        frame = {term for term in self._query if _is_frame(term)}
        words = " ".join(term for term in frame if isinstance(term, str))
        return self._query - frame - extract_terms(words, self._tokenizer)

    def is_about_subject(self, candidate: QuotableUnit) -> bool:
        """Return whether a sentence has a word of the question that is not part of its form."""
        context = candidate.own | candidate.above | candidate.before
        return not self._subject or not self._subject.isdisjoint(context)

    def names_subject(self, candidate: QuotableUnit) -> bool:
        """Return whether a sentence has a name of the question, or the question has none.

        Names are words in Latin letters if the question is Japanese.
        """
        names = self._names
        return not names or not names.isdisjoint(candidate.own | candidate.above | candidate.before)

    def find_closed_sides(self, candidate: QuotableUnit) -> tuple[int, ...]:
        """Return the sides (-1: before, 1: after) that add nothing to a sentence unless linked.

        Both if it covers the question and has a specific type that is asked for or a reason, that
        after it if it covers a question for something else.
        """
        question, text = self._question, candidate.text
        words = [term for term in self._query if _weigh_kind(term) == 1]
        covered = self._sum_weights(term for term in words if term in candidate.own)
        covered /= self._sum_weights(words) or 1
        types = [*question.answers, *([REASON] if question.asks_why else [])]
        if covered < DECISIVE_MIN or not all(pattern.search(text) for pattern in types):
            return ()
        if question.is_specific:
            return (-1, 1)
        # The conditions of a yes and the rest of an explanation follow.
        explains = question.is_polar or question.asks_how or question.asks_why or question.defines
        return () if explains else (1,)

    def _sum_weights(self, terms: Iterable[Term]) -> float:
        return sum(self._weights[term] for term in terms)

    def _cover(self, candidate: QuotableUnit) -> float:
        """Return the weight of the question's terms that a sentence covers."""
        gives_reason = self._question.asks_why and REASON.search(candidate.text)
        before_weight = BEFORE_REASON_WEIGHT if gives_reason else BEFORE_WEIGHT
        above = (self._all & candidate.above) - candidate.own
        before = (self._all & candidate.before) - candidate.own - candidate.above
        return (
            self._sum_weights(self._all & candidate.own)
            + ABOVE_WEIGHT * self._sum_weights(above)
            + before_weight * self._sum_weights(before)
        )

    def _score(self, candidate: QuotableUnit) -> float:
        """Score a sentence. Long ones match more by chance, later passages are less relevant."""
        return (
            self._cover(candidate)
            * (1 + self._score_type(candidate))
            * (1 if candidate.complete else INCOMPLETE_WEIGHT)
            * (1 if self.names_subject(candidate) else NAMELESS_WEIGHT)
            * (CODE_ALONE_WEIGHT if self._is_unasked_code(candidate) else 1)
            / (1 + min(max(len(candidate.text), SHORT_CHARACTERS) / LENGTH_CHARACTERS, 1))
            / (1 + LATER_WEIGHT * (candidate.n - 1))
        )

    def _is_unasked_code(self, candidate: QuotableUnit) -> bool:
        return candidate.unit.kind is BlockKind.CODE and not self._question.asks_how

    def _score_type(self, candidate: QuotableUnit) -> float:
        """Score whether a sentence has the kind of thing that the question asks for."""
        question, text = self._question, candidate.text
        score = TYPE_WEIGHT * float(question.asks_why and bool(REASON.search(text)))
        if question.answers:
            around = candidate.around
            matched = sum(
                1 if pattern.search(text) else AROUND_WEIGHT if pattern.search(around) else 0
                for pattern in question.answers
            )
            score += TYPE_WEIGHT * matched / len(question.answers)
        if self._expands(candidate):
            score += EXPANSION_WEIGHT
        if question.asks_how and (
            candidate.unit.kind is BlockKind.CODE
            or candidate.has_code
            or (candidate.n, candidate.index) in self._code
        ):
            score += CODE_WEIGHT
        if question.defines and self._subject:
            if self._subject <= candidate.own and defines_term(
                text, self._subject, self._tokenizer
            ):
                score += DEFINITION_WEIGHT
            if candidate.place == 0 and self._subject <= candidate.above:
                score += LEAD_WEIGHT
            if candidate.place in (0, 1) and self._titles.get(candidate) == self._subject:
                score += TITLED_WEIGHT
        return score

    def _find_further(self, best: QuotableUnit, covered: frozenset[Term]) -> QuotableUnit | None:
        """Return the sentence that covers most of what is not covered, if it is enough."""
        score_min = FURTHER_MIN * self._score(best)
        gains = {
            candidate: (self._query & candidate.own) - covered
            for candidate in self._candidates
            if self._score(candidate) >= score_min
        }
        # One more word may occur by chance; two are another part of the question.
        words_min = 1 if self._question.compares else 2
        enough = [
            candidate
            for candidate, terms in gains.items()
            if sum(isinstance(term, str) for term in terms) >= words_min
        ]
        further = max(
            enough, key=lambda candidate: self._sum_weights(gains[candidate]), default=None
        )
        available = self._sum_weights(
            term
            for term in self._query
            if any(term in candidate.own for candidate in self._candidates)
        )
        if further is None or self._sum_weights(gains[further]) < GAIN_MIN * available:
            return None
        return further


def _weigh_terms(query: frozenset[Term], candidates: list[QuotableUnit]) -> dict[Term, float]:
    """Return the weight of each term: that of its kind times its idf among the sentences."""
    frequency = Counter(term for candidate in candidates for term in query & candidate.own)
    size = len(candidates)
    return {
        term: _weigh_kind(term)
        * math.log(1 + (size - frequency[term] + 0.5) / (frequency[term] + 0.5))
        for term in query
    }


def _is_frame(term: Term) -> bool:
    """Return whether a word, or a word of a phrase, belongs to the form of a question."""
    return not _FRAME_WORDS.isdisjoint([term] if isinstance(term, str) else term)


def _weigh_kind(term: Term) -> float:
    if isinstance(term, str):
        return FRAME_WEIGHT if _is_frame(term) else 1.0
    if term[0]:
        return PHRASE_WEIGHT * (FRAME_WEIGHT if _is_frame(term) else 1)
    return LATIN_GRAM_WEIGHT if term[1].isascii() else GRAM_WEIGHT
