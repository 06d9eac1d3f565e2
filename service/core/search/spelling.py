"""Correction of words of a question that no visible document contains.

A word of five letters or more is compared with the words of the visible documents
(`vocabulary.py`). Up to seven letters one edit is allowed, beyond that two; an edit inserts,
deletes or replaces a letter, or exchanges two adjacent ones (F. J. Damerau, "A technique for
computer detection and correction of spelling errors", 1964). Two words that are written as one are
separated if they are adjacent in a document.

Identifiers and numbers are never corrected. A name that is merely absent resembles some word by
chance; therefore only typical slips are corrected in names: exchanged, doubled and omitted double
letters. The same holds if the first letter differs. Words in katakana, many of which are names, are
corrected for long vowels, ッ, and voiced or small letters.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import takewhile
from typing import Protocol

import msgspec

from service.core.search.kana import KATAKANA, compute_key, list_hiragana_parts, to_katakana
from service.core.search.missing_words import (
    QUESTION_CHARACTERS_MAX,
    Candidate,
    WordKind,
    list_candidates,
)
from service.core.search.ranking import Term
from service.core.search.vocabulary import Vocabulary
from service.core.text.tokenizer import Spelling, TermExtractor, fold_text

LETTERS_MIN, KATAKANA_MIN = 5, 4
SOUNDS_MIN = 3  # of the key of a word in katakana or romaji
LONG_LETTERS = 8  # from this length on, two edits
LONGER_LETTERS = 10  # from this length on, neither of them need be a typical slip
PART_LETTERS_MIN = 3  # of words written as one
CORRECTIONS_MAX = 6  # words of a question that are looked up
SLIP_COST = 0.9  # of an edit that is a typical slip; others cost 1
_PART = re.compile(r"[^\W\d_]+")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
_KANJI = re.compile("[^\u3041-\u3096ー]")
_SMALL = frozenset("ぁぃぅぇぉゃゅょァィゥェォャュョ")
_HIRAGANA = re.compile("[\u3041-\u3096]{3}")
_REDUCED = str.maketrans("ァィゥェォャュョ", "アイウエオヤユヨ", "ーッ\u3099\u309a")
_LATIN = re.compile("[a-z\u00df-\u024f]+$")


def may_have_variants(text: str) -> bool:
    """Return whether a text has hiragana that may stand for a word in katakana."""
    return not text.isascii() and _HIRAGANA.search(text) is not None


class Correction(msgspec.Struct, frozen=True):
    """A replacement of a part of a question, given by its position."""

    start: int
    end: int
    text: str


class Collection(Protocol):
    """The visible chunks, as far as corrections depend on them."""

    def select_absent(self, terms: Sequence[Term]) -> set[Term]: ...  # noqa: D102 - see `Snapshot`, all three
    def read_vocabularies(self) -> Sequence[Vocabulary]: ...  # noqa: D102
    def contains_phrase(self, words: Sequence[str]) -> bool: ...  # noqa: D102


def correct_question(
    question: str, tokenizer: TermExtractor, collection: Collection
) -> list[Correction]:
    """Return the corrections of the words of a question that no visible chunk contains."""
    variants = _find_variants(question, tokenizer, collection)
    covered = [(variant.start, variant.end) for variant in variants]
    words = [
        word
        for word in list_correctable(list_candidates(question, tokenizer))
        if not any(start <= word[1] < end for start, end in covered)
    ]
    terms = {word: tokenizer.extract_terms(word).words for word, _, _ in words}
    absent = collection.select_absent([("words", term) for word in terms for term in terms[word]])
    unknown = [
        (word, start, kind)
        for word, start, kind in words
        if terms[word] and all(("words", term) in absent for term in terms[word])
    ]
    if not unknown:
        return variants
    vocabularies = collection.read_vocabularies()
    if not vocabularies:
        return variants

    def is_known(written: str) -> bool:
        written_terms = [("words", term) for term in tokenizer.extract_terms(written).words]
        return bool(written_terms) and not collection.select_absent(written_terms)

    corrections = variants
    for word, start, kind in unknown[:CORRECTIONS_MAX]:
        text = find_alike(word, vocabularies, is_known=is_known) or correct_word(
            word, kind, vocabularies, is_known=is_known
        )
        if text is None and kind is not WordKind.NAME:
            text = _split_word(word, tokenizer, collection)
        if text is not None:
            corrections.append(Correction(start, start + len(word), text))
    return corrections


def list_correctable(candidates: Iterable[Candidate]) -> list[tuple[str, int, WordKind]]:
    """Return the words of these candidates that may be corrected, with position and kind."""
    words: list[tuple[str, int, WordKind]] = []
    for candidate in sorted(candidates, key=lambda candidate: candidate.start):
        if candidate.kind is WordKind.IDENTIFIER or any(map(str.isdigit, candidate.text)):
            continue
        for part in _PART.finditer(candidate.text):
            minimum = KATAKANA_MIN if KATAKANA.match(part[0]) else LETTERS_MIN
            if len(part[0]) >= minimum and part[0][1:] == part[0][1:].lower():
                words.append((part[0], candidate.start + part.start(), candidate.kind))
    return words


def _find_variants(
    question: str, tokenizer: TermExtractor, collection: Collection
) -> list[Correction]:
    """Return the unknown Japanese words that the visible chunks write otherwise.

    Those of the dictionary by their usual spelling (割当て, さがす), parts of hiragana by the
    katakana (ぱすわーど).
    """
    text = unicodedata.normalize("NFKC", question)
    if len(text) > QUESTION_CHARACTERS_MAX or not _KANA.search(text):
        return []
    morphemes = tokenizer.list_spellings(text)
    corrections = _find_usual_spellings(text, morphemes, tokenizer, collection)
    if not _HIRAGANA.search(text) or not morphemes:
        return corrections
    words = [("words", morpheme.word) for morpheme in morphemes if morpheme.word]
    absent = {word for _, word in collection.select_absent(words)}
    parts = [
        Correction(start, start + len(part), part)
        for start, part in list_hiragana_parts(text)
        if _is_unreadable(text, start, start + len(part), morphemes, absent)
    ]
    vocabularies = collection.read_vocabularies() if parts else []
    for part in parts:
        _add_katakana(corrections, part, vocabularies)
    return corrections


def _is_unreadable(
    text: str, start: int, end: int, morphemes: Sequence[Spelling], absent: AbstractSet[str]
) -> bool:
    """Return whether the dictionary cannot read a part of hiragana as words of grammar.

    It begins with a morpheme, and contains a small letter alone or an unknown word, or ends within
    a morpheme.
    """
    inside = [morpheme for morpheme in morphemes if morpheme.start < end and morpheme.end > start]
    if len(inside) < 2 or inside[0].start != start:
        return False
    beyond = text[end : inside[-1].end]
    if beyond:
        return not _KANJI.search(beyond)
    return any(
        morpheme.word in absent or text[morpheme.start : morpheme.end] in _SMALL
        for morpheme in inside
    )


def _inflect(morpheme: Spelling, surface: str) -> str:
    """Return the usual spelling with the ending of the text: さがし, さがす and 探す give 探し."""
    word, usual = morpheme.word, morpheme.usual
    pairs = zip(reversed(word), reversed(usual), strict=False)
    ending = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if surface == word or not ending:
        return usual
    return usual[:-ending] + surface[len(word) - ending :]


def _add_katakana(
    corrections: list[Correction], part: Correction, vocabularies: Sequence[Vocabulary]
) -> None:
    """Add the katakana word for a part in kana, if the documents have one."""
    if not any(part.start < other.end and other.start < part.end for other in corrections):
        written = _find_most_frequent(vocabularies, to_katakana(part.text))
        if written is not None:
            corrections.append(msgspec.structs.replace(part, text=written))


def _find_usual_spellings(
    text: str, morphemes: Sequence[Spelling], tokenizer: TermExtractor, collection: Collection
) -> list[Correction]:
    """Return the unknown words whose usual spelling a visible chunk has."""
    others = [
        (morpheme, tokenizer.extract_terms(morpheme.usual).words)
        for morpheme in morphemes
        if not morpheme.word.isascii()  # Latin words have stems as terms
        and morpheme.usual != morpheme.word
        and not morpheme.usual.isascii()
    ]
    absent = collection.select_absent(
        [("words", word) for morpheme, usual in others for word in (morpheme.word, *usual)]
    )
    return [
        Correction(
            morpheme.start, morpheme.end, _inflect(morpheme, text[morpheme.start : morpheme.end])
        )
        for morpheme, usual in others
        if ("words", morpheme.word) in absent
        and usual
        and absent.isdisjoint(("words", word) for word in usual)
    ]


def _find_most_frequent(vocabularies: Sequence[Vocabulary], kana: str) -> str | None:
    """Return the katakana word that sounds like this, if the documents have one."""
    key = compute_key(kana)
    counts = Counter[str]()
    for vocabulary in vocabularies:
        for written, count in vocabulary.find_alike(key or ""):
            if KATAKANA.match(written):
                counts[written] += count
    return min(counts, key=lambda written: (-counts[written], written), default=None)


def find_alike(
    word: str, vocabularies: Sequence[Vocabulary], *, is_known: Callable[[str], bool]
) -> str | None:
    """Return the word in another script that sounds like a word in katakana or romaji."""
    folded = fold_text(word)
    key = compute_key(folded)
    if key is None or len(key) < SOUNDS_MIN:
        return None
    counts = Counter[str]()
    for vocabulary in vocabularies:
        for written, count in vocabulary.find_alike(key):
            if not (folded.isascii() and written.isascii()):
                counts[written] += count
    ranked = sorted(counts, key=lambda written: (-counts[written], written))
    return next((written for written in ranked if is_known(written)), None)


def correct_word(
    word: str,
    kind: WordKind,
    vocabularies: Sequence[Vocabulary],
    *,
    is_known: Callable[[str], bool],
) -> str | None:
    """Return the word of the vocabularies that is meant, or None.

    Of several the one with the fewest edits, slips counting less, then the most frequent one.
    `is_known`: whether a visible chunk contains the word, as the search understands it.
    """
    folded = fold_text(word)
    edits_max = 2 if len(folded) >= LONG_LETTERS else 1
    ranks: dict[str, tuple[float, int]] = {}
    for vocabulary in vocabularies:
        for other, written, count in vocabulary.find_near(folded, edits_max):
            cost = measure_edits(folded, other, edits_max)
            if cost > edits_max or not _is_plausible(folded, other, cost, kind):
                continue
            ranks[written] = (cost, ranks.get(written, (0, 0))[1] + count)
    ranked = sorted(ranks.items(), key=lambda item: (item[1][0], -item[1][1], item[0]))
    return next((written for written, _ in ranked if is_known(written)), None)


def _is_plausible(word: str, other: str, cost: float, kind: WordKind) -> bool:
    """Return whether a word can be a slip for another, and not another word."""
    if cost < 1:
        return True
    if KATAKANA.match(word):
        return _reduce_katakana(word) == _reduce_katakana(other)
    if cost > 1 + SLIP_COST and len(word) < LONGER_LETTERS:
        return False
    return kind is not WordKind.NAME and word[0] == other[0]


def _reduce_katakana(word: str) -> str:
    """Return a word without what is often mistaken: long vowels, ッ, voiced and small letters."""
    return unicodedata.normalize("NFD", word).translate(_REDUCED)


def _split_word(word: str, tokenizer: TermExtractor, collection: Collection) -> str | None:
    """Return the two adjacent words of a document that are written as one here, or None."""
    folded = fold_text(word)
    if not _LATIN.match(folded):
        return None
    splits = [
        (folded[:n], folded[n:])
        for n in range(PART_LETTERS_MIN, len(folded) - PART_LETTERS_MIN + 1)
    ]
    terms = {part: tokenizer.extract_terms(part).words for split in splits for part in split}
    absent = collection.select_absent([("words", term) for part in terms for term in terms[part]])
    for split in splits:
        both = [term for part in split for term in terms[part]]
        if (
            all(terms[part] for part in split)
            and absent.isdisjoint(("words", term) for term in both)
            and collection.contains_phrase(both)
        ):
            return " ".join(split)
    return None


def measure_edits(word: str, other: str, edits_max: int) -> float:
    """Return the cost of the edits between two words; more than `edits_max` if it is larger.

    Optimal string alignment: no part is edited twice. An exchange of adjacent letters, and a
    doubled or omitted double letter, cost `SLIP_COST`.
    """
    if abs(len(word) - len(other)) > edits_max:
        return edits_max + 1
    before: list[float] = []
    row = _start_row(other)
    for i, letter in enumerate(word, 1):
        doubled = i > 1 and word[i - 2] == letter
        current = [row[0] + (SLIP_COST if doubled else 1.0)]
        for j, target in enumerate(other, 1):
            target_doubled = j > 1 and other[j - 2] == target
            cost = min(
                row[j] + (SLIP_COST if doubled else 1.0),
                current[j - 1] + (SLIP_COST if target_doubled else 1.0),
                row[j - 1] + (letter != target),
            )
            if i > 1 and j > 1 and letter == other[j - 2] and word[i - 2] == target:
                cost = min(cost, before[j - 2] + SLIP_COST * (letter != target))
            current.append(cost)
        if min(current) > edits_max:
            return edits_max + 1
        before, row = row, current
    return row[-1]


def _start_row(other: str) -> list[float]:
    row = [0.0]
    for j, target in enumerate(other):
        row.append(row[-1] + (SLIP_COST if j and other[j - 1] == target else 1.0))
    return row


def apply_corrections(question: str, corrections: Sequence[Correction]) -> str:
    """Return a question with its corrections, in compatibility form (NFKC)."""
    text = unicodedata.normalize("NFKC", question)
    for correction in sorted(corrections, key=lambda correction: correction.start, reverse=True):
        replaced = text[correction.start : correction.end]
        new = correction.text.capitalize() if replaced[:1].isupper() else correction.text
        text = text[: correction.start] + new + text[correction.end :]
    return text
