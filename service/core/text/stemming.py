"""Stems of words, by the Snowball algorithms (https://snowballstem.org)."""

import threading

import Stemmer

ALGORITHMS = {
    "en": "english",
    "de": "german",
    "fr": "french",
    "es": "spanish",
    "it": "italian",
    "pt": "portuguese",
    "nl": "dutch_porter",
}
# Without their caches: the tokenizer has one.
_stemmers = {language: Stemmer.Stemmer(name, 0) for language, name in ALGORITHMS.items()}
_lock = threading.Lock()  # stemmers are not thread-safe


def stem_word(word: str, language: str = "en") -> str:
    """Return the stem of a word in lower case. Languages but English need its accents."""
    with _lock:
        return str(_stemmers[language].stemWord(word))
