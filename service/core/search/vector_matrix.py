"""Unit vectors of chunks as matrices, compared with a query in one product for each scope."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class VectorMatrix:
    """The vectors of some chunks, one row each, by ascending id. Immutable."""

    def __init__(self, rows: Sequence[tuple[int, bytes]]) -> None:
        """`rows`: id and vector of each chunk; all vectors have the same length."""
        self.ids: Ids = np.array([id_ for id_, _ in rows], dtype=np.int64)
        values = np.frombuffer(b"".join(vector for _, vector in rows), dtype="<f4")
        self._values = values.reshape(len(rows), -1) if rows else values.reshape(0, 0)

    def __len__(self) -> int:
        return len(self.ids)

    def compare(self, vector: bytes) -> NDArray[np.float32]:
        """Return the cosine of each row with this unit vector of the same length."""
        query = np.frombuffer(vector, dtype="<f4")
        cosines: NDArray[np.float32] = (
            self._values @ query if len(self) else np.zeros(0, dtype=np.float32)
        )
        return cosines


_EMPTY = VectorMatrix([])


class ChunkSimilarities:
    """The cosines of chunks with a query."""

    def __init__(self, matrices: Iterable[VectorMatrix], vector: bytes) -> None:
        compared = [(matrix.ids, matrix.compare(vector)) for matrix in (*matrices, _EMPTY)]
        ids = np.concatenate([ids for ids, _ in compared])
        cosines = np.concatenate([cosines for _, cosines in compared])
        order = np.argsort(ids, kind="stable")
        self._ids, self._cosines = ids[order], cosines[order]

    def find_nearest(self, limit: int | None) -> list[int]:
        """Return the ids of the nearest chunks, nearest first; None: of all chunks."""
        order = np.argsort(-self._cosines, kind="stable")[:limit]
        nearest: list[int] = self._ids[order].tolist()
        return nearest

    def get_cosines(self, ids: Sequence[int]) -> dict[int, float]:
        """Return the cosines of those of these chunks that have a vector."""
        if not len(self._ids):
            return {}
        wanted = np.array(ids, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        present = self._ids[places] == wanted
        return dict(
            zip(wanted[present].tolist(), self._cosines[places[present]].tolist(), strict=True)
        )


def normalize_vector(vector: bytes) -> bytes:
    """Scale a vector to length 1; zeros stay zeros. Both are float32 in little-endian order."""
    values = np.frombuffer(vector, dtype="<f4")
    length = np.linalg.norm(values)
    normalized: bytes = (values / (length if length > 0 else 1)).astype("<f4").tobytes()
    return normalized
