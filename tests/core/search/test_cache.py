"""The cache of index reads."""

from hypothesis import given
from hypothesis import strategies as st

from service.core.search.cache import BoundedCache

SIZE_MAX = 30


def read(keys: list[int]) -> dict[int, str]:
    """Values of several sizes, one of which is larger than the cache."""
    return {key: "x" * (key % 7 if key != 13 else SIZE_MAX + 1) for key in keys}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=60))
def test_the_cache_is_bounded(ranges: list[tuple[int, int]]) -> None:
    """Every read returns all values, and the total size never exceeds the maximum."""
    cache: BoundedCache[int, str] = BoundedCache(SIZE_MAX, len)
    for first, count in ranges:
        keys = list(range(first, first + count))
        assert cache.get_many(keys, read) == read(keys)
        assert cache.size <= SIZE_MAX


def test_only_missing_keys_are_read() -> None:
    """A key in the cache is not read again."""
    cache: BoundedCache[int, str] = BoundedCache(SIZE_MAX, len)
    cache.get_many([1, 2], read)
    reads: list[list[int]] = []

    def record(keys: list[int]) -> dict[int, str]:
        reads.append(keys)
        return read(keys)

    cache.get_many([1, 2, 3], record)
    assert reads == [[3]]


def test_the_oldest_entry_is_evicted_first() -> None:
    """Entries are evicted in insertion order, regardless of later reads."""
    cache: BoundedCache[int, str] = BoundedCache(3, len)
    for key in (1, 8, 15, 1, 22):  # each of size 1
        cache.get_many([key], read)
    reads: list[int] = []

    def record(keys: list[int]) -> dict[int, str]:
        reads.extend(keys)
        return read(keys)

    cache.get_many([8, 15, 22, 1], record)
    assert reads == [1]
