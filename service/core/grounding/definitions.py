"""Sentences that define a term or expand an abbreviation."""

import re
from collections.abc import Collection

from service.core.text.tokenizer import Tokenizer

SUBJECT_WORDS_MAX = 2  # of a subject, besides the words of the term
LETTERS_MIN = 3  # of an abbreviation whose expansion is recognized without it, in lower case
_SUBJECT = re.compile(
    r"(?:(?:an?|the|each|every) )?(.{2,80}?)(?: \([^()]{1,80}\))?"
    r" (?:is|are|means?|refers? to|stands? for|allows?|lets?|provides?|consists?|contains?"
    r"|controls?|specif(?:y|ies)|sets?|makes?|returns?|runs?|prints?|shows?|creates?)\b",
    re.IGNORECASE,
)
_SUBJECT_JA = re.compile(r"([^、。]{1,60}?)(?:とは|は)、?[^？?]{4,}[。．]?$")


def defines_term(text: str, words: Collection[str], tokenizer: Tokenizer) -> bool:
    """Return whether the subject of a sentence consists of these words, and few others."""
    match = _SUBJECT.match(text) or _SUBJECT_JA.match(text)
    if not words or match is None:
        return False
    subject = set(tokenizer.extract_terms(match[1]).words)
    return subject.issuperset(words) and len(subject) <= len(set(words)) + SUBJECT_WORDS_MAX


def is_expanded(acronym: str, text: str) -> bool:
    """Return whether a text has the expansion of an acronym: `HTTP (Hypertext …)`."""
    before = re.search(rf"([^()（）]{{3,80}})\s?[(（]{re.escape(acronym)}s?\b", text)
    after = re.search(rf"\b{re.escape(acronym)}\b[\"”*]*\s?[(（]([^()（）]{{3,80}})[)）]", text)
    if re.search(rf"\b{re.escape(acronym)}\b.{{0,40}}(?:stands for|is short for|の略)", text):
        return True
    letters = [letter.lower() for letter in acronym if letter.isalpha()]
    before_words, after_words = (
        re.findall(r"[A-Za-z]+", match[1]) if match else ["no"] for match in (before, after)
    )
    return (
        not before_words
        or not after_words
        or _have_initials(before_words, letters)
        or (len(after_words) > 1 and after_words[0][0].lower() == letters[0])
        or _have_initials(re.findall(r"[A-Z][a-z]+", text), letters)
        or (
            len(letters) >= LETTERS_MIN
            and _have_initials(re.findall(r"[A-Za-z]{3,}", text), letters)
        )
    )


def _have_initials(words: list[str], letters: list[str]) -> bool:
    """Return whether consecutive words begin with the letters."""
    initials = "".join(word[0].lower() for word in words)
    return len(letters) > 1 and "".join(letters) in initials
