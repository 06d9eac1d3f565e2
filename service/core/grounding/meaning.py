"""Sentence selection by meaning, for the extractive model, where words cannot match.

That is the case if the best passage is in another language than the question, or if no sentence
shares enough words with it. The similarities come from an embedding model (`VectorSearch`); words
that match, such as names, and the rank of the passage count a little. If all sentences are far, the
answer remains the one that was selected by words, or the refusal. The sentence is quoted like
one that was selected by its words (`quotation.py`).
"""

from collections.abc import Sequence

import anyio.to_thread
import msgspec

from service.core.grounding.candidates import (
    PassageUnits,
    QuotableUnit,
    extract_terms,
    read_passages,
)
from service.core.grounding.prompt import refusal_text
from service.core.grounding.questions import read_question
from service.core.grounding.quotation import compose_quotation, format_date
from service.core.ports import VectorSearch
from service.core.records import Passage
from service.core.text.blocks import BlockKind
from service.core.text.languages import recognize_language
from service.core.text.tokenizer import Tokenizer, get_tokenizer

PASSAGES_COMPARED = 2
SENTENCES_COMPARED = 16
SIMILARITY_MIN = 0.82  # of a quoted sentence; 49 of 50 that answered in an experiment had more
RANK_WEIGHT = 0.01  # decrease of the similarity per rank of the passage
INCOMPLETE_WEIGHT = 0.05  # decrease of a line without an end mark, such as a caption
CODE_WEIGHT = 0.03  # decrease of code, if the question does not ask how to
WORDS_WEIGHT = 0.05  # of the share of the question's words, which rarely match across languages


class ComparableSentences(msgspec.Struct, frozen=True):
    """The sentences of the best passages, in their order, and the question."""

    question: str
    sources: list[PassageUnits]
    candidates: list[QuotableUnit]

    @property
    def texts(self) -> list[str]:
        """The sentences, to be compared with the question."""
        return [candidate.text for candidate in self.candidates]


async def quote_by_meaning(
    question: str,
    passages: Sequence[Passage],
    answer: str,
    vectors: VectorSearch,
    *,
    previous: str = "",
    dictionary: str = "auto",
) -> str | None:
    """Return the sentence nearest to a question, quoted; None where its words can select one.

    Also if no similarity can be computed. `answer`: the one that was selected by words;
    `previous`: the questions that this one may refer to.
    """
    sentences = await anyio.to_thread.run_sync(
        list_sentences, question, passages, answer, dictionary
    )
    if sentences is None:
        return None
    similarities = await vectors.compare_texts(
        f"{question}\n{previous}" if previous else question, sentences.texts
    )
    return await anyio.to_thread.run_sync(quote_nearest, sentences, similarities, dictionary)


def list_sentences(
    question: str, passages: Sequence[Passage], answer: str, dictionary: str = "auto"
) -> ComparableSentences | None:
    """Return the sentences to compare with a question; None if its words can select one.

    `answer`: the one that was selected by words.
    """
    if not passages or not (
        answer == refusal_text(question) or _differ_in_language(question, passages[0])
    ):
        return None
    sources = read_passages(passages[:PASSAGES_COMPARED], get_tokenizer(dictionary))
    candidates = [candidate for source in sources for candidate in source.candidates]
    return ComparableSentences(question, sources, candidates[:SENTENCES_COMPARED])


def quote_nearest(
    sentences: ComparableSentences, similarities: Sequence[float], dictionary: str = "auto"
) -> str | None:
    """Return the nearest sentence with its surroundings and citation.

    `similarities`: of the first sentences; None is returned without any, and if all are far.
    """
    if not similarities:
        return None
    tokenizer = get_tokenizer(dictionary)
    question = read_question(sentences.question)
    words = _list_words(sentences.question, tokenizer)

    def score(n: int) -> float:
        candidate = sentences.candidates[n]
        matched = len(words & (candidate.own | candidate.above)) / max(1, len(words))
        is_unasked_code = candidate.unit.kind is BlockKind.CODE and not question.asks_how
        return (
            similarities[n]
            + WORDS_WEIGHT * matched
            - RANK_WEIGHT * (candidate.n - 1)
            - INCOMPLETE_WEIGHT * (not candidate.complete)
            - CODE_WEIGHT * is_unasked_code
        )

    nearest = max(range(len(similarities)), key=score)
    if similarities[nearest] < SIMILARITY_MIN:
        return None
    best = sentences.candidates[nearest]
    source = next(source for source in sentences.sources if source.passage.n == best.n)
    quotation = compose_quotation(best, source, question, tokenizer)
    return quotation + format_date(source.passage, sentences.question)


def _list_words(question: str, tokenizer: Tokenizer) -> frozenset[str]:
    return frozenset(term for term in extract_terms(question, tokenizer) if isinstance(term, str))


def _differ_in_language(question: str, passage: Passage) -> bool:
    language = recognize_language(passage.text)
    return language is not None and language != (recognize_language(question) or "en")
