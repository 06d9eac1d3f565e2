"""Books."""

import datetime as dt

import pytest

from service.core.documents.readers.epub import read_epub
from service.core.errors import FileUnreadable
from tests.fakes.files import build_epub, build_zip


def test_chapters_are_read_in_order() -> None:
    """As Markdown, with title and date of the book."""
    extracted = read_epub(build_epub(["<h1>One</h1><p>Text.", "<p>Two"], title="A & B"), 1000)

    assert (extracted.text, extracted.title, extracted.date) == (
        "# One\n\nText.\n\nTwo",
        "A & B",
        dt.date(2024, 5, 6),
    )


def test_an_encrypted_book_is_rejected() -> None:
    """Its chapters cannot be read."""
    with pytest.raises(FileUnreadable, match="DRM"):
        read_epub(build_epub(["x"], encrypted=True), 1000)


@pytest.mark.parametrize("container", ["<container/>", "<container><rootfile/></container>"])
def test_a_damaged_book_is_rejected(container: str) -> None:
    """Its package is missing."""
    with pytest.raises(FileUnreadable, match="damaged"):
        read_epub(build_zip({"META-INF/container.xml": container}), 1000)
