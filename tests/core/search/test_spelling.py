"""Corrections of words that no document contains."""

from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.search.ranking import Term
from service.core.search.spelling import apply_corrections, correct_question, measure_edits
from service.core.search.vocabulary import Vocabulary
from service.core.text.tokenizer import Tokenizer, get_tokenizer

TOKENIZER = get_tokenizer("none")
LETTERS = st.text("abcd", min_size=1, max_size=9)


class Texts:
    """A collection of texts in memory."""

    def __init__(self, *texts: str, tokenizer: Tokenizer = TOKENIZER) -> None:
        self._words = [tokenizer.extract_terms(text).words for text in texts]
        self._vocabulary = Vocabulary()
        rows = [
            (n, "", text, " ".join(TOKENIZER.extract_terms(text).words))
            for n, text in enumerate(texts)
        ]
        self._vocabulary.update(range(len(rows)), lambda ids: [rows[id_] for id_ in ids])

    def select_absent(self, terms: Sequence[Term]) -> set[Term]:
        """Return the terms that no text has."""
        return {term for term in terms if not any(term[1] in words for words in self._words)}

    def read_vocabularies(self) -> Sequence[Vocabulary]:
        """Return the only vocabulary."""
        return [self._vocabulary]

    def contains_phrase(self, words: Sequence[str]) -> bool:
        """Return whether a text has these words in this order."""
        return any(f" {' '.join(words)} " in f" {' '.join(text)} " for text in self._words)


MANUAL = Texts(
    "Commits on a branch can be cherry picked. A foreign key is enforced by a configuration.",
    "The shipping of a parcel takes long. Perform the upgrade. シャドウとパスワードのファイル",
    "Parcels are weighed; parcel labels are printed.",
)


def correct(question: str) -> str:
    """Return a question as corrected by the manual."""
    return apply_corrections(question, correct_question(question, TOKENIZER, MANUAL))


@pytest.mark.parametrize(
    ("question", "corrected"),
    [
        ("how are comits reverted", "how are commits reverted"),
        ("a new brnach", "a new branch"),
        ("Is a foriegn key enfroced?", "Is a foreign key enforced?"),
        ("which configuraton", "which configuration"),
        ("parcal", "parcel"),
        ("cherrypicked", "cherry picked"),
        ("パスワドの変更", "パスワードの変更"),
        ("シャトウとは", "シャドウとは"),
        ("pasuwado wa", "パスワード wa"),
        ("パーセル", "パーセル"),
    ],
)
def test_typing_errors_are_corrected(question: str, corrected: str) -> None:
    """A word gets the spelling of the documents: one edit, two in long words, words apart."""
    assert correct(question) == corrected


@pytest.mark.parametrize(
    "question",
    [
        "How do I use Perforce?",  # a name, one edit from "perform"
        "a kranch",  # another first letter
        "parc",  # short
        "parcel2 and PARCAL_ID",
        "branches of a parcel",
        "shippnig2",
        "パスワークの変更",
        "a mercurial repository",
        "b" * 300 + " brnach",
    ],
)
def test_other_words_are_not_corrected(question: str) -> None:
    """Known and short words, identifiers, and names that are merely absent stay as they are."""
    assert correct(question) == question


def test_a_name_is_corrected_for_a_slip() -> None:
    """Exchanged and doubled letters are corrected in names, too."""
    assert correct("Which key has Forreign?") == "Which key has Foreign?"


def test_frequent_words_come_first() -> None:
    """Of several words with as many edits, the one in most chunks is meant."""
    texts = Texts("a stack of paper", "a stick of wood", "another stick")
    corrections = correct_question("an old stuck", TOKENIZER, texts)
    assert [correction.text for correction in corrections] == ["stick"]


@given(LETTERS, LETTERS)
def test_edits_are_symmetric(word: str, other: str) -> None:
    """The cost does not depend on the direction, and is 0 for equal words only."""
    cost = measure_edits(word, other, 9)
    assert cost == pytest.approx(measure_edits(other, word, 9))
    assert (cost == 0) is (word == other)


def list_word(word: str, _: list[int]) -> list[tuple[int, str, str, str]]:
    """One chunk with one word."""
    return [(1, "", word, "")]


@given(st.text("abcdefgh", min_size=4, max_size=9), st.data())
def test_signatures_reject_no_near_word(word: str, data: st.DataObject) -> None:
    """Every word within one edit passes the signatures of the vocabulary."""
    at = data.draw(st.integers(0, len(word) - 1))
    letter = data.draw(st.sampled_from("abcxyz"))
    swapped = word[:at] + word[at : at + 2][::-1] + word[at + 2 :]
    for other in (word[:at] + letter + word[at:], word[:at] + letter + word[at + 1 :], swapped):
        vocabulary = Vocabulary()
        vocabulary.update([1], partial(list_word, other))
        assert [found[0] for found in vocabulary.find_near(word, 1)] == [other]


@pytest.mark.parametrize(
    ("question", "corrected"),
    [
        ("ぱすわーどの変更", "パスワードの変更"),
        ("パスワードとふぁいるを", "パスワードとファイルを"),
        ("ファイルをさがす", "ファイルを探す"),
        ("ファイルをさがした人", "ファイルを探した人"),
        ("変更したのはいつですか", "変更したのはいつですか"),
        ("誰でしょう", "誰でしょう"),
        ("update-grub は何をする", "update-grub は何をする"),
        ("変更はいつ頃から", "変更はいつ頃から"),
    ],
)
def test_hiragana_is_read_as_the_documents_write_it(question: str, corrected: str) -> None:
    """Words in hiragana get katakana or kanji, but words of grammar stay as they are."""
    dictionary = get_tokenizer("auto")
    texts = Texts(
        "パスワードのファイルを探す。ハイツのショー。update-grubでアップデートする。",
        tokenizer=dictionary,
    )
    corrections = correct_question(question, dictionary, texts)
    assert apply_corrections(question, corrections) == corrected
