"""Word documents."""

import datetime as dt
from xml.parsers.expat import ExpatError

import pytest

from service.core.documents.readers.archive import PART_BYTES_MAX
from service.core.documents.readers.docx import read_docx
from service.core.errors import FileUnreadable, TooLarge
from tests.fakes.files import build_docx, build_zip, word_paragraph, word_table

BYTES_MAX = 1_000_000


def test_headings_paragraphs_and_tables_are_read() -> None:
    """As Markdown."""
    body = (
        word_paragraph("Handbook", "Title")
        + word_paragraph("Warranty", "Heading1")
        + word_paragraph("Two years & more.")
        + word_table([["Item", "Price"], ["Kettle", "45"]])
    )
    text = read_docx(build_docx(body), BYTES_MAX).text

    assert "# Warranty\n\nTwo years & more.\n\n| Item | Price |\n|---|---|\n| Kettle | 45 |" in text


def test_title_and_date_come_from_the_properties() -> None:
    """The time of the last change."""
    extracted = read_docx(build_docx(word_paragraph("Text."), title="A & B"), BYTES_MAX)

    assert (extracted.title, extracted.date) == ("A & B", dt.date(2024, 5, 6))


def test_a_document_without_text_is_rejected() -> None:
    """It may contain images only."""
    with pytest.raises(FileUnreadable, match="contains no text"):
        read_docx(build_docx(""), BYTES_MAX)


@pytest.mark.slow
def test_a_large_part_is_rejected_before_it_is_parsed() -> None:
    """The parser would need many times its size."""
    noise = "".join(f"{n:x}" for n in range(PART_BYTES_MAX // 6))
    with pytest.raises(TooLarge, match="a part of the file"):
        read_docx(build_zip({"word/document.xml": noise * 2}), BYTES_MAX)


def test_external_entities_are_not_loaded() -> None:
    """A document cannot include files of the server."""
    body = "<w:p><w:r><w:t>Secret: &file;</w:t></w:r></w:p>"
    declaration = '<!DOCTYPE x [<!ENTITY file SYSTEM "/etc/passwd">]>'

    assert read_docx(build_docx(body, declaration=declaration), BYTES_MAX).text == "Secret:"


def test_internal_entities_do_not_multiply() -> None:
    """The parser limits their expansion."""

    def entity(n: int) -> str:
        return f"&e{n};"

    entities = "".join(f'<!ENTITY e{n + 1} "{10 * entity(n)}">' for n in range(9))
    declaration = f'<!DOCTYPE x [<!ENTITY e0 "lol">{entities}]>'
    body = "<w:p><w:r><w:t>&e9;</w:t></w:r></w:p>"
    with pytest.raises(ExpatError, match="amplification"):
        read_docx(build_docx(body, declaration=declaration), BYTES_MAX)
