"""Spreadsheets."""

import pytest

from service.core.documents.readers.spreadsheet import read_spreadsheet
from service.core.errors import FileUnreadable, TooLarge
from tests.fakes.files import build_xlsx, build_zip

BYTES_MAX = 1_000_000
Sheets = dict[str, list[list[str | float]]]


def test_each_sheet_is_a_section_with_rows() -> None:
    """A row repeats the header, so that it can be found and understood alone."""
    sheets: Sheets = {
        "Stock": [["Name", "Price"], ["Kettle", 4500.0]],
        "Empty": [],
        "Notes": [["Text."]],
    }

    assert read_spreadsheet(build_xlsx(sheets), BYTES_MAX).text == (
        "## Stock\n\n- Name: Kettle; Price: 4500\n\n## Notes\n\n- Text."
    )


def test_a_damaged_spreadsheet_is_rejected() -> None:
    """A part of it is missing."""
    with pytest.raises(FileUnreadable, match="damaged"):
        read_spreadsheet(build_zip({"xl/workbook.xml": "<workbook/>"}), BYTES_MAX)


def test_the_text_is_limited() -> None:
    """Each row repeats the header."""
    rows: list[list[str | float]] = [["x", 1.0]] * 100
    sheets: Sheets = {"S": [["Name", "Price"], *rows]}
    with pytest.raises(TooLarge):
        read_spreadsheet(build_xlsx(sheets), 500)
