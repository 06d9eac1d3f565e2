"""What was read and may be asked for again."""

from hypothesis import given
from hypothesis import strategies as st

from service.core.search.cache import Kept


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=60))
def test_what_is_remembered_has_a_limit(steps: list[tuple[int, int]]) -> None:
    """Whatever is asked for comes back whole, and no more is kept than the limit."""
    kept: Kept[int, str] = Kept(30, len)
    for first, more in steps:
        keys = range(first, first + more)
        assert kept.get(keys, lambda missing: {key: "x" * (key % 7) for key in missing}) == {key: "x" * (key % 7) for key in keys}
        assert sum(map(len, kept._values.values())) == kept._sum <= 30
