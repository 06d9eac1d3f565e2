"""Sentence selection by meaning."""

from collections.abc import Sequence

from service.core.grounding.extraction import quote_answer
from service.core.grounding.meaning import (
    SENTENCES_COMPARED,
    SIMILARITY_MIN,
    list_sentences,
    quote_by_meaning,
    quote_nearest,
)
from service.core.grounding.prompt import refusal_text
from service.core.ports import QueryVector
from service.core.records import Passage

HOTELS = Passage(
    1,
    "d",
    "d.1",
    "Travel",
    "Trains are booked by the office. The limit for a hotel is 80 euros per night. "
    "Receipts must be handed in within a month.",
)
GARDEN = Passage(2, "e", "e.1", "Garden", "The garden opens at nine. Dogs must be on a lead.")
QUESTION = "ホテルの上限額はいくらですか？"


class Similarities:
    """A `VectorSearch` with known similarities: those of sentences with these words."""

    def __init__(self, **words: float) -> None:
        self.words, self.compared = words, list[tuple[str, list[str]]]()

    async def embed_query(self, query: str) -> QueryVector | None:
        """Not used."""

    async def compare_texts(self, question: str, texts: Sequence[str]) -> list[float]:
        """Return the similarity of each text."""
        self.compared.append((question, list(texts)))
        return [
            max((value for word, value in self.words.items() if word in text), default=0)
            for text in texts
        ]


async def test_a_question_in_another_language_is_answered_by_the_nearest_sentence() -> None:
    """A Japanese question quotes the English sentence that is nearest, with its neighbours."""
    vectors = Similarities(hotel=0.9, garden=0.8)
    lexical = quote_answer(QUESTION, [HOTELS, GARDEN])
    answer = await quote_by_meaning(QUESTION, [HOTELS, GARDEN], lexical, vectors)
    assert lexical == refusal_text(QUESTION)
    assert answer is not None
    assert "The limit for a hotel is 80 euros per night. [1]" in answer
    assert "garden" not in answer


async def test_the_second_passage_can_answer() -> None:
    """The nearest sentence of the two best passages is quoted with the number of its passage."""
    answer = await quote_by_meaning(
        "犬は入れますか", [HOTELS, GARDEN], "", Similarities(hotel=0.8, Dogs=0.9)
    )
    assert answer is not None
    assert "Dogs must be on a lead. [2]" in answer


def test_words_decide_in_one_language() -> None:
    """Nothing is compared if the best passage has the question's language and words match."""
    question = "What is the limit for a hotel?"
    answer = quote_answer(question, [HOTELS])
    assert answer != refusal_text(question)
    assert list_sentences(question, [HOTELS, GARDEN], answer) is None
    assert list_sentences(question, [], refusal_text(question)) is None


def test_a_paraphrase_without_common_words_is_compared() -> None:
    """Sentences in the question's language are compared if none matches its words."""
    question = "How expensive may accommodation be?"
    answer = quote_answer(question, [HOTELS])
    assert answer == refusal_text(question)
    sentences = list_sentences(question, [HOTELS], answer)
    assert sentences is not None
    assert sentences.texts[1] == "The limit for a hotel is 80 euros per night."
    assert quote_nearest(sentences, [0.1, 0.9, 0.1]) is not None


def test_a_bounded_number_of_sentences_is_compared() -> None:
    """Sentences of long passages beyond the limit are not compared."""
    text = " ".join(f"Room {n} is open on day {n}." for n in range(100))
    sentences = list_sentences(QUESTION, [Passage(1, "d", "d.1", "", text)], "")
    assert sentences is not None
    assert len(sentences.texts) == SENTENCES_COMPARED


def test_without_similarities_words_decide() -> None:
    """No sentence is quoted if no similarity could be computed; else those computed decide."""
    sentences = list_sentences(QUESTION, [HOTELS, GARDEN], "")
    assert sentences is not None
    assert quote_nearest(sentences, []) is None
    first = quote_nearest(sentences, [0.85])
    assert first is not None
    assert first.startswith("Trains are booked by the office.")


async def test_previous_questions_are_part_of_the_comparison() -> None:
    """A follow-up question is compared together with those that it may refer to."""
    vectors = Similarities(hotel=0.9)
    await quote_by_meaning("上限は？", [HOTELS], "", vectors, previous="ホテルについて")
    assert [question for question, _ in vectors.compared] == ["上限は？\nホテルについて"]


def test_a_name_in_the_question_counts() -> None:
    """Of sentences that are equally near, the one with a name of the question is quoted."""
    text = "# Ports\n\nThe default port is 80.\n\nCaddy uses the default port 2019 instead."
    sentences = list_sentences("Caddy のポート番号は？", [Passage(1, "d", "d.1", "", text)], "")
    assert sentences is not None
    quoted = quote_nearest(sentences, [0.9] * len(sentences.texts))
    assert quoted is not None
    assert quoted.startswith("Caddy uses")


def test_captions_and_code_are_quoted_last() -> None:
    """Of units that are about equally near, a sentence is quoted rather than a caption or code."""
    text = "The limits of hotels\n\n```\nhotel --limit 80\n```\n\nA hotel costs up to 80 euros."
    sentences = list_sentences(QUESTION, [Passage(1, "d", "d.1", "", text)], "")
    assert sentences is not None
    assert len(sentences.texts) == 3
    quoted = quote_nearest(sentences, [0.92, 0.91, 0.9])
    assert quoted is not None
    assert quoted.startswith("A hotel costs")


def test_a_far_sentence_is_not_quoted() -> None:
    """If all sentences are far in meaning, none of them is quoted."""
    sentences = list_sentences(QUESTION, [HOTELS], "")
    assert sentences is not None
    assert quote_nearest(sentences, [SIMILARITY_MIN - 0.01] * 3) is None
    assert quote_nearest(sentences, [SIMILARITY_MIN + 0.01] * 3) is not None
