"""A cache of index reads, bounded by size and shared by threads."""

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic, TypeVar

from cachetools import FIFOCache

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """A cache of entries with sizes. Beyond `size_max` in total, the oldest are evicted (FIFO)."""

    def __init__(self, size_max: int, getsizeof: Callable[[V], int]) -> None:
        self._cache: FIFOCache[K, V] = FIFOCache(size_max, getsizeof)
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """The sum of the sizes of all entries."""
        return int(self._cache.currsize)

    def get_many(self, keys: Iterable[K], read: Callable[[list[K]], dict[K, V]]) -> dict[K, V]:
        """Return the values of these keys; `read` supplies those that are not in the cache."""
        with self._lock:
            values = {key: self._cache.get(key) for key in keys}
        if missing := [key for key, value in values.items() if value is None]:
            new = read(missing)
            values |= new
            self.store(new)
        return {key: value for key, value in values.items() if value is not None}

    def get(self, key: K) -> V | None:
        """Return the value of a key, if it is in the cache."""
        with self._lock:
            value: V | None = self._cache.get(key)
            return value

    def store(self, new: dict[K, V]) -> None:
        """Add values, or replace those of the same key."""
        with self._lock:
            for key, value in new.items():
                with suppress(ValueError):  # larger than the whole cache
                    self._cache[key] = value
