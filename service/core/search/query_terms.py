"""The terms of a question as the visible chunks have them.

Chunks are indexed by the rules of their language, which `languages.mark_language` records. A short
question often has no recognizable language, and it may contain words of another. Therefore each
word is stemmed by the language of the question and by those of the visible chunks; the first stem
that a chunk contains is its term. Without chunks in other languages than English and Japanese only
the stop words depend on the language.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from service.core.search.ranking import Term
from service.core.text.languages import STOP_WORDS, recognize_language
from service.core.text.ngrams import drop_boundary_pairs
from service.core.text.tokenizer import Spelling, TermExtractor, Terms, Tokenizer

_KANA = re.compile("[\u3041-\u309f\u30a1-\u30fa]")


class QueryTokenizer(msgspec.Struct, frozen=True):
    """Extracts the terms of a question or of its parts.

    `language`: of the question, by which stop words are dropped. `stems`: languages whose stems are
    tried, in this order; "en" for English.
    """

    tokenizer: Tokenizer
    language: str | None
    stems: Sequence[str]
    select_absent: Callable[[Sequence[Term]], set[Term]]

    def extract_terms(self, text: str) -> Terms:
        """Return the terms of a text, with the stems that a visible chunk contains."""
        extract = self.tokenizer.extract_terms
        first, *others = [extract(text, self.language, stems) for stems in self.stems]
        if self.language in ("zh", "ko"):
            absent = self.select_absent([("words", word) for word in dict.fromkeys(first.words)])
            present = set(first.words) - {word for _, word in absent}
            return Terms(drop_boundary_pairs(first.words, present.__contains__), first.grams)
        if not others or any(len(other.words) != len(first.words) for other in others):
            return first
        variants = list(zip(first.words, *(other.words for other in others), strict=True))
        absent = self.select_absent(
            list(dict.fromkeys(("words", word) for words in variants for word in words))
        )
        words = [
            next((word for word in words if ("words", word) not in absent), words[0])
            for words in variants
        ]
        return Terms(words, first.grams)

    def list_spellings(self, text: str) -> list[Spelling]:
        """See `Tokenizer.list_spellings`."""
        return self.tokenizer.list_spellings(text)


def create_query_tokenizer(
    text: str,
    tokenizer: Tokenizer,
    languages: Mapping[str, int],
    select_absent: Callable[[Sequence[Term]], set[Term]],
) -> TermExtractor:
    """Return the tokenizer for a question.

    `languages`: the number of visible chunks in each language but English and Japanese.
    """
    language = recognize_language(text)
    if language == "ja" and "zh" in languages and not _KANA.search(text):
        language = _choose_han_language(text, tokenizer, select_absent)
    by_frequency = sorted(languages, key=lambda code: (-languages[code], code))
    present = [code for code in by_frequency if code in STOP_WORDS]
    if not present and language in (None, "en", "ja"):
        return tokenizer
    if language in present:
        stems = [language, *(code for code in present if code != language), "en"]
    else:
        stems = ["en", *present]
    return QueryTokenizer(tokenizer, language, stems, select_absent)


def _choose_han_language(
    text: str, tokenizer: Tokenizer, select_absent: Callable[[Sequence[Term]], set[Term]]
) -> str:
    """Return whether more words of a text without kana are known as Chinese or as Japanese."""

    def measure_known(language: str) -> float:
        words = set(tokenizer.extract_terms(text, language).words)
        absent = select_absent([("words", word) for word in words])
        return 1 - len(absent) / max(len(words), 1)

    return "zh" if measure_known("zh") >= measure_known("ja") else "ja"
