"""Terms of questions over chunks in several languages."""

from collections.abc import Sequence

import pytest

from service.core.search.query_terms import create_query_tokenizer
from service.core.search.ranking import Term
from service.core.text.tokenizer import get_tokenizer

TOKENIZER = get_tokenizer("none")
GERMAN = TOKENIZER.extract_terms("Das Löschen eines Benutzers und der Verzeichnisse", "de").words
ENGLISH = TOKENIZER.extract_terms("deleting commits and directories").words
CHINESE = TOKENIZER.extract_terms("配置方法", "zh").words


def extract(text: str, known: Sequence[str], **languages: int) -> list[str]:
    """Return the words of a question, given the words and the languages of the chunks."""

    def select_absent(terms: Sequence[Term]) -> set[Term]:
        return {term for term in terms if term[1] not in known}

    tokenizer = create_query_tokenizer(text, TOKENIZER, languages, select_absent)
    return tokenizer.extract_terms(text).words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Wie lösche ich Benutzer?", ["losch", "benutz"]),
        ("Benutzer löschen", ["benutz", "losch"]),
        ("BENUTZER LOESCHEN", ["benutz", "losch"]),
        ("Wie lösche ich commits?", ["losch", "commit"]),
        ("How are commits deleted?", ["commit", "delet"]),
    ],
)
def test_words_have_the_stems_of_the_chunks(text: str, words: list[str]) -> None:
    """Each word has the stem that a chunk contains, whatever the language of the question."""
    assert extract(text, [*GERMAN, *ENGLISH], de=3) == words


def test_stop_words_are_those_of_the_question() -> None:
    """Stop words are dropped also if no chunk has the language of the question."""
    assert extract("Wie geht das mit SQLite?", ENGLISH) == ["geht", "sqlite"]


def test_chunks_in_english_and_japanese_need_no_other_rules() -> None:
    """Without chunks in other languages, an English question has the terms of the tokenizer."""
    assert extract("deleting commits", ENGLISH) == ["delet", "commit"]


def test_characters_of_both_languages_are_read_as_the_chunks_have_them() -> None:
    """A text without kana is Chinese if more of its words are known as Chinese."""
    japanese = TOKENIZER.extract_terms("配置方法").words
    assert extract("配置方法", CHINESE, zh=1) == ["配置", "置方", "方法"]
    assert extract("配置方法", japanese, zh=1) == ["配置", "方法"]
