"""Unit vectors of chunks as matrices, compared with a query in one product for each scope."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.core.search.languages import LanguageMeans, Vectors

Ids = NDArray[np.int64]


class VectorMatrix:
    """The vectors of some chunks, one row each, by ascending id. Immutable."""

    def __init__(
        self, rows: Sequence[tuple[int, bytes]], means: LanguageMeans | None = None
    ) -> None:
        """`rows`: id and vector of each chunk; all have the length of those of `means`."""
        self.ids: Ids = np.array([id_ for id_, _ in rows], dtype=np.int64)
        values = np.frombuffer(b"".join(vector for _, vector in rows), dtype="<f4")
        self._values = values.reshape(len(rows), -1) if rows else values.reshape(0, 0)
        self._means = means if rows else None
        if self._means:
            self._languages = self._means.classify_passages(self._values)
            self._lengths = self._means.measure_lengths(self._values, self._languages)

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
        cosines: Vectors = self._values @ query
        if self._means:
            language = self._means.find_language(text, query)
            foreign = self._languages != language
            if foreign.any():
                across = self._means.compare_centered(
                    self._values, self._languages, self._lengths, query, language
                )
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

    def find_nearest(self, limit: int | None) -> list[int]:
        """Return the ids of the nearest chunks, nearest first; None: of all chunks."""
        order = np.argsort(-self._cosines, kind="stable")[:limit]
        nearest: list[int] = self._ids[order].tolist()
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


def normalize_vector(vector: bytes) -> bytes:
    """Scale a vector to length 1; zeros stay zeros. Both are float32 in little-endian order."""
    values = np.frombuffer(vector, dtype="<f4")
    length = np.linalg.norm(values)
    normalized: bytes = (values / (length if length > 0 else 1)).astype("<f4").tobytes()
    return normalized
