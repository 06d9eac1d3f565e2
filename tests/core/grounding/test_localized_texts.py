"""Texts in the language of a question."""

import pytest

from service.core.grounding.localized_texts import TEXTS, get_texts


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("Wie lange dauert der Versand?", "de"),
        ("Quelle est la durée de la garantie ?", "fr"),
        ("¿Cuánto cuesta el envío?", "es"),
        ("Quanto costa la spedizione?", "it"),
        ("Quanto custa o envio para o Brasil?", "pt"),
        ("Hoeveel kost het verzenden?", "nl"),
        ("怎么退货?", "zh"),
        ("반품 기한은 며칠입니까?", "ko"),
        ("返品は？", "ja"),
        ("refunds", "en"),
    ],
)
def test_texts_have_the_language_of_the_question(question: str, language: str) -> None:
    """The texts are those of the language, and English if none is recognized."""
    assert get_texts(question) is TEXTS[language]


def test_all_texts_have_their_placeholders() -> None:
    """The words, the count and the word of a sentence occur in each language."""
    for texts in TEXTS.values():
        assert "{words}" in texts.missing
        assert "{count}" in texts.documents
        assert "{count}" in texts.further
        assert "{word}" in texts.word
