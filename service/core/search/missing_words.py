"""Words of a question that no visible document contains, for the explanation of a refusal.

Candidates are the words that may decide: names (capitalized within a sentence, or Latin letters in
a Japanese text), identifiers (`worker_processes`, `HTTP2`) and other content words, in this order.
A candidate is reported only if the index has no visible chunk with it. Nouns of Japanese are
checked by their characters as well, because a document may be segmented differently.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from enum import IntEnum
from itertools import pairwise

import msgspec

from service.core.search.ranking import Term
from service.core.text.tokenizer import TermExtractor, detect_language, fold_text

QUESTION_CHARACTERS_MAX = 300  # longer texts have many unknown words, none of which decides
CANDIDATES_MAX = 12
REPORTED_MAX = 3

_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_LETTER = rf"[^\W_\u3041-\u309f{_KATAKANA}{_HAN}]"
_WORD = re.compile(
    rf"(?P<kanji>[{_HAN}]+)|(?P<katakana>[{_KATAKANA}]+)|{_LETTER}(?:[.+#&'’_-]?{_LETTER})*(?:\+\+|#)?"
)
_IDENTIFIER = re.compile(r"[_.+#]|\w\d|\d\w|[^\W\d_][A-Z]")
_SENTENCE_START = re.compile(r"(?:^|[.!?:。！？\n])[\s\"'“「(]*$")
# A word after one of these is usually a verb.
_BEFORE_VERBS = frozenset(
    "can could did do does i may might must shall should they to we who will would you".split()  # noqa: SIM905 - readable as text
)
# Words of the form of a question, which say nothing about its subject.
_IGNORED = frozenset(
    """anyone anything best correct currently describe difference exactly example explain find
    happen happens help kind like list long look make makes many mean means name often people
    please possible question show someone something somewhere sort thing things today type use used
    using want way work works write 一覧 今日 仕方 例 使用 利用 可能 回答 場合 必要 意味 方法 現在
    理由 種類 説明 詳細 質問 違""".split()  # noqa: SIM905 - readable as text
)


class WordKind(IntEnum):
    """The kinds of candidates, the most decisive first."""

    NAME = 0
    IDENTIFIER = 1
    CONTENT = 2
    VERB = 3  # probably: reported only if there is no other candidate


class Candidate(msgspec.Struct, frozen=True):
    """A word as written, its position, and its terms in the index."""

    text: str
    start: int
    kind: WordKind
    words: tuple[str, ...]
    grams: tuple[str, ...] = ()

    @property
    def terms(self) -> list[Term]:
        """All words and grams."""
        return [
            *(("words", word) for word in self.words),
            *(("grams", gram) for gram in self.grams),
        ]

    @property
    def end(self) -> int:
        """The position after the word."""
        return self.start + len(self.text)


def list_candidates(question: str, tokenizer: TermExtractor) -> list[Candidate]:
    """Return the words of a question that may decide, the most decisive first."""
    text = unicodedata.normalize("NFKC", question)
    if len(text) > QUESTION_CHARACTERS_MAX:
        return []
    candidates: list[Candidate] = []
    previous = ""
    for match in _WORD.finditer(text):
        if match["kanji"]:
            candidates += _split_kanji(match[0], match.start(), tokenizer)
        elif candidate := _read_word(text, match, previous, tokenizer):
            candidates.append(candidate)
        previous = match[0].lower()
    return sorted(candidates, key=lambda candidate: candidate.kind)[:CANDIDATES_MAX]


def _read_word(
    text: str, match: re.Match[str], previous: str, tokenizer: TermExtractor
) -> Candidate | None:
    word = match[0]
    words = tuple(tokenizer.extract_terms(word).words)
    if match["katakana"]:
        return Candidate(word, match.start(), WordKind.CONTENT, words, _list_pairs(word))
    if not words or len(word) < 2 or fold_text(word) in _IGNORED or word.isdecimal():
        return None
    return Candidate(word, match.start(), _classify_word(text, match, previous), words)


def _classify_word(text: str, match: re.Match[str], previous: str) -> WordKind:
    word = match[0]
    if detect_language(text) == "ja":
        return WordKind.NAME
    if not text.isupper():
        if _IDENTIFIER.search(word):
            return WordKind.IDENTIFIER if not word[0].isupper() else WordKind.NAME
        if word[0].isupper() and not _SENTENCE_START.search(text[: match.start()]):
            return WordKind.NAME
    return WordKind.VERB if previous in _BEFORE_VERBS else WordKind.CONTENT


def _split_kanji(run: str, start: int, tokenizer: TermExtractor) -> list[Candidate]:
    """Return the words of a run of kanji."""
    nouns: list[Candidate] = []
    position = 0
    for word in tokenizer.extract_terms(run).words:
        at = run.find(word, position)
        if at >= 0 and word not in _IGNORED:
            position = at + len(word)
            nouns.append(Candidate(word, start + at, WordKind.CONTENT, (word,), _list_pairs(word)))
    return nouns


def _list_pairs(word: str) -> tuple[str, ...]:
    """Return the pairs of adjacent characters, which the index has as grams."""
    return tuple(a + b for a, b in pairwise(fold_text(word)))


def select_missing(
    question: str, candidates: Sequence[Candidate], absent: Collection[Term]
) -> list[str]:
    """Return the missing words as written, adjacent ones as one phrase, at most `REPORTED_MAX`.

    `absent`: the terms, as (kind, term), that no visible chunk contains.
    """
    text = unicodedata.normalize("NFKC", question)
    missing = [
        candidate
        for candidate in candidates
        if any(("words", word) in absent for word in candidate.words)
        and (not candidate.grams or any(("grams", gram) in absent for gram in candidate.grams))
    ]
    if not missing:
        return []
    phrases = _join_adjacent(text, _select_decisive(missing))
    return [phrase for phrase in phrases if len(phrase) > 1][:REPORTED_MAX]


def _select_decisive(missing: list[Candidate]) -> list[Candidate]:
    """Keep the names; without one, identifiers and content words; else the first verb."""
    names = [candidate for candidate in missing if candidate.kind is WordKind.NAME]
    others = [candidate for candidate in missing if candidate.kind is not WordKind.VERB]
    return names or others or missing[:1]


def _join_adjacent(text: str, missing: list[Candidate]) -> list[str]:
    """Return phrases in the order of the candidates; a phrase has the rank of its first word."""
    in_order = sorted(missing, key=lambda candidate: candidate.start)
    spans: list[tuple[int, int]] = []
    for candidate in in_order:
        if spans and not text[spans[-1][1] : candidate.start].strip(" "):
            spans[-1] = (spans[-1][0], candidate.end)
        else:
            spans.append((candidate.start, candidate.end))
    phrases = [
        text[start:end]
        for candidate in missing
        for start, end in spans
        if start <= candidate.start < end
    ]
    unique = {phrase.lower(): phrase for phrase in reversed(phrases)}
    return [phrase for key, phrase in reversed(unique.items()) if unique[key] == phrase]
