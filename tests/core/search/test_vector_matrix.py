"""Vectors in memory: what is nearest is what a loop over all of them would find, whatever was added and dropped before."""

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.search.vector_matrix import GROWTH, VectorMatrix

NAMES = st.sampled_from("abcdefgh")
POINTS = st.tuples(*[st.sampled_from([-2.0, -1.0, 0.5, 1.0, 3.0])] * 2)


def vector(*values: float) -> bytes:
    """As an embedder gives it."""
    return array("f", values).tobytes()


@given(
    st.lists(st.one_of(st.dictionaries(NAMES, POINTS, max_size=4), st.lists(NAMES, max_size=4))),
    POINTS,
)
def test_any_order_of_adding_and_dropping(
    steps: list[dict[str, tuple[float, ...]] | list[str]], asked: tuple[float, ...]
) -> None:
    """The cosines are those of what was kept last and not dropped, nearest first."""
    matrix = VectorMatrix(6)
    kept: dict[str, tuple[float, ...]] = {}
    for step in steps:
        if isinstance(step, dict):
            matrix.keep({name: vector(*point) for name, point in step.items()})
            for name, point in step.items():
                if name in kept or len(kept) < 6:
                    kept[name] = point
        else:
            matrix.drop(step)
            kept = {name: point for name, point in kept.items() if name not in step}
    assert sorted(matrix.names()) == sorted(kept)
    found = matrix.near(vector(*asked))
    if found is None:
        assert not kept
        return
    expected = {
        name: math.cos(math.atan2(*point) - math.atan2(*asked)) for name, point in kept.items()
    }
    assert found.get_cosines([*kept, "nobody"]) == pytest.approx(expected, abs=1e-5)
    for most in (2, 10):
        nearest = [expected[name] for name in found.find_nearest(most)]
        assert nearest == pytest.approx(
            sorted(expected.values(), reverse=True)[: len(nearest)], abs=1e-5
        )
        assert most == 2 or len(nearest) == len(kept)  # rows that are free are among the two, too


def test_a_row_given_to_another_text_answers_for_neither() -> None:
    """What changes after a question was compared does not change what it found."""
    matrix = VectorMatrix(10)
    matrix.keep({"old": vector(1, 0), "other": vector(0, 1)})
    found = matrix.near(vector(1, 0))
    assert found is not None
    matrix.drop(["old"])
    matrix.keep({"new": vector(0.6, 0.8)})
    assert found.get_cosines(["old", "new", "other"]) == {"other": 0}
    again = matrix.near(vector(1, 0))
    assert again is not None
    assert again.get_cosines(["new"]) == {"new": pytest.approx(0.6)}


def test_what_does_not_compare_is_left_out() -> None:
    """Vectors of another length are not kept, and a question of another length is not compared."""
    matrix = VectorMatrix(10)
    assert matrix.near(vector(1, 0)) is None
    matrix.keep({"two": vector(1, 0), "three": vector(1, 0, 0)})
    assert matrix.names() == ["two"]
    assert matrix.near(vector(1, 0, 0)) is None


def test_it_grows() -> None:
    """More than one step of growth keeps what was there."""
    matrix = VectorMatrix(10_000)
    for n in range(GROWTH + 2):
        matrix.keep({str(n): vector(1, n)})
    found = matrix.near(vector(1, 0))
    assert found is not None
    assert found.find_nearest(3) == ["0", "1", "2"]
