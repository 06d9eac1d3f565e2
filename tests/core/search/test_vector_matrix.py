"""Vectors of chunks, compared with a loop over all of them."""

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.search.vector_matrix import ChunkSimilarities, VectorMatrix, normalize_vector

POINTS = st.tuples(*[st.sampled_from([-2.0, -1.0, 0.5, 1.0, 3.0])] * 2)
CHUNKS = st.dictionaries(st.integers(1, 50), st.tuples(st.booleans(), POINTS), max_size=20)


def vector(*values: float) -> bytes:
    """Return a unit vector as it is stored."""
    return normalize_vector(array("f", values).tobytes())


@given(CHUNKS, POINTS, st.integers(1, 25))
def test_chunks_of_several_scopes_are_compared(
    chunks: dict[int, tuple[bool, tuple[float, ...]]], query: tuple[float, ...], limit: int
) -> None:
    """The nearest chunks of all matrices come first, with their cosines."""
    matrices = [
        VectorMatrix(
            [
                (id_, vector(*point))
                for id_, (second, point) in sorted(chunks.items())
                if second is n
            ]
        )
        for n in (False, True)
    ]
    similarities = ChunkSimilarities(matrices, vector(*query))
    expected = {
        id_: math.cos(math.atan2(*point) - math.atan2(*query)) for id_, (_, point) in chunks.items()
    }
    assert similarities.get_cosines([*chunks, 51, 0]) == pytest.approx(expected, abs=1e-5)
    nearest = similarities.find_nearest(limit)
    assert [expected[id_] for id_ in nearest] == pytest.approx(
        sorted(expected.values(), reverse=True)[:limit], abs=1e-5
    )
    assert sorted(similarities.find_nearest(None)) == sorted(chunks)


def test_vectors_are_scaled_to_length_1() -> None:
    """Zeros stay zeros."""
    assert list(array("f", vector(3, 4))) == pytest.approx([0.6, 0.8])
    assert vector(0, 0) == bytes(8)
