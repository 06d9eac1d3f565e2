"""Verification of cited claims: whether the words of a claim occur in the passages it cites.

Every word of the claim that the question does not have must occur there: Latin words by their stem,
Japanese ones as a sequence of characters. Stop words, hiragana, and words about the documents
("according to") do not count; "three" and "3" are equal. If claim and passages are in different
scripts, only numbers and Latin words in Japanese are compared. This finds invented facts, not wrong
combinations of words that do occur, and it rejects correct paraphrases with other words.
"""

from collections.abc import Iterable, Sequence

from service.core.records import Passage
from service.core.text.tokenizer import detect_language, fold_text, get_tokenizer

_NUMBER_NAMES = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {name: str(number) for number, name in enumerate(_NUMBER_NAMES.split())}
_ABOUT_DOCUMENTS = frozenset(
    get_tokenizer("none")
    .extract_terms(
        "according document passage context source text state mention say provide given information"
        " question answer yes following 文書 文章 資料 記載 情報 以下 出典 質問 回答 場合"
    )
    .words
)


class ClaimVerifier:
    """Verifies the claims of one answer; reads each cited passage once."""

    def __init__(self, question: str, passages: Sequence[Passage]) -> None:
        self._passages = {passage.n: f"{passage.title}\n{passage.text}" for passage in passages}
        self._words: dict[int, frozenset[str]] = {}
        self._question = question

    def is_supported(self, claim: str, numbers: Iterable[int]) -> bool:
        """Return whether the passages with these numbers together have the words of a claim."""
        cited = [number for number in numbers if number in self._passages]
        texts = [self._passages[number] for number in cited]
        words = set(_ABOUT_DOCUMENTS | _read_words(self._question)).union(
            *(self._read_passage(number) for number in cited)
        )
        folded = "\n".join([self._question, *map(fold_text, texts)])
        same_script = any(detect_language(text) == detect_language(claim) for text in texts)
        return all(
            word in words or (not word.isascii() and word in folded)
            for word in _read_words(claim)
            if same_script or _is_comparable(word, claim)
        )

    def _read_passage(self, number: int) -> frozenset[str]:
        if number not in self._words:
            self._words[number] = _read_words(self._passages[number])
        return self._words[number]


def _read_words(text: str) -> frozenset[str]:
    """Return the words of a text without a dictionary, numbers up to twelve as digits."""
    words = get_tokenizer("none").extract_terms(text).words
    return frozenset(_NUMBERS.get(word, word) for word in words)


def _is_comparable(word: str, claim: str) -> bool:
    """Return whether a word is written alike in a text in another script."""
    return word.isdigit() or (word.isascii() and detect_language(claim) == "ja")
