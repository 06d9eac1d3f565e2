"""Texts to chunks: sizes, overlap, headings, linear time."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.text.chunking import INTRODUCTION_CHARACTERS_MAX, derive_title, split_chunks
from service.core.text.sentences import split_sentences

TEXTS = st.text(
    st.sampled_from(" \n。.!?「」（）#-*1aあ漢カ,、\t\u3000\u0301|>`=:：■"), max_size=400
) | st.text(max_size=200)


@given(TEXTS, st.integers(20, 120), st.integers(0, 40))
def test_pieces_slice_the_text(text: str, target: int, overlap: int) -> None:
    """Pieces are slices of limited length in ascending order that cover all sentences."""
    pieces = split_chunks(text, target, overlap)
    assert all(
        piece.text.endswith(text[piece.start : piece.end]) and text[piece.start : piece.end].strip()
        for piece in pieces
    )
    assert all(piece.end - piece.start <= 2 * target + 40 for piece in pieces)
    assert all(
        len(piece.text) - (piece.end - piece.start) <= INTRODUCTION_CHARACTERS_MAX + 1
        for piece in pieces
    )
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
        assert not piece.text.splitlines()[-1].startswith("#")


def test_only_sentences_that_are_far_too_long_are_split() -> None:
    """A sentence up to twice the target stays whole; a longer one is split after commas."""
    assert len(split_chunks("あ" * 190 + "。", 100, 20)) == 1
    pieces = split_chunks(("あ" * 70 + "、") * 10, 100, 20)
    assert all(piece.text.endswith("、") and len(piece.text) <= 100 for piece in pieces)


def test_a_part_of_a_list_has_the_sentence_before_the_list() -> None:
    """A chunk that begins within a list repeats the introduction, which does not stand alone."""
    items = "".join(f"- The advantage with number {n} is worth reading.\n" for n in range(12))
    pieces = split_chunks(f"Some text. The advantages are:\n\n{items}\nOther text.", 150, 0)
    assert len(pieces) > 3
    assert all(
        piece.text.startswith("The advantages are:\n- The advantage with") for piece in pieces[1:-1]
    )
    assert not any(piece.text.endswith("are:") for piece in pieces)


def test_a_part_of_a_table_has_its_header() -> None:
    """A chunk that begins within a table repeats the header row."""
    rows = "".join(f"| item {n} | {n * 10} euros |\n" for n in range(30))
    header = "| Name | Price |\n|---|---|\n"
    pieces = split_chunks(f"# Prices\n\n{header}{rows}", 150, 0)
    assert len(pieces) > 3
    assert all(header in piece.text for piece in pieces)


def test_code_is_split_only_at_lines_and_keeps_its_fence() -> None:
    """Code up to twice the target is whole; the parts of longer code are lines in a fence."""
    short = "Run this:\n\n```sh\n# not a heading\nmake. Install it. Then run.\n```\n"
    (piece,) = split_chunks(short, 60, 0)
    assert piece.text == short.strip()
    long = "```python\n" + "".join(f"call_a_function({n})\n" for n in range(30)) + "```\n"
    pieces = split_chunks(long, 100, 0)
    assert all(piece.text.startswith("```python\ncall_a_function(") for piece in pieces)
    assert all(piece.text.endswith(("\n", "```")) for piece in pieces)


def test_a_chunk_has_the_heading_above() -> None:
    """`heading` is the last heading before the chunk, whether it begins the chunk before or not."""
    text = "Setext\n======\n\n" + "Words of it stand here. " * 11 + "\n\n## Next\n\nMore words."
    pieces = split_chunks(text, 100, 0)
    assert [piece.heading for piece in pieces] == ["", "Setext", "Setext", ""]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ('---\nauthor: A\ntitle: "The guide"\n---\n\n# Other\n', "The guide"),
        ("\n## Guide\n\ntext", "Guide"),
        ("#include <stdio.h>\n", "#include <stdio.h>"),
        ("---\n\ntext", "---"),
    ],
)
def test_titles(text: str, title: str) -> None:
    """The title is that of the front matter, or the first line without a heading marker."""
    assert derive_title(text) == title


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
        "- ",
        "> ",
        "|-",
        "| a\n",
        "    a. b\n",
        "```\na\n",
        "- a\n\n  b\n",
        "a: b\n",
        "---\na:\n",
        " " * 50 + "\n",
        "***",
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
