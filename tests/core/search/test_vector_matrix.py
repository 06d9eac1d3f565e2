"""Vectors in memory, compared with a loop over all of them."""

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.search.vector_matrix import GROWTH, VectorMatrix

NAMES = st.sampled_from("abcdefgh")
POINTS = st.tuples(*[st.sampled_from([-2.0, -1.0, 0.5, 1.0, 3.0])] * 2)


def vector(*values: float) -> bytes:
    """Return a vector as an embedder returns it."""
    return array("f", values).tobytes()


@given(
    st.lists(st.one_of(st.dictionaries(NAMES, POINTS, max_size=4), st.lists(NAMES, max_size=4))),
    POINTS,
)
def test_cosines_after_any_changes(
    steps: list[dict[str, tuple[float, ...]] | list[str]], query: tuple[float, ...]
) -> None:
    """The cosines are those of the vectors stored last and not removed, nearest first."""
    matrix = VectorMatrix(6)
    stored: dict[str, tuple[float, ...]] = {}
    for step in steps:
        if isinstance(step, dict):
            matrix.store({name: vector(*point) for name, point in step.items()})
            for name, point in step.items():
                if name in stored or len(stored) < 6:
                    stored[name] = point
        else:
            matrix.remove(step)
            stored = {name: point for name, point in stored.items() if name not in step}
    assert sorted(matrix.list_names()) == sorted(stored)
    similarities = matrix.compare(vector(*query))
    if similarities is None:
        assert not stored
        return
    expected = {
        name: math.cos(math.atan2(*point) - math.atan2(*query)) for name, point in stored.items()
    }
    assert similarities.get_cosines([*stored, "nobody"]) == pytest.approx(expected, abs=1e-5)
    for limit in (2, 10):
        nearest = [expected[name] for name in similarities.find_nearest(limit)]
        assert nearest == pytest.approx(
            sorted(expected.values(), reverse=True)[: len(nearest)], abs=1e-5
        )
        assert limit == 2 or len(nearest) == len(stored)  # free rows may be among the two


def test_a_reassigned_row_is_returned_for_neither_text() -> None:
    """Changes after a comparison do not change its results."""
    matrix = VectorMatrix(10)
    matrix.store({"old": vector(1, 0), "other": vector(0, 1)})
    similarities = matrix.compare(vector(1, 0))
    assert similarities is not None
    matrix.remove(["old"])
    matrix.store({"new": vector(0.6, 0.8)})
    assert similarities.get_cosines(["old", "new", "other"]) == {"other": 0}
    again = matrix.compare(vector(1, 0))
    assert again is not None
    assert again.get_cosines(["new"]) == {"new": pytest.approx(0.6)}


def test_vectors_of_another_length_are_ignored() -> None:
    """They are not stored, and a query of another length is not compared."""
    matrix = VectorMatrix(10)
    assert matrix.compare(vector(1, 0)) is None
    matrix.store({"two": vector(1, 0), "three": vector(1, 0, 0)})
    assert matrix.list_names() == ["two"]
    assert matrix.compare(vector(1, 0, 0)) is None


def test_growth_keeps_vectors() -> None:
    """Adding more rows than one step of growth keeps the existing ones."""
    matrix = VectorMatrix(10_000)
    for n in range(GROWTH + 2):
        matrix.store({str(n): vector(1, n)})
    similarities = matrix.compare(vector(1, 0))
    assert similarities is not None
    assert similarities.find_nearest(3) == ["0", "1", "2"]
