"""Texts to chunks: sizes, overlap, headings, linear time."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.text.chunking import is_heading, split_chunks
from service.core.text.sentences import split_sentences

TEXTS = st.text(
    st.sampled_from(" \n。.!?「」（）#-*1aあ漢カ,、\t\u3000\u0301"), max_size=400
) | st.text(max_size=200)


@given(TEXTS, st.integers(20, 120), st.integers(0, 40))
def test_pieces_slice_the_text(text: str, target: int, overlap: int) -> None:
    """Pieces are slices of limited length in ascending order that cover all sentences."""
    pieces = split_chunks(text, target, overlap)
    assert all(
        piece.text == text[piece.start : piece.end] and piece.text.strip() for piece in pieces
    )
    assert all(len(piece.text) <= 2 * target + 40 for piece in pieces)
    assert all(
        a.start < b.start and a.end < b.end and b.start - a.end < 1000 for a, b in pairwise(pieces)
    )
    covered = set().union(*(range(piece.start, piece.end) for piece in pieces)) if pieces else set()
    assert all(
        i in covered or text[i].isspace()
        for start, end in split_sentences(text)
        for i in range(start, end)
    )


def test_chunks_end_at_sentences_and_overlap_by_sentences() -> None:
    """Chunks consist of whole sentences and repeat at most `overlap` characters."""
    text = "".join(f"これは{i}番目の短い文です。" for i in range(100))
    pieces = split_chunks(text, 100, 30)
    assert all(
        piece.text.endswith("。") and piece.text.startswith("これは") and len(piece.text) <= 100
        for piece in pieces
    )
    assert all(0 < a.end - b.start <= 30 for a, b in pairwise(pieces))


def test_a_heading_stays_with_its_text() -> None:
    """No chunk except the last ends with a heading."""
    text = "".join(
        f"## Part {i}\n\nSome words of the text. More words of it.\n\n" for i in range(30)
    )
    for piece in split_chunks(text, 120, 30)[:-1]:
        assert not is_heading(piece.text.splitlines()[-1], 0)


def test_only_sentences_that_are_far_too_long_are_split() -> None:
    """A sentence up to twice the target stays whole; a longer one is split after commas."""
    assert len(split_chunks("あ" * 190 + "。", 100, 20)) == 1
    pieces = split_chunks(("あ" * 70 + "、") * 10, 100, 20)
    assert all(piece.text.endswith("、") and len(piece.text) <= 100 for piece in pieces)


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        "あ",
        "\n",
        ".",
        "「",
        " ",
        "# a\n",
        ".)",
        "\u0301",
        "    - x\n",
        "（「『",
        "a.b ",
        "x" * 60 + "\n",
    ],
)
def test_time_is_linear(unit: str) -> None:
    """Eight times as much adversarial text takes far less than 64 times as long."""
    text = unit * (1_000_000 // len(unit))
    began = time.perf_counter()
    split_chunks(text[:125_000], 400, 80)
    part = time.perf_counter() - began
    began = time.perf_counter()
    split_chunks(text, 400, 80)
    assert time.perf_counter() - began < 32 * part + 0.5
