"""A budget for the bytes of request bodies that are kept in memory or in temporary files.

It bounds all of them together. One user can have half of it, so that nobody can exhaust it for all.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.core.errors import Overloaded


class BodyBudget:
    """The bytes of bodies in progress, by user."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes: Counter[str] = Counter()

    @property
    def bytes_in_progress(self) -> int:
        """Bytes of all bodies that were begun and have not ended."""
        return self._bytes.total()

    @contextmanager
    def begin_body(self, user_id: str) -> Iterator[Callable[[int], None]]:
        """Yield a function that adds received bytes to the budget; they are released at the end.

        The function raises `Overloaded`.
        """
        size = 0

        def add_bytes(count: int) -> None:
            nonlocal size
            if self._bytes[user_id] + count > self._bytes_max // 2:
                raise Overloaded("your requests in progress are too large together")
            if self.bytes_in_progress + count > self._bytes_max:
                raise Overloaded("the requests in progress are too large together")
            size += count
            self._bytes[user_id] += count

        try:
            yield add_bytes
        finally:
            self._bytes[user_id] -= size
            if not self._bytes[user_id]:
                del self._bytes[user_id]
