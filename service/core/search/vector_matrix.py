"""Unit vectors in memory, each by its name, compared with one in a single product. The door to numpy.

What is asked (`near`) runs in a thread while the loop changes the rows. It takes the names first and multiplies then, and
what it found looks a row up by name and by number: a row that has been given to another text meanwhile answers for neither.
Rows of what was dropped are zeros until they are used again.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

GROWTH = 1024  # rows that it grows by, at the least


class MatrixSimilarities:
    """How near each text is to one question. See `Nearness`."""

    def __init__(self, names: list[str], rows: dict[str, int], found: NDArray[np.float32]) -> None:
        self._names, self._rows, self._found = names, rows, found

    def find_nearest(self, most: int) -> list[str]:
        """See `Nearness.nearest`."""
        found = self._found
        first = max(0, len(found) - most)
        rows = np.argpartition(found, first)[first:] if first else np.arange(len(found))
        return [
            name for row in rows[np.argsort(-found[rows])].tolist() if (name := self._names[row])
        ]

    def get_cosines(self, names: Iterable[str]) -> dict[str, float]:
        """See `Nearness.of`."""
        known = ((name, self._rows.get(name, len(self._found))) for name in names)
        return {
            name: float(self._found[row])
            for name, row in known
            if row < len(self._found) and self._names[row] == name
        }


class VectorMatrix:
    """At most `most` vectors of one length, that of the first; others are left out."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: dict[str, int] = {}
        self._names: list[str] = []  # by row; "" is free
        self._free: list[int] = []
        self._values = np.zeros((0, 0), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def names(self) -> list[str]:
        """All there are."""
        return list(self._rows)

    def keep(self, vectors: Mapping[str, bytes]) -> None:
        """Add these, or put them in place of what has the name."""
        width = self._values.shape[1] or len(next(iter(vectors.values()), b"")) // 4
        fitting = {name: vector for name, vector in vectors.items() if len(vector) == width * 4}
        fresh = [name for name in fitting if name not in self._rows]
        for name in fresh[max(0, self._most - len(self._rows)) :]:
            del fitting[name]
        if not fitting:
            return
        added = [name for name in fresh if name in fitting]
        free = [self._free.pop() for _ in range(min(len(self._free), len(added)))]
        end = len(self._names) + len(added) - len(free)
        places = dict(zip(added, [*free, *range(len(self._names), end)], strict=True))
        rows = [self._rows[name] if name in self._rows else places[name] for name in fitting]
        self._grow(end, width)
        self._values[rows] = _unit(
            np.frombuffer(b"".join(fitting.values()), dtype="<f4").reshape(-1, width)
        )
        # The names last: who finds one finds its vector.
        self._names += [""] * (end - len(self._names))
        for name, row in places.items():
            self._names[row] = name
            self._rows[name] = row

    def drop(self, names: Iterable[str]) -> None:
        """Forget these."""
        for name in names:
            if (row := self._rows.pop(name, None)) is not None:
                self._names[row] = ""
                self._values[row] = 0
                self._free.append(row)

    def near(self, vector: bytes) -> MatrixSimilarities | None:
        """What all have in common with this one; None: it does not compare. May run in a thread."""
        names, values = self._names.copy(), self._values
        asked = np.frombuffer(unit(vector), dtype="<f4")
        return (
            MatrixSimilarities(names, self._rows, values[: len(names)] @ asked)
            if len(asked) == values.shape[1]
            else None
        )

    def _grow(self, rows: int, width: int) -> None:
        if rows > len(self._values):
            grown = np.zeros((max(rows, len(self._values) * 2, GROWTH), width), dtype=np.float32)
            if len(self._values):
                grown[: len(self._values)] = self._values
            self._values = grown


def unit(vector: bytes) -> bytes:
    """The vector in its length of 1; one of zeros stays so. Both are float32 in little-endian order."""
    made: bytes = _unit(np.frombuffer(vector, dtype="<f4")[None, :]).astype("<f4").tobytes()
    return made


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    made: NDArray[np.float32] = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return made
