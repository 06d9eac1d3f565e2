"""Unit vectors of chunks as matrices, compared with a query in one product for each scope."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from service.core.ports import QueryVector
from service.core.search.languages import (
    CenteredPassages,
    Ids,
    LanguageMeans,
    Vectors,
    read_language_means,
)
from service.core.text.languages import recognize_language


class VectorMatrix:
    """The vectors of some chunks, one row each, by ascending id. Immutable."""

    def __init__(
        self,
        rows: Sequence[tuple[int, bytes]],
        means: LanguageMeans | None = None,
        marked: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """`rows`: id and vector of each chunk; all have the length of those of `means`.

        `marked`: the ids of the chunks with the mark of a language in the index.
        """
        self.ids: Ids = np.array([id_ for id_, _ in rows], dtype=np.int64)
        values = np.frombuffer(b"".join(vector for _, vector in rows), dtype="<f4")
        self._values = values.reshape(len(rows), -1) if rows else values.reshape(0, 0)
        self._means = means if rows else None
        if self._means:
            self._passages = CenteredPassages(self._means, self.ids, self._values, marked or {})

    def __len__(self) -> int:
        return len(self.ids)

    def compare(self, vector: bytes, text: str = "") -> tuple[Vectors, NDArray[np.bool_]]:
        """Return the cosine of each row with the unit vector of a text of the same length.

        With means, rows of another language than the text are marked and have the similarity across
        languages instead.
        """
        query = np.frombuffer(vector, dtype="<f4")
        foreign = np.zeros(len(self), dtype=np.bool_)
        if not len(self):
            return np.zeros(0, dtype=np.float32), foreign
        # Not `@`: BLAS divides even small products among threads, which wait for each other
        # actively. With 2,500 rows that takes 30 times as much processor time.
        cosines: Vectors = np.einsum("ij,j->i", self._values, query)
        if self._means:
            language = self._means.find_language(text, query)
            foreign = self._passages.languages != language
            if foreign.any():
                across = self._means.compare_centered(self._passages, cosines, query, language)
                cosines = np.where(foreign, across, cosines)
        return cosines, foreign


_EMPTY = VectorMatrix([])


class ChunkSimilarities:
    """The cosines of chunks with a query."""

    def __init__(self, matrices: Iterable[VectorMatrix], vector: bytes, text: str = "") -> None:
        compared = [(matrix.ids, *matrix.compare(vector, text)) for matrix in (*matrices, _EMPTY)]
        ids, cosines, foreign = map(np.concatenate, zip(*compared, strict=True))
        order = np.argsort(ids, kind="stable")
        self._ids, self._cosines, self._foreign = ids[order], cosines[order], foreign[order]

    def find_nearest(self, limit: int | None, *, foreign_only: bool = False) -> list[int]:
        """Return the ids of the nearest chunks, nearest first; None: of all chunks.

        `foreign_only`: of those in another language than the query.
        """
        rows = np.flatnonzero(self._foreign) if foreign_only else np.arange(len(self._ids))
        cosines = self._cosines[rows]
        if limit is not None and limit < len(rows):
            # All that are as near as the last one, so that equal ones have a defined order.
            least = np.partition(cosines, -limit)[-limit]
            rows = rows[cosines >= least]
            cosines = self._cosines[rows]
        nearest: list[int] = self._ids[rows[np.argsort(-cosines, kind="stable")[:limit]]].tolist()
        return nearest

    def get_cosines(self, ids: Sequence[int]) -> dict[int, float]:
        """Return the cosines of those of these chunks that have a vector."""
        return {
            int(self._ids[place]): float(self._cosines[place]) for place in self._find_places(ids)
        }

    def select_foreign(self, ids: Sequence[int]) -> set[int]:
        """Return those of these chunks that are in another language than the query."""
        return {int(self._ids[place]) for place in self._find_places(ids) if self._foreign[place]}

    def _find_places(self, ids: Sequence[int]) -> list[int]:
        """Return the rows of those of these chunks that have a vector."""
        if not len(self._ids):
            return []
        wanted = np.array(ids, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        rows: list[int] = places[self._ids[places] == wanted].tolist()
        return rows


def compare_texts(
    query: QueryVector, question: str, texts: Sequence[str], vectors: Sequence[bytes]
) -> list[float]:
    """Return the similarity of a question with each of the first texts, those with a vector."""
    rows = [(n, normalize_vector(vector)) for n, vector in enumerate(vectors)]
    marked: dict[str, list[int]] = {}
    for n, _ in rows:
        marked.setdefault(recognize_language(texts[n]) or "en", []).append(n)
    means = read_language_means(query.model)
    cosines, _ = VectorMatrix(rows, means, marked).compare(query.vector, question)
    similarities: list[float] = cosines.tolist()
    return similarities


def normalize_vector(vector: bytes) -> bytes:
    """Scale a vector to length 1; zeros stay zeros. Both are float32 in little-endian order."""
    values = np.frombuffer(vector, dtype="<f4")
    length = np.linalg.norm(values)
    normalized: bytes = (values / (length if length > 0 else 1)).astype("<f4").tobytes()
    return normalized
