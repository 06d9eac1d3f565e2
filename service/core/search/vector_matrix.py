"""Unit vectors in memory, by name, compared with a query in one matrix product.

A query (`compare`) runs in a thread while the event loop changes the rows. It copies the names
before multiplying, and a result is looked up by name and by row number: a row that was reassigned
in between is returned for neither text. Rows of removed vectors are zero until they are reused.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

GROWTH = 1024  # minimum number of rows added at once


class MatrixSimilarities:
    """Implements `Similarities`."""

    def __init__(
        self, names: list[str], rows: dict[str, int], cosines: NDArray[np.float32]
    ) -> None:
        self._names, self._rows, self._cosines = names, rows, cosines

    def find_nearest(self, limit: int) -> list[str]:
        """See `Similarities.find_nearest`."""
        cosines = self._cosines
        first = max(0, len(cosines) - limit)
        rows = np.argpartition(cosines, first)[first:] if first else np.arange(len(cosines))
        return [
            name for row in rows[np.argsort(-cosines[rows])].tolist() if (name := self._names[row])
        ]

    def get_cosines(self, names: Iterable[str]) -> dict[str, float]:
        """See `Similarities.get_cosines`."""
        rows = ((name, self._rows.get(name, len(self._cosines))) for name in names)
        return {
            name: float(self._cosines[row])
            for name, row in rows
            if row < len(self._cosines) and self._names[row] == name
        }


class VectorMatrix:
    """At most `size_max` vectors. The first one determines the length; others are ignored."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._rows: dict[str, int] = {}
        self._names: list[str] = []  # by row; "" is free
        self._free_rows: list[int] = []
        self._values = np.zeros((0, 0), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def list_names(self) -> list[str]:
        """Return the names of all vectors."""
        return list(self._rows)

    def store(self, vectors: Mapping[str, bytes]) -> None:
        """Add vectors, or replace those of the same name."""
        width = self._values.shape[1] or len(next(iter(vectors.values()), b"")) // 4
        fitting = {name: vector for name, vector in vectors.items() if len(vector) == width * 4}
        new = [name for name in fitting if name not in self._rows]
        for name in new[max(0, self._size_max - len(self._rows)) :]:
            del fitting[name]
        if not fitting:
            return
        added = [name for name in new if name in fitting]
        free = [self._free_rows.pop() for _ in range(min(len(self._free_rows), len(added)))]
        end = len(self._names) + len(added) - len(free)
        new_rows = dict(zip(added, [*free, *range(len(self._names), end)], strict=True))
        rows = [self._rows[name] if name in self._rows else new_rows[name] for name in fitting]
        self._grow(end, width)
        self._values[rows] = _normalize_rows(
            np.frombuffer(b"".join(fitting.values()), dtype="<f4").reshape(-1, width)
        )
        # Names are set last: a concurrent query that reads a name reads its vector.
        self._names += [""] * (end - len(self._names))
        for name, row in new_rows.items():
            self._names[row] = name
            self._rows[name] = row

    def remove(self, names: Iterable[str]) -> None:
        """Remove vectors."""
        for name in names:
            if (row := self._rows.pop(name, None)) is not None:
                self._names[row] = ""
                self._values[row] = 0
                self._free_rows.append(row)

    def compare(self, vector: bytes) -> MatrixSimilarities | None:
        """Compare all vectors with this one; None if its length differs. May run in a thread."""
        names, values = self._names.copy(), self._values
        query = np.frombuffer(normalize_vector(vector), dtype="<f4")
        return (
            MatrixSimilarities(names, self._rows, values[: len(names)] @ query)
            if len(query) == values.shape[1]
            else None
        )

    def _grow(self, rows: int, width: int) -> None:
        if rows > len(self._values):
            values = np.zeros((max(rows, len(self._values) * 2, GROWTH), width), dtype=np.float32)
            if len(self._values):
                values[: len(self._values)] = self._values
            self._values = values


def normalize_vector(vector: bytes) -> bytes:
    """Scale a vector to length 1; zeros stay zeros. Both are float32 in little-endian order."""
    row = np.frombuffer(vector, dtype="<f4")[None, :]
    normalized: bytes = _normalize_rows(row).astype("<f4").tobytes()
    return normalized


def _normalize_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    normalized: NDArray[np.float32] = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return normalized
