"""PDF files: paragraphs, headings, pages, metadata, and files that cannot be read."""

import datetime as dt

import pytest

from service.core.documents.readers.pdf import PAGES_MAX, read_pdf
from service.core.errors import FileUnreadable, TooLarge
from tests.fakes.files import build_pdf

BYTES_MAX = 1_000_000


def test_lines_become_paragraphs_and_pages_are_separated() -> None:
    """A larger font is a heading; a page break is a form feed on a line of its own."""
    pdf = build_pdf(["# Warranty\nThe warranty lasts two\nyears (24 months).", "Returns: 30 days."])

    assert read_pdf(pdf, BYTES_MAX).text == (
        "## Warranty\n\nThe warranty lasts two years (24 months).\n\f\nReturns: 30 days."
    )


def test_a_sentence_continues_on_the_next_page() -> None:
    """The page break is inside of the paragraph then."""
    assert (
        read_pdf(build_pdf(["It lasts", "two years."]), BYTES_MAX).text == "It lasts \ftwo years."
    )


def test_list_items_begin_paragraphs() -> None:
    """With bullets, numbers or letters."""
    text = read_pdf(build_pdf(["Parts:\n- the lens\n2. the bell\n(c) rope"]), BYTES_MAX).text

    assert text.split("\n\n") == ["Parts:", "- the lens", "2. the bell", "(c) rope"]


def test_title_and_date_come_from_the_metadata() -> None:
    """The time of the last change."""
    extracted = read_pdf(build_pdf(["Text."], title="User guide"), BYTES_MAX)

    assert (extracted.title, extracted.date) == ("User guide", dt.date(2024, 5, 6))


@pytest.mark.parametrize("title", ["Microsoft Word - Guide", "Guide"])
def test_the_title_is_not_that_of_a_program(title: str) -> None:
    """Word writes its own name in front of it."""
    assert read_pdf(build_pdf(["Text."], title=title), BYTES_MAX).title == "Guide"


@pytest.mark.parametrize("title", ["final.docx", "untitled", "---"])
def test_a_useless_title_is_none(title: str) -> None:
    """The name of the file is better then."""
    assert read_pdf(build_pdf(["Text."], title=title), BYTES_MAX).title == ""


def test_an_empty_page_counts() -> None:
    """Page numbers are those of the file."""
    assert read_pdf(build_pdf(["One.", "", "Three."]), BYTES_MAX).text.count("\f") == 2


def test_pages_without_text_need_ocr() -> None:
    """The message says what to do."""
    with pytest.raises(FileUnreadable, match="contains no text layer, only images; run OCR first"):
        read_pdf(build_pdf([""] * 3), BYTES_MAX)


def test_an_encrypted_pdf_is_rejected() -> None:
    """A password is required to read it."""
    encrypted = build_pdf(["Text."]).replace(
        b"/Root 1 0 R",
        b"/Root 1 0 R /ID [<00><00>] /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 "
        b"/O <" + b"41" * 32 + b"> /U <" + b"42" * 32 + b"> >>",
    )
    with pytest.raises(FileUnreadable, match="encrypted"):
        read_pdf(encrypted, BYTES_MAX)


def test_a_truncated_pdf_is_rejected() -> None:
    """Nothing of it can be read."""
    with pytest.raises(FileUnreadable, match="damaged or incomplete"):
        read_pdf(build_pdf(["Text."])[:40], BYTES_MAX)


def test_the_text_is_limited() -> None:
    """A small file can contain much text."""
    with pytest.raises(TooLarge, match="the text of the file is larger than 100 bytes"):
        read_pdf(build_pdf(["Some text. " * 8] * 3), 100)


@pytest.mark.slow
def test_the_number_of_pages_is_limited() -> None:
    """Up to `PAGES_MAX` pages are read."""
    assert read_pdf(build_pdf(["Text."] * PAGES_MAX), BYTES_MAX).text.count("\f") == PAGES_MAX - 1
    with pytest.raises(TooLarge, match="pages"):
        read_pdf(build_pdf(["Text."] * (PAGES_MAX + 1)), BYTES_MAX)
