"""What readers share: cleaning texts and titles, dates, and rows."""

import datetime as dt

import pytest

from service.core.documents.readers.extracted import (
    TextBuilder,
    clean_text,
    clean_title,
    format_rows,
    parse_date,
)
from service.core.errors import FileUnreadable, TooLarge


def test_control_characters_and_blank_lines_are_removed() -> None:
    """Page breaks remain."""
    assert clean_text("\n\n a\0b\n \n\t\n\nc\f\n") == "a b\n\nc\f"


@pytest.mark.parametrize(
    ("value", "title"),
    [("  A\n B ", "A B"), (None, ""), ("Report.DOCX", ""), ("Untitled", ""), ("***", "")],
)
def test_titles_are_one_line(value: str | None, title: str) -> None:
    """A title that says nothing is none."""
    assert clean_title(value) == title


@pytest.mark.parametrize(
    ("value", "date"),
    [
        ("D:20240506070809+09'00'", dt.date(2024, 5, 6)),
        ("2024-05-06T07:08:09Z", dt.date(2024, 5, 6)),
        ("20241399", None),
        ("May 6", None),
        (None, None),
    ],
)
def test_dates_have_four_digits_of_the_year_first(value: str | None, date: dt.date | None) -> None:
    """Others are ambiguous."""
    assert parse_date(value) == date


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ([["A", "B"], ["x", 45.0], ["y", 1.5]], ["A: x; B: 45", "A: y; B: 1.5"]),
        ([[], ["A", ""], ["1", "x", "y"]], ["A", "1; x; y"]),
        ([["A", "B"], ["1", "x", "y"]], ["A: 1; B: x; y"]),
        ([["A", "", "C"], ["1", "2", None]], ["A: 1; 2"]),
        ([["1", "2"], ["3", "4"]], ["1; 2", "3; 4"]),
        ([["Same", "Same"], ["a", "b"]], ["Same; Same", "a; b"]),
        ([["When", "A"], [dt.datetime(2024, 1, 2), "x\ny"]], ["When: 2024-01-02; A: x y"]),  # noqa: DTZ001
    ],
)  # fmt: skip
def test_rows_contain_their_header(rows: list[list[object]], lines: list[str]) -> None:
    """The first row with several different texts is the header."""
    assert list(format_rows(rows)) == [f"- {line}\n" for line in lines]


def test_a_text_is_built_within_its_limit() -> None:
    """In bytes."""
    builder = TextBuilder(6)
    builder.add("灯台")

    assert builder.build() == "灯台"
    with pytest.raises(TooLarge):
        builder.add("x")


def test_an_empty_text_is_rejected() -> None:
    """A document without text cannot answer."""
    with pytest.raises(FileUnreadable):
        TextBuilder(10).build()
