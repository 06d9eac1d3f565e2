"""A budget for the bytes of request bodies that are kept in memory or in temporary files.

It bounds all of them together, and those of one user (`fair_share.py`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.core.fair_share import SharedLimit


class BodyBudget:
    """The bytes of bodies in progress, by user."""

    def __init__(self, bytes_max: int, user_share: float) -> None:
        self._bytes = SharedLimit(bytes_max, "bytes of requests in progress", user_share)

    @property
    def bytes_in_progress(self) -> int:
        """Bytes of all bodies that were begun and have not ended."""
        return self._bytes.total

    @contextmanager
    def begin_body(self, user_id: str) -> Iterator[Callable[[int], None]]:
        """Yield a function that adds received bytes to the budget; they are released at the end.

        The function raises `Overloaded`.
        """
        size = 0

        def add_bytes(count: int) -> None:
            nonlocal size
            self._bytes.take(user_id, count)
            size += count

        try:
            yield add_bytes
        finally:
            self._bytes.release(user_id, size)
