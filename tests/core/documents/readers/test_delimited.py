"""CSV and TSV."""

import pytest

from service.core.documents.readers.delimited import find_delimiter, read_delimited
from service.core.documents.readers.extracted import Format
from service.core.errors import FileUnreadable, NotText


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ('a,b\n"x, y",1\n', ","),
        ("a;b\n1,5;2,5\n", ";"),
        ("a\tb\nx, y\tz\n", "\t"),
        ("a|b\n1|2", "|"),
        ("A sentence, with a comma.\nAnother one.\nA third one.", None),
        ("", None),
    ],
)
def test_the_delimiter_divides_most_rows_equally(text: str, delimiter: str | None) -> None:
    """Quotation marks protect delimiters."""
    assert find_delimiter(text) == delimiter


def test_rows_contain_their_header() -> None:
    """In any encoding."""
    extracted = read_delimited("名前,価格\nやかん,4500\n".encode("cp932"), 1000)

    assert (extracted.text, extracted.encoding) == ("- 名前: やかん; 価格: 4500", "cp932")


def test_a_text_without_columns_is_kept() -> None:
    """Only its name is that of a table."""
    extracted = read_delimited(b"Just a text.\n", 1000)

    assert (extracted.text, extracted.format) == ("Just a text.\n", Format.TEXT)


def test_a_binary_file_is_rejected() -> None:
    """Only its name is that of a table."""
    with pytest.raises(NotText):
        read_delimited(bytes(range(256)), 1000)


def test_a_table_that_cannot_be_parsed_is_rejected() -> None:
    """With the reason."""
    with pytest.raises((FileUnreadable, NotText)):
        read_delimited(b"a,b\n1,2\n" + b"\0" * 20, 1000)
