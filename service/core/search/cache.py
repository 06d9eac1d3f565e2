"""What was read and may be asked for again, up to a size. Pure."""

import threading
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Kept(Generic[K, V]):
    """What was read, up to a size; what came first goes first. Threads share it."""

    def __init__(self, most: int, size: Callable[[V], int]) -> None:
        self._most, self._size = most, size
        self._lock = threading.Lock()
        self._values: dict[K, V] = {}
        self._sum = 0

    def get(self, keys: Iterable[K], read: Callable[[list[K]], dict[K, V]]) -> dict[K, V]:
        """The values of these keys, of which `read` brings those that are missing."""
        known = self._values
        found = {key: known.get(key) for key in keys}
        if missing := [key for key, value in found.items() if value is None]:
            new = read(missing)
            found |= new
            self._keep(new)
        return {key: value for key, value in found.items() if value is not None}

    def _keep(self, new: dict[K, V]) -> None:
        with self._lock:
            for key, value in new.items():
                if key not in self._values:
                    self._values[key] = value
                    self._sum += self._size(value)
            while self._sum > self._most:
                for key in list(islice(self._values, 100)):
                    self._sum -= self._size(self._values.pop(key))
